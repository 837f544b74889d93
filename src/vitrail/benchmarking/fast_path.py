"""Compares the outputs of a classifier's fast path with those of the classifier itself."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.comparison import Tolerance, compare
from vitrail.data.images import Images

UNBOUNDED = Tolerance(relative=float("inf"), floor=0.0)  # the difference is reported, not judged


def compare_fast_path(
    classifier: Classifier, images: Images, *, max_images: int, batch_size: int = 8
) -> dict[str, Any]:
    """Compares both on at most `max_images` images, in an order that is the same at every call.

    `agreement` is the fraction of images with the same predicted class, or, for a model without classes, with the same
    nearest other image (`compared` names which). `relative_difference` is the largest difference of a logit or feature
    divided by the largest logit or feature.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:max_images].numpy()

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(order), batch_size):
            yield images.load_batch(classifier.preprocess, order[start : start + batch_size])

    comparison = compare(classifier.logits, classifier.fast().logits, batches(), UNBOUNDED, name="the fast path")
    has_classes = bool(classifier.classes)
    return {
        "images": comparison.images,
        "agreement": comparison.agreement if has_classes else comparison.neighbor_agreement,
        "relative_difference": comparison.relative_difference,
        "compared": "labels" if has_classes else "nearest images",
    }
