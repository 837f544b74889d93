"""The trials as a table: best first, what was pruned, what failed and why; sweep.json and sweep.csv."""

import csv
import io
import shlex
from typing import TYPE_CHECKING, Any

from vitrail.files import write_json, write_text
from vitrail.sweeps.config import SweepConfig, SweepFolder
from vitrail.sweeps.space import format_value, option_name
from vitrail.sweeps.study import total, trials_of
from vitrail.training.recipe import RECIPE_FIELDS, Recipe
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, RECIPES

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "running"}
Line = dict[str, Any]  # a trial in the table
MIN_TRIALS_FOR_IMPORTANCE = 30  # trials below which importances are little more than a guess


def table(asked: SweepConfig, study: "optuna.Study") -> list[Line]:
    """A line for each trial: complete ones by score, then pruned, failed and running ones."""
    lines = [line(trial) for trial in trials_of(study)]
    order = {name: i for i, name in enumerate(("complete", "pruned", "failed", "running"))}
    lines.sort(key=lambda each: (order[each["state"]], *worth(asked, each), each["trial"]))
    for rank, each in enumerate((each for each in lines if each["state"] == "complete"), 1):
        each["rank"] = rank
    return lines


def worth(asked: SweepConfig, each: Line) -> tuple[float, float]:
    """What complete and pruned trials are ordered by, the better the less."""
    if each["accuracy"] is None:
        return 0.0, 0.0
    by_accuracy = -each["accuracy"], each["loss"]
    return by_accuracy if asked.metric == "accuracy" else (by_accuracy[1], by_accuracy[0])


def line(trial: "FrozenTrial") -> Line:
    """A trial in the table."""
    scores = trial.user_attrs.get("scores", {})
    found: Line = {
        "trial": trial.number,
        "rank": None,
        "state": STATES[trial.state.name],
        "values": trial.params,
        "accuracy": scores.get("accuracy"),
        "accuracy_interval": scores.get("accuracy_interval"),
        "loss": scores.get("loss"),
        "epochs": scores.get("epochs"),
        "seconds": scores.get("seconds"),
        "run": f"trials/{trial.number:03d}",
    }
    if "error" in trial.user_attrs:
        found["error"] = trial.user_attrs["error"]
    if trial.user_attrs.get("deaths"):
        found["taken_up_again"] = trial.user_attrs["deaths"]
    return found


def write_table(folder: SweepFolder, asked: SweepConfig, study: "optuna.Study", **more: Any) -> dict[str, Any]:
    """Writes sweep.json and sweep.csv; returns the former. Only under the sweep's lock."""
    lines = table(asked, study)
    document = {**summary(folder, asked, lines), **more}
    write_json(folder.path / "sweep.json", document)
    write_text(folder.path / "sweep.csv", as_csv(asked, lines))
    return document


def summary(folder: SweepFolder, asked: SweepConfig, lines: list[Line]) -> dict[str, Any]:
    """All that sweep.json says of these lines."""
    best = lines[0] if lines and lines[0]["state"] == "complete" else None
    return {
        "sweep": str(folder.path),
        "data": asked.data,
        "recipe": asked.recipe.name,
        "chosen_by": f"validation {asked.metric}",
        "validation_images": asked.images,
        "trials": total(asked),
        **{state: sum(each["state"] == state for each in lines) for state in ("complete", "pruned", "failed")},
        "seconds": round(sum(each["seconds"] or 0.0 for each in lines), 3),
        "best": best,
        "alike": alike(lines),
        "command": train_command(asked, best["values"]) if best else None,
        "rows": lines,
    }


def alike(lines: list[Line]) -> int:
    """How many complete trials beside the best have an accuracy within its 95 % interval."""
    complete = [each for each in lines if each["state"] == "complete"]
    return sum(each["accuracy"] >= complete[0]["accuracy_interval"][0] for each in complete[1:]) if complete else 0


def as_csv(asked: SweepConfig, lines: list[Line]) -> str:
    """The table for a spreadsheet: a column for each field."""
    fields = list(asked.space)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ends = ["loss", "epochs", "seconds", "run", "error"]
    writer.writerow(["rank", "trial", "state", *fields, "accuracy", "accuracy_low", "accuracy_high", *ends])
    for each in lines:
        low, high = each["accuracy_interval"] or (None, None)
        values = [full(each["values"].get(name)) for name in fields]
        row = [each["rank"], each["trial"], each["state"], *values, each["accuracy"], low, high]
        writer.writerow([*row, *(each.get(name) for name in ends)])
    return buffer.getvalue()


def full(value: Any) -> str:
    """A value as the command line takes it, to the last digit."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def train_command(asked: SweepConfig, values: dict[str, Any]) -> str:
    """What to type to train with these values by itself, with a report and a score on test."""
    words = ["vitrail", "train", shlex.quote(asked.data)]
    usual = DEFAULT_RECIPE if asked.model is None else DEFAULT_TRANSFER_RECIPE
    base = asked.recipe.name if asked.recipe.name in RECIPES else DEFAULT_RECIPE
    if asked.model is not None:
        words += ["--from", shlex.quote(asked.model), *(["--torch-files"] if asked.torch_files else [])]
    if base != usual:
        words += ["--recipe", base]
    for name, value in {**differences(asked.recipe, RECIPES[base]), **values}.items():
        flag = f"--{option_name(name)}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{option_name(name)}")
        else:
            words += [flag, full(value)]
    return " ".join(words)


def differences(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    """The fields of a recipe that are not those of another, as the command line takes them."""
    ours, theirs = recipe.to_json(), base.to_json()
    found: dict[str, Any] = {}
    for name, place in RECIPE_FIELDS.items():
        mine, other = (each if place == "recipe" else each[place] for each in (ours, theirs))
        if name in mine and mine[name] != other.get(name):
            value = mine[name]
            if name == "position":
                value = value["kind"]
            found[name] = f"{value[0]}x{value[1]}" if isinstance(value, list | tuple) else value
    return found


def sentence(asked: SweepConfig, each: Line) -> str:
    """A trial that has ended, in a line."""
    values = "  ".join(f"{name} {format_value(value)}" for name, value in each["values"].items())
    said = f"trial {each['trial']}  {values}: "
    if each["state"] == "failed":
        return f"{said}failed: {each['error'].split('; ')[0]}"  # the table has all of it
    low, high = each["accuracy_interval"]
    ended = f"pruned after {each['epochs']} epochs" if each["state"] == "pruned" else f"{each['epochs']} epochs"
    scores = f"accuracy {each['accuracy']:.4f} ({low:.4f} to {high:.4f})"
    if asked.metric == "loss":
        scores = f"loss {each['loss']:.4f}, {scores}"
    return f"{said}{scores}, {ended}, {each['seconds']:.0f} s"
