"""Runs the trials of a sweep and prints their progress."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from vitrail.console import ProgressBar, log, progress_bar
from vitrail.runs.training_run import Row
from vitrail.sweeps.config import SweepConfig
from vitrail.sweeps.folder import SweepFolder
from vitrail.sweeps.local_workers import LocalWorkers, SweepWorkers
from vitrail.sweeps.metrics import TITLES
from vitrail.sweeps.results import build_table, describe_trial, format_score
from vitrail.sweeps.sampling import count_trials
from vitrail.sweeps.study import SweepStudy
from vitrail.sweeps.worker import run_worker

POLL_INTERVAL_S = 0.5  # between two looks at what other processes have finished


class SweepProgress:
    """Prints a line for each trial that ends, with the best trial so far and the time left."""

    def __init__(self, config: SweepConfig, study: SweepStudy, bar: ProgressBar):
        self.config, self.study, self.bar = config, study, bar
        self.total = count_trials(config)
        self.finished = {trial.number for trial in study.list_trials() if trial.state.is_finished()}
        self.finished_before = len(self.finished)
        self.started = time.monotonic()
        bar.start_from(self.finished_before)

    def update(self) -> int:
        """Prints the trials that have ended since the last call; returns the number of finished trials."""
        if self.study.count_finished() == len(self.finished):
            return len(self.finished)
        rows = build_table(self.config, self.study)
        new = [row for row in rows if row["state"] != "running" and row["trial"] not in self.finished]
        for row in sorted(new, key=lambda row: int(row["trial"])):
            self.finished.add(row["trial"])
            parts = (describe_trial(self.config, row), self.describe_best(rows), self.describe_time_left())
            log(f"{len(self.finished)}/{self.total}  {'; '.join(part for part in parts if part)}")
        self.bar.advance(len(new), note=self.describe_best(rows))
        return len(self.finished)

    def describe_best(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Returns the best complete trial; empty if none is complete."""
        if not rows or rows[0]["state"] != "complete":
            return ""
        return f"best {format_score(rows[0][self.config.metric])} (trial {rows[0]['trial']})"

    def describe_time_left(self) -> str:
        """Returns the time left; empty at the end."""
        left = self.total - len(self.finished)
        seconds_per_trial = (time.monotonic() - self.started) / max(1, len(self.finished) - self.finished_before)
        return f"{timedelta(seconds=round(left * seconds_per_trial))} left" if left else ""

    def on_trial(self, number: int, row: Row | None) -> None:
        """Shows an epoch of a trial in this process, or its end."""
        if row is None:
            self.update()
            return
        shown = self.config.shown_score
        score = f"{TITLES[shown]} {format_score(row[f'validation_{shown}'])}"
        self.bar.advance(0, note=f"trial {number} epoch {row['epoch']} {score}")


def run_trials(
    folder: SweepFolder,
    config: SweepConfig,
    study: SweepStudy,
    processes: int | None,
    *,
    ray: bool,
    ray_address: str | None,
) -> None:
    """Runs all trials: in this process, in several of this machine, or in tasks of a Ray cluster."""
    if ray:
        from vitrail.sweeps.ray import start_ray_workers

        with start_ray_workers(folder.path, processes, config.trials, ray_address) as workers:
            follow_workers(config, study, workers)
    elif processes is not None and processes > 1:
        follow_workers(config, study, LocalWorkers(folder.path, processes))
    else:
        with progress_bar("trials", count_trials(config)) as bar:
            run_worker(folder.path, SweepProgress(config, study, bar).on_trial)


def follow_workers(config: SweepConfig, study: SweepStudy, workers: SweepWorkers) -> None:
    """Supervises workers until they have ended."""
    try:
        with progress_bar("trials", count_trials(config)) as bar:
            progress = SweepProgress(config, study, bar)
            while workers.supervise(progress.update()):
                time.sleep(POLL_INTERVAL_S)
            progress.update()
    finally:
        workers.stop()
