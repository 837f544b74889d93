"""Labels and groups of images: strings of a few categories, stored as codes (as in pandas), and what they mean."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, overload

import numpy as np

from vitrail.errors import VitrailError
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TaskName

SEPARATOR = ";"  # of the labels in one value of a table
SEPARATORS = (SEPARATOR, "|")  # that --task multi_label splits at
NO_LABEL = ""  # the text of an empty set
NUMBER_SEPARATOR = ";"  # of the numbers in the text of an image
ONE_NUMBER = "value"  # the name of a number that has no column of its own
LEADING_NUMBER = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)")


class Categorical(Sequence[str]):
    """Many strings of a few categories, stored as codes. As labels they are one class per image."""

    task: ClassVar[TaskName] = SINGLE_LABEL
    has_strata: ClassVar[bool] = True  # False where the labels do not divide the images into classes

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

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, or the names of labels or numbers, in their order."""
        return tuple(sorted(self.counts()))

    @property
    def strata(self) -> np.ndarray:
        """The number of the class of each image, by which images are held out, int64 (n,); zeros without strata."""
        return self.codes if self.has_strata else np.zeros(len(self), dtype=np.int64)

    @property
    def stratum_count(self) -> int:
        """The number of `strata`."""
        return len(self.categories) if self.has_strata else 1


class LabelSets(Categorical):
    """A set of labels per image: the distinct sets, and a code per image. As strings they are "cat;dog"."""

    task: ClassVar[TaskName] = MULTI_LABEL
    has_strata = False

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


class Grades(Categorical):
    """A grade of each image: a class name that begins with a number, which orders the grades."""

    task: ClassVar[TaskName] = GRADES

    def take(self, indices: np.ndarray) -> "Grades":
        """Returns the grades of the images with these indices."""
        return Grades(self.categories, self.codes[indices])

    def used(self) -> "Grades":
        """Returns the same grades with sorted categories, without those that no image has."""
        categories, codes = factorize(self)
        return Grades(tuple(categories), codes)

    @property
    def classes(self) -> tuple[str, ...]:
        """The grades in the order of their numbers."""
        return tuple(sorted(self.categories, key=leading_number))


class Numbers(Categorical):
    """The numbers of each image, by name. As strings they are "12.5;3"."""

    task: ClassVar[TaskName] = REGRESSION
    has_strata = False

    def __init__(self, names: Sequence[str], rows: np.ndarray, codes: np.ndarray, is_certain: bool = True):
        super().__init__(tuple(map(join_numbers, rows.tolist())), codes)
        self.names = tuple(names)
        self.rows = rows  # the distinct numbers, float64 (rows, names)
        self.is_certain = is_certain  # False for whole numbers of a table, which may be something else

    @classmethod
    def from_array(cls, names: Sequence[str], numbers: np.ndarray, is_certain: bool = True) -> "Numbers":
        """Stores numbers (n, names), which are finite."""
        rows, codes = np.unique(numbers.astype(np.float64), axis=0, return_inverse=True)
        return cls(names, rows, codes.ravel(), is_certain)

    def take(self, indices: np.ndarray) -> "Numbers":
        """Returns the numbers of the images with these indices."""
        return Numbers(self.names, self.rows, self.codes[indices], self.is_certain)

    def used(self) -> "Numbers":
        """Returns the same numbers."""
        return self

    def counts(self) -> Counter[str]:
        """Returns how many images have each number, by its name: all of them."""
        return Counter(dict.fromkeys(self.names, len(self)))

    def encode(self, classes: Sequence[str]) -> np.ndarray:
        """Returns the numbers with these names, in this order, float64 (n, names)."""
        columns = [0] if len(classes) == len(self.names) == 1 else [self.names.index(name) for name in classes]
        numbers: np.ndarray = self.rows[self.codes][:, columns]
        return numbers


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
    labels = list(labels)
    for each in labels:
        if each.task != SINGLE_LABEL:
            return each.task
        if splits_texts and any(SEPARATOR in text for text in each.categories):
            return MULTI_LABEL
    if splits_texts and are_measurements(sum((each.counts() for each in labels), Counter())):
        return REGRESSION
    return SINGLE_LABEL


