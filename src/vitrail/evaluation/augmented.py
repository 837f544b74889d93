"""Test-time augmentation: a classifier whose answer is the mean over several views of an image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.classifier import BaseClassifier
from vitrail.data.images import Images
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.numbers import NumberOutcome
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.outcomes import compute_any_outcome
from vitrail.image_documents import AugmentationDocument
from vitrail.intervals import paired_difference_interval
from vitrail.tasks import MULTI_LABEL, TASKS, TaskName, refuse_task
from vitrail.weights.unlike import UnlikeFacts

SHIFT = 16  # a crop is moved by this fraction of the image size
MIN_PROBABILITY = 1e-12


def flip(pixels_BCHW: Tensor) -> list[Tensor]:
    """Returns the images and their mirror images."""
    return [pixels_BCHW, pixels_BCHW.flip(-1)]


def crop(pixels_BCHW: Tensor) -> list[Tensor]:
    """Returns the images and four copies that are moved diagonally; the border repeats its pixels."""
    height, width = pixels_BCHW.shape[-2:]
    dy, dx = max(1, height // SHIFT), max(1, width // SHIFT)
    padded = F.pad(pixels_BCHW.float(), (dx, dx, dy, dy), mode="replicate").to(pixels_BCHW.dtype)
    corners = [(0, 0), (0, 2 * dx), (2 * dy, 0), (2 * dy, 2 * dx)]
    return [pixels_BCHW, *(padded[..., y : y + height, x : x + width] for y, x in corners)]


VIEWS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "flip": flip,
    "crops": crop,
    "flip+crops": lambda pixels_BCHW: [view for each in flip(pixels_BCHW) for view in crop(each)],
}


@dataclass
class AugmentedClassifier(BaseClassifier):
    """A classifier that gives the mean probability over views of an image. `unlike` is that of the image itself."""

    inner: BaseClassifier
    views: str  # a key of `VIEWS`

    def __post_init__(self) -> None:
        refuse_task(self.inner.task, "tta")
        self.classes, self.preprocess, self.origin = self.inner.classes, self.inner.preprocess, self.inner.origin
        self.temperature = self.inner.temperature
        self.task: TaskName = self.inner.task
        self.thresholds = self.inner.thresholds

    @property
    def unlike_facts(self) -> UnlikeFacts | None:
        return self.inner.unlike_facts

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns logits whose softmax, or sigmoid, is the mean probability over the views, (B, Y)."""
        return self.logits_and_distances(pixels_BCHW)[0]

    def logits_and_distances(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the logits of the mean probability, and the distances of the images themselves."""
        image, *others = VIEWS[self.views](pixels_BCHW)
        logits_BY, distances_B = self.inner.logits_and_distances(image)
        all_logits = [logits_BY, *(self.inner.logits(view) for view in others)]
        to_probabilities = TASKS[self.task].to_probabilities
        mean_BY = torch.stack([to_probabilities(each.double()) for each in all_logits]).mean(0)
        mean_BY = mean_BY.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        logits_BY = mean_BY.logit() if self.task == MULTI_LABEL else mean_BY.log()
        return logits_BY.float(), distances_B


def measure_augmentation(
    classifier: BaseClassifier, validation: Images, views: str, **options: Any
) -> AugmentationDocument:
    """Returns what averaging over views changes on validation images, and whether it pays.

    It pays if the 95% interval of the change of the accuracy is above zero. With several labels an image is right if
    all of its labels are. `options` are those of `compute_logits`.
    """
    plain, augmented = (
        compute_any_outcome(each, validation, **options)
        for each in (classifier, AugmentedClassifier(classifier, views))
    )
    assert not isinstance(plain, NumberOutcome) and not isinstance(augmented, NumberOutcome)  # `tta` is refused
    return describe_change(plain, augmented, views)


def describe_change(
    plain: Outcome | MultiLabelOutcome, augmented: Outcome | MultiLabelOutcome, views: str
) -> AugmentationDocument:
    """Returns both accuracies and losses on the same images, and the paired interval of the change."""
    gained = int((augmented.correct & ~plain.correct).sum())
    lost = int((plain.correct & ~augmented.correct).sum())
    low, high = paired_difference_interval(gained, lost, len(plain.labels))
    return {
        "views": views,
        "forwards": len(VIEWS[views](torch.zeros(1, 1, 1, 1, dtype=torch.uint8))),
        "images": len(plain.labels),
        "accuracy": plain.accuracy,
        "augmented_accuracy": augmented.accuracy,
        "change": (gained - lost) / len(plain.labels),
        "change_interval": [low, high],
        "loss": plain.loss,
        "augmented_loss": augmented.loss,
        "pays": low > 0,
    }
