"""Scores of groups: how accuracy differs between patients, videos or bursts, and intervals that count groups.

Images of a group are alike, so they are not independent: intervals are over groups instead of images.
"""

from dataclasses import dataclass

import numpy as np

from vitrail.data.labels import factorize
from vitrail.documents import GroupRow, GroupSummary
from vitrail.intervals import (
    Interval,
    grouped_proportion_interval,
    holm,
    homogeneity_p_value,
    lower_tail_p_values,
    wilson_interval,
)

MIN_GROUP_IMAGES = 5  # of a group that is called worse than the others


@dataclass(frozen=True)
class GroupScores:
    """Images and correct predictions of each group, (G,), by the name of the group."""

    names: tuple[str, ...]
    images: np.ndarray
    correct: np.ndarray

    @property
    def accuracy_interval(self) -> Interval:
        """The 95% interval of the accuracy of all images, over groups."""
        return grouped_proportion_interval(self.correct, self.images)

    def summary(self) -> GroupSummary:
        """Returns the number of groups, their lowest, median and highest accuracy, and the test that they differ.

        `differ_p_value` is that of the hypothesis that all groups have the same accuracy; `worse` are groups that are
        worse than the others after Holm's correction.
        """
        accuracy = self.correct / self.images
        low, median, high = np.quantile(accuracy, (0, 0.5, 1))
        generator = np.random.Generator(np.random.Philox(0))
        return {
            "groups": len(self.names),
            "lowest": float(low),
            "median": float(median),
            "highest": float(high),
            "differ_p_value": homogeneity_p_value(self.correct, self.images, generator),
            "worse": [self.names[g] for g in self.find_worse()],
        }

    def find_worse(self) -> list[int]:
        """Returns the groups that are worse than the others, the lowest accuracy first."""
        large = np.flatnonzero(self.images >= MIN_GROUP_IMAGES)
        if len(self.names) < 2 or not len(large):
            return []
        rejected = holm(lower_tail_p_values(self.correct, self.images)[large])
        worse = large[rejected]
        return [int(g) for g in worse[np.argsort((self.correct / self.images)[worse], kind="stable")]]

    def rows(self) -> list[GroupRow]:
        """Returns images, accuracy and its interval of each group, the lowest accuracy first."""
        accuracy = self.correct / self.images
        return [
            {
                "group": self.names[g],
                "images": int(self.images[g]),
                "accuracy": float(accuracy[g]),
                "interval": list(wilson_interval(int(self.correct[g]), int(self.images[g]))),
            }
            for g in np.lexsort((-self.images, accuracy)).tolist()
        ]


def score_groups(groups: tuple[str, ...], correct: np.ndarray) -> GroupScores:
    """Returns the scores of the groups; `groups` has the group of each image and `correct` is (n,)."""
    names, codes = factorize(groups)
    images = np.bincount(codes, minlength=len(names))
    return GroupScores(tuple(names), images, np.bincount(codes, correct, minlength=len(names)).astype(int))


def proportion_interval(hits: np.ndarray, groups: tuple[str, ...] | None) -> Interval:
    """Returns the 95% interval of the fraction of hits, (n,); over groups instead of images, if there are any."""
    if groups is not None:
        return score_groups(groups, hits).accuracy_interval
    return wilson_interval(int(hits.sum()), len(hits))


def describe_groups(summary: GroupSummary) -> str:
    """Returns a sentence on how accuracy differs between groups; `summary` is that of `GroupScores`."""
    worse = summary["worse"]
    verdict = f"worse than the others: {', '.join(worse[:3])}{' ...' if len(worse) > 3 else ''}"
    if not worse:
        verdict = "they differ more than by chance" if summary["differ_p_value"] < 0.05 else "no clear difference"
    return (
        f"{summary['groups']} groups: accuracy {summary['lowest']:.4f} to {summary['highest']:.4f}, median "
        f"{summary['median']:.4f}; {verdict}; intervals count groups, not images"
    )
