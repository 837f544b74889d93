"""The JSON documents of an evaluation with several labels per image, as types, like those of `documents`."""

from typing import NotRequired, TypedDict

from vitrail.image_documents import UnlikeEvaluation, UnreadableFile


class MultiLabelAverages(TypedDict):
    """Averages over labels, with 95% intervals; None for an interval if no resample gives a number."""

    map: float
    macro_f1: float
    micro_f1: float
    map_interval: list[float] | None
    macro_f1_interval: list[float] | None
    micro_f1_interval: list[float] | None
    resamples: int


class MultiLabelScores(MultiLabelAverages):
    """The scores over all images of a split with several labels per image: `MultiLabelEvaluation.summary`."""

    task: str
    accuracy: float
    accuracy_interval: list[float]
    loss: float
    ece: float
    labels_per_image: float
    temperature: float
    images: int
    unreadable: int
    optimistic: NotRequired[bool]


class LabelScores(TypedDict):
    """The scores of a label; None where they are not defined. The classifiers of several folds have no `threshold`."""

    ap: float | None
    ap_interval: list[float] | None
    precision: float | None
    recall: float | None
    f1: float | None
    f1_interval: list[float] | None
    ece: float
    ece_corrected: float
    ece_interval: list[float]
    threshold: float | None
    images: int
    predicted: int


class CoOccurrence(TypedDict):
    """How many images have both labels of each pair; on the diagonal, how many have the label."""

    classes: list[str]
    images: list[list[int]]


class ScoredLabels(TypedDict):
    """An image, its labels, the predicted labels, and the probability of each label."""

    path: str
    true: list[str]
    labels: list[str]
    probabilities: dict[str, float]


class MultiLabelDocument(MultiLabelScores):
    """All scores of an evaluation with several labels per image: `MultiLabelEvaluation.to_json`."""

    data: str
    per_class: dict[str, LabelScores]
    co_occurrence: CoOccurrence
    unreadable_files: list[UnreadableFile]
    predictions: list[ScoredLabels]
    unlike: NotRequired[UnlikeEvaluation]
