"""The JSON documents about single images, as types, like those of `documents`."""

from typing import NotRequired, TypedDict


class UnreadableFile(TypedDict):
    """An image that could not be read."""

    path: str
    error: str


class UnlikeDocument(TypedDict):
    """How to read the quantiles `unlike` of an answer, or a hint how to get them if they are not fitted."""

    fitted: bool
    hint: NotRequired[str]
    images: NotRequired[int]
    fitted_on: NotRequired[str]
    threshold: NotRequired[float]


class UnlikeScore(TypedDict):
    """How well a score tells outside images from known ones: the larger the area, and the lower the rate, the better.

    `fpr95` is the fraction of the outside images that pass where 95% of the known images pass.
    """

    auroc: float
    auroc_interval: list[float]
    fpr95: float
    fpr95_interval: list[float]


class UnlikeEvaluation(TypedDict):
    """How well each score tells the images of a folder from those that were scored."""

    outside: str
    outside_images: int
    known_images: int
    default: str
    scores: dict[str, UnlikeScore]
    flagged: NotRequired[dict[str, float]]
    fit: UnlikeDocument
    unreadable_files: list[UnreadableFile]


class SimilarImage(TypedDict):
    """An image of the data and the cosine of its features with those of another image."""

    path: str
    label: str
    split: str
    similarity: float


class SimilarDocument(TypedDict):
    """An image and the images of the data that are most similar to it, the most similar first."""

    path: str
    similar: list[SimilarImage]


class PredictedClass(TypedDict):
    """A class, or a label, and its predicted probability."""

    label: str
    probability: float


class LabelingRow(TypedDict):
    """An image to label next, and what is predicted for it now: two classes, or the labels above their thresholds."""

    path: str
    top: list[PredictedClass]


class AugmentationDocument(TypedDict):
    """What averaging over views of an image changes on validation images: `forwards` is the cost of an image."""

    views: str
    forwards: int
    images: int
    accuracy: float
    augmented_accuracy: float
    change: float
    change_interval: list[float]
    loss: float
    augmented_loss: float
    pays: bool
