"""Statistics of a training step, which are read from the device when they are first asked for.

Reading a number makes the host wait until the device has computed it. The loop reads those of a step when the next step
is under way, so a GPU always has work.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vitrail.errors import VitrailError

DIVERGED_HINT = "try a lower learning rate or a longer warmup"


class DeviceNumbers:
    """Numbers that a device computes. Their copy to the host's memory is queued at once; `read` waits for it."""

    def __init__(self, numbers: Tensor):
        self.copied: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self.numbers = numbers.to("cpu", non_blocking=True)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record(torch.cuda.current_stream(numbers.device))
        else:
            self.numbers = numbers

    def read(self) -> list[float]:
        """Returns the numbers."""
        if self.copied:
            self.copied.synchronize()  # waits for this copy, but not for the steps that were queued after it
        numbers: list[float] = self.numbers.tolist()
        return numbers


@dataclass(frozen=True)
class StepStats:
    """Statistics of one training step. `loss`, `correct` and `grad_norm` wait for the device."""

    step: int  # counted over the whole run, from 1
    images: int
    lr: float
    sums: DeviceNumbers  # of the losses and the right answers over the images, and the gradient's norm
    unlabeled: int = 0  # of `images`: those of a teacher alone

    @cached_property
    def _numbers(self) -> list[float]:
        return self.sums.read()

    @property
    def loss(self) -> float:
        """The mean over the images."""
        return self._numbers[0] / self.images

    @property
    def correct(self) -> int:
        """The right answers, with the labels before mixing; 0 for numbers."""
        return int(self._numbers[1])

    @property
    def grad_norm(self) -> float:
        """The norm of the gradient before clipping."""
        return self._numbers[2]

    @property
    def accuracy(self) -> float:
        """The fraction of right answers among the images with labels."""
        return self.correct / max(self.images - self.unlabeled, 1)


class TrainingDiverged(VitrailError):
    """The loss, the gradient or a weight is not finite; `step` is the step at which it was found."""

    def __init__(self, sentence: str, hint: str | None = None, step: int | None = None):
        super().__init__(sentence, hint)
        self.step = step


def check_stats_finite(stats: StepStats) -> None:
    """Raises `TrainingDiverged` if the loss or the gradient of a step is not finite; waits for the device."""
    if not math.isfinite(stats.loss + stats.grad_norm):
        raise divergence_error(stats.step, f"loss {stats.loss:.3g}", stats)


def divergence_error(step: int, reason: str, stats: StepStats | None) -> TrainingDiverged:
    """Returns the error with the reason and the step at which training diverged."""
    grad_norm, lr = (stats.grad_norm, stats.lr) if stats else (0.0, 0.0)
    return TrainingDiverged(
        f"training diverged at step {step}: {reason}, gradient norm {grad_norm:.3g}, learning rate {lr:.3g}",
        DIVERGED_HINT,
        step,
    )


def statistics_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype of sums over the images of a batch: float64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64
