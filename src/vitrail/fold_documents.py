"""The JSON documents of a cross-validation, as types, like those of `documents`."""

from typing import NotRequired, TypedDict


class FoldRow(TypedDict):
    """The scores of a fold: of classes, labels, grades (which have those of classes too) or numbers."""

    fold: int
    run: str
    images: int
    loss: float
    best_epoch: int | None
    seconds: float
    accuracy: NotRequired[float]
    balanced_accuracy: NotRequired[float]
    macro_f1: NotRequired[float]
    map: NotRequired[float]
    micro_f1: NotRequired[float]
    quadratic_kappa: NotRequired[float]
    grade_mae: NotRequired[float]
    mae: NotRequired[float]
    rmse: NotRequired[float]
    r2: NotRequired[float]


class FoldSummary(TypedDict):
    """What a cross-validation of any task has beside the scores of all predictions."""

    data: str
    folds: int
    recipe: str
    interval: str
    interval_units: str
    fold_mean: dict[str, float]
    fold_sd: dict[str, float]
    rows: list[FoldRow]
