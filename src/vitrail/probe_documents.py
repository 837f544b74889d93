"""The JSON documents of the probes of features, as types, like those of `documents`."""

from typing import NotRequired, TypedDict


class TaskScores(TypedDict):
    """The main scores of a task, with 95% intervals.

    Classes have accuracy, grades also kappa; several labels have mAP, F1 and subset accuracy, numbers the mean absolute
    error and R2.
    """

    accuracy: NotRequired[float]
    accuracy_interval: NotRequired[list[float]]
    quadratic_kappa: NotRequired[float]
    quadratic_kappa_interval: NotRequired[list[float]]
    map: NotRequired[float]
    map_interval: NotRequired[list[float] | None]
    macro_f1: NotRequired[float]
    macro_f1_interval: NotRequired[list[float] | None]
    micro_f1: NotRequired[float]
    micro_f1_interval: NotRequired[list[float] | None]
    mae: NotRequired[float]
    mae_interval: NotRequired[list[float] | None]
    r2: NotRequired[float]
    r2_interval: NotRequired[list[float] | None]


class ProbeScores(TaskScores):
    """The scores of a probe; empty if no image is held out."""

    optimistic: NotRequired[bool]
    images: NotRequired[int]


class KnnScores(ProbeScores):
    """The scores of the nearest neighbors."""

    k: int
    temperature: float


class LinearScores(ProbeScores):
    """The scores of the linear head; `optimistic` if its penalty was chosen on the scored images."""

    penalty: float


class ProbeDocument(TypedDict):
    """The scores of both probes: `Probe.to_json`. `optimistic` scores are of images on which something was chosen."""

    task: NotRequired[str]  # results of older runs have none
    split: str | None
    train_images: int
    unreadable: dict[str, int]
    seconds: float
    knn: KnnScores
    linear: LinearScores
