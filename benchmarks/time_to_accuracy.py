"""How long a recipe trains and how accurate it gets, compared with another recipe on the same machine.

    python -m benchmarks.time_to_accuracy DATA [--recipe speedrun-75] [--seeds 5] [--beside tutorial] [--out FOLDER]
    python -m benchmarks.time_to_accuracy DATA --curve TUTORIAL_RUN --also RUN    # adds finished runs to the picture

Each run is `vitrail train` in its own process, one after another. One epoch of the other recipe runs before each, so
that a slow phase of the machine slows both; the time of its whole run is that epoch's times its number of epochs.
The training time covers batches, augmentation and steps. The rest of a run (imports, reading the images, evaluation,
checkpoints, pictures) is listed separately, with the peak memory of the process and the CPU time that the host of a
virtual machine took (steal time). The data are not checked and no report is written. Writes time_to_accuracy.json, .md
and .png.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vitrail.files import write_json, write_text
from vitrail.machine import describe_numerics, measure_steal_time, pick_device
from vitrail.training.recipes import RECIPES


def main() -> None:
    """Runs the benchmark; prints and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--recipe", default="speedrun-75")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="epochs of the recipe (default: its own)")
    parser.add_argument("--beside", default="tutorial", help="another recipe, or none")
    parser.add_argument(
        "--curve", type=Path, metavar="RUN", help="a whole run of the other recipe, drawn at its pace here"
    )
    parser.add_argument(
        "--also", type=Path, metavar="RUN", action="append", default=[], help="another run, drawn at its own pace"
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--processes", type=int, default=1, help="processes that train one model, for both recipes")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_accuracy"))
    arguments = parser.parse_args()
    if arguments.curve and arguments.beside == "none":
        parser.error("--curve is drawn at the pace of the recipe that --beside names")
    for run in filter(None, (arguments.curve, *arguments.also)):
        if not (run / "metrics.jsonl").is_file():
            parser.error(f"{run} has no metrics.jsonl: it is not a run")
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for seed in range(arguments.seeds):
            other = None
            if arguments.beside != "none":
                other = train_recipe(arguments, arguments.beside, seed, Path(folder) / f"beside-{seed}", epochs=1)
            ours = train_recipe(arguments, arguments.recipe, seed, Path(folder) / f"{seed}", epochs=arguments.epochs)
            pairs.append({"ours": ours, "beside": other})
            print(describe_pair(arguments, pairs[-1]), file=sys.stderr, flush=True)
            document = write_results(arguments, pairs)  # after each pair: a stopped benchmark keeps its results
    print(format_table(document))


