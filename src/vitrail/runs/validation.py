"""Scoring in the middle of a run, by all of its processes: each takes some of the images, and none is counted twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import torch

from vitrail.classifier import Classifier
from vitrail.data import Images
from vitrail.errors import VitrailError
from vitrail.evaluation import compute_outcome
from vitrail.evaluation.outcome import NoReadableImages
from vitrail.training.distributed import World

BATCH = 256  # images that a process scores at once


@dataclass(frozen=True)
class Part:
    """What one process found: sums over the images that it could read, or why there are none."""

    loss: float = 0.0  # cross-entropy in nats
    correct: int = 0
    images: int = 0
    error: VitrailError | None = None


def evaluate_all_ranks(
    classifier: Classifier,
    images: Images,
    world: World,
    *,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> tuple[float, float]:
    """Loss and accuracy on these images, by all processes together; what is raised is raised on all of them.

    Raises what `classify` raises.
    """
    if world.size == 1:
        outcome = compute_outcome(classifier, images, workers=workers, skip_unreadable=skip_unreadable)
        return outcome.loss, outcome.accuracy
    low, high = (len(images) * rank // world.size for rank in (world.rank, world.rank + 1))
    calls = ceil(ceil(len(images) / world.size) / BATCH)  # of the model, by the process with most images
    with pad_forward_calls(classifier, calls if world.is_sharded else 0):
        part = evaluate_shard(classifier, images.subset(range(low, high)), world, workers, skip_unreadable)
    parts = world.all_gather(part)
    errors = [part.error for part in parts if part.error]
    n = sum(part.images for part in parts)
    if nothing_read := [error for error in errors if isinstance(error, NoReadableImages)]:
        errors = [error for error in errors if error not in nothing_read]
        if not n and not errors:
            raise NoReadableImages(f"not one of {len(images)} images can be read", nothing_read[0].hint)
    if errors:
        raise errors[0]
    return sum(part.loss for part in parts) / n, sum(part.correct for part in parts) / n


def evaluate_shard(
    classifier: Classifier, images: Images, world: World, workers: int | None, skip_unreadable: bool
) -> Part:
    """What a process finds on its images; an error is part of it, so that the others hear of it."""
    if not len(images):
        return Part()
    try:
        outcome = compute_outcome(
            classifier,
            images,
            batch_size=BATCH,
            workers=workers,
            processes=world.local_size,
            skip_unreadable=skip_unreadable,
        )
    except VitrailError as error:
        return Part(error=error)
    correct = int((outcome.predicted == outcome.labels).sum())
    return Part(float(outcome.losses.sum()), correct, len(outcome.labels))


@contextmanager
def pad_forward_calls(classifier: Classifier, calls: int) -> Iterator[None]:
    """Afterwards the model has been called at least so often: processes that share its weights must call it alike."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1

    counting = classifier.vit.register_forward_pre_hook(count)
    try:
        yield
    finally:
        counting.remove()
    blank = torch.zeros(1, classifier.preprocess.channels, *classifier.preprocess.image_size, dtype=torch.uint8)
    with torch.inference_mode():
        for _ in range(made, calls):
            classifier.vit(classifier.normalize(blank))
