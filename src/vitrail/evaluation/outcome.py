"""The outputs of a classifier on labeled images, from which every metric is computed. Shapes: n images, Y classes.

`Outcome` is for images with one class; `multi_label.py` has that of images with several labels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self, TypedDict, Unpack

import numpy as np
import torch

from vitrail.batching import BatchHalver
from vitrail.classifier import BaseClassifier
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader
from vitrail.errors import UsageError, VitrailError
from vitrail.tasks import TASKS, has_one_class


class NoReadableImages(VitrailError):
    """None of the images can be read."""


@dataclass(frozen=True)
class ImageLogits:
    """The true labels and the logits of each image: labels as in `Images`, logits (n, Y) in double precision.

    Arrays that are derived from them are computed at first use and then shared: do not change them in place.
    """

    paths: list[str]  # of files, otherwise names of images
    labels: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    unreadable: tuple[ImageError, ...] = ()  # images that were skipped; no array contains them
    groups: tuple[str, ...] | None = None  # of the images, if they have groups
    distances: np.ndarray | None = None  # (n,), from the validation images (`weights/unlike.py`), if it is fitted

    def readable_images(self, images: Images) -> Images:
        """Returns `images` without those that were skipped, so that indices match the arrays."""
        return images.exclude(self.unreadable)

    def with_temperature(self, temperature: float) -> Self:
        """Returns the outcome at another temperature, to the last bit that of the classifier; this one must have 1."""
        logits = torch.from_numpy(self.logits).float() / temperature
        return replace(self, logits=logits.double().numpy())


class Outcome(ImageLogits):
    """The true class and the logits of each image: labels (n,)."""

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (n, Y)."""
        exponentials = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        probabilities: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, (n,)."""
        confidence: np.ndarray = self.probabilities.max(axis=1)
        return confidence

    @cached_property
    def predicted(self) -> np.ndarray:
        """Index of the most probable class, (n,)."""
        predicted: np.ndarray = self.logits.argmax(axis=1)
        return predicted

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the predicted class is the true class, (n,)."""
        correct: np.ndarray = self.predicted == self.labels
        return correct

    @cached_property
    def losses(self) -> np.ndarray:
        """Cross-entropy of each image in nats, (n,)."""
        highest = self.logits.max(axis=1)
        log_sum = highest + np.log(np.exp(self.logits - highest[:, None]).sum(axis=1))
        losses: np.ndarray = log_sum - self.logits[np.arange(len(self.labels)), self.labels]
        return losses

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.losses.mean())


class OutcomeOptions(TypedDict, total=False):
    """The options of `compute_logits`."""

    batch_size: int
    workers: int | None
    processes: int
    on_batch: Callable[[int], object]
    skip_unreadable: bool
    may_halve: bool


def compute_outcome(classifier: BaseClassifier, images: Images, **options: Unpack[OutcomeOptions]) -> Outcome:
    """Returns the outcome on images with one class, as `compute_logits` does; raises `UsageError` for another task."""
    if not has_one_class(classifier.task):
        answer = {"labels": "several labels", "numbers": "numbers"}[TASKS[classifier.task].answer]
        raise UsageError(f"this is computed for classifiers of one class per image, and this one gives {answer}")
    return Outcome(**vars(compute_logits(classifier, images, **options)))


def compute_logits(
    classifier: BaseClassifier,
    images: Images,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    processes: int = 1,
    on_batch: Callable[[int], object] = lambda images: None,
    skip_unreadable: bool = False,
    may_halve: bool = True,
) -> ImageLogits:
    """Returns the logits of every image, in order. `on_batch` receives the number of images of each batch.

    `processes` is the number of processes on this machine that compute outcomes at the same time. Batches that do not
    fit into memory are halved, unless `may_halve` is false.

    Raises `ImageError` for an unreadable image. With `skip_unreadable` such images are skipped and listed; then raises
    `NoReadableImages` if none is left.
    """
    errors: list[ImageError] = []

    def skip(error: ImageError) -> None:
        errors.append(error)
        on_batch(1)

    logits, distances, labels = [], [], []
    halve = BatchHalver()
    batches = EvaluationLoader(
        images,
        classifier.preprocess,
        batch_size=batch_size,
        workers=workers,
        local_processes=processes,
        on_error=skip if skip_unreadable else None,
    )
    for pixels, labels_B in batches:
        if len(labels_B):
            compute = classifier.logits_and_distances
            for logits_BY, distances_B in halve(compute, pixels) if may_halve else [compute(pixels)]:
                logits.append(logits_BY.cpu())
                distances += [] if distances_B is None else [distances_B.cpu()]
            labels.append(labels_B)
            on_batch(len(pixels))
    if not logits:
        raise NoReadableImages(f"none of {len(images)} images can be read", str(errors[0]))
    skipped = {error.name for error in errors}
    paths = [path for path in images.paths if path not in skipped]
    groups = images.groups
    if groups is not None:
        groups = tuple(group for group, path in zip(groups, images.paths, strict=True) if path not in skipped)
    return ImageLogits(
        paths,
        torch.cat(labels).numpy(),
        torch.cat(logits).double().numpy(),
        classifier.classes,
        tuple(errors),
        groups,
        torch.cat(distances).double().numpy() if distances else None,
    )
