"""The table of a sweep: best trial first; why trials were pruned or have failed; sweep.json and sweep.csv."""

import csv
import io
import shlex
from typing import TYPE_CHECKING, Any, cast

from vitrail.documents import SweepResult
from vitrail.files import write_json, write_text
from vitrail.plugins import loaded_plugins
from vitrail.sweeps.config import SweepConfig
from vitrail.sweeps.folder import SweepFolder
from vitrail.sweeps.metrics import MINIMIZED, TASK_METRICS, TITLES, sort_value
from vitrail.sweeps.sampling import count_trials
from vitrail.sweeps.space import format_value, option_name
from vitrail.sweeps.study import SweepStudy
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES
from vitrail.weights.upgrade import FIT_VALUES

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "running"}
STATE_ORDER = {"complete": 0, "pruned": 1, "failed": 2, "running": 3}
MIN_TRIALS_FOR_IMPORTANCE = 30  # importances of fewer trials are rough
Row = dict[str, Any]  # a trial in the table, `TrialRow`


def build_table(config: SweepConfig, study: SweepStudy) -> list[Row]:
    """Returns a row for each trial: complete ones by score, then pruned, failed and running ones."""
    rows = [trial_row(config, trial) for trial in study.list_trials()]
    rows.sort(key=lambda row: (STATE_ORDER[row["state"]], *score_key(config, row), row["trial"]))
    for rank, row in enumerate((row for row in rows if row["state"] == "complete"), 1):
        row["rank"] = rank
    return rows


def score_key(config: SweepConfig, row: Row) -> tuple[float, float]:
    """Sorts trials by the metric, then by the loss, or by the shown score if the loss is the metric; the best first."""
    metric, shown = config.metric, config.shown_score
    if row[shown] is None:
        return 0.0, 0.0
    second = "loss" if shown == metric else shown
    return sort_value(metric, row[metric]), sort_value(second, row[second])


def columns_of_scores(config: SweepConfig) -> list[str]:
    """Returns the keys of a row that come from the scores of its trial."""
    intervals = [key for name in TASK_METRICS[config.task].scores for key in (name, f"{name}_interval")]
    return [*intervals, "loss", "epochs", "seconds"]


def trial_row(config: SweepConfig, trial: "FrozenTrial") -> Row:
    """Returns a trial as a row of the table."""
    scores = trial.user_attrs.get("scores", {})
    row: Row = {
        "trial": trial.number,
        "rank": None,
        "state": STATES[trial.state.name],
        "values": trial.params,
        **{name: scores.get(name) for name in columns_of_scores(config)},
        "run": f"trials/{trial.number:03d}",
    }
    if "error" in trial.user_attrs:
        row["error"] = trial.user_attrs["error"]
    if trial.user_attrs.get("deaths"):
        row["restarts"] = trial.user_attrs["deaths"]
    return row


def write_table(folder: SweepFolder, config: SweepConfig, study: SweepStudy, **more: Any) -> SweepResult:
    """Writes sweep.csv and sweep.json, with `more`; returns the latter. Only under the sweep's lock."""
    rows = build_table(config, study)
    document = {**summarize(folder, config, rows), **more}
    write_json(folder.table_file, document)
    write_text(folder.path / "sweep.csv", format_csv(config, rows))
    return cast(SweepResult, document)


