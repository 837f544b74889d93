"""Search for good settings of a recipe: train trials with different values and rank them on validation.

  vitrail sweep photos --vary muon_lr=3e-3..3e-2:log --vary width=96,128,192 --trials 20

Each trial is an ordinary run folder under OUT/trials. Trials are compared on validation only; --score-test scores the
best one on the test images, once. Every field of a recipe can be varied, or set for all trials. VALUES are LOW..HIGH,
LOW..HIGH:log (log-uniform), LOW..HIGH:STEP, or A,B,C. A TOML file can say the same:
  lr = "1e-4..1e-2:log"
  width = [96, 128, 192]
  warmup_fraction = {from = 0.0, to = 0.3}
Any number of processes and machines that see OUT can join with --resume. A trial whose process dies is resumed by
another. The trials are in an SQLite file, whose locks some network file systems lack: on those, let one machine work.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import add_data, add_engine, count
from vitrail.cli.parser import Parser
from vitrail.cli.recipe_options import add_training_options, recipe_changes
from vitrail.documents import SweepResult, TrialRow
from vitrail.errors import UsageError
from vitrail.sweeps.config import Pruner, Sampler
from vitrail.sweeps.metrics import TITLES, Metric
from vitrail.sweeps.space import format_value, load_space, parse_vary

MAX_ROWS_SHOWN = 20


def add_arguments(parser: Parser) -> None:
    add_data(parser)
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=VALUES",
        help="vary a field; can be repeated (default: none)",
    )
    parser.add_argument("--space", metavar="FILE", help="a TOML file with the fields to vary (default: none)")
    parser.add_argument(
        "--trials",
        type=count(),
        metavar="COUNT",
        help="number of trials; a larger number extends a sweep (default: 20)",
    )
    parser.add_argument(
        "--sampler",
        choices=get_args(Sampler),
        help="how values are chosen; tpe learns from earlier trials (default: tpe)",
    )
    parser.add_argument(
        "--pruner", choices=get_args(Pruner), help="rule that ends bad trials early, by epoch (default: median)"
    )
    parser.add_argument(
        "--metric",
        choices=get_args(Metric),
        help="validation metric to optimize (default: accuracy; by the task map, quadratic_kappa or mae)",
    )
    parser.add_argument("--sweep-seed", type=int, metavar="SEED", help="seed of the sampler (default: 0)")
    parser.add_argument(
        "--processes",
        type=count(),
        metavar="COUNT",
        help="trials that train at once (default: 1; with Ray, all its cores)",
    )
    parser.add_argument(
        "--score-test",
        action="store_true",
        help="score the best trial on the test images, with a report (default: off)",
    )
    add_engine(parser)
    add_training_options(
        parser, out_help="the sweep's folder (default: sweeps/NAME)", resume_help="continue or join the sweep in --out"
    )


def run(arguments: argparse.Namespace) -> Answer:
    from_file = load_space(arguments.space) if arguments.space else {}
    from_options = parse_vary(arguments.vary)
    if both := sorted(set(from_file) & set(from_options)):
        raise UsageError(f"{both[0]} is varied in {arguments.space} and by --vary", "name its values once")
    vary, changes = {**from_file, **from_options}, recipe_changes(arguments)
    if both := sorted(set(vary) & set(changes)):
        raise UsageError(f"{both[0]} is both set and varied", f"leave out --{both[0].replace('_', '-')}")
    if not vary and not arguments.resume:
        raise UsageError("a sweep needs a field to vary", "add --vary muon_lr=3e-3..3e-2:log, for example")
    from vitrail.sweeps.sweep import sweep

    result = sweep(
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
        pictures=not arguments.no_pictures,
        torch_files=arguments.torch_files,
        **changes,
    )
    return Answer({**result.to_json()}, describe_result(result.result, result.folder), 0 if result.best else 1)


def describe_result(result: SweepResult, folder: Path) -> list[str]:
    """Returns the table, how reliable it is, and the next command, as lines."""
    from vitrail.evaluation.grades import describe_grades
    from vitrail.runs.result import describe_scores
    from vitrail.sweeps.results import MIN_TRIALS_FOR_IMPORTANCE, format_score

    score = result["score"]
    lines = format_table(result["rows"][:MAX_ROWS_SHOWN], score)
    if (more := len(result["rows"]) - MAX_ROWS_SHOWN) > 0:
        lines.append(f"and {more} more in {folder / 'sweep.csv'}")
    best = result["best"]
    if best is None:
        return [*lines, f"no trial is complete; files are in {folder}"]
    value, interval = score_of(best, score)
    low, high = map(format_score, interval or (math.nan, math.nan))
    lines.append(
        f"best on validation: trial {best['trial']}, {TITLES[score]} {format_score(value)} (95% interval {low} to "
        f"{high}, {result['validation_images']} images), optimistic: the best of all trials on this score"
    )
    if result["indistinguishable"]:
        lines.append(
            f"{result['indistinguishable']} of the {result['complete'] - 1} other complete trials are within that "
            "interval: "
            "these images cannot rank them"
        )
    if result["importance"]:
        parts = ", ".join(f"{name} {part:.0%}" for name, part in result["importance"].items())
        n = result["complete"]
        caution = (
            f", from {n} trials: too few to be reliable" if n < MIN_TRIALS_FOR_IMPORTANCE else f", from {n} trials"
        )
        lines.append(f"importance of the fields (fANOVA): {parts}{caution}")
    if finished := result.get("best_on_test"):
        lines.append(f"trial {finished['trial']}, scored once on test: {describe_scores('test', finished['test'])}")
        if "quadratic_kappa" in finished["test"]:
            lines.append(f"  {describe_grades(finished['test'])}")
        lines.append(f"  {folder / 'best' / 'report.html'}  its report")
    lines.append(f"train it again: {result['command']}")
    lines.append(f"{result['seconds']:.0f} s of training; files are in {folder}")
    for name, description in (
        ("slices.png", f"{TITLES[score]} by each field"),
        ("parallel.png", "every trial as a line through its values"),
        ("sweep.csv", "the table; sweep.json has it too"),
        (best["run"], "the run of the best trial"),
    ):
        if Path(folder, name).exists():
            lines.append(f"  {folder / name}  {description}")
    return lines


def score_of(row: TrialRow, score: str) -> tuple[float, list[float] | None]:
    """Returns a score of a trial, NaN if it has none, and its interval."""
    scores = cast(Mapping[str, Any], row)
    return math.nan if scores[score] is None else scores[score], scores[f"{score}_interval"]


def format_table(rows: list[TrialRow], score: str) -> list[str]:
    """Returns the trials as lines of aligned columns."""
    from vitrail.sweeps.results import format_score

    fields = list(rows[0]["values"]) if rows else []
    cells = [["rank", "trial", *fields, TITLES[score], "95% interval", "loss", "epochs", "seconds", ""]]
    for row in rows:
        scores = ["-"] * 5
        value, interval = score_of(row, score)
        if not math.isnan(value):
            ends = " to ".join(map(format_score, interval or ())) or "-"
            scores = [format_score(value), ends, f"{row['loss']:.4f}", str(row["epochs"])]
            scores.append(f"{row['seconds']:.0f}")
        note = "" if row["state"] == "complete" else row["state"]
        values = [format_value(row["values"].get(name)) for name in fields]
        cells.append([str(row["rank"] or "-"), str(row["trial"]), *values, *scores, note])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.rjust, line[:-1], widths)) + f"  {line[-1]}".rstrip() for line in cells]
