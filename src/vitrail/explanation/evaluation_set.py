"""The images on which explanation methods are scored: single images, mosaics and pairs, the same for every method."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader
from vitrail.explanation.composites import CompositeImages, make_mosaics, make_pairs
from vitrail.explanation.inputs import max_batch_size, patch_grid

MAX_BATCH_IMAGES = 64


@dataclass(frozen=True)
class EvaluationSet:
    """Images (N, C, H, W) with the classes that the model predicts, and composites of the correctly classified ones."""

    classifier: Classifier
    pixels: Tensor
    labels: list[str]
    grid: tuple[int, int]
    composites: dict[str, CompositeImages | None]  # by measure; None with too few classes
    seconds_per_forward: float  # for one image
    unreadable: int  # images that could not be read

    @property
    def patch_count(self) -> int:
        """The number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def batch_size(self) -> int:
        """The number of images that pass through the model at once."""
        return min(MAX_BATCH_IMAGES, max_batch_size(self.patch_count))

    @property
    def randomization_subset(self) -> slice:
        """The sixth of the images on which models with shuffled weights are explained."""
        return slice(0, -(-len(self.pixels) // 6))


def draw_evaluation_set(
    classifier: Classifier, images: Images, max_images: int, seed: int, skip_unreadable: bool = False
) -> EvaluationSet:
    """Draws at most `max_images` images by `seed`, classifies them and makes the composites.

    Raises `ImageError` for an image that cannot be read, unless `skip_unreadable`.
    """
    indices = np.sort(np.random.default_rng(seed).permutation(len(images))[:max_images])
    (pixels, truth), errors = EvaluationLoader(images, classifier.preprocess).read(indices)
    if errors and not (skip_unreadable and len(pixels)):
        raise errors[0]
    predicted, seconds = classify_timed(classifier, pixels)
    labels = [classifier.classes[i] for i in predicted]
    correct = np.flatnonzero(predicted == truth.numpy())
    correct_pixels, correct_labels = pixels[correct], [labels[i] for i in correct]
    patch = classifier.vit.config.patch
    mosaics = -(-max_images // 4)
    composites = {
        "mosaic": make_mosaics(correct_pixels, correct_labels, patch, mosaics, seed),
        "pair": make_pairs(correct_pixels, correct_labels, patch, 2 * mosaics, seed),
    }
    grid = patch_grid(classifier, pixels)
    return EvaluationSet(classifier, pixels, labels, grid, composites, seconds, len(errors))


def classify_timed(classifier: Classifier, pixels: Tensor) -> tuple[np.ndarray, float]:
    """Returns the predicted class index of each image, (N,), and the seconds of a forward pass for one image."""
    h, w = patch_grid(classifier, pixels)
    batches = torch.split(pixels, min(MAX_BATCH_IMAGES, max_batch_size(h * w)))
    classifier.logits(batches[0])  # warm-up
    started = time.perf_counter()
    logits_NY = torch.cat([classifier.logits(batch) for batch in batches])
    predicted = logits_NY.argmax(dim=1).cpu().numpy()
    return predicted, (time.perf_counter() - started) / len(pixels)
