"""A trial: an ordinary run with the values of one point, reported to the study."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from vitrail import console
from vitrail.callbacks.base import Callback, CallbackState, EndRun
from vitrail.classifier import NonFiniteOutput
from vitrail.documents import RunResult
from vitrail.errors import UsageError, VitrailError, first_line, is_out_of_memory
from vitrail.interrupts import Interrupted
from vitrail.intervals import wilson_interval
from vitrail.runs.folder import RunFolder
from vitrail.runs.train import train
from vitrail.runs.training_run import Row
from vitrail.sweeps.config import SweepConfig
from vitrail.sweeps.lease import Lease
from vitrail.sweeps.metrics import TASK_METRICS
from vitrail.sweeps.space import values_to_changes
from vitrail.sweeps.study import SweepStudy
from vitrail.tasks import SINGLE_LABEL, TASKS
from vitrail.training.recipe import Recipe
from vitrail.training.step_stats import TrainingDiverged

if TYPE_CHECKING:
    import optuna

MAX_CRASHES = 3  # processes that a trial may crash without completing an epoch, before it has failed
TRIAL_ERRORS = (TrainingDiverged, NonFiniteOutput, UsageError)  # caused by the values of the trial


class TrialPruned(EndRun):
    """The pruner ends the trial."""


class LeaseLost(EndRun):
    """Another machine has taken the trial."""


@dataclass(frozen=True)
class TrialJob:
    """A trial, where it is trained, and the right to do so."""

    config: SweepConfig
    trial: "optuna.Trial"
    run: RunFolder
    lease: Lease
    on_epoch: Callable[[Row], None]
    should_continue: Callable[[], bool]

    @property
    def recipe(self) -> Recipe:
        """The recipe with the values of the trial."""
        return self.config.recipe.with_changes(**values_to_changes(self.trial.params))

    @property
    def epochs(self) -> int:
        """Epochs of the trial."""
        return int(self.trial.params.get("epochs") or self.config.epochs)


def run_trial(study: SweepStudy, job: TrialJob) -> Exception | None:
    """Trains a trial from its beginning or its checkpoint and records the outcome; returns the error if it failed.

    Raises `LeaseLost`, and records nothing, if another machine has taken the trial.
    """
    is_resumed = job.run.config_file.exists()
    crashes = count_crashes(job) if job.lease.was_abandoned else 0
    try:
        if crashes >= MAX_CRASHES:
            raise MemoryError(f"its process died {crashes} times, as it does when memory runs out")
        result = train_trial(job, is_resumed)
    except TrialPruned:
        record_outcome(study, job, "PRUNED", scores=scores_so_far(job))
        return None
    except TRIAL_ERRORS as error:
        if is_resumed and isinstance(error, UsageError):  # the values were valid before; something else is wrong
            raise
        record_outcome(study, job, "FAIL", error=error.sentence)
        return error
    except VitrailError:
        raise
    except Exception as error:  # out of memory, or a bug of ours or of torch: only this trial fails
        reason = first_line(error) if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        record_outcome(study, job, "FAIL", error=reason)
        return error
    scores = final_scores(job, result)
    record_outcome(study, job, "COMPLETE", scores[job.config.metric], scores=scores)
    return None


def count_crashes(job: TrialJob) -> int:
    """Records that a trial has lost its process; returns how often it has without completing an epoch since."""
    epochs, attributes = len(job.run.load_metrics()), job.trial.user_attrs
    crashes, epochs_before = attributes.get("stuck", (0, epochs))
    crashes = int(crashes) + 1 if epochs == epochs_before else 1
    job.trial.set_user_attr("stuck", (crashes, epochs))
    job.trial.set_user_attr("deaths", attributes.get("deaths", 0) + 1)
    return crashes


def record_outcome(study: SweepStudy, job: TrialJob, state: str, value: float | None = None, **attributes: Any) -> None:
    """Ends a trial in the study with these attributes; raises `LeaseLost` if another machine has taken it."""
    if not job.lease.is_held():
        raise LeaseLost
    for name, attribute in attributes.items():
        job.trial.set_user_attr(name, attribute)
    study.end_trial(job.trial.number, state, value)


def train_trial(job: TrialJob, is_resumed: bool) -> RunResult:
    """Trains or resumes the run of a trial; returns its result. Raises `TrialPruned` if the pruner stops it."""
    config, trial, run = job.config, job.trial, job.run
    if not is_resumed and run.path.exists():  # of a process that was killed before it wrote recipe.json
        shutil.rmtree(run.path)
    recipe = job.recipe

    if is_resumed and (rows := run.load_metrics()):
        report_epochs(job)
        if rows[-1].get("epoch", job.epochs) < job.epochs and trial.should_prune():
            raise TrialPruned
    with silence_console():
        finished = train(
            config.data,
            model=config.model,
            torch_files=config.torch_files,
            recipe=None if is_resumed else recipe,
            out=run.path,
            resume=is_resumed,
            device=config.device,
            report=False,
            pictures=config.pictures,
            check=recipe.skip_unreadable,
            score_test=False,
            callbacks=[TrialReporter(job)],
        )
    return finished.result


class TrialReporter(Callback):
    """Reports each epoch of a trial to the study, and ends the run of a trial that is to end."""

    def __init__(self, job: TrialJob):
        self.job = job

    def on_epoch_end(self, state: CallbackState) -> None:
        self.job.on_epoch(dict(state.metrics))
        if not self.job.lease.is_held():
            raise LeaseLost
        report_epochs(self.job)
        if state.epoch < self.job.epochs and self.job.trial.should_prune():
            raise TrialPruned
        if not self.job.should_continue():
            raise Interrupted("stopped; all trials are saved")


def report_epochs(job: TrialJob) -> None:
    """Reports to the study the epochs that it does not have; not epoch 0, the start, which says nothing of a trial."""
    trials = job.trial.study.get_trials(deepcopy=False)
    reported = next(trial for trial in trials if trial.number == job.trial.number).intermediate_values
    for row in job.run.load_metrics():
        if row.get("epoch") and row["epoch"] not in reported:
            job.trial.report(row[f"validation_{job.config.metric}"], row["epoch"])


def final_scores(job: TrialJob, result: RunResult) -> dict[str, Any]:
    """Returns the scores of a complete trial."""
    scores = cast(Mapping[str, Any], result["validation"])
    names = TASK_METRICS[job.config.task].scores
    return {
        **{key: scores[key] for name in names for key in (name, f"{name}_interval")},
        "loss": scores["loss"],
        "epochs": max((row.get("epoch", 0) for row in job.run.load_metrics()), default=0),
        "seconds": result["seconds"],
    }


def scores_so_far(job: TrialJob) -> dict[str, Any]:
    """Returns the scores of the best epoch of a pruned trial; only accuracy has an interval."""
    rows, images, task = job.run.load_metrics(), job.config.validation_images, job.config.task
    selection = job.recipe.selection_metric if task == SINGLE_LABEL else TASKS[task].score
    best = max(rows, key=lambda row: (row[f"validation_{selection}"], -row["validation_loss"]))
    scores: dict[str, Any] = {name: best.get(f"validation_{name}") for name in TASK_METRICS[task].metrics}
    if (accuracy := scores.get("accuracy")) is not None:
        scores["accuracy_interval"] = list(wilson_interval(round(accuracy * images), images))
    return {
        **scores,
        "epochs": rows[-1]["epoch"],
        "seconds": round(sum(row.get("seconds", 0.0) for row in rows), 3),
    }


@contextmanager
def silence_console() -> Iterator[None]:
    """Inside, runs print nothing; the sweep prints its own lines."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
