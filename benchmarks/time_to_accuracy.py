"""How long a recipe trains until it is as good as promised, beside another recipe's epochs on the same machine.

    python -m benchmarks.time_to_accuracy DATA [--recipe speedrun-75] [--seeds 5] [--beside tutorial] [--out FOLDER]
    python -m benchmarks.time_to_accuracy DATA --curve TUTORIAL_RUN --also RUN    # finished runs in the picture too

Every run is `vitrail train` in a process of its own, one after the other. An epoch of the other recipe comes before
each, so that a machine that is slow for a while is slow for both; its whole run is as many epochs as the recipe has.
Timed is training: batches, augmentation, steps. What else a run does (imports, reading the images, evaluation,
checkpoints, pictures) is given beside it, with the most memory that a process held and what a virtual machine's host
took of its processors meanwhile; no check of the data is made before, no report after. Writes time_to_accuracy.json,
.md and .png.
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
    """Runs, then says, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--recipe", default="speedrun-75")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of the recipe; its own unless given")
    parser.add_argument("--beside", default="tutorial", help="another recipe, or none")
    parser.add_argument("--curve", type=Path, metavar="RUN", help="a whole run of the other recipe, to be drawn too")
    parser.add_argument("--also", type=Path, metavar="RUN", action="append", default=[], help="drawn at its own pace")
    parser.add_argument("--device", default=None)
    parser.add_argument("--processes", type=int, default=1, help="that train one model, of either recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_accuracy"))
    arguments = parser.parse_args()
    if arguments.curve and arguments.beside == "none":
        parser.error("--curve is drawn at the pace of the recipe that --beside names")
    for run in filter(None, (arguments.curve, *arguments.also)):
        if not (run / "metrics.jsonl").is_file():
            parser.error(f"{run} has no metrics.jsonl: it is no run")
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for seed in range(arguments.seeds):
            other = None
            if arguments.beside != "none":
                other = trained(arguments, arguments.beside, seed, Path(folder) / f"beside-{seed}", epochs=1)
            ours = trained(arguments, arguments.recipe, seed, Path(folder) / f"{seed}", epochs=arguments.epochs)
            pairs.append({"ours": ours, "beside": other})
            print(sentence(arguments, pairs[-1]), file=sys.stderr, flush=True)
            document = written(arguments, pairs)  # after each: a run that is stopped has what it found
    print(table(document))


def written(arguments: argparse.Namespace, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes what was found so far, as JSON, Markdown and a picture."""
    about = {
        "recipe": arguments.recipe,
        "beside": arguments.beside,
        "processes": arguments.processes,
        "machine": machine(arguments.device),
    }
    document = about | summed(arguments, pairs)
    if arguments.curve:
        document["beside_curve"] = at_this_pace(arguments.curve, pairs)
    document["also"] = {run.name: curve(run) for run in arguments.also}
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "time_to_accuracy.json", document)
    write_text(arguments.out / "time_to_accuracy.md", table(document))
    draw(document, arguments.out / "time_to_accuracy.png")
    return document


def trained(arguments: argparse.Namespace, recipe: str, seed: int, out: Path, epochs: int | None) -> dict[str, Any]:
    """One run: its accuracy on the test images after every epoch, and where its time went, in seconds."""
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
    began, taken = time.perf_counter(), measure_steal_time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    wall = time.perf_counter() - began
    points = curve(out)
    training, accuracy = points[-1]
    return {
        "seed": seed,
        "epochs": len(points),
        "accuracy": accuracy,
        "training": training,
        "all_else": wall - training,  # imports, reading the data, evaluation, checkpoints, pictures
        "peak_gib": used.ru_maxrss / (1 << 20),
        "processor_seconds": used.ru_utime + used.ru_stime,
        "taken_away": taken(),  # part of the processors' working time that the machine's host took
        "curve": points,
    }


def curve(run: Path) -> list[list[float]]:
    """[seconds of training so far, test accuracy] after each epoch; on validation where the recipe keeps it back."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = itertools.accumulate(row["seconds"] for row in rows)
    measured = "test_accuracy" if "test_accuracy" in rows[0] else "validation_accuracy"
    return [[so_far, row[measured]] for so_far, row in zip(seconds, rows, strict=True)]


def summed(arguments: argparse.Namespace, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads over the seeds, and the ratio to the other recipe's whole run, pair by pair."""
    found: dict[str, Any] = {"runs": pairs}
    for name in ("accuracy", "training", "all_else", "peak_gib"):
        found[name] = spread([pair["ours"][name] for pair in pairs])
    if arguments.beside != "none":
        epochs = RECIPES[arguments.beside].epochs or 1
        found["beside_training"] = spread([pair["beside"]["training"] * epochs for pair in pairs])
        found["ratio"] = spread([pair["beside"]["training"] * epochs / pair["ours"]["training"] for pair in pairs])
    return found


def at_this_pace(run: Path, pairs: list[dict[str, Any]]) -> list[list[float]]:
    """The test accuracies of a finished run of the other recipe, at the seconds that its epochs take here."""
    epoch = statistics.mean(pair["beside"]["training"] for pair in pairs)
    return [[number * epoch, accuracy] for number, (_, accuracy) in enumerate(curve(run), start=1)]


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation, least and most."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": deviation, "least": min(values), "most": max(values)}


def machine(device: str | None) -> dict[str, Any]:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return describe_numerics(pick_device(device)) | {"cpu": name}


def sentence(arguments: argparse.Namespace, pair: dict[str, Any]) -> str:
    """A pair in a line."""
    ours, other = pair["ours"], pair["beside"]
    said = f"seed {ours['seed']}: {ours['accuracy']:.2%} after {ours['training']:.0f} s of training"
    return said + (f"; an epoch of {arguments.beside} {other['training']:.1f} s" if other else "")


def table(document: dict[str, Any]) -> str:
    """The figures in Markdown."""
    runs = [pair["ours"] for pair in document["runs"]]
    lines = ["| seed | accuracy | training | all else | peak memory | taken by the host |"]
    lines += ["| --- | --: | --: | --: | --: | --: |"]
    lines += [
        f"| {r['seed']} | {r['accuracy']:.2%} | {r['training']:.0f} s | {r['all_else']:.0f} s "
        f"| {r['peak_gib']:.2f} GiB | {part(r['taken_away'])} |"
        for r in runs
    ]
    a, t, e, m = (document[name] for name in ("accuracy", "training", "all_else", "peak_gib"))
    lines += [
        f"| mean ± sd, n = {len(runs)} | **{a['mean']:.2%}** ± {100 * a['sd']:.2f} "
        f"| **{t['mean']:.0f} s** ± {t['sd']:.0f} | {e['mean']:.0f} s | {m['most']:.2f} GiB | |",
        "",
        f"Recipe `{document['recipe']}`, processes: {document['processes']}, {document['machine']}.",
    ]
    if "ratio" in document:
        r, b = document["ratio"], document["beside_training"]
        lines += [
            "",
            f"`{document['beside']}` takes {b['mean']:,.0f} s ± {b['sd']:,.0f} for its whole run, an epoch measured "
            f"before each seed: **{r['mean']:.1f} times** as long ({r['least']:.1f} to {r['most']:.1f}).",
        ]
    return "\n".join(lines) + "\n"


def part(share: float | None) -> str:
    """A share in percent."""
    return "-" if share is None else f"{share:.0%}"


def draw(document: dict[str, Any], path: Path) -> None:
    """Accuracy over seconds of training, a line for each seed."""
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
