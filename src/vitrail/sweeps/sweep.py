"""A sweep: many trials of a recipe with some of its fields varied, compared on validation, as a table.

The trials choose by validation alone, and no test image is scored but by the best one, once, if asked.
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.console import ProgressBar, log, progress_bar
from vitrail.data import open_data
from vitrail.data.open import absolute_address
from vitrail.errors import UsageError
from vitrail.files import absolute_if_exists, save_json, write_json
from vitrail.interrupts import Interrupted, interrupt_on_sigterm
from vitrail.machine import pick_device
from vitrail.runs.data import check_before_training, drop_unreadable, list_unreadable
from vitrail.runs.epochs import Row
from vitrail.runs.finish import Run
from vitrail.runs.train import train
from vitrail.sweeps.config import (
    Metric,
    Pruner,
    Sampler,
    SweepConfig,
    SweepFolder,
    create_sweep,
    find_sweep,
    refuse_changed,
    refuse_taken,
)
from vitrail.sweeps.local_workers import Crew, Processes
from vitrail.sweeps.results import sentence, table, write_table
from vitrail.sweeps.space import count_points, parse_space
from vitrail.sweeps.study import (
    all_tried,
    close_study,
    import_optuna,
    importance,
    open_study,
    refuse_impossible,
    total,
    trials_of,
)
from vitrail.sweeps.worker import run_worker
from vitrail.training.data_defaults import resolve_epochs_and_batch_size
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, find_recipe

if TYPE_CHECKING:
    import optuna

Engine = Literal["local", "ray"]
LOOK = 0.5  # seconds between two looks at what other processes have finished


@dataclass(frozen=True)
class Sweep:
    """A sweep that is through: its folder, and what its trials came to, as in sweep.json."""

    folder: Path
    result: dict[str, Any]
    test_run: Run | None = None  # the best one, scored on test

    @property
    def best(self) -> dict[str, Any] | None:
        """The best trial's line of the table; None where none is complete."""
        best: dict[str, Any] | None = self.result["best"]
        return best

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return self.result


def sweep(
    data: str | Path,
    *,
    vary: Mapping[str, Any] | None = None,
    trials: int | None = None,
    recipe: str | Path | Recipe | None = None,
    model: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    processes: int | None = None,
    engine: Engine = "local",
    ray_address: str | None = None,
    sampler: Sampler | None = None,
    pruner: Pruner | None = None,
    metric: Metric | None = None,
    sweep_seed: int | None = None,
    score_test: bool = False,
    device: str | None = None,
    check: bool = True,
    torch_files: bool = False,
    **changes: Any,
) -> Sweep:
    """Tries so many variations of a recipe and says which is best on validation.

    `vary` maps fields of the recipe to what they may be: `"1e-4..1e-2:log"`, `"96..192:32"`, `[96, 128]`, or a table
    with from, to, log, step. Trials are ordinary runs in OUT/trials, trained by `processes` of this machine, or by
    tasks of a Ray cluster. `sampler` is tpe or random, but a space of no more points than trials is tried in full.
    `pruner` ends trials early: median, hyperband or none. `metric` is accuracy or loss. `resume` goes on with a sweep, or
    joins one that others are at work on; more `trials` extend it. A script that asks for several `processes` needs the
    usual `if __name__ == "__main__":`. `score_test` scores the best one on test.
    The rest is as in `train`. Raises `VitrailError` where data or every trial go wrong.
    """
    import_optuna()
    if processes is not None and processes < 1:
        raise UsageError(f"processes is {processes}; it must be at least 1")
    if ray_address is not None and engine != "ray":
        raise UsageError("--ray-address is for Ray", "add --engine ray")
    pick_device(device)
    if resume:
        folder = find_sweep(data, out)
        asked = asked_again(
            folder, data, vary, recipe, changes, model=None if model is None else absolute_if_exists(model), device=device,
            torch_files=torch_files or None, sampler=sampler, pruner=pruner, metric=metric, seed=sweep_seed,
        )  # fmt: skip
        if trials is not None and trials < asked.trials:
            raise UsageError(f"{folder.path} has {asked.trials} trials already", "leave out --trials, or ask for more")
        folder.extend(trials or asked.trials)
    else:
        if out is not None:
            refuse_taken(Path(out))
        usual = DEFAULT_RECIPE if model is None else DEFAULT_TRANSFER_RECIPE
        asked = first_asked(
            data, find_recipe(usual if recipe is None else recipe, **changes), vary or {},
            20 if trials is None else trials, None if model is None else absolute_if_exists(model), torch_files, device,
            sampler, pruner, metric, sweep_seed, check,
        )  # fmt: skip
        folder = create_sweep(asked, out)
    asked = folder.load_config()
    study = open_study(folder, asked)
    try:
        log(plan(folder, asked))
        with going_on_with(folder, asked):
            if engine == "ray":
                from vitrail.sweeps.ray import cluster

                with cluster(folder.path, processes, asked.trials, ray_address) as crew:
                    follow(asked, study, crew)
            elif (processes or 1) > 1:
                follow(asked, study, Processes(folder.path, processes or 1))
            else:
                alone(folder, asked, study)
        result = through(folder, asked, study)
    finally:
        close_study(study)
    run = finish_best(folder, asked, result) if score_test and result["best"] else None
    if run and "test" not in run.result:
        log("there is no test image to score the best one on")
    if scores := scored_on_test(folder):
        result["finished"] = scores
        write_json(folder.path / "sweep.json", result)
    return Sweep(folder.path, result, run)


