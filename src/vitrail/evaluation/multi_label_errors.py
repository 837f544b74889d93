"""Images whose labels may be wrong: a label that is missing, or one that does not belong there."""

from typing import Any

import numpy as np

from vitrail.evaluation.multi_label import MultiLabelOutcome


def find_label_errors(outcome: MultiLabelOutcome, max_errors: int | None = None) -> list[dict[str, Any]]:
    """Returns suspected errors, the most confident first: image, class, kind (missing or wrong), probability, margin.

    It is confident learning (Northcutt et al. 2021) for each class alone. A label may be missing if its probability is
    at least the mean over the images that have it; it may be wrong if that of its absence is at least the mean over
    the images without it. `margin` is the distance to that mean. A class that all images have, or none, has no
    suspects.
    """
    labels, probabilities = outcome.labels == 1, outcome.probabilities
    suspects: list[dict[str, Any]] = []
    for k in range(len(outcome.classes)):
        present, p = labels[:, k], probabilities[:, k]
        if present.all() or not present.any():
            continue
        limit_present, limit_absent = float(p[present].mean()), float((1 - p[~present]).mean())
        missing = np.flatnonzero(~present & (p >= limit_present) & (p > 1 - p))
        wrong = np.flatnonzero(present & (1 - p >= limit_absent) & (1 - p > p))
        for kind, members, margins in (
            ("missing", missing, p[missing] - limit_present),
            ("wrong", wrong, 1 - p[wrong] - limit_absent),
        ):
            suspects += [
                {"image": int(i), "class": k, "kind": kind, "probability": float(p[i]), "margin": float(margin)}
                for i, margin in zip(members, margins, strict=True)
            ]
    suspects.sort(key=lambda each: (-each["margin"], each["image"], each["class"]))
    return suspects[:max_errors]
