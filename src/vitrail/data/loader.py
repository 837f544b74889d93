"""Loaders: from images to batches of uint8 pixels and labels, which are the same for any number of workers."""

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.data.augment import Augmentation, build_resizing
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.data.randomness import derive_seed, epoch_permutation
from vitrail.errors import VitrailError
from vitrail.machine import count_cores

Batch = tuple[Tensor, Tensor]  # uint8 (B, C, H, W), int64 (B,), or (B, Y) of several labels; numbers: float64 (B, Y)
OnImageError = Callable[[ImageError], object]  # called for every unreadable image that is left out of a batch
Read = TypeVar("Read")
BatchKey = tuple[int, np.ndarray]  # epoch, draws: an image's index, plus the number of images for each repetition
MAX_WORKERS = 8


class WorkerDied(VitrailError):
    """A data-loading worker ended unexpectedly."""


@dataclass(frozen=True)
class TrainLoader:
    """Shuffled and augmented batches, epoch by epoch. The last batch of an epoch may be smaller.

    An unreadable image is left out of its batch and reported to `on_error`; without it, its `ImageError` is raised. If
    several processes train, `select` chooses which images of a batch this one reads.
    """

    images: Images
    augmentation: Augmentation
    batch_size: int
    seed: int
    workers: int | None = None  # None: `default_workers`
    on_error: OnImageError | None = None
    select: Callable[[np.ndarray], np.ndarray] = lambda indices: indices
    local_processes: int = 1  # on this machine, which share its cores
    draw: Callable[[int], np.ndarray] | None = None  # epoch -> draws; None: each image once, shuffled

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return count_batches(len(self.images), self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from number `start` on; raises `ImageError` and `WorkerDied`."""
        keys = ((epoch, self.select(indices)) for indices in self.batch_indices(epoch)[start:])
        workers = default_workers(self.images, self.local_processes) if self.workers is None else self.workers
        return load_batches(self.reader, keys, workers, self.on_error)

    def batch_indices(self, epoch: int) -> list[np.ndarray]:
        """Returns the draws in each batch of an epoch."""
        n = len(self.images)
        return divide_draws(self.draw(epoch) if self.draw else epoch_permutation(n, self.seed, epoch), self.batch_size)

    def read(self, epoch: int, indices: np.ndarray) -> tuple[Batch, list[ImageError]]:
        """Reads these images as a batch of an epoch in this process; also returns the errors of unreadable ones."""
        return self.reader[epoch, indices]

    @cached_property
    def reader(self) -> "BatchReader":
        return BatchReader(self.images, self.augmentation, self.seed)


@dataclass(frozen=True)
class EvaluationLoader:
    """All images in order, without augmentation. Unreadable images are treated as in `TrainLoader`."""

    images: Images
    preprocess: Preprocess
    batch_size: int = 256
    workers: int | None = None  # None: `default_workers`
    on_error: OnImageError | None = None
    local_processes: int = 1  # on this machine, which share its cores

    def __iter__(self) -> Iterator[Batch]:
        n, size = len(self.images), self.batch_size
        keys = ((0, np.arange(start, min(start + size, n))) for start in range(0, n, size))
        workers = default_workers(self.images, self.local_processes) if self.workers is None else self.workers
        return load_batches(self.reader, keys, workers, self.on_error)

    def read(self, indices: np.ndarray) -> tuple[Batch, list[ImageError]]:
        """Reads these images as a batch in this process; also returns the errors of unreadable ones."""
        return self.reader[0, indices]

    @cached_property
    def reader(self) -> "BatchReader":
        return BatchReader(self.images, build_resizing(self.preprocess), seed=0)


class BatchReader(Dataset[tuple[Batch, list[ImageError]]]):
    """Reads batches by epoch and draws; the augmentation of an image depends only on (seed, epoch, draw)."""

    def __init__(self, images: Images, augmentation: Augmentation, seed: int):
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: BatchKey) -> tuple[Batch, list[ImageError]]:
        epoch, draws = key
        pixels, draws, errors = self.read_images(epoch, np.asarray(draws, dtype=np.int64))
        pixels = self.augmentation.augment_batch(pixels, draws, self.seed, epoch)
        labels = self.images.labels[draws % len(self.images)]
        if labels.dtype != np.float64:
            labels = labels.astype(np.int64)
        return (pixels, torch.from_numpy(labels)), errors

    def read_images(self, epoch: int, draws: np.ndarray) -> tuple[Tensor, np.ndarray, list[ImageError]]:
        """Returns the stacked images, the draws of those that could be read, and the errors of the others."""
        array = self.images.pixels
        if isinstance(array, Tensor) and array.shape[1:] == self.augmentation.identity_shape:
            return array[draws % len(self.images)], draws, []
        pixels: list[Tensor] = []
        readable: list[int] = []
        errors: list[ImageError] = []
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            for draw in draws.tolist():
                i = draw % len(self.images)
                if self.augmentation.is_random:
                    torch.default_generator.manual_seed(derive_seed("sample", self.seed, epoch, draw))
                try:
                    pixels.append(self.augmentation.augment_image(self.images[i]))
                    readable.append(draw)
                except ImageError as error:
                    errors.append(error)
                except ImageSizeError as error:
                    errors.append(ImageError(self.images.paths[i], str(error)))
        stacked = torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8)
        return stacked, np.array(readable, dtype=np.int64), errors


def count_batches(n: int, batch_size: int) -> int:
    """Returns the number of batches of `n` images; the last may be smaller."""
    return -(-n // batch_size)


def divide_draws(draws: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Returns the draws of each batch of an epoch."""
    return np.array_split(draws, range(batch_size, len(draws), batch_size))


def default_workers(images: Images, processes: int = 1) -> int:
    """Returns 0 for images in memory, else one worker per core but one, divided by the processes that load data."""
    return 0 if images.is_in_memory else max(1, min(MAX_WORKERS, count_cores() // processes - 1))


def load_batches(
    reader: "Dataset[tuple[Read, list[ImageError]]]",
    keys: Iterable[Any],
    workers: int,
    on_error: OnImageError | None = None,
) -> Iterator[Read]:
    """Yields what a reader returns for these keys; reports unreadable images to `on_error`, or raises the first error.

    The reader is a `BatchReader`, or another one that also returns the errors of unreadable images.
    """
    batches = map(reader.__getitem__, keys) if workers == 0 else load_in_workers(reader, keys, workers)
    for batch, errors in batches:
        for error in errors:
            if on_error is None:
                raise error
            on_error(error)
        yield batch


def load_in_workers(
    reader: "Dataset[tuple[Read, list[ImageError]]]", keys: Iterable[Any], workers: int
) -> Iterator[tuple[Read, list[ImageError]]]:
    """Yields what worker processes have read, in the order of the keys; raises `WorkerDied` if one was killed."""
    loader: DataLoader[tuple[Read, list[ImageError]]] = DataLoader(
        reader,
        batch_size=None,  # the reader returns whole batches
        sampler=keys,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # else the workers' seed, which is not used, is drawn from the global generator
    )
    batches = iter(loader)
    try:
        yield from batches
    except RuntimeError as error:
        if not is_worker_death(error):
            raise
        exit_codes = [process.exitcode for process in getattr(batches, "_workers", ())]
        signals = [signal.Signals(-code).name for code in exit_codes if code and code < 0]
        cause = f"killed by {signals[0]}" if signals else "it ended unexpectedly"
        raise WorkerDied(
            f"a data-loading worker died: {cause}",
            "often the machine is out of memory: use fewer --workers (0 loads in the main process), then --resume",
        ) from None


def is_worker_death(error: RuntimeError) -> bool:
    """Returns whether torch reports a dead worker. torch has no error type for it; an error raised in a worker differs.

    torch's text is "DataLoader worker (pid(s) 1, 2) exited unexpectedly", or "DataLoader worker (pid 1) is killed".
    """
    return "DataLoader worker (pid" in str(error)


def _identity(batch: Read) -> Read:
    return batch


def _init_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the main process reacts
    torch.set_num_threads(1)
