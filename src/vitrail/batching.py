"""Batches that do not fit into memory are halved, in evaluation and in prediction alike."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from vitrail.console import log
from vitrail.errors import is_out_of_memory

Result = TypeVar("Result")


class BatchHalver:
    """Calls functions on batches; when memory runs out, on halves of the batch, then only on batches that fit."""

    def __init__(self) -> None:
        self.max_size: int | None = None  # items that were too many, halved; None as long as every batch has fit

    def __call__(self, function: Callable[[Tensor], Result], batch: Tensor) -> list[Result]:
        """Returns the results of `function` on the parts of the batch, in order: one if the whole batch fits.

        Raises the out-of-memory error of a batch of one.
        """
        waiting = self._split(batch)
        results: list[Result] = []
        while waiting:
            part = waiting.pop(0)
            if self._fits(function, part, results):
                continue
            release_cached_memory()  # here the failed call no longer holds its tensors
            self.max_size = len(part) // 2
            log(f"warning: there is not enough memory for a batch of {len(part)}; continuing with {self.max_size}")
            waiting = [piece for each in (part, *waiting) for piece in self._split(each)]
        return results

    def _fits(self, function: Callable[[Tensor], Result], part: Tensor, results: list[Result]) -> bool:
        """Appends the result for a part; returns whether memory was sufficient."""
        try:
            results.append(function(part))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(part) < 2:
                raise
            return False
        return True

    def _split(self, batch: Tensor) -> list[Tensor]:
        return list(torch.split(batch, self.max_size or max(1, len(batch))))


def release_cached_memory() -> None:
    """Returns freed memory of a GPU to its driver, so that smaller blocks can be allocated."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
