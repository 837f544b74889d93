"""Kills a short training again and again until it is through, and compares what it leaves with an undisturbed run.

    python tests/kills.py 200 [SEED]

A kill is a SIGKILL at a random moment, or at a random file operation (before or after it). Most runs are forked from
one process that has everything imported, for a fresh start costs seconds; each tenth is a process of its own. On every
resume the number of workers, where the images are kept and how often a checkpoint is written are drawn anew.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401 - forked runs find it imported
import numpy as np
import sklearn.metrics  # noqa: F401
import torch
from PIL import Image

import vitrail
from vitrail import console, files
from vitrail.runs import epochs
from vitrail.training.checkpoint import find_newest_checkpoint

OPTIONS: dict[str, Any] = dict(
    epochs=5,
    batch_size=8,
    width=32,
    depth=2,
    heads=2,
    mlp_width=64,
    ema_decay=0.9,
    dropout=0.1,
    mixup=0.2,
    policy="randaugment",
)
OPERATIONS = ("make_folder", "save_tensors", "save_json", "fsync", "rename", "remove_folder", "write_atomically")


def make_data(folder: Path, per_class: int = 20) -> Path:
    """Noisy fields of two colours."""
    rng = np.random.default_rng(0)
    for label, colour in (("red", (210, 50, 40)), ("blue", (50, 60, 220))):
        (folder / label).mkdir(parents=True)
        for i in range(per_class):
            pixels = (np.array(colour) + rng.normal(0, 60, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def forked(data: Path, out: Path, resume: bool, draw: random.Random, die_at: int | None = None) -> int:
    """Trains in a fork of this process; returns its process id."""
    reading = draw.choice(({}, {}, {"workers": 0, "image_cache_gib": 0.0}, {"workers": 2, "image_cache_gib": 0.0}))
    every, before = draw.choice((600.0, 0.0, 0.02)), draw.random() < 0.5
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        torch.set_num_threads(1)
        console.quiet = True
        epochs.CHECKPOINT_INTERVAL_S = every
        if die_at is not None:
            die_at_operation(die_at, before)
        vitrail.train(data, out=out, resume=resume, **(reading if resume else {**OPTIONS, **reading}))
        code = 0
    except vitrail.VitrailError as error:
        print(f"{out.name}: {error}", file=sys.stderr)
        code = 3
    finally:
        os._exit(code)


def die_at_operation(n: int, before: bool) -> None:
    """The n-th file operation of this process is its last."""
    count = 0

    def deadly(operation: Any) -> Any:
        def run(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == n and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*arguments)
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    for name in OPERATIONS:
        setattr(files, name, deadly(getattr(files, name)))


def fresh(data: Path, out: Path, resume: bool) -> int:
    """Trains in a process of its own."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "vitrail", "train", str(data), "--out", str(out), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--resume"] if resume else words
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL).pid


def ended(process: int, seconds: float | None) -> int | None:
    """The exit status of a child within so many seconds (None: however long it takes), None if it still runs."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, 0 if until is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.002)


def struck(out: Path) -> str:
    """Where a kill hit, by what lies there."""
    if not (out / "recipe.json").exists():
        return "before the run began"
    if list((out / "checkpoint").glob(".step-*")):
        return "while a checkpoint was written"
    if list(out.glob(".*")):
        return "while another file was written"
    newest = find_newest_checkpoint(out / "checkpoint")
    if newest is None:
        return "before the first checkpoint"
    state = json.loads((newest / "state.json").read_text())
    if state["epoch"] == OPTIONS["epochs"]:
        return "while the end was evaluated and drawn"
    return "between checkpoints"


def outcome(out: Path) -> dict[str, Any]:
    """What two runs of the same bits have in common."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return {
        "classifier": (out / "classifier.safetensors").read_bytes(),
        "test": json.loads((out / "result.json").read_text())["test"],
        "metrics": rows,
    }


def kill_runs(kills: int, folder: Path, seed: int = 0, own: int = 10) -> Counter[str]:
    """At least so many kills over as many runs as it takes; counts where they struck. Raises where anything differs."""
    console.quiet = True
    draw = random.Random(seed)
    data = make_data(folder / "data")
    began = time.monotonic()
    assert ended(forked(data, folder / "whole", False, random.Random(0)), None) == 0
    seconds = time.monotonic() - began
    expected = outcome(folder / "whole")
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        counts["runs"] += 1
        out = folder / f"run-{counts['runs']}"
        while True:
            resume = (out / "recipe.json").exists()
            own_process = own and draw.randrange(own) == 0
            if own_process:
                process, wait = fresh(data, out, resume), 3 + draw.uniform(0, 2 * seconds)
            elif draw.random() < 0.5:
                process, wait = forked(data, out, resume, draw, die_at=1 + int(draw.expovariate(1 / 40))), 60.0
            else:
                process, wait = forked(data, out, resume, draw), draw.uniform(0, seconds)
            code = ended(process, wait)
            if code is None:
                os.kill(process, signal.SIGKILL)
                code = ended(process, None)
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"{out}: exit code {code}"
            counts["kills"] += 1
            counts["of processes of their own"] += bool(own_process)
            counts[struck(out)] += 1
        for what, value in outcome(out).items():
            assert value == expected[what], f"{out}: {what} differs"
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        counts = kill_runs(int(sys.argv[1]), Path(place), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        for what, n in counts.most_common():
            print(f"{n:6} {what}")
        print(f"every run ended in the same bits; {time.monotonic() - began:.0f} s")
