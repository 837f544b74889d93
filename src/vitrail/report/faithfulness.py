"""How far this model's maps can be believed."""

from typing import Any

from vitrail.errors import UsageError
from vitrail.explanation import DEFAULT_METHOD, METHODS
from vitrail.explanation.faithfulness import evaluate_faithfulness
from vitrail.report.subject import SampleSizes, Subject

FAITHFUL = (DEFAULT_METHOD, "chefer", "attention", "rollout")  # cheap enough to be scored in every report
FEWEST_SCORED = 30  # images below which scores of maps are chance


def believed(subject: Subject, depth: SampleSizes) -> tuple[dict[str, Any] | None, str | None]:
    """How far this model's maps can be believed; or None, and why that was left out or cannot be measured."""
    if not depth.scored:
        return None, "for a model of this size on this device it would take long"
    if len(subject.images) < FEWEST_SCORED:
        return None, f"it takes {FEWEST_SCORED} images to say anything"
    methods = [name for name in FAITHFUL if name in METHODS]
    try:
        scored = evaluate_faithfulness(
            subject.classifier,
            subject.images,
            methods=methods,
            max_images=depth.scored,
            description=subject.evaluation.description,
        )
    except UsageError as error:
        return None, error.sentence
    return scored.to_json() | {"default": DEFAULT_METHOD}, None
