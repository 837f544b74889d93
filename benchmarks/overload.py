"""Sends more requests than a server can answer and counts the answers in time.

    python -m benchmarks.overload --write docs/benchmarks.md --out overload.json

The times of its parts add up to about seven minutes.

The load is open-loop: requests start at random times (Poisson), whether or not earlier ones have been answered, as
those of independent users do. An answer counts if it has status 200 and arrives within the time limit, measured from
the time at which the request was due. The capacity is the rate of answers to closed-loop clients, measured by the same
clients before and after each load, because other programs may use the machine.

The models sleep: a batch takes a known time and no CPU, as on a GPU. Server, queue, processes and HTTP are real.
`--vit` measures a real ViT instead, on the cores that the clients use too. LitServe (`pip install litserve`) gets half
of the time limit as `timeout`: it drops requests that have waited longer than this when it forms a batch. With the
whole limit it would compute requests that are late in any case.
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch

from benchmarks.document import replace_table
from benchmarks.load_client import measure_closed, measure_open
from benchmarks.serving import cpu_seconds, encode_request, make_photos, save_model, stop_server, wait_until_ready
from vitrail.machine import count_cores, processor_name
from vitrail.weights.sizes import SIZES

LOADS = (1.2, 1.5, 2.0, 4.0)
BATCH_SIZES = {5.0: 1, 20.0: 4, 100.0: 8, 500.0: 32}  # maximum batch size by images/s: a batch takes 0.06 to 0.2 s
VIT_BATCH_SIZE = 8
SERVERS = ("vitrail serve", "LitServe")
CLOSED_S = 2.0  # least time of a measurement of the capacity
CLOSED_IMAGES = 20  # least number of images that it counts


@dataclass(frozen=True)
class Model:
    """What a server runs: a model that sleeps, or the ViT of the file if `rate` is None."""

    path: Path
    rate: float | None = None
    max_batch_size: int = VIT_BATCH_SIZE

    @property
    def name(self) -> str:
        return "ViT" if self.rate is None else f"{self.rate:g} images/s"


def server_command(name: str, model: Model, port: int, timeout_s: float) -> list[str]:
    """Returns the command that starts a server."""
    limit, batch = str(timeout_s), str(model.max_batch_size)
    if name == "LitServe":
        rate = [] if model.rate is None else [str(model.rate)]
        command = [sys.executable, "-m", "benchmarks.serving_litserve", str(model.path), str(port), batch]
        return [*command, str(timeout_s / 2), *rate]
    options = [str(model.path), "--port", str(port), "--backend", "torch", "--timeout-s", limit]
    options += ["--max-batch-size", batch, "--no-explain", "--no-page"]
    if model.rate is None:
        return [sys.executable, "-m", "vitrail", "serve", *options]
    return [sys.executable, "-m", "benchmarks.sleeping_model", str(model.rate), "serve", *options, "--processes", "1"]


@contextmanager
def run_server(name: str, model: Model, timeout_s: float, request: bytes) -> Iterator[tuple[int, int]]:
    """Runs a server in this context; returns its port and process id when it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = server_command(name, model, port, timeout_s)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_ready(name, port, request, process)
            yield port, process.pid
        except SystemExit:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-2000:])
            raise
        finally:
            stop_server(process)


def measure_capacity(pool: Pool, port: int, requests: list[bytes], model: Model) -> float:
    """Returns the images per second that the server answers to closed-loop clients: more than wait for one batch."""
    clients = 2 * model.max_batch_size + 2
    seconds = CLOSED_S if model.rate is None else max(CLOSED_S, CLOSED_IMAGES / model.rate)
    return float(pool.apply(measure_closed, (port, requests, clients, CLOSED_S / 4, seconds)))


