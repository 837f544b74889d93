"""The memory of predicting a million images, and how many a second.

    python -m benchmarks.predict_million                         # a million images in one folder, about 25 minutes
    python -m benchmarks.predict_million --images 100000 --workers 2 --write docs/benchmarks.md

A thousand small PNG files are linked into one folder under a million names. `vitrail predict FOLDER --out ...` runs as
anybody would run it; at each tenth the resident memory of the command and of its processes is read from /proc, after
the end every row is counted. The model is tiny, so that what is measured is everything but the model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

import vitrail
from benchmarks.document import replace_table
from vitrail.data.preprocess import Preprocess
from vitrail.machine import count_cores, processor_name

UNIQUE = 1000


def make_images(folder: Path, n: int) -> None:
    """`n` names for a thousand noisy pictures of 16 pixels."""
    folder.mkdir()
    originals = folder.parent / "originals"
    originals.mkdir()
    rng = np.random.default_rng(0)
    for i in range(min(n, UNIQUE)):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(originals / f"{i}.png")
    for i in range(n):
        os.link(originals / f"{i % UNIQUE}.png", folder / f"{i:07}.png")


def make_model(path: Path) -> None:
    """A tiny classifier with random weights."""
    torch.manual_seed(0)
    vit = vitrail.ViT(vitrail.ViTConfig(width=32, depth=1, heads=2, mlp_width=64, patch=8, image_size=16, classes=10))
    vitrail.Classifier(vit, tuple(f"class {i}" for i in range(10)), Preprocess(image_size=(16, 16))).save(path)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def measure(folder: Path, model: Path, out: Path, options: list[str], report: Path | None) -> dict[str, Any]:
    """Runs the command; its memory at each tenth, and the most at any moment."""
    command = [
        sys.executable,
        "-m",
        "vitrail",
        "predict",
        str(model),
        str(folder),
        "--out",
        str(out),
        "--json",
        *options,
    ]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = []
    most, parts = {"command": 0, "worker": 0}, 0
    while process.poll() is None:
        time.sleep(0.5)
        workers = [resident(child) for child in children(process.pid)]
        now = {"command": resident(process.pid), "worker": max(workers, default=0)}
        most = {name: max(most[name], now[name]) for name in most}
        if not parts and (out / "_vitrail/plan.json").exists():
            plan = json.loads((out / "_vitrail/plan.json").read_text())
            parts = -(-plan["images"] // plan["part_images"])
            rows.append({"tenth": 0, "seconds": time.monotonic() - began, **now})
        done = sum(1 for each in os.scandir(out / "_vitrail") if each.name.startswith("part-")) if parts else 0
        if parts and done * 10 // parts > rows[-1]["tenth"] and now["command"] and now["worker"]:
            rows.append({"tenth": done * 10 // parts, "seconds": time.monotonic() - began, **now})
            print(rows[-1], file=sys.stderr, flush=True)
            if report:
                report.write_text(json.dumps({"rows": rows, "most": most}, indent=1))
    document = json.loads(process.communicate()[0])
    return {"rows": rows, "most": most, "predicted": document}


def count(out: Path, n: int) -> tuple[int, int]:
    """Rows in all parts, and how many of the names appear."""
    seen, rows = np.zeros(n, bool), 0
    for file in sorted(out.glob("part-*.parquet")):
        for path in pq.read_table(file, columns=["path"])["path"].to_pylist():
            seen[int(Path(path).stem)] = True
            rows += 1
    return rows, int(seen.sum())


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    predicted, most = found["predicted"], found["most"]
    mb, (rows, different), (before, after) = 1e6, found["counted"], found["load"]
    lines = [
        f"{predicted['images']:,} names of {UNIQUE:,} PNG files of 16 pixels in a folder, a ViT of width 32, depth 1, "
        f"{found['workers']} processes on {count_cores()} cores ({processor_name()}), load average {before:.1f} before and "
        f"{after:.1f} after: {predicted['images_per_second']:,.0f} images a second. Starting and listing took "
        f"{found['rows'][0]['seconds']:.0f} s. Counted after the end: {rows:,} rows, {different:,} different paths, "
        f"{predicted['unreadable']} unreadable.",
        "",
        "| images done | seconds | the command, MB | its largest process, MB |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {row['tenth'] * 10} % | {row['seconds']:,.0f} | {row['command'] / mb:.0f} | {row['worker'] / mb:.0f} |"
            for row in found["rows"]
        ),
        f"| most at any moment | | {most['command'] / mb:.0f} | {most['worker'] / mb:.0f} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Makes images and a model, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--workers", type=int, default=count_cores(), metavar="N")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="a place for a million names (a temporary one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="figures as JSON, written at each tenth")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        here = Path(place)
        make_images(here / "images", arguments.images)
        make_model(here / "model.safetensors")
        before = os.getloadavg()[0]
        options = ["--workers", str(arguments.workers)]
        found = measure(here / "images", here / "model.safetensors", here / "out", options, arguments.out)
        found |= {"workers": arguments.workers, "load": [before, os.getloadavg()[0]]}
        found["counted"] = count(here / "out", arguments.images)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    text = table(found)
    print(text)
    if arguments.write:
        replace_table(text, "million", arguments.write)


if __name__ == "__main__":
    main()
