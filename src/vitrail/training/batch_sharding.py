"""A batch cut over processes: together they see the very batch that one process alone would see.

Which images a batch holds, and what is drawn for each, depends on seeds and numbers alone, so a process reads only its
cut. MixUp and CutMix mix an image with the one before it in its part of the batch (the first with the last): with them
a process reads that one too, a spare one, and drops it when all is mixed.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vitrail.data import Images, Preprocess
from vitrail.data.augment import augmentation
from vitrail.data.decode import ImageError
from vitrail.data.loader import Batch, Refuse, WorkerDied, batch_indices, read, training_batches
from vitrail.errors import VitrailError
from vitrail.training.distributed import World
from vitrail.training.recipes import Recipe


def shard_positions(n: int, recipe: Recipe, world: World) -> list[tuple[Tensor, int]]:
    """For each part of a batch of `n` images the places of this process's cut; so many at the front are spare."""
    cuts = []
    for part in torch.arange(n).chunk(recipe.accumulation_steps):
        low, high = (len(part) * rank // world.size for rank in (world.rank, world.rank + 1))
        spare = int(recipe.augment.mixes and low < high)
        cuts.append((part[torch.arange(low - spare, high) % max(len(part), 1)], spare))
    return cuts


def micro_batches(pixels: Tensor, labels: Tensor, recipe: Recipe, world: World) -> list[tuple[Tensor, Tensor, int]]:
    """The parts that a batch is computed in: pixels, labels, and how many images at the front are spare.

    `labels` are those of the whole batch, `pixels` what this process has read of it.
    """
    if world.size == 1:
        chunks = zip(pixels.chunk(recipe.accumulation_steps), labels.chunk(recipe.accumulation_steps), strict=True)
        return [(some_pixels, some_labels, 0) for some_pixels, some_labels in chunks]
    cuts = shard_positions(len(labels), recipe, world)
    ends = np.cumsum([len(where) for where, _ in cuts]).tolist()
    return [
        (pixels[end - len(where) : end], labels[where], spare) for end, (where, spare) in zip(ends, cuts, strict=True)
    ]


def epoch_batches(
    images: Images,
    preprocess: Preprocess,
    recipe: Recipe,
    world: World,
    *,
    epoch: int,
    start: int = 0,
    refuse: Refuse | None = None,
) -> Iterator[Batch]:
    """The batches of an epoch from number `start` on, or where several processes train, this one's cuts of them."""
    if world.size > 1:
        yield from sharded_batches(images, preprocess, recipe, world, epoch=epoch, start=start, refuse=refuse)
        return
    assert recipe.batch_size is not None
    yield from training_batches(
        images,
        augmentation(recipe.augment, preprocess),
        batch=recipe.batch_size,
        seed=recipe.seed,
        epoch=epoch,
        start=start,
        workers=recipe.workers,
        refuse=refuse,
    )


def sharded_batches(
    images: Images,
    preprocess: Preprocess,
    recipe: Recipe,
    world: World,
    *,
    epoch: int,
    start: int = 0,
    refuse: Refuse | None = None,
) -> Iterator[Batch]:
    """The batches of an epoch: the labels of each whole batch, and the pixels of this process's cut of it.

    What cannot be read is left out of the batch on all processes alike, and `refuse` is told on all of them, or all
    raise `ImageError`. Raises `WorkerDied` on all where it happens to one.
    """
    assert recipe.batch_size is not None
    augment = augmentation(recipe.augment, preprocess)
    errors: list[ImageError] = []

    def mine(indices: np.ndarray) -> np.ndarray:
        where = torch.cat([where for where, _ in shard_positions(len(indices), recipe, world)])
        return indices[where.numpy()]

    reading = training_batches(
        images,
        augment,
        batch=recipe.batch_size,
        seed=recipe.seed,
        epoch=epoch,
        start=start,
        workers=recipe.workers,
        processes=world.local_size,
        refuse=errors.append,
        mine=mine,
    )
    nothing = torch.empty(0, preprocess.channels, *preprocess.image_size, dtype=torch.uint8)
    for indices in batch_indices(len(images), recipe.batch_size, recipe.seed, epoch)[start:]:
        errors.clear()
        died: VitrailError | None = None
        pixels = nothing
        try:
            pixels, _ = next(reading)
        except WorkerDied as error:
            died = error
        while world.any(bool(errors or died))[0]:  # seldom: the batch is cut anew, without what cannot be read
            known = world.all_gather((died, list(errors)))
            if dead := next((each for each, _ in known if each), None):
                raise dead
            unread = {error.name: error for _, theirs in known for error in theirs}
            if refuse is None:
                raise next(iter(unread.values()))
            gone = [i for i in indices if images.paths[i] in unread]
            if not gone:  # an error about none of the batch's images: nothing can be left out
                raise next(iter(unread.values()))
            for i in gone:
                refuse(unread[images.paths[i]])
            indices = indices[~np.isin(indices, gone)]
            pixels, errors[:] = nothing, []
            if len(mine(indices)):
                (pixels, _), errors[:] = read(images, augment, mine(indices), recipe.seed, epoch)
        yield pixels if len(pixels) else nothing, torch.from_numpy(images.labels[indices].astype(np.int64))
