"""The JSON documents that functions return and files hold, as types.

A key that is `NotRequired` is left out where it does not apply. Intervals are lists of two numbers, since JSON has
no tuples.
"""

from typing import Literal, NotRequired, TypedDict

from vitrail.fold_documents import FoldRow as FoldRow
from vitrail.fold_documents import FoldSummary
from vitrail.image_documents import UnlikeEvaluation, UnreadableFile
from vitrail.label_documents import MultiLabelScores
from vitrail.number_documents import NumberScores
from vitrail.probe_documents import ProbeDocument, TaskScores

SettingValue = str | int | float | bool | None  # of a field of the recipe


class PartDocument(TypedDict):
    """A registered part, as files name it; `callable` if it was passed as a callable, without a name."""

    kind: str
    name: str
    module: str
    callable: NotRequired[bool]


class PreprocessDocument(TypedDict):
    """The fields of a preprocessing: `Preprocess.to_json`. A file has lists for the tuples."""

    image_size: tuple[int, int]
    fit: str
    crop_fraction: float
    interpolation: str
    engine: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_size: int
    trim: NotRequired[tuple[int, int]]
    values: NotRequired[str]
    shown: NotRequired[tuple[int, ...]]


class Averages(TypedDict):
    """Scores that count all classes alike, with 95% intervals."""

    balanced_accuracy: float
    balanced_accuracy_interval: list[float]
    macro_f1: float
    macro_f1_interval: list[float]
    f1_intervals: dict[str, list[float] | None]  # by class; None for one that neither occurs nor is predicted


class GroupSummary(TypedDict):
    """How the accuracy differs between groups of images."""

    groups: int
    lowest: float
    median: float
    highest: float
    differ_p_value: float
    worse: list[str]


class GroupRow(TypedDict):
    """The accuracy of a group of images."""

    group: str
    images: int
    accuracy: float
    interval: list[float]


class GradeAverages(TypedDict, total=False):
    """Scores that know the order of the grades, with their 95% intervals."""

    quadratic_kappa: float
    quadratic_kappa_interval: list[float]
    grade_mae: float
    grade_mae_interval: list[float]
    within_one: float
    within_one_interval: list[float]


class Scores(GradeAverages):
    """The scores over all images of a split: `Evaluation.summary`; of grades also `GradeAverages`.

    With several labels per image, `task` is multi_label, and a run has the scores of `MultiLabelEvaluation.summary`.
    For numbers it is regression, and they are those of `NumberEvaluation.summary`.
    """

    task: NotRequired[str]
    accuracy: float
    accuracy_interval: list[float]
    balanced_accuracy: float
    balanced_accuracy_interval: list[float]
    macro_f1: float
    macro_f1_interval: list[float]
    top5: NotRequired[float]
    loss: float
    ece: float
    ece_corrected: float
    ece_interval: list[float]
    brier: float
    temperature: float
    images: int
    unreadable: int
    groups: NotRequired[GroupSummary]
    metrics: NotRequired[dict[str, float]]
    optimistic: NotRequired[bool]


class ClassScores(TypedDict):
    """The scores of a class; None where they are not defined."""

    precision: float | None
    recall: float | None
    f1: float | None
    images: int


class Confusion(TypedDict):
    """The confusion matrix: a row for each true class, a column for each predicted one."""

    classes: list[str]
    matrix: list[list[int]]


class ConfusedPair(TypedDict):
    """The number of images of a class that were predicted as another."""

    true: str
    predicted: str
    images: int


class ScoredImage(TypedDict):
    """An image, its class, and the most probable class."""

    path: str
    true: str
    label: str
    probability: float


class EvaluationDocument(Scores):
    """All scores of an evaluation: `Evaluation.to_json`."""

    data: str
    per_class: dict[str, ClassScores]
    per_group: NotRequired[list[GroupRow]]
    confusion: Confusion
    most_confused: list[ConfusedPair]
    unreadable_files: list[UnreadableFile]
    predictions: list[ScoredImage]
    unlike: NotRequired[UnlikeEvaluation]


class HookScores(GradeAverages):
    """The scores that callbacks get: `loss`, the main ones of the task, and all of `Scores` at the end of the run.

    Numbers have no `accuracy`.
    """

    loss: float
    accuracy: NotRequired[float]
    accuracy_interval: NotRequired[list[float]]
    balanced_accuracy: NotRequired[float]
    balanced_accuracy_interval: NotRequired[list[float]]
    mae: NotRequired[float]
    mae_interval: NotRequired[list[float] | None]
    rmse: NotRequired[float]
    rmse_interval: NotRequired[list[float] | None]
    r2: NotRequired[float]
    r2_interval: NotRequired[list[float] | None]
    baseline_mae: NotRequired[float]
    numbers: NotRequired[int]
    map: NotRequired[float]
    map_interval: NotRequired[list[float] | None]
    macro_f1: NotRequired[float]
    macro_f1_interval: NotRequired[list[float] | None]
    micro_f1: NotRequired[float]
    micro_f1_interval: NotRequired[list[float] | None]
    top5: NotRequired[float]
    ece: NotRequired[float]
    ece_corrected: NotRequired[float]
    ece_interval: NotRequired[list[float]]
    brier: NotRequired[float]
    labels_per_image: NotRequired[float]
    resamples: NotRequired[int]
    temperature: NotRequired[float]
    images: NotRequired[int]
    unreadable: NotRequired[int]
    task: NotRequired[str]
    groups: NotRequired[GroupSummary]
    metrics: NotRequired[dict[str, float]]
    optimistic: NotRequired[bool]