def first_asked(
    data: str | Path, recipe: Recipe, vary: Mapping[str, Any], trials: int, model: str | None, torch_files: bool,
    device: str | None, sampler: Sampler | None, pruner: Pruner | None, metric: Metric | None, seed: int | None, check: bool,
) -> SweepConfig:  # fmt: skip
    """A new sweep as a value, once the data have been looked at; raises `VitrailError` for what no trial could do."""
    space = parse_space(vary)
    splits = open_data(
        data,
        validation=recipe.validation_fraction,
        test=recipe.test_fraction,
        split_seed=recipe.split_seed,
        missing_ok=recipe.skip_unreadable,
    )
    if splits.validation is None:
        raise UsageError(
            f"recipe {recipe.name} keeps no validation images of {data}, and a sweep chooses by them",
            "add --validation-fraction 0.1",
        )
    report = check_before_training(data, recipe) if check else None
    splits = drop_unreadable(splits, list_unreadable(report))
    if splits.validation is None:
        raise UsageError(f"not one validation image of {data} can be read, and a sweep chooses by them")
    settled = resolve_epochs_and_batch_size(recipe, splits)
    uneven = "epochs" in space or recipe.train_on == "features"
    if uneven and pruner not in (None, "none"):
        raise UsageError("trials of different lengths cannot be pruned beside one another", "use --pruner none")
    asked = SweepConfig(
        data=absolute_address(data),
        fingerprint=splits.fingerprint,
        images=len(splits.validation),
        epochs=settled.epochs or 1,
        recipe=recipe,
        space=space,
        model=model,
        torch_files=torch_files,
        device=device,
        trials=trials,
        sampler=sampler or "tpe",
        pruner=pruner or ("none" if uneven else "median"),
        metric=metric or "accuracy",
        seed=seed or 0,
    )
    refuse_impossible(asked)
    return asked


def asked_again(
    folder: SweepFolder,
    data: str | Path,
    vary: Mapping[str, Any] | None,
    recipe: str | Path | Recipe | None,
    changes: dict[str, Any],
    **how: Any,
) -> SweepConfig:
    """What a sweep was started with; raises `UsageError` where a resume wishes for something else."""
    asked = folder.load_config()
    if absolute_address(data) != asked.data:
        raise UsageError(f"{folder.path} was started on {asked.data}", "resume it on the same data")
    wished = asked.recipe.with_changes(**changes) if recipe is None else find_recipe(recipe, **changes)
    refuse_changed(folder, asked, {"space": parse_space(vary) if vary else None, "recipe": wished, **how})
    return asked


def plan(folder: SweepFolder, asked: SweepConfig) -> str:
    """What is about to be done, in a line."""
    n = count_points(asked.space)
    how = "every point" if all_tried(asked) else {"tpe": "chosen by TPE", "random": "drawn at random"}[asked.sampler]
    points = f"{n:,} points" if n is not None and n < 1_000_000 else "a space without end"
    pruned = "no pruning" if asked.pruner == "none" else f"{asked.pruner} pruning"
    return (
        f"sweep of {', '.join(asked.space)} ({points}): {total(asked)} trials of recipe {asked.recipe.name}, {how}, "
        f"{asked.epochs} epochs, {pruned}; chosen by {asked.metric} on {asked.images} validation images, no test image is "
        f"scored; in {folder.path}"
    )


@contextmanager
def going_on_with(folder: SweepFolder, asked: SweepConfig) -> Iterator[None]:
    """Inside, a signal ends the sweep for now, with the command that goes on."""
    hint = f"go on with: vitrail sweep {shlex.quote(asked.data)} --resume --out {shlex.quote(str(folder.path))}"
    try:
        with interrupt_on_sigterm():
            yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("stopped; every trial is saved", hint) from None


