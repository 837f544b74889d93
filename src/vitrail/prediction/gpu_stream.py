"""Prediction on a GPU: one process predicts part after part while data-loading workers read ahead."""

import signal
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vitrail.batching import BatchHalver
from vitrail.data.loader import is_worker_death
from vitrail.data.preprocess import Preprocess
from vitrail.errors import VitrailError
from vitrail.prediction.entry import Entry
from vitrail.prediction.listing import Part
from vitrail.prediction.part_job import PartJob
from vitrail.prediction.rows import ImageBatch, Rows, predict_rows, read_batch
from vitrail.processes import FORK_ON_LINUX, Failed


@dataclass(frozen=True)
class PartBatch:
    """A batch of a part, read."""

    part: Part
    entries: list[Entry]
    images: ImageBatch


class PartBatches(Dataset[PartBatch | Failed]):
    """The batches of all parts, numbered through; each is read on access."""

    def __init__(self, job: PartJob, parts: Sequence[Part], preprocess: Preprocess):
        self.job = job
        self.parts = parts
        self.preprocess = preprocess
        self.ends = list(accumulate(-(-part.images // job.batch_size) for part in parts))
        self.cached: tuple[int, list[list[Entry]]] = (-1, [])  # the batches of the part that was read last

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> PartBatch | Failed:
        index = bisect_right(self.ends, number)
        try:
            batches = self._batches(index)
            entries = batches[number - self.ends[index] + len(batches)]
            return PartBatch(self.parts[index], entries, read_batch(entries, self.preprocess))
        except VitrailError as error:  # if it were raised, PyTorch would put a traceback into its text
            return Failed(error)

    def _batches(self, index: int) -> list[list[Entry]]:
        if self.cached[0] != index:
            self.cached = (index, self.job.batches(self.parts[index]))
        return self.cached[1]


def predict_in_stream(job: PartJob, parts: Sequence[Part], workers: int, on_images: Callable[[int], object]) -> None:
    """Predicts the parts one after another while `workers` processes read the next batches."""
    if job.model.threads:
        torch.set_num_threads(job.model.threads)
    classifier = job.load_classifier()
    loader: DataLoader[PartBatch | Failed] = DataLoader(
        PartBatches(job, parts, classifier.preprocess),
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_init_worker,
        multiprocessing_context=FORK_ON_LINUX if workers else None,
    )
    predicted: list[Rows] = []
    halve = BatchHalver()
    try:
        for item in loader:
            if isinstance(item, Failed):
                raise item.error
            plan = job.plan
            predicted.append(predict_rows(classifier, item.entries, item.images, plan.top, plan.embedding, halve))
            on_images(len(item.entries))
            if sum(map(len, predicted)) == item.part.images:
                job.write_part(classifier, item.part, predicted)
                predicted = []
    except RuntimeError as error:
        if not is_worker_death(error):
            raise
        raise VitrailError(
            "a data-loading worker died", "memory may be short: use fewer --workers, then --resume"
        ) from None


def _identity(item: Any) -> Any:
    return item


def _init_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent handles it
    torch.set_num_threads(1)
