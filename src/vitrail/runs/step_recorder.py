"""Records the steps of an epoch, each when the next one is under way."""

import time

from vitrail.console import ProgressBar, log
from vitrail.runs.training_run import Row, TrainingRun
from vitrail.tasks import TASKS
from vitrail.training.loss_monitor import LossMonitor
from vitrail.training.step_stats import StepStats, check_stats_finite


class StepRecorder:
    """Adds steps to the progress of a run, to its loss monitor and to its progress bar.

    The statistics of a step are read when the next step is added, or at `flush`: a GPU then computes without pause.
    """

    def __init__(self, run: TrainingRun, monitor: LossMonitor, bar: ProgressBar):
        self.run, self.monitor, self.bar = run, monitor, bar
        self.waiting: StepStats | None = None
        self.images = 0  # of the recorded steps
        self.started, self.earlier_seconds = time.perf_counter(), run.progress.seconds

    @property
    def seconds(self) -> float:
        """The time since this recorder was made."""
        return time.perf_counter() - self.started

    def add(self, step: StepStats) -> None:
        """Records the step before, and keeps this one."""
        self.flush()
        self.waiting = step

    def flush(self) -> None:
        """Records the step that waits; raises `TrainingDiverged` if its loss or gradient is not finite."""
        step, self.waiting = self.waiting, None
        if step is None:
            return
        check_stats_finite(step)
        progress = self.run.progress
        progress.add(step)
        if warning := self.monitor.update(step):
            log(f"warning: {warning}")
        progress.seconds = self.earlier_seconds + self.seconds
        self.images += step.images
        scores = {"train_loss": progress.loss / progress.images, **accuracy_of(self.run, progress.accuracy)}
        note = "  ".join(f"{name.removeprefix('train_')} {value:.3f}" for name, value in scores.items())
        self.bar.advance(note=f"{note}  {self.images / self.seconds:,.0f} images/s")


def accuracy_of(run: TrainingRun, accuracy: float) -> Row:
    """Returns the training accuracy by name; nothing for numbers, which are never right."""
    return {} if TASKS[run.classifier.task].count_correct is None else {"train_accuracy": accuracy}
