"""A process at work on a sweep: takes a trial, trains it as an ordinary run, writes down what came of it, and so on.

Any number of them, on any machine that sees the folder, do the same thing and know one another only through it.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail import console
from vitrail.classifier import NonFiniteOutput
from vitrail.errors import UsageError, VitrailError, first_line, is_out_of_memory
from vitrail.interrupts import Interrupted
from vitrail.intervals import wilson_interval
from vitrail.runs.epochs import Row
from vitrail.runs.folder import RunFolder
from vitrail.runs.train import train
from vitrail.sweeps.config import SweepConfig, SweepFolder
from vitrail.sweeps.lease import Lease, LeaseObserver
from vitrail.sweeps.results import write_table
from vitrail.sweeps.space import changes
from vitrail.sweeps.study import begin_trial, close_study, import_optuna, open_study, trial_again, trials_of
from vitrail.training.loop import TrainingDiverged

if TYPE_CHECKING:
    import optuna

DEATHS = 3  # processes that a trial may cost, with no epoch done between, before it counts as failed
FAILURES = 3  # trials in a row that fail for another reason than divergence before the sweep stops
LOOK = 1.0  # seconds between two looks for a trial that has lost its process
FAILS = (TrainingDiverged, NonFiniteOutput, UsageError)  # what is the trial's own fault

Heard = Callable[[int, Row | None], None]  # is told of a trial's epoch, and (None) of its end


class Pruned(Exception):
    """The trial is not worth going on with."""


class TakenOver(Exception):
    """Another machine has taken the trial up."""


@dataclass
class Taken:
    """A trial and the right to work on it."""

    number: int
    lease: Lease


def run_worker(
    out: str | Path, heard: Heard = lambda number, row: None, going_on: Callable[[], bool] = lambda: True
) -> None:
    """Works on the sweep in `out` until no trial is left for anyone.

    `going_on` is asked at every epoch's end; where it says no, the trial is given back and `Interrupted` raised.
    Raises `VitrailError` for what would stop every trial: a full disk, an image that cannot be read.
    """
    folder = SweepFolder(Path(out))
    asked = folder.load_config()
    study = open_study(folder, asked)
    watch = LeaseObserver()
    failures = 0
    try:
        while True:
            if not going_on():
                raise Interrupted("stopped; every trial is saved")
            asked = folder.load_config()
            taken = take(folder, asked, study, watch)
            if taken is None:
                if not any(not trial.state.is_finished() for trial in trials_of(study)):
                    return
                time.sleep(LOOK)
                continue
            error = None
            try:
                with unless_taken_over(taken.lease):
                    error = one_trial(folder, asked, study, taken, heard, going_on)
            finally:
                taken.lease.release()
            with folder.locked():
                write_table(folder, asked, study)
            heard(taken.number, None)
            failures = (
                failures + 1 if error is not None and not isinstance(error, TrainingDiverged | NonFiniteOutput) else 0
            )
            if failures == FAILURES:
                raise VitrailError(f"{FAILURES} trials in a row failed, the last one because {error}")
    finally:
        close_study(study)


def take(folder: SweepFolder, asked: SweepConfig, study: "optuna.Study", watch: LeaseObserver) -> Taken | None:
    """A trial that has lost its process, else a new one; None where all that are left are in other hands."""
    with folder.locked():
        known = trials_of(study)
        for trial in known:
            if not trial.state.is_finished() and (lease := watch.take(folder.lock_path(trial.number))):
                return Taken(trial.number, lease)
        if len(known) >= asked.trials:
            return None
        number = begin_trial(study, asked)
        if number is None:
            return None
        lease = watch.take(folder.lock_path(number))
        assert lease is not None, "a new trial is nobody else's"
        return Taken(number, lease)


@contextmanager
def unless_taken_over(lease: Lease) -> Iterator[None]:
    """Inside, what goes wrong counts only while the trial is ours: another machine may have taken it up meanwhile.

    Two that train into one folder, or tell of one trial, may meet any error.
    """
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        if lease.ours():
            raise


def one_trial(
    folder: SweepFolder,
    asked: SweepConfig,
    study: "optuna.Study",
    taken: Taken,
    heard: Heard,
    going_on: Callable[[], bool],
) -> Exception | None:
    """Trains a trial from its beginning or its checkpoint and writes down what came of it; returns why it failed.

    Raises `TakenOver` where it is another machine's by now, and writes nothing.
    """
    trial = trial_again(study, taken.number)
    run = RunFolder(folder.trial_folder(taken.number))
    begun = (run.path / "recipe.json").exists()
    stuck = count_death(trial, run) if taken.lease.was_abandoned else 0
    try:
        if stuck >= DEATHS:
            raise MemoryError(f"its process died {stuck} times, as it does where the memory does not suffice")
        result = trained(asked, trial, run, taken.lease, heard, going_on)
    except Pruned:
        tell(study, trial, taken.lease, "PRUNED", scores=scores_so_far(run, asked))
        return None
    except FAILS as error:
        if begun and isinstance(error, UsageError):  # its values were good enough to begin; something else is wrong
            raise
        tell(study, trial, taken.lease, "FAIL", error=error.sentence)
        return error
    except VitrailError:
        raise
    except Exception as error:  # too little memory, or a fault of ours or of torch: it costs this trial
        said = first_line(error) if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        tell(study, trial, taken.lease, "FAIL", error=said)
        return error
    scores = result["validation"]
    rows = run.load_metrics()
    kept = {
        "accuracy": scores["accuracy"],
        "accuracy_interval": scores["accuracy_interval"],
        "loss": scores["loss"],
        "epochs": max((row.get("epoch", 0) for row in rows), default=0),
        "seconds": result["seconds"],
    }
    tell(study, trial, taken.lease, "COMPLETE", kept[asked.metric], scores=kept)
    return None


def count_death(trial: "optuna.Trial", run: RunFolder) -> int:
    """Writes down that a trial has lost its process; returns how often it has without an epoch being done between."""
    epochs = len(run.load_metrics())
    stuck, before = trial.user_attrs.get("stuck", (0, epochs))
    stuck = stuck + 1 if epochs == before else 1
    trial.set_user_attr("stuck", (stuck, epochs))
    trial.set_user_attr("deaths", trial.user_attrs.get("deaths", 0) + 1)
    return int(stuck)


def tell(
    study: "optuna.Study", trial: "optuna.Trial", lease: Lease, state: str, value: float | None = None, **said: Any
) -> None:
    """Writes down what came of a trial; raises `TakenOver` where it is another's by now."""
    if not lease.ours():
        raise TakenOver
    for name, each in said.items():
        trial.set_user_attr(name, each)
    study.tell(trial.number, value, state=import_optuna().trial.TrialState[state])


