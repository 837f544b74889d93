"""Measures the memory and the throughput of predicting a million images.

    python -m benchmarks.predict_million                         # a million images in one folder, about 25 minutes
    python -m benchmarks.predict_million --images 100000 --processes 2 --write docs/benchmarks.md

A thousand small PNG files are linked into one folder under a million names. The benchmark runs `vitrail predict FOLDER
--out ...` and reads the resident memory of the command and of its processes from /proc at each tenth; at the end it
counts the rows. The model is tiny, so that everything else dominates.
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
MB = 1e6


def make_images(folder: Path, n: int) -> None:
    """Makes `n` names for a thousand noisy images of 16 pixels."""
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
    """Saves a tiny classifier with random weights."""
    torch.manual_seed(0)
    vit = vitrail.ViT(vitrail.ViTConfig(width=32, depth=1, heads=2, mlp_width=64, patch=8, image_size=16, classes=10))
    vitrail.Classifier(vit, tuple(f"class {i}" for i in range(10)), Preprocess(image_size=(16, 16))).save(path)


def resident_memory(pid: int) -> int:
    """Returns the resident memory of a process in bytes; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def children(pid: int) -> list[int]:
    """Returns the child processes of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def measure(folder: Path, model: Path, out: Path, options: list[str], report: Path | None) -> dict[str, Any]:
    """Runs the command; returns its memory at each tenth, the peak, and its JSON document."""
    arguments = [str(model), str(folder), "--out", str(out), "--json", *options]
    command = [sys.executable, "-m", "vitrail", "predict", *arguments]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = []
    peak, parts = {"command": 0, "worker": 0}, 0
    while process.poll() is None:
        time.sleep(0.5)
        workers = [resident_memory(child) for child in children(process.pid)]
        now = {"command": resident_memory(process.pid), "worker": max(workers, default=0)}
        peak = {name: max(peak[name], now[name]) for name in peak}
        if not parts and (out / "_vitrail/plan.json").exists():
            plan = json.loads((out / "_vitrail/plan.json").read_text())
            parts = -(-plan["images"] // plan["part_images"])
            rows.append({"tenth": 0, "seconds": time.monotonic() - start, **now})
        done = sum(1 for file in os.scandir(out / "_vitrail") if file.name.startswith("part-")) if parts else 0
        if parts and done * 10 // parts > rows[-1]["tenth"] and now["command"] and now["worker"]:
            rows.append({"tenth": done * 10 // parts, "seconds": time.monotonic() - start, **now})
            print(rows[-1], file=sys.stderr, flush=True)
            if report:
                report.write_text(json.dumps({"rows": rows, "peak": peak}, indent=1))
    document = json.loads(process.communicate()[0])
    return {"rows": rows, "peak": peak, "predicted": document}


def count_rows(out: Path, n: int) -> tuple[int, int]:
    """Counts the rows of all parts, and the different names among them."""
    has_row, rows = np.zeros(n, bool), 0
    for file in sorted(out.glob("part-*.parquet")):
        for path in pq.read_table(file, columns=["path"])["path"].to_pylist():
            has_row[int(Path(path).stem)] = True
            rows += 1
    return rows, int(has_row.sum())


def format_table(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    predicted, peak = results["predicted"], results["peak"]
    (rows, different), (load_before, load_after) = results["counts"], results["load"]
    lines = [
        f"{predicted['images']:,} names of {UNIQUE:,} PNG files of 16 pixels in a folder, a ViT of width 32, depth 1, "
        f"{results['processes']} processes on {count_cores()} cores ({processor_name()}), load average "
        f"{load_before:.1f} before and {load_after:.1f} after: {predicted['images_per_second']:,.0f} images/s. Startup "
        f"and listing took {results['rows'][0]['seconds']:.0f} s. The parts have {rows:,} rows with {different:,} "
        f"different paths; {predicted['unreadable']} images were unreadable.",
        "",
        "| images done | seconds | command, MB | largest worker process, MB |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {row['tenth'] * 10}% | {row['seconds']:,.0f} | {row['command'] / MB:.0f} | {row['worker'] / MB:.0f} |"
            for row in results["rows"]
        ),
        f"| peak | | {peak['command'] / MB:.0f} | {peak['worker'] / MB:.0f} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, metavar="N", help="default: 1,000,000")
    parser.add_argument("--processes", type=int, default=count_cores(), metavar="N", help="default: one per core")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the names are made (default: the temporary folder)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON, updated at each tenth")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        make_images(folder / "images", arguments.images)
        make_model(folder / "model.safetensors")
        load_before = os.getloadavg()[0]
        options = ["--processes", str(arguments.processes)]
        results = measure(folder / "images", folder / "model.safetensors", folder / "out", options, arguments.out)
        results |= {"processes": arguments.processes, "load": [load_before, os.getloadavg()[0]]}
        results["counts"] = count_rows(folder / "out", arguments.images)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    text = format_table(results)
    print(text)
    if arguments.write:
        replace_table(text, "million", arguments.write)


if __name__ == "__main__":
    main()
