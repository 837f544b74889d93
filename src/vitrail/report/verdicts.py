"""The statistical verdicts of a report. Where there is nothing to find, each is wrong in at most 5% of reports.

The families of tests are corrected for their size (Holm 1979, Bonferroni), and a class with fewer than
`MIN_VERDICT_IMAGES` images gets no verdict.
"""

from typing import Any

import numpy as np

from vitrail.intervals import (
    FALSE_FINDINGS,
    holm,
    homogeneity_p_value,
    lower_tail_p_values,
    t_interval,
)

MIN_VERDICT_IMAGES = 20


def compare_classes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the classes whose recall is below that of the other classes, lowest first, and how many were compared.

    `rows` have the class, its recall and its number of images. Each class is compared with all others together, by
    Fisher's exact test.
    """
    judged = [row for row in rows if row["images"] >= MIN_VERDICT_IMAGES]
    result: dict[str, Any] = {"min_images": MIN_VERDICT_IMAGES, "judged_classes": len(judged), "weak_classes": []}
    if len(judged) < 2:
        return result
    n = np.array([row["images"] for row in judged])
    correct = np.round(n * np.array([row["recall"] for row in judged])).astype(int)
    weak = [row for row, is_weak in zip(judged, holm(lower_tail_p_values(correct, n)), strict=True) if is_weak]
    result["weak_classes"] = [row["class"] for row in sorted(weak, key=lambda row: row["recall"])]
    return result


def exceeds(groups: list[np.ndarray], limit: float) -> list[bool]:
    """Returns for each group of values whether its mean is above `limit`, by one-sided t-tests.

    A group with fewer than `MIN_VERDICT_IMAGES` values is never above. The correction is for all larger groups.
    """
    judged = sum(len(values) >= MIN_VERDICT_IMAGES for values in groups)
    level = 1 - 2 * FALSE_FINDINGS / max(judged, 1)
    intervals = [t_interval(values, level) if len(values) >= MIN_VERDICT_IMAGES else None for values in groups]
    return [interval is not None and interval[0] > limit for interval in intervals]


def find_dependencies(bins: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns the properties on which the accuracy depends, given their bins, by an exact permutation test for each."""
    generator = np.random.Generator(np.random.Philox(0))
    p_values = []
    for rows in bins.values():
        n = np.array([row["images"] for row in rows])
        correct = np.round(n * np.array([row["accuracy"] for row in rows])).astype(int)
        p_values.append(homogeneity_p_value(correct, n, generator))
    return [name for name, depends in zip(bins, holm(np.array(p_values)), strict=True) if depends]