def measure_server(name: str, model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts a server, measures its capacity and every load, and stops it."""
    requests = [encode_request(name, file) for file in make_photos(count=16)]
    loads: dict[str, Any] = {}
    with (
        run_server(name, model, arguments.timeout_s, requests[0]) as (port, pid),
        multiprocessing.get_context("spawn").Pool(1) as pool,  # the clients run in a process of their own
    ):
        before = measure_capacity(pool, port, requests, model)
        for load in arguments.loads:
            cpu, started = cpu_seconds(pid), time.monotonic()
            result = pool.apply(measure_open, (port, requests, load * before, arguments.seconds, arguments.timeout_s))
            result["cores"] = (cpu_seconds(pid) - cpu) / (time.monotonic() - started)
            after = measure_capacity(pool, port, requests, model)
            result |= {"capacity": (before + after) / 2, "load_average": os.getloadavg()[0]}
            result["share"] = result["in_time_per_second"] / result["capacity"]
            loads[str(load)], before = result, after
            print(f"{name}, {model.name}, {load} x capacity: {result}", file=sys.stderr)
    return loads


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all models on all servers."""
    load_before = os.getloadavg()[0]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(arguments.size, arguments.image_size, Path(folder))
        models = [Model(path, rate, BATCH_SIZES.get(rate, VIT_BATCH_SIZE)) for rate in arguments.rates]
        for model in [Model(path)] if arguments.vit else models:
            for name in arguments.only or SERVERS:
                results.append({"server": name, "model": model.name, "loads": measure_server(name, model, arguments)})
    return {
        "results": results, "vit": f"ViT-{arguments.size}/16, {arguments.image_size} pixels",
        "timeout_s": arguments.timeout_s, "seconds": arguments.seconds, "cores": count_cores(),
        "processor": processor_name(), "torch": torch.__version__, "load_average": [load_before, os.getloadavg()[0]],
    }  # fmt: skip


def format_row(result: dict[str, Any]) -> str:
    """Formats one server and model as a row: the answers in time as a share of its capacity, by load."""
    loads = result["loads"].values()
    capacities = [each["capacity"] for each in loads]
    shares = [f"{each['share']:.0%} ({each['load_average']:.1f})" for each in loads]
    highest = list(loads)[-1]
    refusals = [highest["p50_refused"], highest["p99_refused"]]
    times = "none" if None in refusals else " / ".join(f"{1000 * each:.0f} ms" for each in refusals)
    cells = [result["server"], result["model"], f"{min(capacities):.1f} to {max(capacities):.1f}", *shares, times]
    return f"| {' | '.join(cells)} |"


def format_table(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    loads = list(results["results"][0]["loads"])
    lines = [
        f"Time limit {results['timeout_s']:g} s, {results['seconds']:g} s per load, of which the second half counts; "
        f"{results['cores']} cores ({results['processor']}), torch {results['torch']}; the clients run on the same "
        f"cores. Load average before {results['load_average'][0]:.1f}, after {results['load_average'][1]:.1f}, and in "
        f"parentheses beside each share. The last column is the wait for a refusal at {loads[-1]} times the capacity.",
        "",
        f"| server | model | capacity, images/s | {' | '.join(f'{load} x' for load in loads)} | refused, p50 / p99 |",
        "| --- | --- | ---: |" + " ---: |" * (len(loads) + 1),
        *(format_row(result) for result in results["results"]),
    ]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=list(BATCH_SIZES), metavar="IMAGES", help="images/s of each model"
    )
    parser.add_argument("--vit", action="store_true", help="measure a real ViT instead of models that sleep")
    parser.add_argument("--size", default="Ti", choices=list(SIZES), help="size of the ViT (default: Ti)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="default: 224")
    parser.add_argument("--timeout-s", type=float, default=2, metavar="SECONDS", help="time limit (default: 2)")
    parser.add_argument("--seconds", type=float, default=6, metavar="SECONDS", help="time per load (default: 6)")
    parser.add_argument(
        "--loads", type=float, nargs="+", default=LOADS, metavar="LOAD", help="multiples of the capacity"
    )
    parser.add_argument("--only", action="append", choices=SERVERS, help="measure only this server; repeatable")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    return parser


def main() -> None:
    """Runs the benchmark."""
    arguments = make_parser().parse_args()
    results = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    text = format_table(results)
    if arguments.write:
        replace_table(text, "overload", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
