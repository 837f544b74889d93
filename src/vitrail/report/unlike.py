"""The images of the scored split that are most unlike the validation images."""

from typing import Any

import numpy as np

from vitrail.evaluation.outcome import ImageLogits
from vitrail.weights.unlike import UnlikeFacts, describe_unlike


def collect_unlike(outcome: ImageLogits, facts: UnlikeFacts | None, examples: int) -> dict[str, Any]:
    """Returns how many images reach the threshold, and the `examples` most unlike of them, or how to fit it.

    They are sorted by distance: several images may be farther away than all validation images.
    """
    if facts is None or outcome.distances is None:
        return {**describe_unlike(None), "examples": []}
    quantiles = facts.find_quantiles(outcome.distances)
    farthest = np.argsort(-outcome.distances, kind="stable")[:examples]
    return {
        **describe_unlike(facts),
        "reached": int((quantiles >= facts.threshold).sum()),
        "examples": [
            {"image": int(i), "path": outcome.paths[i], "unlike": float(quantiles[i])}
            for i in farthest
            if quantiles[i] >= facts.threshold
        ],
    }
