"""The memory of a process during a long training and a long evaluation, both from files.

    python tests/memory.py EPOCHS IMAGES

Prints one JSON object: megabytes in use (resident) after each tenth of the epochs, and after each tenth of the images.
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
from vitrail.data import Images, open_data
from vitrail.data.encoded import ImageFiles
from vitrail.evaluation import compute_outcome
from vitrail.runs import epochs, start


def resident() -> float:
    """Megabytes of this process."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def training(folder: Path, count: int) -> list[float]:
    """Memory after each tenth of the epochs."""
    used: list[float] = []
    real = epochs.end_epoch

    def keep(training: Any, row: dict[str, Any]) -> None:
        real(training, row)
        if row["epoch"] % max(count // 10, 1) == 0:
            used.append(resident())

    epochs.end_epoch = keep
    data = make_data(folder / "data")
    options = dict(
        epochs=count, batch_size=8, width=32, depth=2, heads=2, mlp_width=64, policy="randaugment", mixup=0.2
    )
    vitrail.train(data, out=folder / "run", image_cache_gib=0.0, workers=0, **options)
    return used


def evaluation(folder: Path, count: int) -> list[float]:
    """Memory after each tenth of the images: a few files, each listed many times."""
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
            used.append(resident())
        done += n

    compute_outcome(classifier, many, batch_size=32, workers=0, on_batch=tick)
    return used


if __name__ == "__main__":
    console.quiet = True
    start.keep_freed_memory = lambda: True  # which would hide what grows in memory that was freed and kept
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        used = {"training": training(folder, int(sys.argv[1]))}
        used["evaluation"] = evaluation(folder, int(sys.argv[2]))
        print(json.dumps(used))
