"""Images -> batches of uint8 pixels and labels, the same whatever the number of workers."""

import signal
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.data.augment import Augmentation, build_resizing
from vitrail.data.decode import ImageError
from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.data.randomness import borrowed_generator, derive_seed, epoch_permutation, keyed_uniform
from vitrail.errors import VitrailError
from vitrail.machine import count_cores

Batch = tuple[Tensor, Tensor]  # uint8 (B, C, H, W), int64 (B,)
OnImageError = Callable[[ImageError], object]  # told of every image that is left out because it cannot be read


class WorkerDied(VitrailError):
    """A process that reads images has ended without being asked."""


class _Samples(Dataset[tuple[Batch, list[ImageError]]]):
    """Whole batches by epoch and indices; each sample's randomness comes from (seed, epoch, index).

    Beside a batch it gives the errors of the images that are missing in it.
    """

    def __init__(self, images: Images, augmentation: Augmentation, seed: int):
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Batch, list[ImageError]]:
        augmentation, epoch = self.augmentation, keys[0][0] if keys else 0
        pixels, kept, errors = self._one_by_one(keys)
        if len(kept) and (augmentation.max_shift or augmentation.flip):
            pixels = augmentation.augment_batch(pixels, keyed_uniform(kept, 3, "together", self.seed, epoch))
        return (pixels, torch.from_numpy(self.images.labels[kept].astype(np.int64))), errors

    def _one_by_one(self, keys: list[tuple[int, int]]) -> tuple[Tensor, np.ndarray, list[ImageError]]:
        """The images by themselves, which of them could be read, and what was wrong with the others."""
        indices = np.array([i for _, i in keys], dtype=np.int64)
        whole = self.images.pixels
        if isinstance(whole, Tensor) and whole.shape[1:] == self.augmentation.identity_shape:
            return whole[indices], indices, []
        pixels, kept, errors = [], [], []
        with borrowed_generator() as generator:
            for epoch, i in keys:
                if self.augmentation.is_random:
                    generator.manual_seed(derive_seed("sample", self.seed, epoch, i))
                try:
                    pixels.append(self.augmentation.augment_image(self.images[i]))
                    kept.append(i)
                except ImageError as error:
                    errors.append(error)
                except ValueError as error:
                    errors.append(ImageError(self.images.paths[i], str(error)))
        stacked = torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8)
        return stacked, np.array(kept, dtype=np.int64), errors


def default_workers(images: Images, processes: int = 1) -> int:
    """No processes for sets in memory, else one for each core but one, shared by so many processes that train."""
    return 0 if images.is_in_memory else max(1, min(8, count_cores() // processes - 1))


def _batches(
    samples: _Samples, keys: Iterable[list[tuple[int, int]]], workers: int, refuse: OnImageError | None
) -> Iterator[Batch]:
    """The batches; raises the first error where nobody wants to be told, else tells and goes on without the image."""
    for batch, errors in map(samples.__getitems__, keys) if workers == 0 else _read_by(workers, samples, keys):
        for error in errors:
            if refuse is None:
                raise error
            refuse(error)
        yield batch


def _read_by(
    workers: int, samples: _Samples, keys: Iterable[list[tuple[int, int]]]
) -> Iterator[tuple[Batch, list[ImageError]]]:
    """What processes of their own have read; raises `WorkerDied` where one of them was killed."""
    loader: DataLoader[tuple[Batch, list[ImageError]]] = DataLoader(
        samples,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_as_is,  # type: ignore[arg-type]  # the dataset gives whole batches
        worker_init_fn=_one_thread,
        generator=torch.Generator(),  # else the workers' seed, which nothing uses, is drawn from the global generator
    )
    batches = iter(loader)
    try:
        yield from batches
    except RuntimeError as error:
        if not is_worker_death(error):
            raise
        codes = [process.exitcode for process in getattr(batches, "_workers", ())]
        killed = [signal.Signals(-code).name for code in codes if code and code < 0]
        cause = f"killed by {killed[0]}" if killed else "it ended unexpectedly"
        raise WorkerDied(
            f"a process that reads images died: {cause}",
            "often the memory is short: take fewer --workers (0 reads in the main process), then --resume",
        ) from None


def is_worker_death(error: RuntimeError) -> bool:
    """Whether torch says that a process has ended; that one has raised an error it says in nearly the same words."""
    return "DataLoader worker (pid" in str(error)


def _as_is(batch: tuple[Batch, list[ImageError]]) -> tuple[Batch, list[ImageError]]:
    return batch


def _one_thread(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides what to do
    torch.set_num_threads(1)


def steps_per_epoch(images: Images, batch_size: int) -> int:
    """Batches in an epoch; the last may be smaller, so that no image is left out."""
    return -(-len(images) // batch_size)


def training_batches(
    images: Images,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int | None = None,
    processes: int = 1,
    on_error: OnImageError | None = None,
    select: Callable[[np.ndarray], np.ndarray] = lambda indices: indices,
) -> Iterator[Batch]:
    """The batches of one epoch from number `start` on, shuffled and augmented.

    Where `processes` on this machine share the work, `mine` says which images of a batch this one reads. An image that
    cannot be read raises `ImageError`, or where `refuse` is given is left out and `refuse` told: its batch is smaller
    by one, even empty. Raises `WorkerDied` where a worker was killed.
    """
    numbers = batch_indices(len(images), batch_size, seed, epoch)[start:]
    keys = ([(epoch, int(i)) for i in select(indices)] for indices in numbers)
    workers = default_workers(images, processes) if workers is None else workers
    return _batches(_Samples(images, augmentation, seed), keys, workers, on_error)


def read_batch(
    images: Images, augmentation: Augmentation, indices: np.ndarray, seed: int, epoch: int
) -> tuple[Batch, list[ImageError]]:
    """These images as a batch of an epoch, read by this process now, and what was wrong with those left out."""
    return _Samples(images, augmentation, seed).__getitems__([(epoch, int(i)) for i in indices])


def batch_indices(n: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Which of `n` images each batch of an epoch holds."""
    return np.array_split(epoch_permutation(n, seed, epoch), range(batch_size, n, batch_size))


def evaluation_batches(
    images: Images,
    preprocess: Preprocess,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    processes: int = 1,
    on_error: OnImageError | None = None,
) -> Iterator[Batch]:
    """All images in their order, unaugmented; what becomes of one that cannot be read is as in training.

    `processes` on this machine do the same at the same time.
    """
    keys = ([(0, i) for i in range(at, min(at + batch_size, len(images)))] for at in range(0, len(images), batch_size))
    samples = _Samples(images, build_resizing(preprocess), seed=0)
    return _batches(samples, keys, default_workers(images, processes) if workers is None else workers, on_error)
