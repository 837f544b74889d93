"""Sends more requests than a server can answer and counts the answers in time.

    python -m benchmarks.overload --write docs/benchmarks.md --out overload.json

The load is open-loop: requests start at random times (Poisson), whether or not earlier ones have been answered, as
those of independent users do. An answer counts if it has status 200 and arrives within the time limit, measured from
the time at which the request was due. The capacity is the rate of answers to closed-loop clients, measured before.

`--rate` replaces the model by one that sleeps, so that it takes a known time and no CPU, like a model on a GPU: server,
queue, processes and HTTP are real. The servers get the same time limit: LitServe as `timeout`, which it applies to the
wait of a request for its batch.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.document import replace_table
from benchmarks.serving import encode_request, load_server, make_photos, save_model, stop_server, wait_until_ready
from vitrail.machine import count_cores, processor_name
from vitrail.weights.sizes import SIZES

LOADS = (0.8, 1.2, 1.5, 2.0, 4.0)
SERVERS = ("vitrail serve", "LitServe")


def server_command(name: str, path: Path, port: int, arguments: argparse.Namespace) -> list[str]:
    """Returns the command that starts a server."""
    limit, batch = str(arguments.timeout_s), str(arguments.max_batch_size)
    if name == "LitServe":
        rate = [str(arguments.rate)] if arguments.rate else []
        return [sys.executable, "-m", "benchmarks.serving_litserve", str(path), str(port), batch, limit, *rate]
    options = [str(path), "--port", str(port), "--backend", "torch", "--timeout-s", limit, "--max-batch-size", batch]
    options += ["--no-explain", "--no-page", *(["--processes", "1"] if arguments.rate else [])]
    start = ["-m", "benchmarks.sleeping_model", str(arguments.rate)] if arguments.rate else ["-m", "vitrail"]
    return [sys.executable, *start, "serve", *options]


async def send_open_loop(
    port: int, requests: list[bytes], rate: float, seconds: float, timeout_s: float
) -> list[tuple[float, int, float]]:
    """Returns for each request when it was due, its status (0: no answer), and the seconds until the answer."""
    rng = random.Random(0)
    connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    results: list[tuple[float, int, float]] = []

    async def send(number: int, due: float) -> None:
        status = 0
        try:
            async with asyncio.timeout(due + 2 * timeout_s - time.perf_counter()):
                connection = connections.pop() if connections else await asyncio.open_connection("127.0.0.1", port)
                reader, writer = connection
                writer.write(requests[number % len(requests)])
                head = await reader.readuntil(b"\r\n\r\n")
                match = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
                await reader.readexactly(int(match.group(1)) if match else 0)
                status = int(head[9:12])
                connections.append(connection)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        results.append((due, status, time.perf_counter() - due))

    tasks, start = [], time.perf_counter()
    due = start
    while due < start + seconds:
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(send(len(tasks), due)))
        due += rng.expovariate(rate)
    await asyncio.gather(*tasks)
    for _, writer in connections:
        writer.close()
    return [(due - start, status, seconds) for due, status, seconds in results]


def measure_load(port: int, requests: list[bytes], rate: float, seconds: float, timeout_s: float) -> dict[str, Any]:
    """Returns how the requests of the second half of the time were answered."""
    results = asyncio.run(send_open_loop(port, requests, rate, seconds, timeout_s))
    counted = [(status, waited) for due, status, waited in results if due >= seconds / 2]
    in_time = sorted(waited for status, waited in counted if status == 200 and waited <= timeout_s)
    refused = sorted(waited for status, waited in counted if status == 503)
    return {
        "requests": len(counted),
        "in_time_per_second": len(in_time) / (seconds / 2),
        "p50": in_time[len(in_time) // 2] if in_time else None,
        "p50_refused": refused[len(refused) // 2] if refused else None,
        "too_late": sum(status == 200 and waited > timeout_s for status, waited in counted),
        "statuses": dict(Counter(str(status) for status, _ in counted)),
    }


def measure_server(name: str, path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts a server, measures its capacity and every load, and stops it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    requests = [encode_request(name, file) for file in make_photos(count=16)]
    with tempfile.TemporaryFile() as log:
        command = server_command(name, path, port, arguments)
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_ready(name, port, requests[0], process)
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # the clients run in a separate process
                clients = min(2 * arguments.max_batch_size + 2, arguments.clients)
                closed = pool.apply(
                    load_server, (port, requests, clients, arguments.seconds / 4, arguments.seconds / 4)
                )
                capacity = closed["images_per_second"]
                print(f"{name}: capacity {capacity:.1f} images/s", file=sys.stderr)
                loads = {}
                for load in arguments.loads:
                    rate = load * capacity
                    loads[str(load)] = pool.apply(
                        measure_load, (port, requests, rate, arguments.seconds, arguments.timeout_s)
                    )
                    print(f"{name}: {load} x capacity: {loads[str(load)]}", file=sys.stderr)
            return {"capacity": capacity, "loads": loads}
        finally:
            stop_server(process)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all servers."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(arguments.size, arguments.image_size, Path(folder))
        servers = {name: measure_server(name, path, arguments) for name in arguments.only or SERVERS}
    model = f"a model of {arguments.rate:g} images/s" if arguments.rate else f"ViT-{arguments.size}/16"
    return {
        "model": f"{model}, {arguments.image_size} pixels", "servers": servers, "timeout_s": arguments.timeout_s,
        "seconds": arguments.seconds, "max_batch_size": arguments.max_batch_size, "cores": count_cores(),
        "processor": processor_name(), "torch": torch.__version__, "load_average": [load_before, os.getloadavg()[0]],
    }  # fmt: skip


def format_row(name: str, result: dict[str, Any]) -> str:
    """Formats one server as a row: the answers in time as a share of its capacity, by load."""
    shares = [each["in_time_per_second"] / result["capacity"] for each in result["loads"].values()]
    return f"| {name} | {result['capacity']:.1f} | " + " | ".join(f"{share:.0%}" for share in shares) + " |"


def format_table(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    loads = list(next(iter(results["servers"].values()))["loads"])
    lines = [
        f"{results['model']}, time limit {results['timeout_s']:g} s, maximum batch size {results['max_batch_size']}, "
        f"{results['seconds']:g} s per load, of which the second half counts; {results['cores']} cores "
        f"({results['processor']}), torch {results['torch']}; the clients run on the same cores. Load average before "
        f"{results['load_average'][0]:.1f}, after {results['load_average'][1]:.1f}.",
        "",
        "| answered in time / capacity | capacity, images/s | " + " | ".join(f"{load} x" for load in loads) + " |",
        "| --- | ---: |" + " ---: |" * len(loads),
        *(format_row(name, result) for name, result in results["servers"].items()),
    ]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="Ti", choices=list(SIZES), help="size of the ViT (default: Ti)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="default: 224")
    parser.add_argument("--rate", type=float, metavar="IMAGES", help="images/s of a model that sleeps (default: a ViT)")
    parser.add_argument("--max-batch-size", type=int, default=8, metavar="COUNT", help="default: 8")
    parser.add_argument("--timeout-s", type=float, default=10, metavar="SECONDS", help="time limit (default: 10)")
    parser.add_argument("--seconds", type=float, default=30, metavar="SECONDS", help="time per load (default: 30)")
    parser.add_argument("--clients", type=int, default=64, metavar="COUNT", help="closed-loop clients (default: 64)")
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
