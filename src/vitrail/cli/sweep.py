"""Try variations of a recipe and say which is best on validation.

  vitrail sweep photos --vary lr=1e-4..1e-2:log --vary width=96,128,192 --trials 20

Each trial is an ordinary run folder under OUT/trials. Trials choose by validation alone; no test image is scored
until --score-test scores the best one, once. Every field of a recipe can be varied, or set for all trials.
A field is LOW..HIGH, LOW..HIGH:log (evenly in powers), LOW..HIGH:STEP, or A,B,C. A TOML file says the same:
  lr = "1e-4..1e-2:log"
  width = [96, 128, 192]
  warmup = {from = 0.0, to = 0.3}
Any number of processes and machines that see OUT can join with --resume; a trial whose process dies is taken up again.
"""

import argparse
from pathlib import Path
from typing import Any, get_args

from vitrail.cli.main import Answer
from vitrail.cli.train import add_start, given_fields, scores_in_words
from vitrail.errors import UsageError
from vitrail.sweeps import sweep
from vitrail.sweeps.config import Metric, Pruner, Sampler
from vitrail.sweeps.results import MIN_TRIALS_FOR_IMPORTANCE
from vitrail.sweeps.space import format_value, load_space, parse_vary

MOST = 20  # lines of the table that are shown


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options: the sweep's own, and every field of a recipe, for all trials."""
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--vary", action="append", default=[], metavar="FIELD=VALUES", help="a field; may be repeated")
    parser.add_argument("--space", metavar="FILE", help="the fields to vary, as TOML")
    parser.add_argument("--trials", type=int, metavar="N", help="trials in all (20); more of them extend a sweep")
    parser.add_argument("--sampler", choices=get_args(Sampler), help="tpe learns from the trials before (tpe)")
    parser.add_argument("--pruner", choices=get_args(Pruner), help="end trials early by their epochs so far (median)")
    parser.add_argument("--metric", choices=get_args(Metric), help="what of validation is compared (accuracy)")
    parser.add_argument("--sweep-seed", type=int, metavar="N", help="decides which points are tried (0)")
    parser.add_argument("--processes", type=int, metavar="N", help="trials at a time (1; with ray all of its cores)")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="this machine, or a Ray cluster")
    parser.add_argument("--ray-address", metavar="A", help="the Ray cluster (one of its own on this machine)")
    parser.add_argument("--score-test", action="store_true", help="score the best one on test, once, with a report")
    add_start(parser, out="the sweep's folder (sweeps/NAME)", resume="go on with the sweep in --out, or join it")


def run(arguments: argparse.Namespace) -> Answer:
    """Sweeps and shows the table."""
    from_file = load_space(arguments.space) if arguments.space else {}
    in_words = parse_vary(arguments.vary)
    if both := sorted(set(from_file) & set(in_words)):
        raise UsageError(f"{both[0]} is varied in {arguments.space} and by --vary", "name its values once")
    vary, changes = {**from_file, **in_words}, given_fields(arguments)
    if both := sorted(set(vary) & set(changes)):
        raise UsageError(f"{both[0]} is both set and varied", f"leave out --{both[0].replace('_', '-')}")
    if not vary and not arguments.resume:
        raise UsageError("a sweep needs a field to vary", "add --vary lr=1e-4..1e-2:log, for example")
    done = sweep(
        arguments.data,
        vary=vary,
        trials=arguments.trials,
        recipe=arguments.recipe,
        model=arguments.model,
        out=arguments.out,
        resume=arguments.resume,
        processes=arguments.processes,
        engine=arguments.engine,
        ray_address=arguments.ray_address,
        sampler=arguments.sampler,
        pruner=arguments.pruner,
        metric=arguments.metric,
        sweep_seed=arguments.sweep_seed,
        score_test=arguments.score_test,
        device=arguments.device,
        check=not arguments.no_check,
        torch_files=arguments.torch_files,
        **changes,
    )
    return Answer(done.to_json(), in_lines(done.result, done.folder), 0 if done.best else 1)


def in_lines(result: dict[str, Any], folder: Path) -> list[str]:
    """What people see: the table, what it is worth, and where to go on."""
    lines = table(result["rows"][:MOST])
    if (more := len(result["rows"]) - MOST) > 0:
        lines.append(f"and {more} more in {folder / 'sweep.csv'}")
    best = result["best"]
    if best is None:
        return [*lines, f"no trial is complete; everything is in {folder}"]
    low, high = best["accuracy_interval"]
    lines.append(
        f"best on validation: trial {best['trial']}, accuracy {best['accuracy']:.4f} (95 % interval {low:.4f} to "
        f"{high:.4f}, {result['validation_images']} images), optimistic: the best of all trials on this score"
    )
    if result["indistinguishable"]:
        lines.append(
            f"{result['indistinguishable']} of the {result['complete'] - 1} other complete trials lie within that interval: "
            "so many images cannot tell them apart"
        )
    if result["importance"]:
        parts = ", ".join(f"{name} {part:.0%}" for name, part in result["importance"].items())
        n = result["complete"]
        caution = f", of {n} trials: little more than a guess" if n < MIN_TRIALS_FOR_IMPORTANCE else f", of {n} trials"
        lines.append(f"what the differences come from (fANOVA): {parts}{caution}")
    if finished := result.get("best_on_test"):
        lines.append(f"trial {finished['trial']}, scored once on test: {scores_in_words('test', finished['test'])}")
        lines.append(f"  {folder / 'best' / 'report.html'}  everything worth knowing of it")
    lines.append(f"train it by itself: {result['command']}")
    lines.append(f"{result['seconds']:.0f} s of training; everything is in {folder}")
    for name, what in (
        ("slices.png", "accuracy by each field"),
        ("parallel.png", "every trial as a line through all fields"),
        ("sweep.csv", "the table; sweep.json has it too"),
        (best["run"], "the best run, an ordinary one"),
    ):
        lines.append(f"  {folder / name}  {what}")
    return lines


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The trials, a line each, with columns as wide as they need to be."""
    fields = list(rows[0]["values"]) if rows else []
    cells = [["rank", "trial", *fields, "accuracy", "95 % interval", "loss", "epochs", "seconds", ""]]
    for row in rows:
        scores = ["-"] * 5
        if row["accuracy"] is not None:
            low, high = row["accuracy_interval"]
            scores = [f"{row['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{row['loss']:.4f}", str(row["epochs"])]
            scores.append(f"{row['seconds']:.0f}")
        note = "" if row["state"] == "complete" else row["state"]
        values = [format_value(row["values"].get(name)) for name in fields]
        cells.append([str(row["rank"] or "-"), str(row["trial"]), *values, *scores, note])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.rjust, line[:-1], widths)) + f"  {line[-1]}".rstrip() for line in cells]
