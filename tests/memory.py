"""Measures the memory of a process during a long training and a long evaluation, both from files.

    python tests/memory.py EPOCHS IMAGES

Prints one JSON object: resident megabytes after each tenth of the epochs, and after each tenth of the images.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import vitrail
from kills import make_data
from vitrail import console
from vitrail.data.encoded import ImageFiles
from vitrail.data.images import Images
from vitrail.data.open import open_data
from vitrail.evaluation import compute_outcome
from vitrail.runs import epochs, start


def resident_mb() -> float:
    """Returns the resident memory of this process in megabytes."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def measure_training(folder: Path, count: int) -> list[float]:
    """Returns the memory after each tenth of the epochs."""
    used: list[float] = []
    end_epoch = epochs.end_epoch

    def end_and_measure(training: Any, row: dict[str, Any]) -> None:
        end_epoch(training, row)
        if row["epoch"] % max(count // 10, 1) == 0:
            used.append(resident_mb())

    epochs.end_epoch = end_and_measure
    data = make_data(folder / "data")
    options = dict(
        epochs=count, batch_size=8, width=32, depth=2, heads=2, mlp_width=64, policy="randaugment", mixup=0.2
    )
    vitrail.train(data, out=folder / "run", image_cache_gib=0.0, workers=0, check=False, report=False, **options)
    return used


def measure_evaluation(folder: Path, count: int) -> list[float]:
    """Returns the memory after each tenth of the images: a few files, each listed many times."""
    classifier = vitrail.load(folder / "run")
    train = open_data(folder / "data").train
    assert isinstance(train.pixels, ImageFiles)
    again = [i % len(train) for i in range(count)]
    many = Images(
        ImageFiles([train.pixels.paths[i] for i in again]),
        [str(i) for i in range(count)],
        train.labels[again],
        train.classes,
    )
    used: list[float] = []
    done = 0

    def tick(n: int) -> None:
        nonlocal done
        if done * 10 // count != (done + n) * 10 // count:
            used.append(resident_mb())
        done += n

    compute_outcome(classifier, many, batch_size=32, workers=0, on_batch=tick)
    return used


if __name__ == "__main__":
    console.quiet = True
    start.keep_freed_memory = lambda: True  # it would hide growth behind memory that is freed and kept
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        used = {"training": measure_training(folder, int(sys.argv[1]))}
        used["evaluation"] = measure_evaluation(folder, int(sys.argv[2]))
        print(json.dumps(used))
