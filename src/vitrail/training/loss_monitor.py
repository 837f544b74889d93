"""Warns once if the loss diverges, or stays at chance level, early in training."""

import math
from collections import deque

from vitrail.training.step_stats import StepStats

WINDOW = 20  # steps that the loss is averaged over
DIVERGENCE_FACTOR = 1.5  # times the first loss, or the chance level if that is higher
PATIENCE = 200  # steps after the warmup in which the loss should fall below chance level
MIN_IMPROVEMENT = 0.995  # fraction of the chance level that the loss should be below by then


class LossMonitor:
    """Watches the mean loss over the last steps.

    `chance_loss` is the loss of a model that ignores the image, if it is known.
    """

    def __init__(self, chance_loss: float | None, warmup_steps: int):
        self.chance_loss = chance_loss
        self.warmup_steps = warmup_steps
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.first: float | None = None
        self.lowest = math.inf
        self.has_warned = False

    def update(self, stats: StepStats) -> str | None:
        """Records a step; returns a warning the first time that one is due."""
        self.recent.append(stats.loss)
        if self.has_warned or len(self.recent) < WINDOW:
            return None
        mean_loss = sum(self.recent) / WINDOW
        self.first = mean_loss if self.first is None else self.first
        self.lowest = min(self.lowest, mean_loss)
        warning = self.divergence_warning(stats, mean_loss, self.first) or self.not_learning_warning(stats)
        self.has_warned = warning is not None
        return warning

    def divergence_warning(self, stats: StepStats, mean_loss: float, first_loss: float) -> str | None:
        """Returns a warning if the loss is far above its start."""
        if mean_loss < DIVERGENCE_FACTOR * max(first_loss, self.chance_loss or 0.0):
            return None
        return (
            f"the loss diverges: mean {mean_loss:.3g} over the {WINDOW} steps up to step {stats.step}, "
            f"{first_loss:.3g} at the start (learning rate {stats.lr:.3g}, gradient norm {stats.grad_norm:.3g}); "
            "try a lower learning rate"
        )

    def not_learning_warning(self, stats: StepStats) -> str | None:
        """Returns a warning if the loss has not fallen below chance level in time."""
        if self.chance_loss is None or stats.step < self.warmup_steps + PATIENCE:
            return None
        if self.lowest < MIN_IMPROVEMENT * self.chance_loss:
            return None
        return (
            f"the model has learned nothing by step {stats.step}: the lowest mean loss is {self.lowest:.3g}, and "
            f"predicting the class frequencies for every image gives {self.chance_loss:.3g} (learning rate "
            f"{stats.lr:.3g}, gradient norm {stats.grad_norm:.3g}); check the labels and the learning rate"
        )
