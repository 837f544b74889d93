"""Outcomes and evaluations by task: one row per task in each table."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, Unpack

from vitrail.classifier import BaseClassifier
from vitrail.data.images import Images
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.grades import GradeEvaluation, quadratic_kappa
from vitrail.evaluation.metrics import balanced_accuracy, check_metrics, compute_metrics
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.multi_label_evaluation import MultiLabelEvaluation
from vitrail.evaluation.numbers import NumberEvaluation, NumberOutcome
from vitrail.evaluation.outcome import ImageLogits, Outcome, OutcomeOptions, compute_logits
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, refuse_task

AnyOutcome: TypeAlias = Outcome | MultiLabelOutcome | NumberOutcome
AnyEvaluation: TypeAlias = Evaluation | MultiLabelEvaluation | NumberEvaluation

OUTCOMES: dict[str, Callable[[ImageLogits, tuple[float, ...]], Any]] = {  # (logits, thresholds of labels)
    SINGLE_LABEL: lambda logits, thresholds: Outcome(**vars(logits)),
    MULTI_LABEL: lambda logits, thresholds: MultiLabelOutcome(**vars(logits), thresholds=thresholds),
    GRADES: lambda logits, thresholds: Outcome(**vars(logits)),
    REGRESSION: lambda logits, thresholds: NumberOutcome(**vars(logits)),
}
EVALUATIONS: dict[str, Callable[..., Any]] = {
    SINGLE_LABEL: Evaluation,
    MULTI_LABEL: MultiLabelEvaluation,
    GRADES: GradeEvaluation,
    REGRESSION: NumberEvaluation,
}
VALIDATION_SCORES: dict[str, dict[str, Callable[[Any], float]]] = {  # what each validation measures
    SINGLE_LABEL: {
        "loss": lambda outcome: outcome.loss,
        "accuracy": lambda outcome: outcome.accuracy,
        "balanced_accuracy": balanced_accuracy,
    },
    MULTI_LABEL: {
        "loss": lambda outcome: outcome.loss,
        "accuracy": lambda outcome: outcome.accuracy,
        "map": lambda outcome: outcome.map,
    },
    GRADES: {
        "loss": lambda outcome: outcome.loss,
        "accuracy": lambda outcome: outcome.accuracy,
        "balanced_accuracy": balanced_accuracy,
        "quadratic_kappa": quadratic_kappa,
    },
    REGRESSION: {
        "loss": lambda outcome: outcome.loss,
        "mae": lambda outcome: outcome.mae,
        "r2": lambda outcome: outcome.r2,
    },
}


def compute_any_outcome(classifier: BaseClassifier, images: Images, **options: Unpack[OutcomeOptions]) -> AnyOutcome:
    """Returns the outcome of the classifier's task; the options and errors are those of `compute_logits`."""
    logits = compute_logits(classifier, images, **options)
    outcome: AnyOutcome = OUTCOMES[classifier.task](logits, classifier.thresholds)
    return outcome


def evaluate_any(
    classifier: BaseClassifier,
    images: Images,
    *,
    description: str = "",
    optimistic: bool = False,
    metrics: Sequence[str] = (),
    **options: Unpack[OutcomeOptions],
) -> AnyEvaluation:
    """Returns the scores of a classifier on labeled images, whatever its task; otherwise as `evaluate`."""
    if metrics:
        refuse_task(classifier.task, "metric")
        check_metrics(metrics)
    outcome = compute_any_outcome(classifier, images, **options)
    return score_any(outcome, classifier, description or f"{len(images)} images", optimistic, metrics)


def score_any(
    outcome: AnyOutcome, classifier: BaseClassifier, description: str, optimistic: bool, metrics: Sequence[str] = ()
) -> AnyEvaluation:
    """Returns the evaluation of a known outcome."""
    named = {"metrics": compute_metrics(outcome, metrics)} if isinstance(outcome, Outcome) else {}
    make = EVALUATIONS[classifier.task]
    evaluation: AnyEvaluation = make(outcome, description, classifier.temperature, optimistic, **named)
    return evaluation
