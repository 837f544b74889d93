"""Images -> batches of uint8 pixels and labels, the same whatever the number of workers."""

import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.data.randomness import borrowed_generator, derive, order

Batch = tuple[Tensor, Tensor]  # uint8 (B, C, H, W), int64 (B,)


class _Samples(Dataset[Batch]):
    """Whole batches by (epoch, indices); each sample's randomness comes from (seed, epoch, index)."""

    def __init__(self, images: Images, transform: Callable[[Tensor], Tensor], seed: int | None):
        self.images = images
        self.transform = transform
        self.seed = seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> "Batch | ImageError":
        """The batch, or the error that a worker could not raise: torch rebuilds exceptions from their text alone."""
        try:
            return self.read(keys)
        except ImageError as error:
            return error

    def read(self, keys: list[tuple[int, int]]) -> Batch:
        pixels = []
        with borrowed_generator() as generator:
            for epoch, i in keys:
                if self.seed is not None:
                    generator.manual_seed(derive("sample", self.seed, epoch, i))
                try:
                    pixels.append(self.transform(self.images[i]))
                except ValueError as error:
                    raise ImageError(self.images.paths[i], str(error)) from None
        return torch.stack(pixels), torch.from_numpy(self.images.labels[[i for _, i in keys]])


def default_workers(images: Images) -> int:
    """No processes for sets in memory, else one for each core but one."""
    return 0 if images.in_memory else max(1, min(8, (os.cpu_count() or 1) - 1))


def _batches(samples: _Samples, keys: list[list[tuple[int, int]]], workers: int) -> Iterator[Batch]:
    if workers == 0:  # nothing between the reader of a traceback and the cause
        yield from map(samples.read, keys)
        return
    loader: DataLoader[Batch] = DataLoader(
        samples,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_as_is,  # type: ignore[arg-type]  # the dataset gives whole batches
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # else the workers' seed, which nothing uses, is drawn from the global generator
    )
    for batch in loader:
        if isinstance(batch, ImageError):
            raise batch
        yield batch


def _as_is(batch: Batch) -> Batch:
    return batch


def _one_thread(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides what to do
    torch.set_num_threads(1)


def steps_per_epoch(images: Images, batch: int) -> int:
    """Batches in an epoch; the last may be smaller, so that no image is left out."""
    return -(-len(images) // batch)


def training_batches(
    images: Images,
    transform: Callable[[Tensor], Tensor],
    *,
    batch: int,
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int | None = None,
) -> Iterator[Batch]:
    """The batches of one epoch from number `start` on, shuffled and augmented.

    Raises `ImageError` naming a file that cannot be read.
    """
    shuffled = np.array_split(order(len(images), seed, epoch), range(batch, len(images), batch))
    keys = [[(epoch, int(i)) for i in indices] for indices in shuffled[start:]]
    return _batches(_Samples(images, transform, seed), keys, default_workers(images) if workers is None else workers)


def evaluation_batches(
    images: Images, preprocess: Preprocess, *, batch: int = 256, workers: int | None = None
) -> Iterator[Batch]:
    """All images in their order, unaugmented. Raises `ImageError` naming a file that cannot be read."""
    keys = [[(0, i) for i in range(at, min(at + batch, len(images)))] for at in range(0, len(images), batch)]
    samples = _Samples(images, preprocess.fitted, seed=None)
    return _batches(samples, keys, default_workers(images) if workers is None else workers)
