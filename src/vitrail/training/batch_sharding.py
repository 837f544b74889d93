"""Sharding a batch over processes: together they train on exactly the batch that a single process would see.

Which images a batch has, and what is drawn for each, depends only on seeds and indices, so a process reads only its own
shard. MixUp and CutMix mix each image with its predecessor in the micro-batch (the first with the last). With them a
process also reads the predecessor of its first image, an overlap of one with the shard before, and drops it after
mixing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vitrail.data.augment import build_augmentation
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.loader import Batch, OnImageError, TrainLoader, WorkerDied
from vitrail.data.preprocess import Preprocess
from vitrail.training.balance import epoch_draws
from vitrail.training.distributed import World
from vitrail.training.recipe import Recipe


@dataclass(frozen=True)
class MicroBatch:
    """A part of a batch whose gradient is computed at once."""

    pixels: Tensor  # (B, C, H, W)
    labels: Tensor  # int64 (B,)
    overlap: int = 0  # number of first images that belong to the shard before and are only mixing partners


def shard_positions(n: int, recipe: Recipe, world: World) -> list[tuple[Tensor, int]]:
    """Returns, for each micro-batch of a batch of `n` images, the positions of this process's shard and its overlap."""
    shards = []
    for micro_batch in torch.arange(n).chunk(recipe.accumulation_steps):
        start, stop = (len(micro_batch) * rank // world.size for rank in (world.rank, world.rank + 1))
        overlap = int(recipe.augment.is_mixing and start < stop)
        shards.append((micro_batch[torch.arange(start - overlap, stop) % max(len(micro_batch), 1)], overlap))
    return shards


def split_micro_batches(pixels: Tensor, labels: Tensor, recipe: Recipe, world: World) -> list[MicroBatch]:
    """Splits a batch for gradient accumulation.

    `labels` are those of the whole batch, `pixels` those of this process's shard.
    """
    if world.size == 1:
        chunks = zip(pixels.chunk(recipe.accumulation_steps), labels.chunk(recipe.accumulation_steps), strict=True)
        return [MicroBatch(*chunk) for chunk in chunks]
    shards = shard_positions(len(labels), recipe, world)
    pixel_chunks = torch.split(pixels, [len(positions) for positions, _ in shards])
    return [
        MicroBatch(chunk, labels[positions], overlap)
        for chunk, (positions, overlap) in zip(pixel_chunks, shards, strict=True)
    ]


def make_train_loader(
    images: Images,
    preprocess: Preprocess,
    recipe: Recipe,
    world: World,
    on_error: OnImageError | None = None,
    has_numbers: bool = False,
) -> "TrainLoader | ShardedTrainLoader":
    """Returns the loader of the recipe's batches, for one process or for this process of a group.

    `on_error` is called for each unreadable image, which is left out; without it its `ImageError` is raised.
    With `has_numbers` each image has its number among the images in place of its label.
    """
    assert recipe.batch_size is not None
    loader = TrainLoader(
        replace(images, labels=np.arange(len(images))) if has_numbers else images,
        build_augmentation(recipe.augment, preprocess),
        recipe.batch_size,
        recipe.seed,
        workers=recipe.workers,
        on_error=on_error,
        local_processes=world.local_size,
        draw=partial(epoch_draws, images, recipe),
    )
    return loader if world.size == 1 else ShardedTrainLoader(loader, preprocess, recipe, world)


class ShardedTrainLoader:
    """Batches of which this process reads its shard: all labels, and the pixels of the shard.

    The processes agree on which images cannot be read, so that all of them shard the same batch.
    """

    def __init__(self, loader: TrainLoader, preprocess: Preprocess, recipe: Recipe, world: World):
        self.recipe, self.world, self.on_error = recipe, world, loader.on_error
        self.images = loader.images
        self.errors: list[ImageError] = []  # of the images of the current shard that could not be read
        self.loader = replace(loader, on_error=self.errors.append, select=self.shard_indices)
        self.no_pixels = torch.empty(0, preprocess.channels, *preprocess.image_size, dtype=preprocess.dtype)

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the shards from batch `start` on; raises `ImageError`, and `WorkerDied` of any process."""
        batches = self.loader.epoch(epoch, start)
        for indices in self.loader.batch_indices(epoch)[start:]:
            self.errors.clear()
            pixels = self.no_pixels
            worker_died: WorkerDied | None = None
            try:
                pixels, _ = next(batches)
            except WorkerDied as error:
                worker_died = error
            while self.world.any(bool(self.errors or worker_died))[0]:  # rare
                indices = self.drop_unreadable(indices, worker_died)
                pixels = self.read_shard(epoch, indices)
            labels = torch.from_numpy(self.images.labels[indices % len(self.images)].astype(np.int64))
            yield pixels if len(pixels) else self.no_pixels, labels

    def shard_indices(self, indices: np.ndarray) -> np.ndarray:
        """Returns the image indices of this process's shard of a batch, micro-batch by micro-batch."""
        shards = shard_positions(len(indices), self.recipe, self.world)
        return indices[torch.cat([positions for positions, _ in shards]).numpy()]

    def drop_unreadable(self, indices: np.ndarray, worker_died: WorkerDied | None) -> np.ndarray:
        """Returns the indices of a batch without the images that some process could not read; a collective.

        Raises the `WorkerDied` of any process, and the `ImageError` if unreadable images are not to be left out.
        """
        by_rank = self.world.all_gather((worker_died, list(self.errors)))
        if first_death := next((death for death, _ in by_rank if death), None):
            raise first_death
        errors = {error.name: error for _, errors in by_rank for error in errors}
        path_of = {draw: self.images.paths[draw % len(self.images)] for draw in indices.tolist()}
        unreadable = [draw for draw, path in path_of.items() if path in errors]
        if self.on_error is None or not unreadable:  # an error that concerns no image of this batch cannot be skipped
            raise next(iter(errors.values()))
        for draw in unreadable:
            self.on_error(errors[path_of[draw]])
        return indices[~np.isin(indices, unreadable)]

    def read_shard(self, epoch: int, indices: np.ndarray) -> Tensor:
        """Reads this process's shard of a batch again, in this process."""
        self.errors.clear()
        own = self.shard_indices(indices)
        if not len(own):
            return self.no_pixels
        (pixels, _), self.errors[:] = self.loader.read(epoch, own)
        return pixels
