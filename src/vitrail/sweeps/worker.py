"""A sweep's worker: takes a trial, trains it as an ordinary run, records the outcome, takes the next one.

Any number of workers, on any machine that sees the folder, do the same. They communicate only through the folder.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vitrail.classifier import NonFiniteOutput
from vitrail.errors import VitrailError
from vitrail.interrupts import Interrupted
from vitrail.runs.training_run import Row
from vitrail.sweeps.config import SweepConfig
from vitrail.sweeps.folder import SweepFolder
from vitrail.sweeps.lease import Lease, LeaseObserver
from vitrail.sweeps.results import write_table
from vitrail.sweeps.study import SweepStudy, open_study
from vitrail.sweeps.trial import TrialJob, run_trial
from vitrail.training.step_stats import TrainingDiverged

MAX_FAILURES = 3  # trials in a row that fail for another reason than divergence, before the sweep stops
POLL_INTERVAL_S = 1.0  # between two looks for a trial that has lost its process

TrialCallback = Callable[[int, Row | None], None]  # gets a trial's number and an epoch's row, or None at its end


def run_worker(
    out: str | Path,
    on_trial: TrialCallback = lambda number, row: None,
    should_continue: Callable[[], bool] = lambda: True,
) -> None:
    """Works on the sweep in `out` until all its trials are finished.

    `should_continue` is called after every epoch; if it returns false, the trial is released and `Interrupted` raised.
    Raises `VitrailError` for what stops every trial: a full disk, an unreadable image.
    """
    folder = SweepFolder(Path(out))
    observer, failures = LeaseObserver(), 0
    with open_study(folder, folder.load_config()) as study:
        while True:
            if not should_continue():
                raise Interrupted("stopped; all trials are saved")
            config = folder.load_config()
            taken = take_trial(folder, config, study, observer)
            if taken is None:
                if study.count_finished() == len(study.list_trials()):
                    return
                time.sleep(POLL_INTERVAL_S)
                continue
            number, lease = taken
            job = TrialJob(
                config=config,
                trial=study.open_trial(number),
                run=folder.run_folder(number),
                lease=lease,
                on_epoch=partial(on_trial, number),
                should_continue=should_continue,
            )
            error = None
            try:
                with ignore_errors_if_lost(lease):
                    error = run_trial(study, job)
            finally:
                lease.release()
            with folder.lock():
                write_table(folder, config, study)
            on_trial(number, None)
            is_failure = error is not None and not isinstance(error, TrainingDiverged | NonFiniteOutput)
            failures = failures + 1 if is_failure else 0
            if failures == MAX_FAILURES:
                raise VitrailError(f"{MAX_FAILURES} trials in a row failed, the last one because {error}")


def take_trial(
    folder: SweepFolder, config: SweepConfig, study: SweepStudy, observer: LeaseObserver
) -> tuple[int, Lease] | None:
    """Returns a trial that has lost its process, else a new one; None if other processes work on all that are left."""
    with folder.lock():
        trials = study.list_trials()
        for trial in trials:
            if not trial.state.is_finished() and (lease := observer.take(folder.lock_path(trial.number))):
                return trial.number, lease
        if len(trials) >= config.trials:
            return None
        number = study.begin_trial(config)
        if number is None:
            return None
        lease = observer.take(folder.lock_path(number))
        assert lease is not None, "no other process knows a new trial"
        return number, lease


@contextmanager
def ignore_errors_if_lost(lease: Lease) -> Iterator[None]:
    """Ignores errors if another machine has taken the trial meanwhile: two that write one folder may meet any error."""
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        if lease.is_held():
            raise
