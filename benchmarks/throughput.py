"""Times a training step and inference of vitrail beside timm, torchvision, transformers and vit-pytorch, in one run.

    python -m benchmarks.throughput [--quick] [--sizes 32,Ti,S,B] [--compile 32,S] [--threads N] [--clock cpu]

All take turns on the same images of random numbers; ratios are taken within a round. Training: AdamW on each, fp32 and
bf16 autocast. Inference: every library's own forward in fp32 and bf16; the first peer also compiled and in ONNX Runtime
(fp32, dynamic int8); vitrail's fast path, as it comes and, for the sizes in --compile, compiled. On a GPU the compiled
ones run in CUDA graphs. Writes throughput.json, throughput.md and throughput.png. Needs `pip install 'vitrail[bench]'`;
a peer that is missing is named. The sizes one by one: --sizes, --tasks and --out divide the work.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from vitrail.benchmarking import (
    BenchmarkRow,
    Workload,
    find_installed_peers,
    format_markdown,
    inference_candidates,
    run_benchmark,
    training_candidates,
)
from vitrail.benchmarking.candidates import VITRAIL
from vitrail.benchmarking.figures import save_benchmark_chart
from vitrail.benchmarking.memory import measure_peak_memory
from vitrail.benchmarking.results import BenchmarkResult, add_peak_memory, describe_steal, format_ratio
from vitrail.console import log
from vitrail.files import write_json, write_text
from vitrail.machine import describe_hardware, keep_freed_memory, pick_device
from vitrail.model import ViTConfig
from vitrail.weights.sizes import SIZES

SMALL = ViTConfig(width=192, depth=6, heads=3, mlp_width=768, patch=4, image_size=32, classes=10)
CONFIGS = {"32": SMALL, **{name: ViTConfig(**SIZES[name], classes=1000) for name in ("Ti", "S", "B")}}
QUICK = ViTConfig(width=32, depth=2, heads=2, mlp_width=64, patch=8, image_size=32, classes=10)
NAMES = {
    "32": "192x6, patch 4, 32 px",
    "Ti": "Ti/16, 224 px",
    "S": "S/16, 224 px",
    "B": "B/16, 224 px",
    "quick": "tiny",
}
BATCHES = {  # images of a training step; of inference
    "cpu": {"32": (128, (1, 8)), "Ti": (8, (1, 8)), "S": (4, (1, 8)), "B": (2, (1, 8)), "quick": (4, (1, 2))},
    "cuda": {
        "32": (1024, (1, 8, 1024)), "Ti": (512, (1, 8, 512)), "S": (256, (1, 8, 256)), "B": (128, (1, 8, 128)),
        "quick": (4, (1, 2)),
    },
}  # fmt: skip


def measure(name: str, asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The races of one size: title -> rows."""
    config = QUICK if name == "quick" else CONFIGS[name]
    peers, missing = find_installed_peers(config)
    step_batch, batches = BATCHES[device.type][name]
    step = Workload(config, step_batch, device)
    races = {f"training step, batch {step_batch}": (step, training_candidates(step, peers))}
    for batch in batches:
        task = Workload(config, batch, device)
        wanted = [
            each
            for each in inference_candidates(task, peers, compile=name in asked.compile, onnx=asked.onnx)
            if each.mode != "bf16, compiled" or device.type == "cuda"
        ]
        races[f"inference, batch {batch}"] = (task, wanted)
    found: dict[str, Any] = {"missing": missing, "failed": {}, "taken_away": {}, "races": {}}
    for title, (task, contenders) in races.items():
        if not title.startswith(tuple(asked.tasks.split(","))):
            continue
        began = time.time()
        result = run_benchmark(
            contenders, task.batch_size, rounds=asked.rounds, min_seconds=asked.turn, clock=asked.clock, device=device,
        )  # fmt: skip
        rows = result.rows
        if asked.memory:
            rows = add_peak_memory(rows, contenders, measure_peak_memory(contenders, device, torch.get_num_threads()))
        found["failed"] |= result.failed
        found["taken_away"][title] = result.steal_fraction
        found["races"][title] = rows
        log(f"{NAMES[name]}, {title}: {time.time() - began:.0f} s, {' '.join(goal_said(rows))}")
    return found


def goal_said(rows: list[BenchmarkRow]) -> list[str]:
    """Ours beside the best of the peers, whichever way it is run, in words, for each of our ways."""
    best = BenchmarkResult(rows, {}).best_peer
    if best is None:
        return ["no peers"]
    said = [f"best peer {best.library} {best.mode} {best.images_per_second:,.1f} images/s;"]
    return said + [f"{row.mode} {format_ratio(row)};" for row in rows if row.library == VITRAIL]


def main() -> None:
    """Measures size by size and writes after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="32,Ti,S,B", help="which, separated by commas")
    parser.add_argument("--tasks", default="training,inference", help="one of them alone")
    parser.add_argument("--compile", default="32", help="sizes that are also compiled; none: '-'")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=0.1, help="seconds of a turn, at least one batch")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two rounds: whether it runs")
    parser.add_argument("--out", type=Path, default=Path("throughput"))
    asked = parser.parse_args()
    asked.compile = asked.compile.split(",")
    sizes = asked.sizes.split(",")
    if asked.quick:
        sizes, asked.compile, asked.rounds, asked.turn, asked.memory = ["quick"], [], 2, 0.01, False
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    device = pick_device(asked.device)
    began = time.time()
    document: dict[str, Any] = {
        **describe_hardware(device), "clock": asked.clock, "rounds": asked.rounds, "turn": asked.turn, "sizes": {},
    }  # fmt: skip
    panels: dict[str, list[BenchmarkRow]] = {}
    lines = [f"{', '.join(f'{k} {v}' for k, v in document.items() if k != 'sizes')}", ""]
    for name in sizes:
        found = measure(name, asked, device)
        document["sizes"][name] = {
            **found, "races": {title: [row.to_json() for row in rows] for title, rows in found["races"].items()}
        }  # fmt: skip
        for title, rows in found["races"].items():
            panels[f"{NAMES[name]}: {title}"] = rows
            about = [*goal_said(rows), *filter(None, [describe_steal(found["taken_away"][title])])]
            lines += [f"#### {NAMES[name]}: {title}", "", " ".join(about), "", format_markdown(rows)]
        document["seconds"] = round(time.time() - began)
        write_json(asked.out / "throughput.json", document)
        write_text(asked.out / "throughput.md", "\n".join(lines))
        save_benchmark_chart(panels, asked.out / "throughput.png")
    print(json.dumps({"out": str(asked.out), "seconds": document["seconds"]}))


if __name__ == "__main__":
    main()
