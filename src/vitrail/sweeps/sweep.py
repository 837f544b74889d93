"""`vitrail.sweep`: trials of a recipe with some fields varied, compared on validation.

Validation alone chooses the best trial. No test image is scored, except by the best trial, once, on request.
"""

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, cast

from vitrail.console import log
from vitrail.data.open import absolute_address
from vitrail.documents import SweepResult, TrialOnTest, TrialRow
from vitrail.errors import UsageError
from vitrail.files import absolute_if_exists, save_json, write_json
from vitrail.interrupts import Interrupted, interrupt_on_sigterm
from vitrail.machine import pick_device
from vitrail.runs.folder import RunFolder
from vitrail.runs.result import Run
from vitrail.runs.train import train
from vitrail.sweeps.config import Pruner, Sampler, SweepConfig
from vitrail.sweeps.folder import SweepFolder
from vitrail.sweeps.metrics import Metric
from vitrail.sweeps.options import SweepOptions, new_sweep, resume_sweep
from vitrail.sweeps.progress import run_trials
from vitrail.sweeps.results import write_table
from vitrail.sweeps.sampling import count_trials, import_optuna, is_exhaustive
from vitrail.sweeps.space import count_points
from vitrail.sweeps.study import SweepStudy, field_importances, open_study
from vitrail.training.recipe import Recipe
from vitrail.training.recipe_changes import RecipeChanges

Engine = Literal["local", "ray"]
BEST_TRIAL_FILE = "trial.json"  # in OUT/best: the trial of which it is a copy
SAMPLER_NAMES = {"tpe": "chosen by TPE", "random": "drawn at random"}
MAX_COUNTED_POINTS = 1_000_000  # in the plan


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its folder and its table, as in sweep.json."""

    folder: Path
    result: SweepResult
    test_run: Run | None = None  # the best trial's, scored on test

    @property
    def best(self) -> TrialRow | None:
        """The best trial's row of the table; None if no trial is complete."""
        return self.result["best"]

    def to_json(self) -> SweepResult:
        """Returns the content of sweep.json."""
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
    pictures: bool = True,
    torch_files: bool = False,
    **changes: Unpack[RecipeChanges],
) -> Sweep:
    """Trains variations of a recipe and returns their table, best on validation first.

    `vary` maps fields of the recipe to their values: `"1e-4..1e-2:log"`, `"96..192:32"`, `[96, 128]`, or a table with
    from, to, log, step. Trials are ordinary runs in OUT/trials, trained by `processes` processes of this machine or
    tasks of a Ray cluster; a script with several `processes` needs the usual `if __name__ == "__main__":`.

    `sampler` is tpe or random; a space with no more points than `trials` is tried in full. `pruner` stops trials early:
    median, hyperband or none. `metric` is what the trials are compared by: accuracy, balanced_accuracy or loss, by the
    task also map, quadratic_kappa, mae or r2. `resume` continues a sweep, or joins one
    that other processes work on; a larger `trials` extends it. `score_test` scores the best trial on test. Other
    options are as in `train`. Raises `VitrailError` for errors in the data, and if one stops every trial.
    """
    import_optuna()
    if processes is not None and processes < 1:
        raise UsageError(f"processes is {processes}; it must be at least 1")
    if ray_address is not None and engine != "ray":
        raise UsageError("--ray-address is for Ray", "add --engine ray")
    if model is not None and not isinstance(model, str | Path):
        raise UsageError(
            f"trials run in other processes, and a {type(model).__name__} is only in this one",
            "save it, vitrail.load(model).save(FILE), and give the file; give another model than a ViT as architecture",
        )
    pick_device(device)
    options = SweepOptions(
        data=absolute_address(data),
        vary=vary,
        trials=trials,
        recipe=recipe,
        changes=changes,
        model=None if model is None else absolute_if_exists(model),
        torch_files=torch_files,
        pictures=pictures,
        device=device,
        sampler=sampler,
        pruner=pruner,
        metric=metric,
        sweep_seed=sweep_seed,
        check=check,
    )
    folder = resume_sweep(options, out) if resume else new_sweep(options, out)
    config = folder.load_config()
    with open_study(folder, config) as study:
        log(describe_plan(folder, config))
        with resumable(folder, config):
            run_trials(folder, config, study, processes, ray=engine == "ray", ray_address=ray_address)
        result = write_results(folder, study)
    return finish_sweep(folder, config, result, score_test)


