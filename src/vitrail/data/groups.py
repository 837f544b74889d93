"""Groups: images that belong together, such as those of a patient, a video, a site or a burst.

Images of a group are alike, so a group must be on one side of a division: otherwise the score is that of images that
the model has almost seen.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitrail.data.group_pattern import compile_pattern
from vitrail.data.source import Listing, Source
from vitrail.data.strings import Categorical, factorize
from vitrail.errors import UsageError, VitrailError

MIN_MATCHED = 0.9  # of the images, for a pattern to be suggested
GROUPS_PER_CLASS = 2  # a suggested pattern has more groups than this: fewer may be another name of the classes
MIN_GROUP_SIZE = 2  # mean, of a suggested pattern
# What names give groups away: a number before the last one (patient12_003.png), or a folder below that of the class.
SUGGESTED_PATTERNS = (r"([^/]*[0-9])[-_. ]+[A-Za-z]*[-_. ]*[0-9]+[.][^./]+$", r"^[^/]+/(?:[^/]+/)*?([^/]+)/[^/]+$")


@dataclass(frozen=True)
class SuggestedGroups:
    """Groups that names give away: the pattern, how many groups there are, and names of one of them."""

    pattern: str
    groups: int
    example: str
    names: tuple[str, ...]


def group_source(source: Source, pattern: str | None) -> Source:
    """Returns the source with the groups that a pattern finds in the names of images; unchanged without one.

    The pattern is searched in the name, which is the path below the folder of the data; its capture group is the group.
    Raises `VitrailError` for a name that it does not match, and if the data has groups already.
    """
    if pattern is None:
        return source
    compiled = compile_pattern(pattern)
    if any(listing.groups is not None for listing in source.splits.values()):
        raise UsageError(f"{source.address} has groups of its own", "leave out the group pattern")
    splits = {split: group_listing(listing, compiled, source.address) for split, listing in source.splits.items()}
    return replace(source, splits=splits)


def group_listing(listing: Listing, pattern: re.Pattern[str], address: str) -> Listing:
    """Returns the listing with the groups in its names."""
    groups = []
    for name in listing.names:
        match = pattern.search(name)
        if match is None or not match[1]:
            raise VitrailError(
                f"{address}: the group pattern {pattern.pattern!r} finds no group in {name}",
                "change the pattern so that it matches the name of every image",
            )
        groups.append(match[1])
    return replace(listing, groups=categorize(groups))


def categorize(groups: Iterable[object]) -> Categorical:
    """Returns the groups of images as text, with few bytes for each."""
    names, codes = factorize([str(group) for group in groups])
    return Categorical(tuple(names), codes)


def has_groups(source: Source) -> bool:
    """Returns whether all images of a source have a group."""
    return bool(source.splits) and all(listing.groups is not None for listing in source.splits.values())


def find_crossing_groups(source: Source) -> dict[str, list[str]]:
    """Returns the groups that are in several splits, and the splits of each."""
    splits_of: dict[str, list[str]] = {}
    for split, listing in source.splits.items():
        for group in factorize(listing.groups)[0] if listing.groups is not None else ():
            splits_of.setdefault(group, []).append(split)
    return {group: splits for group, splits in splits_of.items() if len(splits) > 1}


def suggest_groups(source: Source) -> SuggestedGroups | None:
    """Returns the groups that the names of images suggest; None if they suggest none, or the source has groups."""
    if any(listing.groups is not None for listing in source.splits.values()):
        return None
    names = [name for listing in source.splits.values() for name in listing.names]
    classes = len({label for listing in source.splits.values() for label in factorize(listing.labels)[0]})
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


def merge_groups(codes: np.ndarray, same_as: np.ndarray) -> np.ndarray:
    """Returns group codes in which image i has the group of image `same_as[i]`: groups that share an image are one."""
    parent = np.arange(int(codes.max()) + 1 if len(codes) else 0)

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = int(parent[group])
        return group

    for i in np.flatnonzero(same_as != np.arange(len(codes))).tolist():
        first, second = sorted((root(int(codes[i])), root(int(codes[same_as[i]]))))
        parent[second] = first
    return np.array([root(group) for group in range(len(parent))], dtype=np.int64)[codes]
