"""Faithfulness of the explanation methods on this model."""

from typing import Any

from vitrail.errors import UsageError
from vitrail.explanation.faithfulness import evaluate_faithfulness
from vitrail.explanation.methods import DEFAULT_METHOD
from vitrail.report.subject import SampleSizes, Subject

METHODS_IN_REPORT = (DEFAULT_METHOD, "chefer", "attention", "rollout")  # fast enough for every report
MIN_IMAGES = 30


def collect_faithfulness(subject: Subject, sizes: SampleSizes) -> tuple[dict[str, Any] | None, str | None]:
    """Returns the scores of the methods; or None and the reason why they were not computed."""
    if not sizes.faithfulness:
        return None, "it takes too long for a model of this size on this device"
    if len(subject.images) < MIN_IMAGES:
        return None, f"at least {MIN_IMAGES} images are needed"
    try:
        result = evaluate_faithfulness(
            subject.classifier,
            subject.images,
            methods=METHODS_IN_REPORT,
            max_images=sizes.faithfulness,
            description=subject.evaluation.description,
        )
    except UsageError as error:
        return None, error.sentence
    return result.to_json() | {"default_method": DEFAULT_METHOD}, None