class EarlyStop(TypedDict):
    """When and why a training stopped early."""

    epoch: int
    epochs: int
    step: int
    callback: str
    reason: str


class TeachingRow(TaskScores):
    """A model beside its teacher or student; images per second of the model alone, on the machine of the run."""

    model: str
    images_per_second: float
    parameters: NotRequired[int]


class RunResult(TypedDict):
    """The content of result.json: `Run.result`. It has the scores of one split, or of none."""

    seconds: float
    best_epoch: NotRequired[int]
    stopped_early: NotRequired[EarlyStop]
    unreadable: NotRequired[dict[str, int]]
    test: NotRequired[Scores]
    validation: NotRequired[Scores]
    probe: NotRequired[ProbeDocument]
    teaching: NotRequired[list[TeachingRow]]
    verdict: NotRequired[str | None]


class RunDocument(RunResult):
    """The folder of a run and its result: `Run.to_json`."""

    run: str


class CrossValidationResult(Scores, FoldSummary):
    """The content of cross_validation.json: `CrossValidation.result`. The scores are those of all predictions.

    With several labels or numbers they are those of `LabelCrossValidation` and `NumberCrossValidation`.
    """

    seconds: float


class LabelCrossValidation(MultiLabelScores, FoldSummary):
    """The content of cross_validation.json with several labels per image."""

    seconds: float


class NumberCrossValidation(NumberScores, FoldSummary):
    """The content of cross_validation.json with numbers."""

    seconds: float


class CrossValidationDocument(CrossValidationResult):
    """The folder of a cross-validation, its result, and the folder of the final run: `CrossValidation.to_json`."""

    run: str
    final: NotRequired[str]


class TrialRow(TypedDict):
    """A trial of a sweep, with the scores of its task; scores are None until it has any, or an interval."""

    trial: int
    rank: int | None
    state: Literal["complete", "pruned", "failed", "running"]
    values: dict[str, SettingValue]
    accuracy: NotRequired[float | None]
    accuracy_interval: NotRequired[list[float] | None]
    balanced_accuracy: NotRequired[float | None]
    balanced_accuracy_interval: NotRequired[list[float] | None]
    macro_f1: NotRequired[float | None]
    macro_f1_interval: NotRequired[list[float] | None]
    micro_f1: NotRequired[float | None]
    micro_f1_interval: NotRequired[list[float] | None]
    map: NotRequired[float | None]
    map_interval: NotRequired[list[float] | None]
    quadratic_kappa: NotRequired[float | None]
    quadratic_kappa_interval: NotRequired[list[float] | None]
    grade_mae: NotRequired[float | None]
    grade_mae_interval: NotRequired[list[float] | None]
    mae: NotRequired[float | None]
    mae_interval: NotRequired[list[float] | None]
    rmse: NotRequired[float | None]
    rmse_interval: NotRequired[list[float] | None]
    r2: NotRequired[float | None]
    r2_interval: NotRequired[list[float] | None]
    loss: float | None
    epochs: int | None
    seconds: float | None
    run: str
    error: NotRequired[str]
    restarts: NotRequired[int]


class TrialOnTest(RunDocument):
    """The best trial, scored on test."""

    trial: int


class SweepResult(TypedDict):
    """The content of sweep.json: `Sweep.result`."""

    sweep: str
    data: str
    recipe: str
    task: str
    metric: str
    score: str  # that tables show, with its interval
    validation_images: int
    trials: int
    complete: int
    pruned: int
    failed: int
    seconds: float
    best: TrialRow | None
    indistinguishable: int
    command: str | None
    rows: list[TrialRow]
    importance: NotRequired[dict[str, float] | None]
    best_on_test: NotRequired[TrialOnTest]


class PredictTotals(TypedDict):
    """The totals of a prediction into files: `PredictSummary.to_json`."""

    out: str
    images: int
    unreadable: int
    labels: dict[str, int]
    parts: int
    parts_done: int
    over_8_bits: int
    over_8_bits_example: str | None
    resumed: int
    seconds: float
    complete: bool
    images_per_second: float
    unreadable_files: list[UnreadableFile]
