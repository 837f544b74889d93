"""Labels and groups of images: strings of a few categories, stored as codes (as in pandas), and what they mean."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from vitrail.errors import VitrailError
from vitrail.tasks import MULTI_LABEL, SINGLE_LABEL, TaskName

SEPARATOR = ";"  # of the labels in one value of a table
SEPARATORS = (SEPARATOR, "|")  # that --task multi_label splits at
NO_LABEL = ""  # the text of an empty set


class Categorical(Sequence[str]):
    """Many strings of a few categories, stored as codes."""

    def __init__(self, categories: tuple[str, ...], codes: np.ndarray):
        self.categories = categories
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self.categories[code] for code in self.codes[i]]
        return self.categories[self.codes[i]]

    def __iter__(self) -> Iterator[str]:
        return map(self.categories.__getitem__, self.codes.tolist())

    def take(self, indices: np.ndarray) -> "Categorical":
        """Returns the strings with these indices."""
        return Categorical(self.categories, self.codes[indices])

    def used(self) -> "Categorical":
        """Returns the same strings with sorted categories, without those that no string has."""
        categories, codes = factorize(self)
        return Categorical(tuple(categories), codes)

    def counts(self) -> Counter[str]:
        """Returns how many images have each label."""
        codes, counts = np.unique(self.codes, return_counts=True)
        return Counter(dict(zip([self.categories[code] for code in codes], counts.tolist(), strict=True)))

    def encode(self, classes: Sequence[str]) -> np.ndarray:
        """Returns the labels as indices of the classes, int64 (n,); raises `KeyError` for a label of no class."""
        index_of = {name: i for i, name in enumerate(classes)}
        indices: np.ndarray = np.array([index_of[label] for label in self.categories], dtype=np.int64)[self.codes]
        return indices


class LabelSets(Categorical):
    """A set of labels per image: the distinct sets, and a code per image. As strings they are "cat;dog"."""

    def __init__(self, sets: Sequence[tuple[str, ...]], codes: np.ndarray):
        super().__init__(tuple(map(SEPARATOR.join, sets)), codes)
        self.sets = tuple(sets)

    @classmethod
    def from_labels(cls, labels: Iterable[Iterable[str]]) -> "LabelSets":
        """Stores the labels of each image; the order and repetitions of labels mean nothing."""
        code_of: dict[tuple[str, ...], int] = {}
        codes = [code_of.setdefault(tuple(sorted(set(each))), len(code_of)) for each in labels]
        return cls(tuple(code_of), np.array(codes, dtype=np.int64))

    @classmethod
    def from_multi_hot(cls, array: np.ndarray, classes: Sequence[str]) -> "LabelSets":
        """Stores the labels of a multi-hot array (n, Y)."""
        return cls.from_labels([classes[i] for i in np.flatnonzero(row).tolist()] for row in array)

    def take(self, indices: np.ndarray) -> "LabelSets":
        """Returns the labels of the images with these indices."""
        return LabelSets(self.sets, self.codes[indices])

    def encode(self, classes: Sequence[str]) -> np.ndarray:
        """Returns a multi-hot array: 1 for each label of an image, uint8 (n, Y); labels of no class are left out."""
        index_of = {name: i for i, name in enumerate(classes)}
        rows = np.zeros((len(self.sets), len(classes)), dtype=np.uint8)
        for row, labels in zip(rows, self.sets, strict=True):
            row[[index_of[label] for label in labels if label in index_of]] = 1
        multi_hot: np.ndarray = rows[self.codes]
        return multi_hot

    def used_sets(self) -> Counter[tuple[str, ...]]:
        """Returns how many images have each set."""
        codes, counts = np.unique(self.codes, return_counts=True)
        return Counter(dict(zip([self.sets[code] for code in codes], counts.tolist(), strict=True)))

    def counts(self) -> Counter[str]:
        """Returns how many images have each label."""
        counts: Counter[str] = Counter()
        for names, images in self.used_sets().items():
            counts.update(dict.fromkeys(names, images))
        return counts

    def used(self) -> "LabelSets":
        """Returns the same sets."""
        return self


def categorize(strings: Iterable[object]) -> Categorical:
    """Returns strings, or the texts of other values, with sorted categories and few bytes for each."""
    categories, codes = factorize([str(string) for string in strings])
    return Categorical(tuple(categories), codes)


def split_texts(labels: Categorical) -> LabelSets:
    """Returns the sets that texts such as "cat;dog" mean. Without any ";", they are split at "|"."""
    separator = next((each for each in SEPARATORS if any(each in text for text in labels.categories)), SEPARATOR)
    return LabelSets.from_labels(filter(None, map(str.strip, text.split(separator))) for text in labels)


def choose_task(labels: Iterable[Categorical], *, splits_texts: bool) -> TaskName:
    """Returns the task that the labels of the splits mean; `splits_texts` if a ";" in a text separates labels."""
    for each in labels:
        if isinstance(each, LabelSets) or (splits_texts and any(SEPARATOR in text for text in each.categories)):
            return MULTI_LABEL
    return SINGLE_LABEL


def convert_labels(labels: Categorical, task: str, names: Sequence[str], address: str) -> Categorical:
    """Returns the labels of a split as its task has them: one class per image, or sets.

    Raises `VitrailError`, naming the image, if it has no label or several, and the task needs one.
    """
    if task == MULTI_LABEL:
        return labels if isinstance(labels, LabelSets) else split_texts(labels)
    if not isinstance(labels, LabelSets):
        return labels
    for code in np.unique(labels.codes).tolist():
        label_set = labels.sets[code]
        if len(label_set) != 1:
            i = int(np.flatnonzero(labels.codes == code)[0])
            has = f"the labels {', '.join(label_set)}" if label_set else "no label"
            raise VitrailError(
                f"{address}: {names[i]} has {has}, and one class per image is needed",
                f"vitrail train DATA --task {MULTI_LABEL} trains a classifier for several labels",
            )
    return Categorical(tuple(label_set[0] if label_set else NO_LABEL for label_set in labels.sets), labels.codes)


def find_groups(names: Sequence[str], pattern: re.Pattern[str], address: str) -> Categorical:
    """Returns the group of each image: what the capture group of a pattern finds in its name.

    Raises `VitrailError` for a name that the pattern does not match.
    """
    groups = []
    for name in names:
        match = pattern.search(name)
        if match is None or not match[1]:
            raise VitrailError(
                f"{address}: the group pattern {pattern.pattern!r} finds no group in {name}",
                "change the pattern so that it matches the name of every image",
            )
        groups.append(match[1])
    return categorize(groups)


def factorize(strings: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns the distinct strings, sorted, and the index of each string among them, int64 (n,)."""
    if isinstance(strings, Categorical):
        used = np.unique(strings.codes)
        categories = sorted({strings.categories[code] for code in used})
        index_of = {category: i for i, category in enumerate(categories)}
        new_codes = np.zeros(len(strings.categories), dtype=np.int64)
        for code in used:
            new_codes[code] = index_of[strings.categories[code]]
        return categories, new_codes[strings.codes]
    categories = sorted(set(strings))
    index_of = {category: i for i, category in enumerate(categories)}
    return categories, np.fromiter((index_of[s] for s in strings), dtype=np.int64, count=len(strings))
