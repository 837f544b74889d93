"""The JSON documents of an evaluation of predicted numbers, as types, like those of `documents`."""

from typing import NotRequired, TypedDict

from vitrail.image_documents import UnreadableFile


class NumberAverages(TypedDict):
    """Errors of one number, or their means over several, with 95% intervals; None for one image or one group.

    `baseline_mae` is the mean absolute error of always predicting the median of the scored images.
    """

    mae: float
    mae_interval: list[float] | None
    rmse: float
    rmse_interval: list[float] | None
    r2: float
    r2_interval: list[float] | None
    baseline_mae: float


class NumberScores(NumberAverages):
    """The scores over all images of a split with numbers: `NumberEvaluation.summary`."""

    task: str
    numbers: int  # per image
    loss: float
    resamples: int
    images: int
    unreadable: int
    optimistic: NotRequired[bool]


class ErrorsOfNumber(NumberAverages):
    """The errors of one number; `mean_error` is positive if predictions are too high."""

    mean_error: float
    mean_error_interval: list[float] | None
    smallest: float
    largest: float


class ScoredNumbers(TypedDict):
    """An image, its numbers and the predicted ones, by name."""

    path: str
    true: dict[str, float]
    predicted: dict[str, float]


class NumberDocument(NumberScores):
    """All scores of an evaluation of numbers: `NumberEvaluation.to_json`."""

    data: str
    per_number: dict[str, ErrorsOfNumber]
    unreadable_files: list[UnreadableFile]
    predictions: list[ScoredNumbers]