def trained(
    asked: SweepConfig, trial: "optuna.Trial", run: RunFolder, lease: Lease, heard: Heard, going_on: Callable[[], bool]
) -> dict[str, Any]:
    """The result of a trial's run; raises `Pruned` where its epochs so far say that it is not worth more."""
    begun = (run.path / "recipe.json").exists()
    if not begun and run.path.exists():  # killed before the run was one: there is nothing in it
        shutil.rmtree(run.path)
    recipe = asked.recipe.with_changes(**changes(trial.params))
    last = epochs_of(asked, trial.params)

    def see(path: Path, row: Row) -> None:
        heard(trial.number, row)
        if not lease.ours():
            raise TakenOver
        report(trial, run, asked)
        if row["epoch"] < last and trial.should_prune():
            raise Pruned
        if not going_on():
            raise Interrupted("stopped; every trial is saved")

    if begun and (rows := run.load_metrics()):
        report(trial, run, asked)
        if rows[-1].get("epoch", last) < last and trial.should_prune():
            raise Pruned
    with hushed():
        finished = train(
            asked.data,
            model=asked.model,
            torch_files=asked.torch_files,
            recipe=None if begun else recipe,
            out=run.path,
            resume=begun,
            device=asked.device,
            report=False,
            check=recipe.skip_unreadable,
            score_test=False,
            epoch_callbacks=[see],
        )
    return finished.result


def epochs_of(asked: SweepConfig, values: dict[str, Any]) -> int:
    """How many epochs a trial takes."""
    return int(values.get("epochs") or asked.epochs)


def report(trial: "optuna.Trial", run: RunFolder, asked: SweepConfig) -> None:
    """Tells the study of every epoch that it has not heard of."""
    known = trial.study.get_trials(deepcopy=False)
    heard = next(each for each in known if each.number == trial.number).intermediate_values
    for row in run.load_metrics():
        if "epoch" in row and row["epoch"] not in heard:
            trial.report(row[f"validation_{asked.metric}"], row["epoch"])


def scores_so_far(run: RunFolder, asked: SweepConfig) -> dict[str, Any]:
    """The best epoch of a run that was ended early."""
    rows = run.load_metrics()
    best = max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    accuracy = best["validation_accuracy"]
    return {
        "accuracy": accuracy,
        "accuracy_interval": list(wilson_interval(round(accuracy * asked.images), asked.images)),
        "loss": best["validation_loss"],
        "epochs": rows[-1]["epoch"],
        "seconds": round(sum(row["seconds"] for row in rows), 3),
    }


@contextmanager
def hushed() -> Iterator[None]:
    """Inside, a run keeps its lines to itself: the sweep has its own."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


def orphaned(parent: int) -> bool:
    """Whether the process that started this one is gone."""
    return os.getppid() != parent
