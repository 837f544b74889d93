"""Groups: images that belong together, such as those of a patient, a video, a site or a burst.

Images of a group are alike, so a group must not be divided between training and test: the score would be too high,
because the model has seen images that are almost the same.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vitrail.data.source import Source

MIN_MATCHED = 0.9  # of the images, for a pattern to be suggested
GROUPS_PER_CLASS = 2  # a suggested pattern has more groups than this: fewer may be another name of the classes
MIN_GROUP_SIZE = 2  # mean, of a suggested pattern
# What shows groups in names: a number before the last one (patient12_003.png), or a folder below that of the class.
SUGGESTED_PATTERNS = (r"([^/]*[0-9])[-_. ]+[A-Za-z]*[-_. ]*[0-9]+[.][^./]+$", r"^[^/]+/(?:[^/]+/)*?([^/]+)/[^/]+$")


@dataclass(frozen=True)
class SuggestedGroups:
    """Groups that the names of images show: the pattern, how many groups there are, and names of one of them."""

    pattern: str
    groups: int
    example: str
    names: tuple[str, ...]


def has_groups(source: Source) -> bool:
    """Returns whether all images of a source have a group."""
    return bool(source.splits) and all(listing.groups is not None for listing in source.splits.values())


def find_crossing_groups(source: Source) -> dict[str, list[str]]:
    """Returns the groups that are in several splits, and the splits of each."""
    splits_of: dict[str, list[str]] = {}
    for split, listing in source.splits.items():
        for group in listing.groups.categories if listing.groups is not None else ():
            splits_of.setdefault(group, []).append(split)
    return {group: splits for group, splits in splits_of.items() if len(splits) > 1}


def suggest_groups(source: Source) -> SuggestedGroups | None:
    """Returns the groups that the names of images suggest; None if they suggest none, or the source has groups."""
    if any(listing.groups is not None for listing in source.splits.values()):
        return None
    names = [name for listing in source.splits.values() for name in listing.names]
    classes = len({label for listing in source.splits.values() for label in listing.labels.categories})
    for pattern in SUGGESTED_PATTERNS:
        members = match_names(names, pattern)
        matched = sum(map(len, members.values()))
        if (
            matched >= MIN_MATCHED * len(names)
            and matched >= MIN_GROUP_SIZE * len(members)
            and len(members) > GROUPS_PER_CLASS * classes
        ):
            example = max(members, key=lambda group: len(members[group]))
            return SuggestedGroups(pattern, len(members), example, tuple(members[example][:2]))
    return None


def count_crossing(source: Source, pattern: str) -> int:
    """Returns how many groups that a pattern finds are in several splits."""
    groups_of_splits = [set(match_names(listing.names, pattern)) for listing in source.splits.values()]
    return sum(sum(group in groups for groups in groups_of_splits) > 1 for group in set().union(*groups_of_splits))


def match_names(names: Sequence[str], pattern: str) -> dict[str, list[str]]:
    """Returns the names of each group that a pattern finds, without those that it does not match."""
    members: dict[str, list[str]] = {}
    for name in names:
        if match := re.search(pattern, name):
            members.setdefault(match[1], []).append(name)
    return members
