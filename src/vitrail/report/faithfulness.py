"""Faithfulness of the explanation methods on this model."""

from collections.abc import Callable
from typing import Any

from vitrail.data.images import Images
from vitrail.errors import UsageError
from vitrail.explanation.faithfulness import evaluate_faithfulness
from vitrail.explanation.methods import DEFAULT_METHOD
from vitrail.report.budget import Budget, BudgetExceeded
from vitrail.report.subject import Subject

METHODS_IN_REPORT = (DEFAULT_METHOD, "chefer", "attention", "rollout")  # fast enough for every report
MIN_IMAGES = 30
TOO_SLOW = "it takes too long for a model of this size on this device"
NO_TIME = "the report of a run takes at most a quarter of the time of training"


def collect_faithfulness(
    subject: Subject, images: Images, budget: Budget, on_step: Callable[[str], object] = lambda name: None
) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the scores of the methods on these images; or None and the reason why they were not computed.

    `on_step` receives the name of each method as it begins.
    """
    if len(subject.images) < MIN_IMAGES:
        return None, f"at least {MIN_IMAGES} images are needed"
    if not len(images):
        return None, TOO_SLOW if budget.seconds is None else NO_TIME

    def begin(name: str) -> None:
        budget.check()
        on_step(name)

    try:
        result = evaluate_faithfulness(
            subject.classifier,
            images,
            methods=METHODS_IN_REPORT,
            max_images=len(images),
            description=subject.evaluation.description,
            on_step=begin,
        )
    except UsageError as error:
        return None, error.sentence
    except BudgetExceeded:
        return None, NO_TIME
    return result.to_json() | {"default_method": DEFAULT_METHOD}, None
