"""Optuna behind a few functions: what is tried next, what is known of every trial, whether one is worth going on with.

A trial is written in one transaction with its values, under the sweep's lock, and stays that trial until it is
finished: if its process dies, the next one takes up the same trial, with the same number, folder and checkpoint. So no
trial is lost between two states, and none is made twice. What is proposed is drawn from (seed, number) and what is
known by then, and from no state that a kill could lose.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail import console
from vitrail.errors import UsageError, VitrailError
from vitrail.sweeps.config import SweepConfig, SweepFolder
from vitrail.sweeps.space import Axis, Choice, Values, changes, count_points, iterate_points

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

NAME = "vitrail"
DRAWS = 64  # that are made for a point that is possible and has not been tried
STARTUP = (5, 10)  # trials that are drawn at random before TPE learns from them: a quarter of all, within these
MANY = 4096  # points; of a space that has more, so many are drawn and the rest is not looked at
WAIT = 120  # seconds that SQLite waits for another process


def import_optuna() -> Any:
    """Optuna, quiet; raises `UsageError` where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UsageError("optuna is not installed", "pip install 'vitrail[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(folder: SweepFolder, asked: SweepConfig) -> "optuna.Study":
    """The study in a sweep's folder, made where it is not there yet."""
    optuna = import_optuna()
    with folder.locked():
        try:
            storage = optuna.storages.RDBStorage(folder.storage, engine_kwargs={"connect_args": {"timeout": WAIT}})
            return optuna.create_study(
                storage=storage,
                study_name=NAME,
                direction=asked.direction,
                pruner=pruner(asked),
                load_if_exists=True,
            )
        except Exception as error:  # what SQLAlchemy and Optuna raise for a file that is no study
            raise VitrailError(
                f"{folder.path / 'study.db'} cannot be used: {type(error).__name__}", "start a new sweep"
            ) from error


def close_study(study: "optuna.Study") -> None:
    """Lets go of the file."""
    storage: Any = study._storage
    backend = getattr(storage, "_backend", storage)
    backend.scoped_session.remove()
    backend.engine.dispose()


def pruner(asked: SweepConfig) -> "optuna.pruners.BasePruner":
    """What ends trials early: Optuna's, no sooner than after a quarter of the epochs."""
    optuna = import_optuna()
    if asked.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP[0], n_warmup_steps=max(1, asked.epochs // 4))
    if asked.pruner == "hyperband":
        least = max(1, asked.epochs // 9)
        return optuna.pruners.HyperbandPruner(min_resource=least, max_resource=asked.epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def trials_of(study: "optuna.Study") -> "list[FrozenTrial]":
    """Every trial, by number."""
    return sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)


def begin_trial(study: "optuna.Study", asked: SweepConfig) -> int | None:
    """Writes the next trial, as under way, and returns its number; None where the space has no other point.

    Only under the sweep's lock.
    """
    optuna = import_optuna()
    known = trials_of(study)
    values = propose(asked, known)
    if values is None:
        return None
    study.add_trial(
        optuna.create_trial(state=optuna.trial.TrialState.RUNNING, params=values, distributions=distributions(asked))
    )
    return max(trial.number for trial in trials_of(study))


def trial_again(study: "optuna.Study", number: int) -> "optuna.Trial":
    """A trial that is under way, to report to."""
    optuna = import_optuna()
    found = next(trial for trial in trials_of(study) if trial.number == number)
    return optuna.Trial(study, found._trial_id)


def propose(asked: SweepConfig, known: "list[FrozenTrial]") -> Values | None:
    """A point that is possible and has not been tried; None where there is none left."""
    tried = {key(trial.params) for trial in known}
    number = len(known)
    if all_tried(asked):
        return next((each for each in iterate_points(asked.space) or () if is_open(asked, each, tried)), None)
    for draw in range(DRAWS):
        values = drawn(asked, known, number, draw)
        if is_open(asked, values, tried):
            return values
    n = count_points(asked.space)
    if n is not None and n <= MANY:
        rest = [each for each in iterate_points(asked.space) or () if is_open(asked, each, tried)]
        return rest[int(np.random.default_rng((asked.seed, number)).integers(len(rest)))] if rest else None
    found = next((each for each in at_random(asked, number) if is_open(asked, each, tried)), None)
    if found is None:
        console.log(f"none of {MANY:,} points drawn at random is possible and new: the sweep ends with {number} trials")
    return found


def at_random(asked: SweepConfig, number: int) -> Iterator[Values]:
    """Many points drawn evenly from the space, for a trial of this number."""
    optuna = import_optuna()
    seed = int(np.random.SeedSequence((asked.seed, number, DRAWS)).generate_state(1)[0])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = distributions(asked)
    return (study.ask(space).params for _ in range(MANY))


def all_tried(asked: SweepConfig) -> bool:
    """Whether the space has so few points that every one of them is tried, in order."""
    n = count_points(asked.space)
    return n is not None and n <= asked.trials


def drawn(asked: SweepConfig, known: "list[FrozenTrial]", number: int, draw: int) -> Values:
    """A point as the sampler proposes it, given what is known: Optuna's TPE (Bergstra et al. 2011), or at random."""
    optuna = import_optuna()
    seed = int(np.random.SeedSequence((asked.seed, number, draw)).generate_state(1)[0])
    startup = int(np.clip(asked.trials // 4, *STARTUP))
    sampler = (
        optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        if asked.sampler == "tpe"
        else optuna.samplers.RandomSampler(seed=seed)
    )
    study = optuna.create_study(sampler=sampler, direction=asked.direction)
    study.add_trials(known)
    values: Values = study.ask(distributions(asked)).params
    return values


def is_open(asked: SweepConfig, values: Values, tried: set[str]) -> bool:
    """Whether a point is possible and not among those that were tried."""
    return key(values) not in tried and impossible(asked, values) is None


def impossible(asked: SweepConfig, values: Values) -> str | None:
    """Why no trial can have these values, if so, as far as it can be said without the data."""
    from vitrail.model import ViTConfig

    try:
        model = asked.recipe.with_changes(**changes(values)).model
        if asked.model is None:
            patch = model.get("patch", 1)
            ViTConfig(**{**model, "patch": patch, "image_size": model.get("image_size", patch)})
    except UsageError as error:
        return error.sentence
    return None


def refuse_impossible(asked: SweepConfig) -> None:
    """Raises `UsageError` where no point of a space is possible; of a large one some points are drawn."""
    every = iterate_points(asked.space) if (count_points(asked.space) or MANY) < MANY else None
    reasons = [impossible(asked, v) for v in every or (drawn(asked, [], 0, draw) for draw in range(DRAWS))]
    if all(reasons):
        raise UsageError(f"no trial can have such values: {reasons[0]}", "vary other fields, or other values of them")


def total(asked: SweepConfig) -> int:
    """How many trials there will be: as many as were asked for, or as there are possible points, if these are fewer."""
    if not all_tried(asked):
        return asked.trials
    return sum(impossible(asked, each) is None for each in iterate_points(asked.space) or ())


def key(values: dict[str, Any]) -> str:
    """A point, to find it again."""
    return repr(sorted(values.items()))


def distributions(asked: SweepConfig) -> "dict[str, BaseDistribution]":
    """The space as Optuna says it."""
    return {name: distribution(each) for name, each in asked.space.items()}


def distribution(each: Axis) -> "BaseDistribution":
    """An axis as Optuna says it."""
    optuna = import_optuna()
    if isinstance(each, Choice):
        return optuna.distributions.CategoricalDistribution(each.values)
    kind: Callable[..., Any] = (
        optuna.distributions.IntDistribution if each.whole else optuna.distributions.FloatDistribution
    )
    if each.step is None:
        return kind(each.low, each.high, log=each.log)
    last = (each.counted() or (each.high,))[-1]  # the steps may end before the range does
    return kind(each.low, last, step=each.step)


def importance(study: "optuna.Study", asked: SweepConfig) -> dict[str, float] | None:
    """The part of the differences in score that each field explains (fANOVA, Hutter et al. 2014).

    None where fewer than four trials are complete, or all score alike.
    """
    optuna = import_optuna()
    done = [trial for trial in trials_of(study) if trial.state == optuna.trial.TrialState.COMPLETE]
    if len(done) < 4 or len({trial.value for trial in done}) < 2 or len(asked.space) < 2:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=asked.seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: round(float(value), 4) for name, value in found.items()}
