"""An eye on the loss while it is early: a run that climbs or stands still is said so, once, and goes on."""

import math
from collections import deque

import numpy as np

from vitrail.training.loop import StepStats

WINDOW = 20  # steps that are averaged
DIVERGENCE_FACTOR = 1.5  # times the first loss (or what knowing nothing costs) that counts as climbing
PATIENCE = 200  # steps past the warm-up after which a model should know more than nothing
MIN_IMPROVEMENT = 0.995  # part of the loss of knowing nothing that it should be below by then


class LossMonitor:
    """What to say of the steps seen so far."""

    def __init__(self, counts: np.ndarray, smoothing: float, warmup_steps: int):
        self.chance_loss = class_entropy(counts, smoothing)
        self.warmup_steps = warmup_steps
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.first: float | None = None
        self.lowest = math.inf
        self.said = False

    def update(self, step: StepStats) -> str | None:
        """A sentence, the first time that one is due."""
        self.recent.append(step.loss)
        if self.said or len(self.recent) < WINDOW:
            return None
        now = sum(self.recent) / WINDOW
        self.first = now if self.first is None else self.first
        self.lowest = min(self.lowest, now)
        has_warned = self.divergence_warning(step, now) or self.not_learning_warning(step)
        self.said = has_warned is not None
        return has_warned

    def divergence_warning(self, step: StepStats, now: float) -> str | None:
        """Whether the loss climbs far above where it began."""
        assert self.first is not None
        if now < DIVERGENCE_FACTOR * max(self.first, self.chance_loss):
            return None
        return (
            f"the loss climbs: {now:.3g} over the last {WINDOW} steps to step {step.step}, {self.first:.3g} at first "
            f"(learning rate {step.lr:.3g}, gradient {step.grad_norm:.3g}); a lower learning rate may help"
        )

    def not_learning_warning(self, step: StepStats) -> str | None:
        """Whether nothing has been learnt by a time when something should have been."""
        if step.step < self.warmup_steps + PATIENCE or self.lowest < MIN_IMPROVEMENT * self.chance_loss:
            return None
        return (
            f"nothing is learnt by step {step.step}: the loss has not been below {self.lowest:.3g}, and answering "
            f"every image alike costs {self.chance_loss:.3g} (learning rate {step.lr:.3g}, gradient "
            f"{step.grad_norm:.3g}); look at the labels and the learning rate"
        )


def class_entropy(counts: np.ndarray, smoothing: float) -> float:
    """The least loss of an answer that is the same for every image: the entropy of the smoothed labels, in nats."""
    parts = counts / counts.sum() * (1 - smoothing) + smoothing / len(counts)
    parts = parts[parts > 0]
    return float(-(parts * np.log(parts)).sum())
