"""The work of `vitrail bench`: measures the candidates and describes the results."""

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
from vitrail.cli.answer import Answer
from vitrail.console import log, progress_bar
from vitrail.data.open import open_data
from vitrail.files import write_json
from vitrail.machine import describe_hardware
from vitrail.weights.config_json import config_to_json
from vitrail.weights.sizes import get_size_name


def run_benchmarks(arguments: argparse.Namespace, classifier: Any) -> Answer:
    """Measures every batch size and returns the tables."""
    config = classifier.vit.config
    peers, missing = find_installed_peers(config)
    for name, reason in missing.items():
        log(f"without {name}: {reason}")
    inference = partial(inference_candidates, peers=peers, compile=arguments.compile)
    workloads: dict[str, tuple[int, Callable[[Workload], list[Candidate]]]] = {
        f"inference, batch {n}": (n, inference) for n in arguments.batch_sizes
    }
    if arguments.train:
        workloads[f"training step, batch {arguments.train}"] = (
            arguments.train,
            partial(training_candidates, peers=peers),
        )
    agreement: dict[str, Any] | None = None
    if arguments.data:  # first, so that an unreadable image fails before the measurements
        images = open_any_images(arguments.data, config.channels)
        agreement = compare_fast_path(classifier, images, max_images=arguments.max_images or 500)
    results: dict[str, list[BenchmarkRow]] = {}
    failed: dict[str, str] = {}
    steal: dict[str, float | None] = {}
    with progress_bar("timing", len(workloads)) as progress:
        for title, (batch, make_candidates) in workloads.items():
            workload = Workload(config, batch, classifier.device, classifier.vit)
            result = run_benchmark(
                make_candidates(workload), batch, rounds=arguments.rounds, min_seconds=arguments.min_round_s,
                clock=arguments.clock, device=workload.device, on_step=lambda doing: progress.advance(0, note=doing),
            )  # fmt: skip
            failed |= result.failed
            steal[title] = result.steal_fraction
            rows = result.rows
            if arguments.measure_memory:
                progress.advance(0, note="memory")
                candidates = make_candidates(
                    replace(workload, vit=None)
                )  # with the weights, these would be counted twice
                rows = add_peak_memory(
                    rows, candidates, measure_peak_memory(candidates, workload.device, torch.get_num_threads())
                )
            results[title] = sort_rows(rows)
            progress.advance()
    for name, reason in failed.items():
        log(f"without {name}: {reason}")
    for title, part in steal.items():
        if note := describe_steal(part):
            log(f"warning: {title}: {note}; repeat it at a quieter time, or use --clock cpu")
    machine = describe_hardware(classifier.device)
    document: dict[str, Any] = {
        "model": str(arguments.model), "size": get_size_name(config_to_json(config)), **machine,
        "clock": arguments.clock, "rounds": arguments.rounds,
        "missing": missing, "failed": failed, "steal_fraction": steal,
        "benchmarks": {title: [row.to_json() for row in rows] for title, rows in results.items()},
    }  # fmt: skip
    lines: list[object] = [
        f"{arguments.model}: {document['size']} at {config.image_size} pixels; "
        f"{', '.join(f'{k} {v}' for k, v in machine.items())}",
        "ratio: speed relative to the fastest other library, median of the rounds (quartiles)",
    ]
    for title, rows in results.items():
        lines += ["", make_table(title, rows)]
    if agreement:
        document["agreement"] = agreement
        lines += ["", describe_agreement(agreement)]
    if arguments.out:
        folder = Path(arguments.out)
        save_benchmark_chart(results, folder / "bench.png")
        write_json(folder / "bench.json", document)
        lines += ["", f"written: {folder / 'bench.json'}, {folder / 'bench.png'}"]
    return Answer(document, lines)


def describe_agreement(agreement: dict[str, Any]) -> str:
    return (
        f"fast and plain give the same {agreement['compared']} "
        f"on {agreement['agreement']:.2%} of {agreement['images']} images; "
        f"largest logit difference {agreement['relative_difference']:.2%} of the largest logit"
    )


def make_table(title: str, rows: list[BenchmarkRow]) -> Table:
    right = [Column(name, justify="right") for name in ("images/s", "ms per batch", "ratio to best other")]
    memory = any(row.peak_memory is not None for row in rows)
    extra = [Column("peak MiB", justify="right")] if memory else []
    table = Table(title, "how", *right, *extra, box=None, header_style="bold")
    for row in rows:
        peak = [f"{row.peak_memory / 2**20:,.0f}" if row.peak_memory is not None else "-"] if memory else []
        speeds = (f"{row.images_per_second:,.1f}", f"{row.milliseconds:,.2f}", format_ratio(row))
        table.add_row(row.library, row.mode, *speeds, *peak, style="bold" if row.library == VITRAIL else "")
    return table


def open_any_images(data: str, channels: int) -> Any:
    """Returns the test images of DATA with this number of channels, else those of validation, else of training."""
    parts = open_data(data, channels=channels).as_dict()
    return next(parts[name] for name in ("test", "validation", "train") if name in parts)
