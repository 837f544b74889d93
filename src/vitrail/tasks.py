"""The tasks: what a label is, and how the logits of a classifier become an answer. One row per task.

Higher layers have tables of their own by the same names: outcomes (`evaluation/outcomes.py`), losses
(`training/losses.py`). A new task is a row here and in each of them (docs/adr/0019); `tests/test_tasks.py` compares the
tables, and runs every verb on every task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from vitrail.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

TaskName = Literal["single_label", "multi_label", "grades", "regression"]
SINGLE_LABEL: TaskName = "single_label"
MULTI_LABEL: TaskName = "multi_label"
GRADES: TaskName = "grades"
REGRESSION: TaskName = "regression"
AnswerKind = Literal["class", "labels", "numbers"]
DEFAULT_THRESHOLD = 0.5  # of the probability of a label, until thresholds are chosen on validation images


@dataclass(frozen=True)
class Task:
    """A task. Y is the number of classes."""

    name: TaskName
    description: str  # completes "each image has ..."
    answer: AnswerKind  # what an image has: one class, a set of labels, or numbers
    default_loss: str
    score: str  # the validation score that selects the weights, the higher the better
    activation: str  # what turns logits into probabilities
    to_probabilities: "Callable[[Tensor], Tensor]"  # logits (..., Y) -> probabilities (..., Y)
    to_probabilities_array: Callable[[np.ndarray], np.ndarray]  # the same for arrays
    # logits (B, Y), labels -> images with the right answer; numbers are never right
    count_correct: "Callable[[Tensor, Tensor], Tensor] | None"
    refusals: Mapping[str, str] = field(default_factory=dict)  # verb or option -> why it does not work

    def refuse(self, verb: str) -> None:
        """Raises `UsageError` if a verb, or an option of it, does not work for the task."""
        if reason := self.refusals.get(verb):
            raise UsageError(reason, "docs/data.md lists what works with which task")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns the logistic function of each value."""
    small = np.exp(-np.abs(logits))  # never overflows
    probabilities: np.ndarray = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return probabilities


def count_best(logits_BY: "Tensor", labels_B: "Tensor") -> "Tensor":
    """Returns the number of images whose largest logit is that of their class."""
    return (logits_BY.argmax(1) == labels_B).sum()


ONE_CLASS = Task(
    SINGLE_LABEL,
    "one class",
    answer="class",
    default_loss="cross_entropy",
    score="accuracy",
    activation="softmax",
    to_probabilities=lambda logits: logits.softmax(-1),
    to_probabilities_array=softmax,
    count_correct=count_best,
)
TASKS: dict[str, Task] = {
    SINGLE_LABEL: ONE_CLASS,
    MULTI_LABEL: Task(
        MULTI_LABEL,
        "any number of labels",
        answer="labels",
        default_loss="binary_cross_entropy",
        score="map",
        activation="sigmoid",
        to_probabilities=lambda logits: logits.sigmoid(),
        to_probabilities_array=sigmoid,
        count_correct=lambda logits_BY, labels_BY: ((logits_BY > 0) == labels_BY).all(1).sum(),
        refusals={
            "faithfulness": "faithfulness is scored for images with one class, and these have several labels",
            "module": "a model that is not a ViT is trained for one class per image, and these have several labels",
            "balance=sampler": "balance sampler draws images by their class, and these have several labels; balance "
            "weights weights each label",
            "balance=logits": "balance logits shifts a softmax, and the labels of an image have none; balance weights "
            "weights each label",
            "corruptions": "corruptions are scored for images with one class, and these have several labels",
            "metric": "named metrics are for images with one class, and these have several labels",
            "top": "--top counts the most probable classes, and this classifier gives all labels above thresholds",
            "annotations": "files for COCO, FiftyOne and Label Studio have one class per image, and these have several",
        },
    ),
    GRADES: replace(
        ONE_CLASS, name=GRADES, description="one of several grades, which have an order", score="quadratic_kappa"
    ),
    REGRESSION: Task(
        REGRESSION,
        "numbers",
        answer="numbers",
        default_loss="mse_loss",
        score="r2",
        activation="identity",
        to_probabilities=lambda logits: logits,
        to_probabilities_array=lambda logits: logits,
        count_correct=None,
        refusals={
            "faithfulness": "faithfulness is scored for classes, and this model predicts numbers",
            "module": "a model that is not a ViT is trained for one class per image, and these have numbers",
            **dict.fromkeys(
                ("balance=weights", "balance=sampler", "balance=logits"),
                "balance is for classes, and these images have numbers",
            ),
            "web": "the web page shows probabilities, and predicted numbers have none",
            "corruptions": "corruptions are scored for classes, and this model predicts numbers",
            "metric": "named metrics are for classes, and this model predicts numbers",
            "top": "--top counts the most probable classes, and this model predicts numbers",
            "annotations": "files for COCO, FiftyOne and Label Studio have classes, and this model predicts numbers",
            "tta": "test-time augmentation averages probabilities, and this model predicts numbers",
            "labeling": "images are ranked by the margin between classes, and this model predicts numbers",
            "unlike": "unlike images are compared by probabilities, and this model predicts numbers",
            "fit_temperature": "a temperature changes probabilities, and this model predicts numbers",
            "cutmix": "CutMix pastes a part of another image, and no number belongs to that mixture",
            "label_smoothing": "label smoothing is for classes, and these images have numbers",
        },
    ),
}  # fmt: skip


def has_one_class(task: str) -> bool:
    """Returns whether an image has one class of several, with or without an order."""
    return TASKS[task].answer == "class"


def refuse_task(task: str, verb: str) -> None:
    """Raises `UsageError` if a verb, or an option of it, does not work for a task."""
    TASKS[task].refuse(verb)


def exceeds(probabilities: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Returns which labels are predicted, (..., Y): those with at least their threshold; 0.5 without thresholds."""
    limits = np.asarray(thresholds or (DEFAULT_THRESHOLD,))
    predicted: np.ndarray = probabilities >= limits
    return predicted
