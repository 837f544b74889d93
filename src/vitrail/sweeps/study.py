"""The trials of a sweep, stored in an Optuna study.

A trial is written in one transaction with its values, under the sweep's lock, and stays that trial until it is
finished: if its process dies, another one continues it under the same number, in the same folder, from its checkpoint.
So no trial is lost, and none is run twice.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitrail.errors import VitrailError
from vitrail.sweeps.config import SweepConfig
from vitrail.sweeps.folder import SweepFolder
from vitrail.sweeps.sampling import STARTUP_TRIALS, import_optuna, propose_values, space_distributions
from vitrail.sweeps.space import rename_fields

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STUDY_NAME = "vitrail"
LOCK_TIMEOUT_S = 120  # that SQLite waits for another process
MIN_TRIALS_OF_FANOVA = 4


@dataclass(frozen=True)
class SweepStudy:
    """The trials of a sweep."""

    optuna_study: "optuna.Study"
    storage: Any  # Optuna's RDBStorage
    distributions: "dict[str, BaseDistribution]"  # of the fields

    def list_trials(self) -> "list[FrozenTrial]":
        """Returns all trials, by number."""
        trials = (self.upgrade_trial(trial) for trial in self.optuna_study.get_trials(deepcopy=False))
        return sorted(trials, key=lambda trial: trial.number)

    def upgrade_trial(self, trial: "FrozenTrial") -> "FrozenTrial":
        """Returns a trial of format 1 with today's names of fields; any other trial as it is."""
        values = rename_fields(trial.params)
        if values == trial.params:
            return trial
        upgraded = copy.copy(trial)
        upgraded.params, upgraded.distributions = values, self.distributions
        return upgraded

    def count_finished(self) -> int:
        """Returns the number of trials that are complete, pruned or failed."""
        return sum(trial.state.is_finished() for trial in self.list_trials())

    def begin_trial(self, config: SweepConfig) -> int | None:
        """Adds the next trial and returns its number; None if no point is left. Only under the sweep's lock."""
        optuna = import_optuna()
        values = propose_values(config, self.list_trials())
        if values is None:
            return None
        running = optuna.trial.TrialState.RUNNING
        trial = optuna.create_trial(state=running, params=values, distributions=self.distributions)
        self.optuna_study.add_trial(trial)
        return max(trial.number for trial in self.list_trials())

    def open_trial(self, number: int) -> "optuna.Trial":
        """Returns a running trial, to report to."""
        study_id = self.storage.get_study_id_from_name(STUDY_NAME)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return import_optuna().Trial(self.optuna_study, trial_id)

    def end_trial(self, number: int, state: str, value: float | None = None) -> None:
        """Ends a trial with a state (COMPLETE, PRUNED or FAIL) and, if it is complete, its score."""
        self.optuna_study.tell(number, value, state=import_optuna().trial.TrialState[state])


@contextmanager
def open_study(folder: SweepFolder, config: SweepConfig) -> Iterator[SweepStudy]:
    """The study in a sweep's folder, made if it is missing. Raises `VitrailError` if the file is no study."""
    optuna = import_optuna()
    from sqlalchemy.pool import NullPool

    storage = None
    with folder.lock():
        try:
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{folder.study_file.resolve()}",
                # without a pool, each connection is closed after its use, also if the file turns out to be no study
                engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT_S}, "poolclass": NullPool},
            )
            study = optuna.create_study(
                storage=storage,
                study_name=STUDY_NAME,
                direction=config.direction,
                pruner=build_pruner(config),
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy and Optuna raise many kinds for other files
            if storage is not None:
                close_storage(storage)
            raise VitrailError(
                f"{folder.study_file} cannot be used: {type(error).__name__}", "start a new sweep"
            ) from error
    try:
        yield SweepStudy(study, storage, space_distributions(config))
    finally:
        close_storage(storage)


def close_storage(storage: Any) -> None:
    """Closes the connections of Optuna's storage to its database."""
    storage.remove_session()
    storage.engine.dispose()


def build_pruner(config: SweepConfig) -> "optuna.pruners.BasePruner":
    """Optuna's pruner; it stops no trial in its first epochs."""
    pruners = import_optuna().pruners
    if config.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS[0], n_warmup_steps=max(1, config.epochs // 4))
    if config.pruner == "hyperband":
        min_epochs = max(1, config.epochs // 9)
        return pruners.HyperbandPruner(min_resource=min_epochs, max_resource=config.epochs, reduction_factor=3)
    return pruners.NopPruner()


def field_importances(study: SweepStudy, config: SweepConfig) -> dict[str, float] | None:
    """Returns the fraction of the variance of scores that each field explains (fANOVA, Hutter et al. 2014).

    None if fewer than four trials are complete, all scores are equal, or one field is varied.
    """
    optuna = import_optuna()
    complete = [trial for trial in study.list_trials() if trial.state == optuna.trial.TrialState.COMPLETE]
    scores = {trial.value for trial in complete}
    if len(complete) < MIN_TRIALS_OF_FANOVA or len(scores) < 2 or len(config.space) < 2:
        return None
    optuna_study = optuna.create_study(direction=config.direction)
    optuna_study.add_trials(study.list_trials())
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=config.sweep_seed)
    importances = optuna.importance.get_param_importances(optuna_study, evaluator=evaluator)
    return {name: round(float(value), 4) for name, value in importances.items()}
