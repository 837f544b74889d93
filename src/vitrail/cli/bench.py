"""Time a model (cifar10-small) on this machine, beside other libraries' ViTs of its size, all in one run and in turn.

Ours is timed plainly and by its fast path (predict --fast, Classifier.fast), the others as they come, one of them also
in ONNX Runtime. Peers that are not installed are named: pip install 'vitrail[bench]' brings them all.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

from vitrail.benchmarking.candidates import VITRAIL, Candidate, Workload, inference_candidates, training_candidates
from vitrail.benchmarking.fast_path import compare_fast_path
from vitrail.benchmarking.figures import save_benchmark_chart
from vitrail.benchmarking.memory import measure_peak_memory
from vitrail.benchmarking.peers import find_installed_peers
from vitrail.benchmarking.results import (
    BenchmarkRow,
    add_peak_memory,
    describe_steal,
    format_ratio,
    run_benchmark,
    sort_rows,
)
from vitrail.cli.loading import add_model, loaded
from vitrail.cli.main import Answer
from vitrail.console import log, progress_bar
from vitrail.data.open import open_data
from vitrail.errors import UsageError
from vitrail.files import write_json
from vitrail.machine import describe_hardware, keep_freed_memory
from vitrail.weights.config_json import config_to_json
from vitrail.weights.sizes import get_size_name


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add_model(parser, default="cifar10-small")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], metavar="N", help="images at a time (1 8)")
    parser.add_argument(
        "--train", type=int, nargs="?", const=64, metavar="N", help="also a training step, on N images (64)"
    )
    parser.add_argument("--compile", action="store_true", help="also compiled: takes minutes, wants a C++ compiler")
    parser.add_argument("--data", metavar="DATA", help="also whether the fast path gives the same labels on its images")
    parser.add_argument("--images", type=int, metavar="N", help="so many of them (500)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (all cores)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns that each one takes (7)")
    parser.add_argument("--turn", type=float, default=0.2, metavar="S", help="seconds of a turn, at least (0.2)")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, on a machine that is not quiet"
    )
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each, in a process of its own")
    parser.add_argument("--device", metavar="D", help="cpu, cuda (the best there is)")
    parser.add_argument("--out", metavar="DIR", help="write bench.json and bench.png there")


def run(arguments: argparse.Namespace) -> Answer:
    """Times, and shows a table for every batch size."""
    for name in ("images", "rounds", "threads", "train", "turn"):
        given = getattr(arguments, name)
        if given is not None and not 0 < given < 1_000_000:
            raise UsageError(f"--{name} is {given}; it must be above 0")
    if min(arguments.batch) < 1:
        raise UsageError(f"--batch is {min(arguments.batch)}; it must be at least 1")
    if arguments.images and not arguments.data:
        raise UsageError("--images says how many of --data are compared", "add --data DATA")
    classifier = loaded(arguments)
    if classifier.device.type == "mps":
        raise UsageError("bench knows no mps device", "use --device cpu")
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or before)
    try:
        return timed(arguments, classifier)
    finally:
        torch.set_num_threads(before)


def timed(arguments: argparse.Namespace, classifier: Any) -> Answer:
    """The races, one after the other."""
    config = classifier.vit.config
    peers, missing = find_installed_peers(config)
    for name, why in missing.items():
        log(f"without {name}: {why}")
    inference = partial(inference_candidates, peers=peers, compile=arguments.compile)
    kinds: dict[str, tuple[int, Callable[[Workload], list[Candidate]]]] = {
        f"inference, batch {n}": (n, inference) for n in arguments.batch
    }
    if arguments.train:
        kinds[f"training step, batch {arguments.train}"] = (arguments.train, partial(training_candidates, peers=peers))
    agreed: dict[str, Any] | None = None
    if arguments.data:  # first: what is wrong with the images must not cost the timings
        images = any_images(arguments.data, config.channels)
        agreed = compare_fast_path(classifier, images, max_images=arguments.images or 500)
    races: dict[str, list[BenchmarkRow]] = {}
    failed: dict[str, str] = {}
    taken: dict[str, float | None] = {}
    with progress_bar("timing", len(kinds)) as progress:
        for title, (batch, contenders_of) in kinds.items():
            task = Workload(config, batch, classifier.device, classifier.vit)
            found = run_benchmark(
                contenders_of(task), batch, rounds=arguments.rounds, min_seconds=arguments.turn, clock=arguments.clock,
                device=task.device, on_step=lambda doing: progress.advance(0, note=doing),
            )  # fmt: skip
            failed |= found.failed
            taken[title] = found.steal_fraction
            rows = found.rows
            if arguments.memory:
                progress.advance(0, note="memory")
                alike = contenders_of(replace(task, vit=None))  # with its weights they would be counted twice
                rows = add_peak_memory(rows, alike, measure_peak_memory(alike, task.device, torch.get_num_threads()))
            races[title] = sort_rows(rows)
            progress.advance()
    for name, why in failed.items():
        log(f"without {name}: {why}")
    for title, part in taken.items():
        if said := describe_steal(part):
            log(f"warning: {title}: {said}; repeat it at a quieter time, or use --clock cpu")
    machine = describe_hardware(classifier.device)
    document: dict[str, Any] = {
        "model": str(arguments.model), "size": get_size_name(config_to_json(config)), **machine,
        "clock": arguments.clock,
        "rounds": arguments.rounds, "missing": missing, "failed": failed, "steal_fraction": taken,
        "benchmarks": {title: [row.to_json() for row in rows] for title, rows in races.items()},
    }  # fmt: skip
    shown: list[object] = [
        f"{arguments.model}: {document['size']} at {config.image_size} pixels; "
        f"{', '.join(f'{k} {v}' for k, v in machine.items())}",
        "times: as fast as the best of the others, median of the rounds (quartiles)",
    ]
    for title, rows in races.items():
        shown += ["", table_of(title, rows)]
    if agreed:
        document["agreement"] = agreed
        shown += ["", agreement_said(agreed)]
    if arguments.out:
        folder = Path(arguments.out)
        save_benchmark_chart(races, folder / "bench.png")
        write_json(folder / "bench.json", document)
        shown += ["", f"written: {folder / 'bench.json'}, {folder / 'bench.png'}"]
    return Answer(document, shown)


def agreement_said(agreed: dict[str, Any]) -> str:
    """The agreement in a sentence."""
    return (
        f"fast and plain give the same {agreed['compared']} on {agreed['agreement']:.2%} of {agreed['images']} images; "
        f"largest difference {agreed['relative_difference']:.2%} of the largest answer"
    )


def table_of(title: str, rows: list[BenchmarkRow]) -> Table:
    """A race as a table."""
    right = [Column(name, justify="right") for name in ("images/s", "ms a batch", "times the best other")]
    memory = any(row.peak_memory is not None for row in rows)
    extra = [Column("peak MiB", justify="right")] if memory else []
    table = Table(title, "how", *right, *extra, box=None, header_style="bold")
    for row in rows:
        peak = [f"{row.peak_memory / 2**20:,.0f}" if row.peak_memory is not None else "-"] if memory else []
        speeds = (f"{row.images_per_second:,.1f}", f"{row.milliseconds:,.2f}", format_ratio(row))
        table.add_row(row.library, row.mode, *speeds, *peak, style="bold" if row.library == VITRAIL else "")
    return table


def any_images(data: str, channels: int) -> Any:
    """The images of DATA in so many channels: its test images, else those of validation, else those of training."""
    parts = open_data(data, channels=channels).as_dict()
    return next(parts[name] for name in ("test", "validation", "train") if name in parts)
