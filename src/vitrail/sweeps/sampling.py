"""Which point of the space is tried next.

A proposal depends on the sweep's seed, the number of the trial and the trials before it, and on nothing that a killed
process could lose.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.console import log
from vitrail.errors import UsageError
from vitrail.installation import install_hint
from vitrail.model.config import ViTConfig
from vitrail.sweeps.config import SweepConfig
from vitrail.sweeps.space import Axis, Choice, Values, count_points, iterate_points, values_to_changes

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MAX_DRAWS = 64  # of the sampler, until a point is possible and new
STARTUP_TRIALS = (5, 10)  # random trials before TPE learns: a quarter of all, within these bounds
MAX_ENUMERATED_POINTS = 4096  # in a larger space, this many random points are tried after the sampler's draws


def import_optuna() -> Any:
    """Imports Optuna and silences its log; raises `UsageError` if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UsageError("optuna is not installed", install_hint("sweep")) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose_values(config: SweepConfig, trials: "Sequence[FrozenTrial]") -> Values | None:
    """Returns a point that is possible and has not been tried; None if there is none."""
    tried = {point_key(trial.params) for trial in trials}
    number = len(trials)

    def is_open(values: Values) -> bool:
        return point_key(values) not in tried and find_conflict(config, values) is None

    if is_exhaustive(config):
        return next(filter(is_open, iterate_points(config.space) or ()), None)
    for draw in range(MAX_DRAWS):
        values = sample_values(config, trials, number, draw)
        if is_open(values):
            return values
    points = count_points(config.space)
    if points is not None and points <= MAX_ENUMERATED_POINTS:
        rest = list(filter(is_open, iterate_points(config.space) or ()))
        return rest[int(np.random.default_rng((config.sweep_seed, number)).integers(len(rest)))] if rest else None
    proposal = next(filter(is_open, random_points(config, number)), None)
    if proposal is None:
        log(f"none of {MAX_ENUMERATED_POINTS:,} random points is possible and new: the sweep ends with {number} trials")
    return proposal


def sample_values(config: SweepConfig, trials: "Sequence[FrozenTrial]", number: int, draw: int) -> Values:
    """Returns a point from the sampler: Optuna's TPE (Bergstra et al. 2011), or a random one."""
    optuna = import_optuna()
    seed = derive_seed(config, number, draw)
    if config.sampler == "tpe":
        startup = int(np.clip(config.trials // 4, *STARTUP_TRIALS))
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    else:
        sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(sampler=sampler, direction=config.direction)
    study.add_trials(trials)
    values: Values = study.ask(space_distributions(config)).params
    return values


def random_points(config: SweepConfig, number: int) -> Iterator[Values]:
    """Random points of the space, for the trial of this number."""
    optuna = import_optuna()
    sampler = optuna.samplers.RandomSampler(seed=derive_seed(config, number, MAX_DRAWS))
    study = optuna.create_study(sampler=sampler)
    distributions = space_distributions(config)
    return (study.ask(distributions).params for _ in range(MAX_ENUMERATED_POINTS))


def derive_seed(config: SweepConfig, number: int, draw: int) -> int:
    """Returns a seed for a draw of a trial."""
    return int(np.random.SeedSequence((config.sweep_seed, number, draw)).generate_state(1)[0])


def is_exhaustive(config: SweepConfig) -> bool:
    """Returns whether the space has no more points than trials: then all are tried, in order."""
    points = count_points(config.space)
    return points is not None and points <= config.trials


def find_conflict(config: SweepConfig, values: Values) -> str | None:
    """Why no trial can have these values, as far as that is known without the data; None if one can."""
    try:
        model: dict[str, Any] = {**config.recipe.with_changes(**values_to_changes(values)).model}
        if config.model is None:
            patch = model.get("patch", 1)
            ViTConfig(**{**model, "patch": patch, "image_size": model.get("image_size", patch)})
    except UsageError as error:
        return error.sentence
    return None


def check_possible(config: SweepConfig) -> None:
    """Raises `UsageError` if no point is possible; in a large space some points are drawn."""
    points = count_points(config.space) or MAX_ENUMERATED_POINTS
    candidates = iterate_points(config.space) if points < MAX_ENUMERATED_POINTS else None
    conflicts = [
        find_conflict(config, values)
        for values in candidates or (sample_values(config, [], 0, draw) for draw in range(MAX_DRAWS))
    ]
    if all(conflicts):
        raise UsageError(f"no trial can have such values: {conflicts[0]}", "vary other fields, or other values of them")


def count_trials(config: SweepConfig) -> int:
    """Returns the number of trials: the requested one, or that of the possible points if they are fewer."""
    if not is_exhaustive(config):
        return config.trials
    return sum(find_conflict(config, values) is None for values in iterate_points(config.space) or ())


def point_key(values: Values) -> str:
    """Identifies a point."""
    return repr(sorted(values.items()))


def space_distributions(config: SweepConfig) -> "dict[str, BaseDistribution]":
    """Returns the space as Optuna's distributions."""
    return {name: axis_distribution(axis) for name, axis in config.space.items()}


def axis_distribution(axis: Axis) -> "BaseDistribution":
    """Returns an axis as Optuna's distribution."""
    optuna = import_optuna()
    if isinstance(axis, Choice):
        return optuna.distributions.CategoricalDistribution(axis.values)
    distribution: Callable[..., Any] = (
        optuna.distributions.IntDistribution if axis.is_integer else optuna.distributions.FloatDistribution
    )
    if axis.step is None:
        return distribution(axis.low, axis.high, log=axis.log)
    last = (axis.list_values() or (axis.high,))[-1]  # the steps may end before the range does
    return distribution(axis.low, last, step=axis.step)
