"""What the caller of `sweep` asks for, and the sweep that is started or resumed with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrail.data.check import check_before_training
from vitrail.data.open import open_source
from vitrail.data.split import build_splits, drop_images
from vitrail.errors import UsageError
from vitrail.sweeps.config import Pruner, Sampler, SweepConfig
from vitrail.sweeps.folder import SweepFolder, check_out, create_sweep, find_sweep
from vitrail.sweeps.metrics import Metric, choose_metric
from vitrail.sweeps.sampling import check_possible
from vitrail.sweeps.space import Space, format_value, option_name, parse_space
from vitrail.tasks import TaskName
from vitrail.training.data_defaults import resolve_schedule
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, find_recipe

DEFAULT_TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The options of `sweep` that decide its trials; None is the default, or the value of a resumed sweep."""

    data: str  # an absolute address
    vary: Mapping[str, Any] | None = None
    trials: int | None = None
    recipe: str | Path | Recipe | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the recipe
    model: str | None = None
    torch_files: bool = False
    pictures: bool = True
    device: str | None = None
    sampler: Sampler | None = None
    pruner: Pruner | None = None
    metric: Metric | None = None
    sweep_seed: int | None = None
    check: bool = True


def new_sweep(options: SweepOptions, out: str | Path | None) -> SweepFolder:
    """Checks options and data, and makes the folder of a new sweep; raises `VitrailError` for what no trial can do."""
    if out is not None:
        check_out(Path(out))
    default_recipe = DEFAULT_RECIPE if options.model is None else DEFAULT_TRANSFER_RECIPE
    recipe = find_recipe(default_recipe if options.recipe is None else options.recipe, **options.changes)
    space = parse_space(options.vary or {})
    checked = check_data_of_sweep(options, recipe)
    has_unequal_trials = "epochs" in space or recipe.train_on == "features"
    if has_unequal_trials and options.pruner not in (None, "none"):
        raise UsageError("trials of different lengths cannot be compared for pruning", "use --pruner none")
    config = SweepConfig(
        data=options.data,
        fingerprint=checked.fingerprint,
        task=checked.task,
        validation_images=checked.validation_images,
        epochs=checked.epochs,
        recipe=recipe,
        space=space,
        model=options.model,
        torch_files=options.torch_files,
        pictures=options.pictures,
        device=options.device,
        trials=DEFAULT_TRIALS if options.trials is None else options.trials,
        sampler=options.sampler or "tpe",
        pruner=options.pruner or ("none" if has_unequal_trials else "median"),
        metric=checked.metric,
        sweep_seed=options.sweep_seed or 0,
    )
    check_possible(config)
    return create_sweep(config, out)


@dataclass(frozen=True)
class CheckedData:
    """What the configuration of a sweep takes from the data."""

    fingerprint: str
    task: TaskName
    metric: Metric
    validation_images: int
    epochs: int  # of a trial


def check_data_of_sweep(options: SweepOptions, recipe: Recipe) -> CheckedData:
    """Opens and checks the data; raises `UsageError` without validation images, and for a metric of another task."""
    source = open_source(
        options.data, missing_ok=recipe.skip_unreadable, task=recipe.task, group_pattern=recipe.group_pattern
    )
    splits = build_splits(
        source,
        validation=recipe.validation_fraction,
        test=recipe.test_fraction,
        split_seed=recipe.split_seed,
    )
    if splits.validation is None:
        raise UsageError(
            f"recipe {recipe.name} holds out no validation images of {options.data}, by which a sweep compares trials",
            "add --validation-fraction 0.1",
        )
    metric = choose_metric(source.task, options.metric, len(splits.classes))
    if options.check:
        report = check_before_training(
            source,
            batch_size=recipe.batch_size,
            fit=recipe.fit or "pad",
            skip_unreadable=recipe.skip_unreadable,
        )
        splits = drop_images(splits, report.skippable)
    if splits.validation is None:
        raise UsageError(f"no validation image of {options.data} can be read, and a sweep compares trials on them")
    epochs = resolve_schedule(recipe, splits).epochs or 1
    return CheckedData(splits.fingerprint, source.task, metric, len(splits.validation), epochs)


def resume_sweep(options: SweepOptions, out: str | Path | None) -> SweepFolder:
    """Finds a sweep and extends its trials; raises `UsageError` if the options contradict how it was started."""
    folder = find_sweep(options.data, out)
    config = folder.load_config()
    check_unchanged(folder, config, options)
    if options.trials is not None:
        if options.trials < config.trials:
            raise UsageError(f"{folder.path} has {config.trials} trials already", "leave out --trials, or ask for more")
        folder.extend(options.trials)
    return folder


def check_unchanged(folder: SweepFolder, config: SweepConfig, options: SweepOptions) -> None:
    """Raises `UsageError` naming the first option that differs from how the sweep was started."""
    if options.data != config.data:
        raise UsageError(f"{folder.path} was started on {config.data}", "resume it on the same data")
    recipe = config.recipe.with_changes(**options.changes)
    if options.recipe is not None:
        recipe = find_recipe(options.recipe, **options.changes)
    if options.vary:
        check_space_unchanged(folder, config.space, parse_space(options.vary))
    if recipe != config.recipe:
        raise UsageError(f"{folder.path} was started with another recipe", "resume it without recipe options")
    for name in ("model", "device", "torch_files", "sampler", "pruner", "metric", "sweep_seed"):
        requested, started = getattr(options, name), getattr(config, name)
        if requested is None or requested is False or requested == started:
            continue
        option = "from" if name == "model" else option_name(name)
        raise UsageError(
            f"{folder.path} was started with {name} {format_value(started)}, not {format_value(requested)}",
            f"resume it without --{option}",
        )


def check_space_unchanged(folder: SweepFolder, started: Space, requested: Space) -> None:
    """Raises `UsageError` naming the fields in which two spaces differ."""
    if requested == started:
        return
    changed = [name for name in started if started[name] != requested.get(name)]
    fields = sorted(set(started) ^ set(requested)) or changed
    raise UsageError(
        f"{folder.path} was started with another space (it differs in {', '.join(fields)})",
        "resume it without --vary, or choose another --out",
    )