def convert_labels(labels: Categorical, task: str, names: Sequence[str], address: str) -> Categorical:
    """Returns the labels of a split as its task has them: one class per image, sets, grades or numbers.

    Raises `VitrailError`, naming the image, if it has no label or several, or no number, and the task needs one.
    """
    if labels.task == task:
        return labels
    if isinstance(labels, Numbers):
        raise VitrailError(f"{address} has numbers and no classes", f"leave out --task {task}, or name a label column")
    if task == MULTI_LABEL:
        return split_texts(labels)
    labels = with_one_class(labels, names, address)
    if task == GRADES:
        check_order(labels.categories, address)
        return Grades(labels.categories, labels.codes)
    return to_numbers(labels, names, address) if task == REGRESSION else labels


def to_numbers(labels: Categorical, names: Sequence[str], address: str) -> Numbers:
    """Returns the numbers that class names mean; `names` are those of the images, for the message.

    Raises `VitrailError` for a label that is no finite number, and for images with different counts of numbers.
    """
    first = {int(code): i for i, code in reversed(list(enumerate(labels.codes.tolist())))}
    rows = {
        code: parse_numbers(text, names[first[code]], address)
        for code, text in enumerate(labels.categories)
        if code in first
    }
    widths = {len(row) for row in rows.values()}
    if len(widths) > 1:
        few, many = min(widths), max(widths)
        raise VitrailError(
            f"{address}: some images have {few} numbers and others {many}", "give each image all numbers"
        )
    columns = number_names(max(widths, default=1))
    array = np.array([rows[code] for code in labels.codes.tolist()], dtype=np.float64).reshape(-1, len(columns))
    return Numbers.from_array(columns, array)


def with_one_class(labels: Categorical, names: Sequence[str], address: str) -> Categorical:
    """Returns the labels as one class per image; raises `VitrailError` for an image with none, or with several."""
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


def join_numbers(numbers: Iterable[float]) -> str:
    """Returns numbers as a text, from which they can be read again exactly."""
    return NUMBER_SEPARATOR.join(f"{n:.0f}" if n == round(n) and abs(n) < 1e15 else repr(float(n)) for n in numbers)


def parse_number(text: object) -> float | None:
    """Returns the number in a text, or in a value of a table; None if it is no finite number."""
    if isinstance(text, bool):
        return None
    try:
        number = float(str(text).replace("_", " ").strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def number_names(count: int) -> list[str]:
    """Returns names for numbers that have none: value, or value_1, value_2, ..."""
    return [ONE_NUMBER] if count == 1 else [f"{ONE_NUMBER}_{k + 1}" for k in range(count)]


def are_measurements(counts: Counter[str]) -> bool:
    """Returns whether texts are surely numbers, not names of classes: all are numbers, some with a decimal point.

    More than half of the values must occur once: classes of one image each cannot be learned.
    """
    if not any("." in text for text in counts) or any(parse_number(text) is None for text in counts):
        return False
    return sum(n == 1 for n in counts.values()) > counts.total() / 2


def leading_number(grade: str) -> float:
    """Returns the number that the name of a grade begins with; NaN if there is none."""
    match = LEADING_NUMBER.match(grade)
    return float(match[1]) if match else math.nan


def check_order(grades: Iterable[str], address: str) -> None:
    """Raises `VitrailError` for a grade that does not begin with a number, and for two with the same number."""
    numbers: dict[float, str] = {}
    for grade in sorted(grades):
        number = leading_number(grade)
        if math.isnan(number):
            raise VitrailError(
                f"{address}: the grade {grade!r} does not begin with a number, so its place in the order is not known",
                "name the grades 0, 1, 2 or '0 none', '1 mild', '2 severe'",
            )
        other = numbers.setdefault(number, grade)
        if other != grade:
            raise VitrailError(f"{address}: the grades {other!r} and {grade!r} have the same number", "rename one")


def parse_numbers(text: str, image: str, address: str) -> list[float]:
    """Returns the numbers that a label means; raises `VitrailError`, naming the image, if one is no finite number."""
    numbers = [parse_number(part) for part in text.split(NUMBER_SEPARATOR)]
    if any(number is None for number in numbers):
        raise VitrailError(
            f"{address}: the label of {image} is {text!r}, which is not a finite number",
            "correct it or remove the image; without --task the labels are class names",
        )
    return [number for number in numbers if number is not None]