def summarize(folder: SweepFolder, config: SweepConfig, rows: list[Row]) -> dict[str, Any]:
    """Returns the content of sweep.json."""
    best = rows[0] if rows and rows[0]["state"] == "complete" else None
    return {
        "sweep": str(folder.path),
        "data": config.data,
        "recipe": config.recipe.name,
        "task": config.task,
        "metric": f"validation {config.metric}",
        "score": config.shown_score,
        "validation_images": config.validation_images,
        "trials": count_trials(config),
        **{state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed")},
        "seconds": round(sum(row["seconds"] or 0.0 for row in rows), 3),
        "best": best,
        "indistinguishable": count_indistinguishable(rows, config.shown_score),
        "command": train_command(config, best["values"]) if best else None,
        "rows": rows,
    }


def count_indistinguishable(rows: list[Row], score: str = "accuracy") -> int:
    """How many complete trials besides the best have a score within its 95% interval, or a better one."""
    complete = [row for row in rows if row["state"] == "complete"]
    if not complete or complete[0][f"{score}_interval"] is None:
        return 0
    worst = complete[0][f"{score}_interval"][1 if score in MINIMIZED else 0]
    return sum(sort_value(score, row[score]) <= sort_value(score, worst) for row in complete[1:])


def format_csv(config: SweepConfig, rows: list[Row]) -> str:
    """Returns the table as CSV, with a column for each field."""
    fields = list(config.space)
    shown = config.shown_score
    other_scores = [name for name in TASK_METRICS[config.task].scores if name != shown]
    last_columns = ["loss", "epochs", "seconds", "run", "error", *other_scores]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "trial", "state", *fields, shown, f"{shown}_low", f"{shown}_high", *last_columns])
    for row in rows:
        values = [format_argument(row["values"].get(name)) for name in fields]
        interval = row[f"{shown}_interval"] or (None, None)
        last_cells = (row.get(name) for name in last_columns)
        writer.writerow([row["rank"], row["trial"], row["state"], *values, row[shown], *interval, *last_cells])
    return buffer.getvalue()


def format_argument(value: Any) -> str:
    """Returns a value as the command line takes it, with all digits."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def train_command(config: SweepConfig, values: dict[str, Any]) -> str:
    """Returns the command line that trains with these values, with a report and a score on test."""
    command = ["vitrail", "train", shlex.quote(config.data)]
    default_recipe = DEFAULT_RECIPE if config.model is None else DEFAULT_TRANSFER_RECIPE
    base = config.recipe.name if config.recipe.name in RECIPES else DEFAULT_RECIPE
    if config.model is not None:
        command += ["--from", shlex.quote(config.model), *(["--torch-files"] if config.torch_files else [])]
    if base != default_recipe:
        command += ["--recipe", base]
    for plugin in loaded_plugins():
        command += ["--plugin", shlex.quote(plugin)]
    for name, value in (recipe_differences(config.recipe, RECIPES[base]) | current_values(values)).items():
        if isinstance(value, bool):
            command.append(f"--{option_name(name)}" if value else f"--no-{option_name(name)}")
        else:
            command += [f"--{option_name(name)}", format_argument(value)]
    return " ".join(command)


def current_values(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with today's name for the `fit` of a sweep of format 1."""
    return {name: FIT_VALUES.get(value, value) if name == "fit" else value for name, value in values.items()}


def recipe_differences(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    """Returns the fields of a recipe that differ from another one, as the command line takes them."""
    documents: list[dict[str, Any]] = [recipe.to_json(), base.to_json()]
    differences: dict[str, Any] = {}
    for name, group in RECIPE_FIELDS.items():
        ours, theirs = (each if group == "recipe" else each[group] for each in documents)
        if name in ours and ours[name] != theirs.get(name):
            value = ours[name]
            if name == "position":
                value = value["kind"]
            differences[name] = f"{value[0]}x{value[1]}" if isinstance(value, list | tuple) else value
    return differences


def describe_trial(config: SweepConfig, row: Row) -> str:
    """Returns a line for a trial that has ended."""
    values = "  ".join(f"{name} {format_value(value)}" for name, value in row["values"].items())
    trial = f"trial {row['trial']}  {values}: "
    if row["state"] == "failed":
        return f"{trial}failed: {row['error'].split('; ')[0]}"  # the table has the whole sentence
    epochs = f"pruned after {row['epochs']} epochs" if row["state"] == "pruned" else f"{row['epochs']} epochs"
    scores = [describe_score(row, config.shown_score)]
    if config.metric == "balanced_accuracy":
        scores.append(describe_score(row, "accuracy"))
    if config.metric == "loss":
        scores.insert(0, f"loss {row['loss']:.4f}")
    return f"{trial}{', '.join(scores)}, {epochs}, {row['seconds']:.0f} s"


def describe_score(row: Row, name: str) -> str:
    """Returns a score of a trial with its interval, if it has one."""
    interval = row[f"{name}_interval"]
    ends = "" if interval is None else f" ({format_score(interval[0])} to {format_score(interval[1])})"
    return f"{TITLES[name]} {format_score(row[name])}{ends}"


def format_score(score: float) -> str:
    """Returns a score with four decimals, or a number above 10 with four digits."""
    return f"{score:.4f}" if abs(score) < 10 else f"{score:.4g}"