def write_results(arguments: argparse.Namespace, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes the results so far, as JSON, Markdown and a picture."""
    header = {
        "recipe": arguments.recipe,
        "beside": arguments.beside,
        "processes": arguments.processes,
        "machine": describe_machine(arguments.device),
    }
    document = header | summarize(arguments, pairs)
    if arguments.curve:
        document["beside_curve"] = rescale_curve(arguments.curve, pairs)
    document["also"] = {run.name: load_curve(run) for run in arguments.also}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "time_to_accuracy.json", document)
    write_text(arguments.out / "time_to_accuracy.md", format_table(document))
    draw(document, arguments.out / "time_to_accuracy.png")
    return document


def train_recipe(
    arguments: argparse.Namespace, recipe: str, seed: int, out: Path, epochs: int | None
) -> dict[str, Any]:
    """Runs a recipe; returns its test accuracy after each epoch and its times in seconds."""
    command = [sys.executable, "-m", "vitrail", "train", arguments.data, "--recipe", recipe, "--seed", str(seed)]
    command += [
        "--out",
        str(out),
        "--quiet",
        "--no-check",
        "--no-report",
        *(["--epochs", str(epochs)] if epochs else []),
    ]
    command += ["--device", arguments.device] if arguments.device else []
    command += ["--processes", str(arguments.processes)] if arguments.processes > 1 else []
    started, steal_time = time.perf_counter(), measure_steal_time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    wall = time.perf_counter() - started
    points = load_curve(out)
    training, accuracy = points[-1]
    return {
        "seed": seed,
        "epochs": len(points),
        "accuracy": accuracy,
        "training": training,
        "other": wall - training,  # imports, reading the data, evaluation, checkpoints, pictures
        "peak_gib": used.ru_maxrss / (1 << 20),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "steal": steal_time(),  # as a fraction of the CPU time
        "curve": points,
    }


def load_curve(run: Path) -> list[list[float]]:
    """[seconds of training, test accuracy] after each epoch; validation accuracy if the run has such images."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = itertools.accumulate(row["seconds"] for row in rows)
    metric = "test_accuracy" if "test_accuracy" in rows[0] else "validation_accuracy"
    return [[total, row[metric]] for total, row in zip(seconds, rows, strict=True)]


def summarize(arguments: argparse.Namespace, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads over the seeds, and the ratio to the whole run of the other recipe, pair by pair."""
    summary: dict[str, Any] = {"runs": pairs}
    for name in ("accuracy", "training", "other", "peak_gib"):
        summary[name] = spread([pair["ours"][name] for pair in pairs])
    if arguments.beside != "none":
        epochs = RECIPES[arguments.beside].epochs or 1
        summary["beside_training"] = spread([pair["beside"]["training"] * epochs for pair in pairs])
        summary["ratio"] = spread([pair["beside"]["training"] * epochs / pair["ours"]["training"] for pair in pairs])
    return summary


def rescale_curve(run: Path, pairs: list[dict[str, Any]]) -> list[list[float]]:
    """The curve of a finished run of the other recipe, with the time that its epochs take here."""
    epoch = statistics.mean(pair["beside"]["training"] for pair in pairs)
    return [[number * epoch, accuracy] for number, (_, accuracy) in enumerate(load_curve(run), start=1)]


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation, minimum and maximum."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": deviation, "min": min(values), "max": max(values)}


def describe_machine(device: str | None) -> dict[str, Any]:
    """Hardware and software."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return describe_numerics(pick_device(device)) | {"cpu": name}


def describe_pair(arguments: argparse.Namespace, pair: dict[str, Any]) -> str:
    """A line for a pair of runs."""
    ours, other = pair["ours"], pair["beside"]
    line = f"seed {ours['seed']}: {ours['accuracy']:.2%} after {ours['training']:.0f} s of training"
    return line + (f"; one epoch of {arguments.beside}: {other['training']:.1f} s" if other else "")


def format_table(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    runs = [pair["ours"] for pair in document["runs"]]
    lines = ["| seed | accuracy | training | other | peak memory | steal time |"]
    lines += ["| --- | --: | --: | --: | --: | --: |"]
    lines += [
        f"| {r['seed']} | {r['accuracy']:.2%} | {r['training']:.0f} s | {r['other']:.0f} s "
        f"| {r['peak_gib']:.2f} GiB | {format_percent(r['steal'])} |"
        for r in runs
    ]
    a, t, e, m = (document[name] for name in ("accuracy", "training", "other", "peak_gib"))
    lines += [
        f"| mean ± sd, n = {len(runs)} | **{a['mean']:.2%}** ± {100 * a['sd']:.2f} "
        f"| **{t['mean']:.0f} s** ± {t['sd']:.0f} | {e['mean']:.0f} s | {m['max']:.2f} GiB | |",
        "",
        f"Recipe `{document['recipe']}`, processes: {document['processes']}, {document['machine']}.",
    ]
    if "ratio" in document:
        r, b = document["ratio"], document["beside_training"]
        lines += [
            "",
            f"`{document['beside']}` takes {b['mean']:,.0f} s ± {b['sd']:,.0f} for its whole run (one epoch measured "
            f"before each seed): **{r['mean']:.1f} times** as long ({r['min']:.1f} to {r['max']:.1f}).",
        ]
    return "\n".join(lines) + "\n"


def format_percent(fraction: float | None) -> str:
    """A fraction as a percentage."""
    return "-" if fraction is None else f"{fraction:.0%}"


def draw(document: dict[str, Any], path: Path) -> None:
    """Draws accuracy over training time, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for pair in document["runs"]:
        seconds, accuracy = zip(*pair["ours"]["curve"], strict=True)
        axes.plot(
            seconds, accuracy, marker="o", markersize=3, label=f"{document['recipe']}, seed {pair['ours']['seed']}"
        )
    for name, points in document["also"].items():
        seconds, accuracy = zip(*points, strict=True)
        axes.plot(seconds, accuracy, label=f"{name}, {len(points)} epochs")
    if points := document.get("beside_curve"):
        seconds, accuracy = zip(*points, strict=True)
        axes.plot(seconds, accuracy, color="0.3", label=f"{document['beside']}, {len(points)} epochs at this pace")
    if points or document["also"]:
        axes.set_xscale("log")
    axes.set(xlabel="seconds of training", ylabel="test accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
