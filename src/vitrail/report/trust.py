"""How far this model's maps can be believed."""

from typing import Any

from vitrail.errors import UsageError
from vitrail.explain import DEFAULT, METHODS
from vitrail.explain.faithfulness import faithfulness
from vitrail.report.subject import Depth, Subject

FAITHFUL = (DEFAULT, "generic", "attention", "rollout")  # cheap enough to be scored in every report
FEWEST_SCORED = 30  # images below which scores of maps are chance


def believed(subject: Subject, depth: Depth) -> dict[str, Any] | None:
    """How far this model's maps can be believed; None where that was left out or cannot be measured."""
    if not depth.scored or len(subject.images) < FEWEST_SCORED:
        return None
    methods = [name for name in FAITHFUL if name in METHODS]
    try:
        scored = faithfulness(
            subject.classifier, subject.images, methods=methods, most=depth.scored, said=subject.evaluation.said
        )
    except UsageError:
        return None
    return scored.to_json() | {"default": DEFAULT}


def left_out(subject: Subject, depth: Depth) -> dict[str, str]:
    """Why parts are missing, in words."""
    if not depth.scored:
        return {"faithfulness": "for a model of this size on this device it would take long"}
    return {"faithfulness": f"it takes {FEWEST_SCORED} images, and parts of them, to say anything"}
