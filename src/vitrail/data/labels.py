"""Several labels per image: sets of labels, stored like categories."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from vitrail.data.strings import Categorical

SEPARATOR = ";"  # of the labels in one value of a table
SEPARATORS = (SEPARATOR, "|")  # that --task multi_label splits at
NO_LABEL = ""  # the text of an empty set


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

    def to_multi_hot(self, classes: Sequence[str]) -> np.ndarray:
        """Returns 1 for each label of an image, uint8 (n, Y); labels that are not among the classes are left out."""
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


def count_by_label(labels: Sequence[str]) -> Counter[str]:
    """Returns the number of images of each class, or with each label."""
    if not isinstance(labels, LabelSets):
        return Counter(labels)
    counts: Counter[str] = Counter()
    for names, images in labels.used_sets().items():
        counts.update(dict.fromkeys(names, images))
    return counts


def split_texts(labels: Sequence[str]) -> LabelSets:
    """Returns the sets that texts such as "cat;dog" mean. Without any ";", they are split at "|"."""
    separator = next((each for each in SEPARATORS if any(each in text for text in labels)), SEPARATOR)
    return LabelSets.from_labels(filter(None, map(str.strip, text.split(separator))) for text in labels)
