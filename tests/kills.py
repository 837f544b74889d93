"""Kills a short training repeatedly until it finishes, and compares its results with those of an undisturbed run.

    python tests/kills.py 200 [SEED]

A kill is a SIGKILL at a random moment, or before or after a random file operation. Most runs are forks of this process,
which has imported everything, because a new process needs seconds to start; one in ten is a new process. The number of
workers, the image cache and the interval of checkpoints are drawn at random for every resume.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401 - so that forks do not import it
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
    """Writes noisy images of two colors, one folder per class."""
    rng = np.random.default_rng(0)
    for label, color in (("red", (210, 50, 40)), ("blue", (50, 60, 220))):
        (folder / label).mkdir(parents=True)
        for i in range(per_class):
            pixels = (np.array(color) + rng.normal(0, 60, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def train_in_fork(data: Path, out: Path, resume: bool, draw: random.Random, die_at: int | None = None) -> int:
    """Trains in a fork of this process; returns its process id."""
    data_options = draw.choice(({}, {}, {"workers": 0, "image_cache_gib": 0.0}, {"workers": 2, "image_cache_gib": 0.0}))
    save_every, before = draw.choice((600.0, 0.0, 0.02)), draw.random() < 0.5
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        torch.set_num_threads(1)
        console.quiet = True
        epochs.CHECKPOINT_INTERVAL_S = save_every
        if die_at is not None:
            die_at_operation(die_at, before)
        vitrail.train(data, out=out, resume=resume, **(data_options if resume else {**OPTIONS, **data_options}))
        code = 0
    except vitrail.VitrailError as error:
        print(f"{out.name}: {error}", file=sys.stderr)
        code = 3
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def die_at_operation(n: int, before: bool) -> None:
    """Makes this process kill itself before or after its n-th file operation."""
    count = 0

    def kill_at(operation: Any) -> Any:
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
        setattr(files, name, kill_at(getattr(files, name)))


def train_in_new_process(data: Path, out: Path, resume: bool) -> int:
    """Trains in a new process; returns its process id."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "vitrail", "train", str(data), "--out", str(out), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--resume"] if resume else options
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL).pid


def wait_for_exit(process: int, seconds: float | None) -> int | None:
    """Returns the exit code of a child, or None if it still runs after `seconds` (None: waits until it ends)."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, 0 if until is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.002)


def describe_kill(out: Path) -> str:
    """Returns when a kill happened, judged by the files of the run."""
    if not (out / "recipe.json").exists():
        return "before the run started"
    if list((out / "checkpoint").glob(".step-*")):
        return "while a checkpoint was written"
    if list(out.glob(".*")):
        return "while another file was written"
    newest = find_newest_checkpoint(out / "checkpoint")
    if newest is None:
        return "before the first checkpoint"
    state = json.loads((newest / "state.json").read_text())
    if state["epoch"] == OPTIONS["epochs"]:
        return "during the final evaluation and its figures"
    return "between checkpoints"


def read_results(out: Path) -> dict[str, Any]:
    """Returns the results that are the same in two runs of the same bits."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return {
        "classifier": (out / "classifier.safetensors").read_bytes(),
        "test": json.loads((out / "result.json").read_text())["test"],
        "metrics": rows,
    }


def kill_runs(kills: int, folder: Path, seed: int = 0, new_process_every: int = 10) -> Counter[str]:
    """Starts runs until `kills` processes were killed; counts when. Asserts that every run has the same results."""
    console.quiet = True
    draw = random.Random(seed)
    data = make_data(folder / "data")
    began = time.monotonic()
    assert wait_for_exit(train_in_fork(data, folder / "whole", False, random.Random(0)), None) == 0
    seconds = time.monotonic() - began
    expected = read_results(folder / "whole")
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        counts["runs"] += 1
        out = folder / f"run-{counts['runs']}"
        while True:
            resume = (out / "recipe.json").exists()
            is_new_process = new_process_every and draw.randrange(new_process_every) == 0
            if is_new_process:
                process, wait = train_in_new_process(data, out, resume), 3 + draw.uniform(0, 2 * seconds)
            elif draw.random() < 0.5:
                process, wait = train_in_fork(data, out, resume, draw, die_at=1 + int(draw.expovariate(1 / 40))), 60.0
            else:
                process, wait = train_in_fork(data, out, resume, draw), draw.uniform(0, seconds)
            code = wait_for_exit(process, wait)
            if code is None:
                os.kill(process, signal.SIGKILL)
                code = wait_for_exit(process, None)
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"{out}: exit code {code}"
            counts["kills"] += 1
            counts["in new processes"] += bool(is_new_process)
            counts[describe_kill(out)] += 1
        for name, value in read_results(out).items():
            assert value == expected[name], f"{out}: {name} differs"
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        counts = kill_runs(int(sys.argv[1]), Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        for moment, n in counts.most_common():
            print(f"{n:6} {moment}")
        print(f"all runs have the same results to the last bit; {time.monotonic() - began:.0f} s")
