"""Labels of objects of Python: one class per image, lists of labels, or multi-hot arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.data.labels import Categorical, LabelSets, Numbers, categorize, number_names
from vitrail.errors import VitrailError


def key_of(label: Any) -> object:
    """Returns a key that is the same for equal labels, or equal sets of labels."""
    return repr(np.asarray(label).tolist()) if has_several(label) else plain_label(label)


def has_several(label: Any) -> bool:
    """Returns whether a label is a multi-hot vector, or a list or set of labels."""
    if isinstance(label, np.ndarray | Tensor):
        return label.ndim == 1 and len(label) != 1
    return isinstance(label, list | tuple | set | frozenset)


def plain_label(label: Any) -> int | str:
    """Returns a label as int or str; raises `VitrailError` for anything else, such as several labels."""
    if isinstance(label, np.ndarray | Tensor | np.generic) and (label.ndim == 0 or label.size == 1):
        label = label.item()
    if isinstance(label, bool):
        return int(label)
    if isinstance(label, int | str):
        return label
    raise VitrailError(
        f"a label is {label!r} ({type(label).__name__}), not an int or a str",
        "give one class per image, a list of labels, or a multi-hot array",
    )


def label_names(labels: Any, classes: Sequence[str] | None, split: str) -> Categorical:
    """Returns the class name of each label: the label itself, or its entry in `classes` if it is an index.

    Several labels per image become `LabelSets`, and floats `Numbers`.
    """
    if is_float_array(labels):
        return list_numbers(np.asarray(labels), split)
    if isinstance(labels, np.ndarray | Tensor) and labels.ndim == 2 and labels.shape[1] > 1:
        return from_multi_hot(np.asarray(labels), classes, split)
    if isinstance(labels, np.ndarray | Tensor):
        labels = labels.tolist()
    if any(map(has_several, labels)):
        return several_names(labels, classes, split)
    plain = [plain_label(label) for label in labels]
    if classes is not None and all(isinstance(label, int) for label in plain):
        outside = next((label for label in plain if not 0 <= int(label) < len(classes)), None)
        if outside is not None:
            raise VitrailError(
                f"the label {outside} of {split} is not an index of the {len(classes)} classes", "see dataset.classes"
            )
        return Categorical(tuple(map(str, classes)), np.array(plain, dtype=np.int64))
    return categorize(plain)


def is_float_array(labels: Any) -> bool:
    """Returns whether labels are numbers: floats, if they are not (n, Y) from 0 to 1, which may be probabilities."""
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        return len(labels) > 0 and all(isinstance(each, float | np.floating) for each in labels)
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    if not isinstance(labels, np.ndarray) or labels.dtype.kind != "f" or labels.ndim not in (1, 2):
        return False
    return labels.ndim == 1 or labels.shape[1] == 1 or not ((labels >= 0) & (labels <= 1)).all()


def list_numbers(array: np.ndarray, split: str) -> Numbers:
    """Returns the numbers of an array (n,) or (n, Y); raises `VitrailError` for one that is not finite."""
    array = array.astype(np.float64).reshape(len(array), -1)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise VitrailError(f"the number of item {bad[0]} of {split} is not finite", "correct it or remove the item")
    is_certain = bool((array != array.round()).any())  # class indices are often floats by mistake
    return Numbers.from_array(number_names(array.shape[1]), array, is_certain)


def several_names(labels: Sequence[Any], classes: Sequence[str] | None, split: str) -> LabelSets:
    """Returns the names of several labels per image, which are multi-hot vectors, or lists of names or indices."""
    if any(isinstance(each, np.ndarray | Tensor) for each in labels) or are_multi_hot_lists(labels):
        if len({len(each) for each in labels}) > 1:
            raise VitrailError(f"the multi-hot labels of {split} have several lengths", "give a value for each class")
        return from_multi_hot(np.stack([np.asarray(each) for each in labels]), classes, split)
    rows = [[plain_label(each) for each in (label if has_several(label) else [label])] for label in labels]
    if classes is None or not all(isinstance(each, int) for row in rows for each in row):
        return LabelSets.from_labels([str(each) for each in row] for row in rows)
    outside = next((each for row in rows for each in row if not 0 <= int(each) < len(classes)), None)
    if outside is not None:
        sentence = f"the label {outside} of {split} is not an index of the {len(classes)} classes"
        raise VitrailError(sentence, "see dataset.classes")
    return LabelSets.from_labels([str(classes[int(each)]) for each in row] for row in rows)


def are_multi_hot_lists(labels: Sequence[Any]) -> bool:
    """Returns whether lists are multi-hot vectors: of one length, of 0 and 1, and some has a value twice."""
    return (
        all(isinstance(each, list | tuple) for each in labels)
        and len({len(each) for each in labels}) == 1
        and all(isinstance(value, int | np.integer | np.bool_) and value in (0, 1) for each in labels for value in each)
        and any(len(set(each)) < len(each) for each in labels)
    )


def from_multi_hot(array: np.ndarray, classes: Sequence[str] | None, split: str) -> LabelSets:
    """Returns the labels of a multi-hot array (n, Y); without `classes` they have numbers for names."""
    n_labels = array.shape[1]
    if not np.isin(array, (0, 1)).all():
        raise VitrailError(
            f"the labels of {split} have other values than 0 and 1",
            "give a multi-hot array (n, Y), or numbers in another unit",
        )
    if classes is not None and len(classes) != n_labels:
        raise VitrailError(f"the labels of {split} have {n_labels} columns for {len(classes)} classes")
    digits = len(str(n_labels - 1))
    names = [str(i).zfill(digits) for i in range(n_labels)] if classes is None else list(map(str, classes))
    return LabelSets.from_multi_hot(array, names)
