"""What a classifier answers for images in memory: the most probable classes, or the labels, of one image or of many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor

from vitrail.annotation_files import AnnotationFormat, LabeledImage, LabeledImages, write_annotations
from vitrail.data.decode import ImageError, read_upright_size
from vitrail.errors import UsageError
from vitrail.installation import install_hint
from vitrail.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS, exceeds, refuse_task, sigmoid
from vitrail.weights.unlike import UnlikeFacts

if TYPE_CHECKING:
    import pandas
    import polars


@dataclass(frozen=True)
class Prediction:
    """A class and its predicted probability."""

    label: str
    probability: float


@dataclass(frozen=True, eq=False, repr=False)
class ImagePrediction(Sequence[Prediction]):
    """The most probable classes of one image, best first, as a sequence of `Prediction`.

    With several labels per image it has the labels that reach their thresholds, perhaps none. Numbers are in `numbers`,
    and the rest raises `UsageError`. An image that was skipped because it cannot be read has an `error` and no classes.
    """

    logits: Tensor  # (Y,) float32 on the CPU, divided by the temperature; NaN for a skipped image
    classes: tuple[str, ...]
    top: int
    path: str | None = None  # of an image that came from a file
    error: str | None = None  # why the image was skipped
    task: str = SINGLE_LABEL
    thresholds: tuple[float, ...] = ()
    unlike: float | None = None  # quantile of its distance among validation images; None if it is not fitted

    @property
    def label(self) -> str:
        """The most probable class; raises `ImageError` for a skipped image, `UsageError` with several labels."""
        return self._best.label

    @property
    def probability(self) -> float:
        """The probability of the most probable class; raises as `label` does."""
        return self._best.probability

    @property
    def labels(self) -> list[str]:
        """The labels that reach their thresholds; with one class per image, that class. Empty for a skipped image."""
        found = self._predictions if self.task == MULTI_LABEL else self._predictions[:1]
        return [each.label for each in found]

    @cached_property
    def probabilities(self) -> dict[str, float]:
        """The probability of every class, in the order of the classes; empty for a skipped image."""
        refuse_numbers(self.task)
        return (
            {}
            if self.error
            else dict(zip(self.classes, TASKS[self.task].to_probabilities(self.logits).tolist(), strict=True))
        )

    @property
    def numbers(self) -> dict[str, float]:
        """The predicted numbers by name; empty for a skipped image. Raises `UsageError` for a model of classes."""
        require_numbers(self.task)
        return {} if self.error is not None else AnswerForm(self.classes, self.task).name_numbers(self.logits)

    @property
    def _best(self) -> Prediction:
        if self.error is not None:
            raise ImageError(self.path or "image", self.error)
        if self.task == MULTI_LABEL:
            raise UsageError("an image may have several labels, or none", "use labels, or iterate over the prediction")
        return self._predictions[0]

    @cached_property
    def _predictions(self) -> list[Prediction]:
        refuse_numbers(self.task)
        form = AnswerForm(self.classes, self.task, self.thresholds)
        return [] if self.error is not None else form.predict(self.logits, self.top)

    def __len__(self) -> int:
        return len(self._predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | list[Prediction]:
        return self._predictions[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ImagePrediction) and TASKS[self.task].answer == TASKS[other.task].answer == "numbers":
            return self.error == other.error and self.numbers == other.numbers
        if isinstance(other, ImagePrediction):
            return self.error == other.error and self._predictions == other._predictions
        return self._predictions == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if self.error is not None:
            return f"ImagePrediction(error={self.error!r})"
        return repr(self.numbers if self.task == REGRESSION else self._predictions)


class Predictions(Sequence[ImagePrediction]):
    """The predictions for many images, one for each image, in the order of the images.

    `logits` is (n, Y), float32 on the CPU, divided by the temperature. Images that were skipped because they cannot be
    read keep their place: their row of `logits` is NaN, and `errors` maps their position to the reason.
    """

    logits: Tensor
    classes: tuple[str, ...]
    top: int
    paths: list[str | None]  # None for an image that did not come from a file
    errors: dict[int, str]
    task: str
    thresholds: tuple[float, ...]
    distances: Tensor | None  # (n,), from the validation images; None if that is not fitted
    unlike_facts: UnlikeFacts | None

    def __init__(
        self,
        logits: Tensor,
        classes: tuple[str, ...],
        top: int,
        paths: Sequence[str | None],
        errors: dict[int, str],
        task: str = SINGLE_LABEL,
        thresholds: tuple[float, ...] = (),
        distances: Tensor | None = None,
        unlike_facts: UnlikeFacts | None = None,
    ):
        self.distances = distances
        self.unlike_facts = unlike_facts
        self.task = task
        self.thresholds = thresholds
        self.logits = logits
        self.classes = classes
        self.top = top
        self.paths = list(paths)
        self.errors = dict(errors)

    @property
    def label_lists(self) -> list[list[str] | None]:
        """The labels of each image that reach their thresholds, or its class; None for a skipped image."""
        return [None if each.error is not None else each.labels for each in self]

    @property
    def labels(self) -> list[str | None]:
        """The most probable class of each image; None for a skipped image. Raises `UsageError` with several labels."""
        refuse_numbers(self.task)
        if self.task == MULTI_LABEL:
            raise UsageError("an image may have several labels, or none", "use label_lists")
        best = self.logits.argmax(1).tolist() if len(self) else []
        return [None if i in self.errors else self.classes[number] for i, number in enumerate(best)]

    @property
    def numbers(self) -> Tensor:
        """The predicted numbers, (n, Y) float32, in the order of `classes`; NaN for a skipped image."""
        require_numbers(self.task)
        return self.logits

    @property
    def probabilities(self) -> Tensor:
        """The probability of every class, (n, Y) float32; NaN for a skipped image."""
        refuse_numbers(self.task)
        return TASKS[self.task].to_probabilities(self.logits)

    @cached_property
    def unlike(self) -> list[float | None]:
        """How unlike the validation images each image is: the quantile of its distance among theirs, from 0 to 1.

        None for a skipped image, and for all images if it is not fitted.
        """
        if self.distances is None or self.unlike_facts is None:
            return [None] * len(self)
        quantiles = self.unlike_facts.find_quantiles(self.distances.double().numpy()).tolist()
        return [None if i in self.errors else quantile for i, quantile in enumerate(quantiles)]

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> ImagePrediction: ...
    @overload
    def __getitem__(self, index: slice) -> Predictions: ...
    def __getitem__(self, index: int | slice) -> ImagePrediction | Predictions:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            errors = {k: self.errors[i] for k, i in enumerate(chosen) if i in self.errors}
            indices = torch.tensor(list(chosen), dtype=torch.int64)
            paths = [self.paths[i] for i in chosen]
            distances = None if self.distances is None else self.distances[indices]
            return Predictions(
                self.logits[indices], self.classes, self.top, paths, errors,
                self.task, self.thresholds, distances, self.unlike_facts,
            )  # fmt: skip
        i = range(len(self))[index]
        logits_Y, path, error = self.logits[i], self.paths[i], self.errors.get(i)
        unlike = self.unlike[i]
        return ImagePrediction(logits_Y, self.classes, self.top, path, error, self.task, self.thresholds, unlike)

    def __iter__(self) -> Iterator[ImagePrediction]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Predictions | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        skipped = f", {len(self.errors)} skipped" if self.errors else ""
        kind = "numbers each" if self.task == REGRESSION else "classes"
        return f"Predictions({len(self)} images, {len(self.classes)} {kind}{skipped})"

    def to_columns(self) -> dict[str, list[str | None] | list[float | None]]:
        """Returns the columns of the table that `vitrail predict --out` writes, each with a value for each image.

        They are path, label, probability, label_2, probability_2, ... and error. With several labels per image they are
        path, labels ("cat;dog"), probabilities ("0.91;0.62") and error; of numbers path, a column for each, and error.
        Before `error` there is `unlike`, if it is fitted. `path` is None for an image that did not come from a file;
        the values of a skipped image are None.
        """
        if self.task == REGRESSION:
            columns_NY = zip(number_columns(self.classes), self.logits.T.tolist(), strict=True)
            numbers: dict[str, list[str | None] | list[float | None]] = {
                name: [None if i in self.errors else value for i, value in enumerate(values)]
                for name, values in columns_NY
            }
            return {"path": list(self.paths), **numbers, **self._last_columns()}
        rows = [list(each) for each in self]
        columns: dict[str, list[str | None] | list[float | None]] = {"path": list(self.paths)}
        if self.task == MULTI_LABEL:
            texts = [(None, None) if i in self.errors else join_predictions(row) for i, row in enumerate(rows)]
            for k, name in enumerate(JOINED_COLUMNS):
                columns[name] = [each[k] for each in texts]
            return {**columns, **self._last_columns()}
        for k in range(min(self.top, len(self.classes))):
            suffix = "" if k == 0 else f"_{k + 1}"
            columns[f"label{suffix}"] = [row[k].label if row else None for row in rows]
            columns[f"probability{suffix}"] = [row[k].probability if row else None for row in rows]
        return {**columns, **self._last_columns()}

    def _last_columns(self) -> dict[str, list[str | None] | list[float | None]]:
        unlike: dict[str, list[float | None]] = {} if self.unlike_facts is None else {"unlike": self.unlike}
        return {**unlike, "error": [self.errors.get(i) for i in range(len(self))]}

    def save(self, out: str | Path, *, format: AnnotationFormat, model_name: str = "vitrail") -> Path:
        """Writes the most probable class of each image for another tool; returns `out`, which must not exist.

        `coco` and `fiftyone` are a JSON file; `label-studio` is a folder of tasks with predictions, and their labeling
        config. Images that were skipped are named there, with the reason. `model_name` says what predicted them. Raises
        `UsageError` if `out` exists, or for an image that did not come from a file.
        """
        refuse_task(self.task, "annotations")
        images: list[LabeledImage] = []
        unreadable: dict[str, str] = {}
        for i, path in enumerate(self.paths):
            if path is None:
                raise UsageError(f"images[{i}] did not come from a file", "predict files, whose paths can be written")
            if i in self.errors:
                unreadable[path] = self.errors[i]
                continue
            size = None
            with suppress(ImageError):  # an image in a shard has no file of its own
                size = read_upright_size(path)
            probabilities_Y = self.logits[i].softmax(0)
            label = int(probabilities_Y.argmax())
            images.append(LabeledImage(path, label, float(probabilities_Y[label]), size))
        write_annotations(LabeledImages(self.classes, images, unreadable, model_name), Path(out), format)
        return Path(out)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns the columns of `to_columns` as a pandas frame; raises `UsageError` if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas needs pandas", install_hint("pandas")) from None
        columns = self.to_columns()
        is_number = self._is_number
        return pandas.DataFrame(columns).astype({name: "float64" if is_number(name) else "string" for name in columns})

    def to_polars(self) -> polars.DataFrame:
        """Returns the columns of `to_columns` as a polars frame; raises `UsageError` if polars is not installed."""
        try:
            import polars
        except ImportError:
            raise UsageError("to_polars needs polars", install_hint("polars")) from None
        columns = self.to_columns()
        is_number = self._is_number
        return polars.DataFrame(
            columns, {name: polars.Float64 if is_number(name) else polars.String for name in columns}
        )

    def _is_number(self, column: str) -> bool:
        """Returns whether a column has numbers, which must not depend on its values: a column of None has none."""
        if column == "unlike":
            return True
        return column in number_columns(self.classes) if self.task == REGRESSION else column.startswith("probability")


def refuse_numbers(task: str) -> None:
    """Raises `UsageError` if a model predicts numbers, which have no classes and no probabilities."""
    if task == REGRESSION:
        raise UsageError("this model predicts numbers, not classes", "use numbers")


def require_numbers(task: str) -> None:
    """Raises `UsageError` if a model does not predict numbers."""
    if task != REGRESSION:
        raise UsageError("this model predicts classes, not numbers", "use label, labels or probabilities")


def number_columns(names: Sequence[str]) -> list[str]:
    """Returns the columns of a table for numbers; a name that another column has gets an underscore."""
    return [f"{name}_" if name in ("path", "error", "unlike", "embedding") else name for name in names]


JOINED_COLUMNS = ("labels", "probabilities")


def join_predictions(predictions: Sequence[Prediction]) -> tuple[str, str]:
    """Returns the labels and their probabilities as texts for a table: "cat;dog", "0.91;0.62"."""
    labels = ";".join(each.label for each in predictions)
    return labels, ";".join(f"{each.probability:.6g}" for each in predictions)


@dataclass(frozen=True)
class AnswerForm:
    """How the logits of a classifier become its answer: by its classes, its task and its thresholds."""

    classes: tuple[str, ...]
    task: str = SINGLE_LABEL
    thresholds: tuple[float, ...] = ()

    def predict(self, logits_Y: Tensor, top: int = 5) -> list[Prediction]:
        """Returns the `top` most probable classes of an image; with several labels, all that reach their thresholds."""
        refuse_numbers(self.task)
        if self.task != MULTI_LABEL:
            return top_predictions(logits_Y, self.classes, top)
        return self.find_labels(logits_Y.detach().cpu().double().numpy())

    def name_numbers(self, numbers_Y: Tensor | np.ndarray) -> dict[str, float]:
        """Returns the predicted numbers of an image by name."""
        return dict(zip(self.classes, map(float, numbers_Y), strict=True))

    def find_labels(self, logits_Y: np.ndarray) -> list[Prediction]:
        """Returns the labels that reach their thresholds, most probable first."""
        probabilities = sigmoid(logits_Y)
        found = np.flatnonzero(exceeds(probabilities, self.thresholds))
        best = found[np.argsort(-probabilities[found], kind="stable")].tolist()
        return [Prediction(self.classes[i], float(probabilities[i])) for i in best]


def top_predictions(logits_Y: Tensor, classes: Sequence[str], top: int = 5) -> list[Prediction]:
    """Returns the `top` most probable classes of one image, best first."""
    probabilities, indices = top_probabilities(logits_Y.unsqueeze(0), top)
    return [Prediction(classes[i], p) for p, i in zip(probabilities[0].tolist(), indices[0].tolist(), strict=True)]


def top_probabilities(logits_BY: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Returns the `top` largest softmax probabilities of each row and their class indices, (B, top) each."""
    probabilities, indices = logits_BY.softmax(1).topk(min(top, logits_BY.shape[1]))
    return probabilities, indices
