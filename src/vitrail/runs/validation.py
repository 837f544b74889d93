"""Validation by all processes of a run: each evaluates its share of the images, and no image is counted twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch

from vitrail.data.images import Images
from vitrail.errors import VitrailError
from vitrail.evaluation.outcome import NoReadableImages, Outcome
from vitrail.evaluation.outcomes import VALIDATION_SCORES, AnyOutcome, compute_any_outcome
from vitrail.module_classifier import TorchClassifier, module_of
from vitrail.tasks import SINGLE_LABEL
from vitrail.training.distributed import World


@dataclass(frozen=True)
class ValidationScores:
    """The scores by name, and the outcome of each image if one process has evaluated all of them."""

    scores: dict[str, float]
    outcome: AnyOutcome | None = None

    @classmethod
    def of_outcome(cls, outcome: AnyOutcome, task: str) -> "ValidationScores":
        return cls({name: float(measure(outcome)) for name, measure in VALIDATION_SCORES[task].items()}, outcome)


@dataclass(frozen=True)
class ShardScores:
    """Sums over the readable images of one process, or the error that it met."""

    loss: float = 0.0  # cross-entropy in nats
    correct: int = 0
    images: int = 0
    outcome: AnyOutcome | None = None  # of a task whose scores are no sums over images
    error: VitrailError | None = None
    correct_by_class: np.ndarray | int = 0  # (Y,)
    images_by_class: np.ndarray | int = 0


def evaluate_all_ranks(
    classifier: TorchClassifier,
    images: Images,
    world: World,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    skip_unreadable: bool = False,
) -> ValidationScores:
    """Returns the scores on these images, from batches of `batch_size` images per process.

    Raises what `compute_outcome` raises, on all processes.
    """
    if world.size == 1:
        outcome = compute_any_outcome(
            classifier, images, batch_size=batch_size, workers=workers, skip_unreadable=skip_unreadable
        )
        return ValidationScores.of_outcome(outcome, classifier.task)
    start, stop = (len(images) * rank // world.size for rank in (world.rank, world.rank + 1))
    forward_calls = ceil(ceil(len(images) / world.size) / batch_size)  # of the process with the most images
    with pad_forward_calls(classifier, forward_calls if world.is_sharded else 0):
        share = images.subset(range(start, stop))
        scores = evaluate_shard(classifier, share, world, batch_size, workers, skip_unreadable)
    shards = world.all_gather(scores)
    n = sum(shard.images for shard in shards)
    errors = [shard.error for shard in shards if shard.error]
    empty_shards = [error for error in errors if isinstance(error, NoReadableImages)]
    errors = [error for error in errors if error not in empty_shards]
    if errors:
        raise errors[0]
    if empty_shards and not n:
        raise NoReadableImages(f"none of {len(images)} images can be read", empty_shards[0].hint)
    if outcomes := [shard.outcome for shard in shards if shard.outcome is not None]:
        labels, logits = (np.concatenate([getattr(each, name) for each in outcomes]) for name in ("labels", "logits"))
        return ValidationScores.of_outcome(replace(outcomes[0], labels=labels, logits=logits), classifier.task)
    images_by_class = np.asarray(sum(shard.images_by_class for shard in shards))
    correct_by_class = np.asarray(sum(shard.correct_by_class for shard in shards))
    has_images = images_by_class > 0
    return ValidationScores(
        {
            "loss": sum(shard.loss for shard in shards) / n,
            "accuracy": sum(shard.correct for shard in shards) / n,
            "balanced_accuracy": float((correct_by_class[has_images] / images_by_class[has_images]).mean()),
        }
    )


def evaluate_shard(
    classifier: TorchClassifier,
    images: Images,
    world: World,
    batch_size: int,
    workers: int | None,
    skip_unreadable: bool,
) -> ShardScores:
    """Evaluates the share of one process. An error is returned, so that all processes learn of it."""
    if not len(images):
        return ShardScores()
    try:
        outcome = compute_any_outcome(
            classifier,
            images,
            batch_size=batch_size,
            workers=workers,
            processes=world.local_size,
            skip_unreadable=skip_unreadable,
            may_halve=not world.is_sharded,  # every process must call a sharded model equally often
        )
    except VitrailError as error:
        return ShardScores(error=error)
    if classifier.task != SINGLE_LABEL or not isinstance(outcome, Outcome):
        return ShardScores(images=len(outcome.labels), outcome=outcome)
    sums = float(outcome.losses.sum()), int(outcome.correct.sum()), len(outcome.labels)
    correct, classes = outcome.correct, len(outcome.classes)
    return ShardScores(
        *sums,
        correct_by_class=np.bincount(outcome.labels[correct], minlength=classes),
        images_by_class=np.bincount(outcome.labels, minlength=classes),
    )


@contextmanager
def pad_forward_calls(classifier: TorchClassifier, calls: int) -> Iterator[None]:
    """On exit, calls the model on blank images until it has been called `calls` times since the start.

    Processes that share a model's weights (FSDP) must all call it the same number of times.
    """
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    hook = module_of(classifier).register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()
    blank = classifier.preprocess.blank()
    with torch.inference_mode():
        for _ in range(counted, calls):
            module_of(classifier)(classifier.normalize(blank))
