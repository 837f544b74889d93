"""The types of the JSON documents of exports (`documents.py` has the others)."""

from typing import Literal, NotRequired, TypedDict

DifferenceKey = Literal[
    "attention_difference", "map_difference", "unlike_difference", "unlike_distance_difference"
]  # of the outputs beside the logits


class VerificationDocument(TypedDict):
    """How the outputs of an exported program compare with the classifier's; accuracies only of labeled images."""

    compared_on: str
    images: int
    max_difference: float
    agreement: NotRequired[float]  # of the most probable class; numbers have none
    batch_difference: float
    attention_difference: NotRequired[float]
    map_difference: NotRequired[float]
    unlike_difference: NotRequired[float]
    unlike_distance_difference: NotRequired[float]
    accuracy: NotRequired[float]
    exported_accuracy: NotRequired[float]
    accuracy_drop: NotRequired[float]
    accuracy_drop_interval: NotRequired[list[float]]


class Int8Document(TypedDict):
    """Size and speed of a program with 8-bit weights, and of the same program in float32."""

    float_bytes: int
    bytes: int
    float_milliseconds: float
    milliseconds: float
    calibrated_on: NotRequired[str]  # images that chose fixed scales of the activations; absent if they have none


class ExportDocument(VerificationDocument):
    """An exported program: `ExportResult.to_json`."""

    file: str
    format: str
    bytes: int
    outputs: list[str]
    int8: NotRequired[Int8Document]


class LibraryComparison(TypedDict):
    """How the outputs of another library compare with the classifier's; None and 0 if it is not installed."""

    compared_on: str | None
    max_difference: float | None
    agreement: float | None
    images: int


class LibraryDocument(LibraryComparison):
    """An exported folder for another library: `ExportedLibrary.to_json`."""

    file: str
    format: str
    load_code: str
    note: str | None
    not_compared: NotRequired[str | None]