class Progress:
    """What is said of a sweep while it goes on: a line for each trial that ends, the best so far, the time left."""

    def __init__(self, asked: SweepConfig, study: "optuna.Study", shown: ProgressBar):
        self.asked, self.study, self.shown, self.total = asked, study, shown, total(asked)
        self.known = {trial.number for trial in trials_of(study) if trial.state.is_finished()}
        self.before = len(self.known)
        self.began = time.monotonic()
        shown.start_from(self.before)

    def see(self) -> int:
        """Says what has ended since; returns how many trials have."""
        if sum(trial.state.is_finished() for trial in trials_of(self.study)) == len(self.known):
            return len(self.known)
        lines = table(self.asked, self.study)
        new = sorted(
            (each for each in lines if each["state"] != "running" and each["trial"] not in self.known),
            key=lambda each: each["trial"],
        )
        for each in new:
            self.known.add(each["trial"])
            log(f"{len(self.known)}/{self.total}  {sentence(self.asked, each)}{self.beside(lines)}")
        self.shown.advance(len(new), note=self.best(lines))
        return len(self.known)

    def best(self, lines: list[dict[str, Any]]) -> str:
        """The best complete trial in a few words."""
        if not lines or lines[0]["state"] != "complete":
            return ""
        return f"best {lines[0][self.asked.metric]:.4f} (trial {lines[0]['trial']})"

    def beside(self, lines: list[dict[str, Any]]) -> str:
        """The best so far and the time left, as the end of a line."""
        left = self.total - len(self.known)
        each = (time.monotonic() - self.began) / max(1, len(self.known) - self.before)
        time_left = f"{timedelta(seconds=round(left * each))} left" if left else ""
        return "".join(f"; {part}" for part in (self.best(lines), time_left) if part)

    def epoch(self, number: int, row: Row | None) -> None:
        """An epoch of a trial in this process, or its end."""
        if row is None:
            self.see()
        else:
            self.shown.advance(0, note=f"trial {number} epoch {row['epoch']} accuracy {row['validation_accuracy']:.4f}")


def alone(folder: SweepFolder, asked: SweepConfig, study: "optuna.Study") -> None:
    """Works on the sweep in this process."""
    with progress_bar("trials", total(asked)) as shown:
        run_worker(folder.path, Progress(asked, study, shown).epoch)


def follow(asked: SweepConfig, study: "optuna.Study", crew: Crew) -> None:
    """Watches others at work until they are through."""
    try:
        with progress_bar("trials", total(asked)) as shown:
            progress = Progress(asked, study, shown)
            while crew.look(progress.see()):
                time.sleep(LOOK)
            progress.see()
    finally:
        crew.stop()


def through(folder: SweepFolder, asked: SweepConfig, study: "optuna.Study") -> dict[str, Any]:
    """The table with importances, and the pictures."""
    from vitrail.sweeps.plots import draw_parallel, draw_slices

    asked = folder.load_config()
    with folder.locked():
        result = write_table(folder, asked, study, importance=importance(study, asked))
    if any(each["accuracy"] is not None for each in result["rows"]):
        draw_slices(asked.space, result["rows"], folder.path / "slices.png")
        draw_parallel(asked.space, result["rows"], folder.path / "parallel.png")
    return result


def finish_best(folder: SweepFolder, asked: SweepConfig, result: dict[str, Any]) -> Run:
    """The best trial's classifier scored on test, with its report, in OUT/best; its own folder is left as it is.

    Raises `UsageError` where another trial has been scored: to score several and take the best is to choose on test.
    """
    number, best = result["best"]["trial"], folder.path / "best"
    with folder.locked():
        if not best.exists():
            aside = folder.path / ".best"
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
            shutil.copytree(folder.trial_folder(number), aside)
            save_json(aside / "trial.json", {"trial": number})
            os.rename(aside, best)
    if (before := json.loads((best / "trial.json").read_text(encoding="utf-8"))["trial"]) != number:
        raise UsageError(
            f"trial {before} of {folder.path} has been scored on test, and trial {number} is now the best",
            f"a second score would be a choice on test; vitrail evaluate {folder.trial_folder(number)} makes it none the less",
        )
    return train(asked.data, model=asked.model, torch_files=asked.torch_files, out=best, resume=True,
                 device=asked.device, check=asked.recipe.skip_unreadable)  # fmt: skip


def scored_on_test(folder: SweepFolder) -> dict[str, Any] | None:
    """What the best trial scored on test, in this process or an earlier one; None where it was not asked."""
    best = folder.path / "best"
    try:
        trial = json.loads((best / "trial.json").read_text(encoding="utf-8"))["trial"]
        scores = json.loads((best / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {"trial": trial, "run": str(best), **scores} if "test" in scores else None
