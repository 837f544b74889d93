"""Times a training step and inference of vitrail, timm, torchvision, transformers and vit-pytorch in one run.

    python -m benchmarks.throughput [--quick] [--sizes 32,Ti,S,B] [--compile 32,S] [--threads N] [--clock cpu]

All take turns on the same random images; ratios are computed within a round. Training: the same AdamW for all, fp32 and
bf16 autocast. Inference: every library's own forward pass in fp32 and bf16; the first peer also compiled and in ONNX
Runtime (fp32, dynamic int8); vitrail's fast path, and for the sizes in --compile also compiled. On a GPU the compiled
modes use CUDA graphs. Writes throughput.json, throughput.md and throughput.png. Needs `pip install 'vitrail[bench]'`;
missing peers are reported. To run the sizes one by one, use --sizes, --tasks and --out.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from vitrail.benchmarking import (
    BenchmarkRow,
    Candidate,
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
from vitrail.model.config import ViTConfig
from vitrail.weights.sizes import SIZES

SMALL = ViTConfig(width=192, depth=6, heads=3, mlp_width=768, patch=4, image_size=32, classes=10)
QUICK = ViTConfig(width=32, depth=2, heads=2, mlp_width=64, patch=8, image_size=32, classes=10)
CONFIGS = {
    "32": SMALL,
    **{name: ViTConfig(**SIZES[name], classes=1000) for name in ("Ti", "S", "B")},
    "quick": QUICK,
}
DESCRIPTIONS = {
    "32": "192x6, patch 4, 32 px",
    "Ti": "Ti/16, 224 px",
    "S": "S/16, 224 px",
    "B": "B/16, 224 px",
    "quick": "tiny",
}
BATCH_SIZES = {  # of a training step; of inference
    "cpu": {"32": (128, (1, 8)), "Ti": (8, (1, 8)), "S": (4, (1, 8)), "B": (2, (1, 8)), "quick": (4, (1, 2))},
    "cuda": {
        "32": (1024, (1, 8, 1024)), "Ti": (512, (1, 8, 512)), "S": (256, (1, 8, 256)), "B": (128, (1, 8, 128)),
        "quick": (4, (1, 2)),
    },
}  # fmt: skip


def list_benchmarks(
    size: str, peers: list[str], arguments: argparse.Namespace, device: torch.device
) -> dict[str, tuple[Workload, list[Candidate]]]:
    """The benchmarks of one model size by title: what to run, and the candidates."""
    config = CONFIGS[size]
    step_batch_size, batch_sizes = BATCH_SIZES[device.type][size]
    step = Workload(config, step_batch_size, device)
    benchmarks = {f"training step, batch {step_batch_size}": (step, training_candidates(step, peers))}
    for batch_size in batch_sizes:
        workload = Workload(config, batch_size, device)
        candidates = [
            candidate
            for candidate in inference_candidates(
                workload, peers, compile=size in arguments.compile, onnx=arguments.onnx
            )
            if candidate.mode != "bf16, compiled" or device.type == "cuda"
        ]
        benchmarks[f"inference, batch {batch_size}"] = (workload, candidates)
    tasks = tuple(arguments.tasks.split(","))
    return {title: benchmark for title, benchmark in benchmarks.items() if title.startswith(tasks)}


def measure(size: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Runs the benchmarks of one model size; `benchmarks` of the result holds the rows by title."""
    peers, missing = find_installed_peers(CONFIGS[size])
    document: dict[str, Any] = {"missing": missing, "failed": {}, "steal_fraction": {}, "benchmarks": {}}
    for title, (workload, candidates) in list_benchmarks(size, peers, arguments, device).items():
        started = time.time()
        result = run_benchmark(
            candidates, workload.batch_size, rounds=arguments.rounds, min_seconds=arguments.min_seconds,
            clock=arguments.clock, device=device,
        )  # fmt: skip
        rows = result.rows
        if arguments.memory:
            rows = add_peak_memory(rows, candidates, measure_peak_memory(candidates, device, torch.get_num_threads()))
        document["failed"] |= result.failed
        document["steal_fraction"][title] = result.steal_fraction
        document["benchmarks"][title] = rows
        log(f"{DESCRIPTIONS[size]}, {title}: {time.time() - started:.0f} s, {' '.join(describe_ratios(rows))}")
    return document


def describe_ratios(rows: list[BenchmarkRow]) -> list[str]:
    """The fastest peer, and the ratio of each mode of vitrail to it, as phrases."""
    best = BenchmarkResult(rows, {}).best_peer
    if best is None:
        return ["no peers"]
    peer = f"best peer {best.library} {best.mode} {best.images_per_second:,.1f} images/s;"
    return [peer, *(f"{row.mode} {format_ratio(row)};" for row in rows if row.library == VITRAIL)]


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="32,Ti,S,B", help="model sizes, separated by commas")
    parser.add_argument("--tasks", default="training,inference", help="training, inference or both")
    parser.add_argument("--compile", default="32", help="sizes that also run compiled; '-' for none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min-seconds", type=float, default=0.1, help="of a measurement, which has at least one batch")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false")
    parser.add_argument("--quick", action="store_true", help="a tiny model and two rounds, to check that it runs")
    parser.add_argument("--out", type=Path, default=Path("throughput"))
    arguments = parser.parse_args()
    arguments.compile, arguments.sizes = arguments.compile.split(","), arguments.sizes.split(",")
    if arguments.quick:
        arguments.sizes, arguments.compile, arguments.memory = ["quick"], [], False
        arguments.rounds, arguments.min_seconds = 2, 0.01
    return arguments


def main() -> None:
    """Measures size by size and writes the results after each."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    device = pick_device(arguments.device)
    started = time.time()
    document: dict[str, Any] = {
        **describe_hardware(device), "clock": arguments.clock, "rounds": arguments.rounds,
        "min_seconds": arguments.min_seconds, "sizes": {},
    }  # fmt: skip
    panels: dict[str, list[BenchmarkRow]] = {}
    lines = [f"{', '.join(f'{k} {v}' for k, v in document.items() if k != 'sizes')}", ""]
    for size in arguments.sizes:
        measured = measure(size, arguments, device)
        benchmarks = measured["benchmarks"]
        as_json = {title: [row.to_json() for row in rows] for title, rows in benchmarks.items()}
        document["sizes"][size] = {**measured, "benchmarks": as_json}
        for title, rows in benchmarks.items():
            panels[f"{DESCRIPTIONS[size]}: {title}"] = rows
            warnings = filter(None, [describe_steal(measured["steal_fraction"][title])])
            summary = " ".join([*describe_ratios(rows), *warnings])
            lines += [f"#### {DESCRIPTIONS[size]}: {title}", "", summary, "", format_markdown(rows)]
        document["seconds"] = round(time.time() - started)
        write_json(arguments.out / "throughput.json", document)
        write_text(arguments.out / "throughput.md", "\n".join(lines))
        save_benchmark_chart(panels, arguments.out / "throughput.png")
    print(json.dumps({"out": str(arguments.out), "seconds": document["seconds"]}))


if __name__ == "__main__":
    main()
