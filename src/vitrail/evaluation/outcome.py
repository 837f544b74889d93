"""A classifier's answers on a set of images, from which every metric is computed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vitrail.classifier import BaseClassifier
from vitrail.data import Images
from vitrail.data.decode import ImageError
from vitrail.data.loader import EvaluationLoader
from vitrail.errors import VitrailError


class NoReadableImages(VitrailError):
    """Of all images that were to be answered for, not one can be read."""


@dataclass(frozen=True)
class Outcome:
    """For each image its true class and the logits: labels (n,), logits (n, Y)."""

    paths: list[str]  # of files, else the images' names
    labels: np.ndarray
    logits: np.ndarray
    classes: tuple[str, ...]
    unreadable: tuple[ImageError, ...] = ()  # images that were listed and are in none of the arrays

    def readable_images(self, images: Images) -> Images:
        """The images that this is of: those of the listed that could be read."""
        return images.exclude(self.unreadable)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (n, Y)."""
        powers = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return shares

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class of each image, (n,)."""
        best: np.ndarray = self.logits.argmax(axis=1)
        return best

    @property
    def losses(self) -> np.ndarray:
        """Cross-entropy of each image in nats, (n,)."""
        highest = self.logits.max(axis=1)
        log_sum = highest + np.log(np.exp(self.logits - highest[:, None]).sum(axis=1))
        losses: np.ndarray = log_sum - self.logits[np.arange(len(self.labels)), self.labels]
        return losses

    @property
    def accuracy(self) -> float:
        """The part of the images whose most probable class is the true one."""
        return float((self.predicted == self.labels).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.losses.mean())


def compute_outcome(
    classifier: BaseClassifier,
    images: Images,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    processes: int = 1,
    tick: Callable[[int], object] = lambda n: None,
    skip_unreadable: bool = False,
) -> Outcome:
    """The classifier's logits for every image, in order; `tick` is called with the images done in each batch.

    Raises `ImageError` naming a file that cannot be read; with `skip_unreadable` it is counted instead, and
    `NothingRead` is raised where no image is left.
    """
    refused: list[ImageError] = []

    def refuse(error: ImageError) -> None:
        refused.append(error)
        tick(1)

    logits, labels = [], []
    batches = EvaluationLoader(
        images,
        classifier.preprocess,
        batch_size=batch_size,
        workers=workers,
        local_processes=processes,
        on_error=refuse if skip_unreadable else None,
    )
    for pixels, labels_B in batches:
        if len(labels_B):
            logits.append(classifier.logits(pixels).cpu())
            labels.append(labels_B)
            tick(len(pixels))
    if not logits:
        raise NoReadableImages(f"not one of {len(images)} images can be read", str(refused[0]))
    gone = {error.name for error in refused}
    paths = [path for path in images.paths if path not in gone]
    scores = torch.cat(logits).double().numpy()
    return Outcome(paths, torch.cat(labels).numpy(), scores, classifier.classes, tuple(refused))