def describe_plan(folder: SweepFolder, config: SweepConfig) -> str:
    """Returns a line on what is tried, how, and by what trials are compared."""
    points = count_points(config.space)
    size = f"{points:,} points" if points is not None and points < MAX_COUNTED_POINTS else "a continuous space"
    method = "every point" if is_exhaustive(config) else SAMPLER_NAMES[config.sampler]
    pruning = "no pruning" if config.pruner == "none" else f"{config.pruner} pruning"
    return (
        f"sweep of {', '.join(config.space)} ({size}): {count_trials(config)} trials of recipe {config.recipe.name}, "
        f"{method}, {config.epochs} epochs, {pruning}; compared by {config.metric} on {config.validation_images} "
        f"validation images, no test image is scored; in {folder.path}"
    )


@contextmanager
def resumable(folder: SweepFolder, config: SweepConfig) -> Iterator[None]:
    """Inside, a signal ends the sweep with the command that resumes it."""
    command = shlex.join(["vitrail", "sweep", config.data, "--resume", "--out", str(folder.path)])
    try:
        with interrupt_on_sigterm():
            yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("stopped; all trials are saved", f"continue with: {command}") from None


def write_results(folder: SweepFolder, study: SweepStudy) -> SweepResult:
    """Writes the table with the fields' importances, and the pictures if it has some; returns the table."""
    from vitrail.sweeps.plots import draw_parallel, draw_slices

    config = folder.load_config()
    with folder.lock():
        result = write_table(folder, config, study, importance=field_importances(study, config))
    rows, score = cast(Sequence[Mapping[str, Any]], result["rows"]), config.shown_score
    if config.pictures and any(row[score] is not None for row in rows):
        draw_slices(config.space, rows, score, folder.path / "slices.png")
        draw_parallel(config.space, rows, score, folder.path / "parallel.png")
    return result


def finish_sweep(folder: SweepFolder, config: SweepConfig, result: SweepResult, score_test: bool) -> Sweep:
    """Scores the best trial on test, if requested, and adds its score to the table."""
    run = score_best(folder, config, result["best"]["trial"]) if score_test and result["best"] else None
    if run and "test" not in run.result:
        log("there is no test image to score the best trial on")
    if scores := load_test_scores(folder):
        result["best_on_test"] = scores
        write_json(folder.table_file, result)
    return Sweep(folder.path, result, run)


def score_best(folder: SweepFolder, config: SweepConfig, trial: int) -> Run:
    """Scores a trial on test in OUT/best, a copy of its run, and writes its report.

    Raises `UsageError` if another trial was scored before: a second score would let test choose between them.
    """
    best = folder.path / "best"
    with folder.lock():
        if not best.exists():
            temporary = folder.path / ".best"
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            shutil.copytree(folder.run_folder(trial).path, temporary)
            save_json(temporary / BEST_TRIAL_FILE, {"trial": trial})
            os.rename(temporary, best)
    scored_trial = json.loads((best / BEST_TRIAL_FILE).read_text(encoding="utf-8"))["trial"]
    if scored_trial != trial:
        raise UsageError(
            f"trial {scored_trial} of {folder.path} has been scored on test, and trial {trial} is now the best",
            "a second score would let test choose between them; "
            f"vitrail evaluate {folder.run_folder(trial).path} computes it nevertheless",
        )
    return train(
        config.data,
        model=config.model,
        torch_files=config.torch_files,
        out=best,
        resume=True,
        device=config.device,
        check=config.recipe.skip_unreadable,
        pictures=config.pictures,
    )


def load_test_scores(folder: SweepFolder) -> TrialOnTest | None:
    """Returns the test scores of the best trial, computed now or earlier; None without them."""
    best = RunFolder(folder.path / "best")
    try:
        trial = json.loads((best.path / BEST_TRIAL_FILE).read_text(encoding="utf-8"))["trial"]
        scores = json.loads(best.result_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return cast(TrialOnTest, {"trial": trial, "run": str(best.path), **scores}) if "test" in scores else None
