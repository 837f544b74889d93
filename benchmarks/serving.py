"""Compares vitrail serve with LitServe, a plain FastAPI endpoint and the bare model, with the same classifier.

    python -m benchmarks.serving --write docs/benchmarks.md --out serving.json

Every server gets the same JPEG files from the same clients; a client sends the next request when it has the response.
The bare model is the same classifier in a loop at its fastest batch size, with decoded images. It is measured before
and after the servers of each round, and ratios are within a round.
Needs `pip install litserve` and vitrail[serve]. `--only "Ray Serve"` measures the Ray deployment, and
`--only "vitrail serve" --only "vitrail serve, decoding in threads"` what decoding in processes costs.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

import vitrail
from benchmarks.document import replace_table
from vitrail.classifier import Classifier
from vitrail.data.preprocess import Preprocess
from vitrail.machine import count_cores, processor_name
from vitrail.serving.predictor import Predictor
from vitrail.weights.sizes import SIZES

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "temple.jpg"
BARE_MODEL = "the bare model"
PEER_MODULES = {"LitServe": "serving_litserve", "FastAPI, plain": "serving_fastapi", "Ray Serve": "serving_ray"}
IN_THREADS = "vitrail serve, decoding in threads"
DEFAULT_SERVERS = ("vitrail serve", "vitrail serve, ONNX Runtime", "LitServe", "FastAPI, plain")
SERVERS = (*DEFAULT_SERVERS, "Ray Serve", IN_THREADS)
MAX_BATCH_SIZE = 32
START_TIMEOUT_S = 240


@dataclass(frozen=True)
class Response:
    """When a request was sent and answered, by `time.perf_counter`, and its status; 0 for a failed connection."""

    started: float
    ended: float
    status: int


def save_model(size: str, image_size: int, folder: Path) -> Path:
    """Saves a classifier with random weights; the weights do not affect its speed."""
    torch.manual_seed(0)
    config = vitrail.ViTConfig(**SIZES[size], patch=16, image_size=image_size, classes=1000)
    path = folder / "bench.safetensors"
    classes = tuple(f"class {i}" for i in range(1000))
    Classifier(vitrail.ViT(config), classes, Preprocess(image_size=(image_size, image_size))).save(path)
    return path


def make_photos(count: int = 32) -> list[bytes]:
    """Returns different crops of a photograph, 256x256, as JPEG files of about 20 kB."""
    source = Image.open(PHOTO).convert("RGB")
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        size = int(rng.integers(200, min(source.size)))
        x, y = (int(rng.integers(0, extent - size + 1)) for extent in source.size)
        buffer = io.BytesIO()
        source.crop((x, y, x + size, y + size)).resize((256, 256)).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files


# The servers: a command that listens on a port, and the form of a request


def server_command(name: str, path: Path, port: int, batch_size: int) -> list[str]:
    """Returns the command that starts a server."""
    if name in PEER_MODULES:
        return [sys.executable, "-m", f"benchmarks.{PEER_MODULES[name]}", str(path), str(port), str(batch_size)]
    backend = "onnxruntime" if name.endswith("ONNX Runtime") else "torch"
    options = ["--backend", backend, "--max-batch-size", str(batch_size), "--timeout-s", "120", "--no-explain"]
    module = "benchmarks.decoding_in_threads" if name == IN_THREADS else "vitrail"
    return [sys.executable, "-m", module, "serve", str(path), "--port", str(port), *options]


def encode_request(name: str, file: bytes) -> bytes:
    """Returns the HTTP request for an image file."""
    content_type, body = "image/jpeg", file
    if name == "LitServe":
        content_type = "application/json"
        body = json.dumps({"image": base64.b64encode(file).decode()}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


# The clients


async def run_client(port: int, requests: list[bytes], first: int, deadline: float, responses: list[Response]) -> None:
    """Sends requests over one connection until `deadline`, each when the response before has arrived."""
    reader = writer = None
    number = first
    while (started := time.perf_counter()) < deadline:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"\r\ncontent-length: (\d+)", head.lower()).group(1)))
            responses.append(Response(started, time.perf_counter(), int(head[9:12])))
        except (OSError, asyncio.IncompleteReadError):
            responses.append(Response(started, time.perf_counter(), 0))
            writer = None
            await asyncio.sleep(0.05)
        number += 1
    if writer is not None:
        writer.close()


def load_server(port: int, requests: list[bytes], clients: int, warmup_s: float, seconds: float) -> dict[str, Any]:
    """Returns throughput and latencies of the responses in the `seconds` after the warm-up."""

    async def run_clients() -> list[Response]:
        responses: list[Response] = []
        deadline = time.perf_counter() + warmup_s + seconds
        await asyncio.gather(*(run_client(port, requests, i * 7, deadline, responses) for i in range(clients)))
        return responses

    start = time.perf_counter() + warmup_s
    responses = asyncio.run(run_clients())
    counted = [response for response in responses if start <= response.ended <= start + seconds]
    latencies = sorted(response.ended - response.started for response in counted if response.status == 200)
    return {
        "images_per_second": len(latencies) / seconds,
        "p50": latencies[len(latencies) // 2] if latencies else None,
        "p99": latencies[int(len(latencies) * 0.99)] if latencies else None,
        "answered": len(latencies),
        "failed": len(counted) - len(latencies),
        "answered_with_warmup": sum(response.status == 200 for response in responses),
    }


def measure_server(
    name: str, path: Path, batch_size: int, files: list[bytes], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Starts a server, measures it under load, and stops it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = server_command(name, path, port, batch_size)
    requests = [encode_request(name, file) for file in files]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until_ready(name, port, requests[0], process)
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # the clients run in a separate process
                before = cpu_seconds(process.pid)
                load = (port, requests, arguments.clients, arguments.warmup_s, arguments.seconds)
                results = pool.apply(load_server, load)
                spent = cpu_seconds(process.pid) - before
                return {**results, "cpu_seconds_per_image": spent / max(results["answered_with_warmup"], 1)}
        finally:
            stop_server(process)


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and all processes of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cpu_seconds(root: int) -> float:
    """Returns the CPU time of a process and its descendants."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])

    def is_descendant(pid: int) -> bool:
        return pid == root or (pid in parents and is_descendant(parents[pid]))

    return sum(count for pid, count in ticks.items() if is_descendant(pid)) / os.sysconf("SC_CLK_TCK")


def wait_until_ready(name: str, port: int, request: bytes, process: subprocess.Popen[bytes]) -> None:
    """Waits until the server answers an image; raises `SystemExit` if it ends or exceeds the time limit."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(request)
                status = connection.recv(12)[-3:]
                if status == b"200":
                    return
                if status == b"500":
                    raise SystemExit(f"{name} fails: it answers with status 500")
        except OSError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"{name} did not start")


# The bare model


def measure_batch_sizes(path: str, seconds: float) -> dict[int, float]:
    """Returns the images per second of the classifier alone, by batch size."""
    torch.set_num_threads(count_cores())
    return Predictor(vitrail.load(path)).measure_rates(MAX_BATCH_SIZE, seconds)


def measure_bare_model(path: str, seconds: float, batch_size: int) -> dict[str, float]:
    """Returns the throughput and the CPU time per image of the classifier alone."""
    torch.set_num_threads(count_cores())
    predictor = Predictor(vitrail.load(path))
    predictor.warm_up(batch_size)
    started, cpu_started, batches = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        predictor.warm_up(batch_size)
        batches += 1
    return {
        "images_per_second": batches * batch_size / (time.perf_counter() - started),
        "cpu_seconds_per_image": (time.process_time() - cpu_started) / (batches * batch_size),
    }


def call_in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns a function's result, computed in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs all measurements, round by round."""
    servers = [name for name in SERVERS if name in (arguments.only or DEFAULT_SERVERS)]
    rounds: list[dict[str, Any]] = []
    loads = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        path, files = save_model(arguments.size, arguments.image_size, Path(folder)), make_photos()
        rates = call_in_process(measure_batch_sizes, str(path), 6.0)
        batch_size = max(rates, key=rates.__getitem__)
        print(f"bare model: {rates}, fastest at {batch_size}", file=sys.stderr)
        bare = (measure_bare_model, str(path), arguments.seconds / 2, batch_size)
        for number in range(arguments.rounds):
            results: dict[str, Any] = {BARE_MODEL: call_in_process(*bare)}
            for name in servers[number % len(servers) :] + servers[: number % len(servers)]:
                results[name] = measure_server(name, path, batch_size, files, arguments)
                print(f"round {number}: {name}: {results[name]}", file=sys.stderr)
            before, after = results[BARE_MODEL]["images_per_second"], call_in_process(*bare)["images_per_second"]
            results[BARE_MODEL]["images_per_second"] = (before + after) / 2
            rounds.append(results)
            loads.append(os.getloadavg())
    return {
        "model": f"ViT-{arguments.size}/16, {arguments.image_size} pixels, float32", "batch_size": batch_size,
        "clients": arguments.clients, "seconds": arguments.seconds, "rounds": rounds, "rates_by_batch_size": rates,
        "cores": count_cores(), "processor": processor_name(), "torch": torch.__version__,
        "load_before_and_after": loads, "servers": servers,
    }  # fmt: skip


def format_table(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    before, after = (results["load_before_and_after"][i][0] for i in (0, -1))
    rounds = results["rounds"]
    lines = [
        f"{results['model']}, maximum batch size {results['batch_size']}, {results['clients']} clients that each send "
        f"the next request as soon as they have the response, JPEG files of 256x256 pixels, {results['seconds']:g} s "
        f"per server and round, {len(rounds)} rounds; {results['cores']} cores ({results['processor']}), torch "
        f"{results['torch']}; the clients run on the same cores. Load average before {before:.1f}, after {after:.1f}.",
        "",
        "| server | images/s (each round) | ratio to the bare model | p50 | p99 | failed | CPU ms per image |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (BARE_MODEL, *results["servers"]):
        rows = [each[name] for each in rounds]
        cpu_ms = 1000 * statistics.mean(row["cpu_seconds_per_image"] for row in rows)
        rates = ", ".join(f"{row['images_per_second']:.1f}" for row in rows)
        if name == BARE_MODEL:
            lines.append(f"| {name} | {rates} | 1 | | | | {cpu_ms:.1f} |")
            continue
        ratio = statistics.mean(
            each[name]["images_per_second"] / each[BARE_MODEL]["images_per_second"] for each in rounds
        )
        p50, p99 = (statistics.mean(row[k] or float("nan") for row in rows) for k in ("p50", "p99"))
        failed = sum(row["failed"] for row in rows)
        lines.append(f"| {name} | {rates} | {ratio:.2f} | {p50:.2f} s | {p99:.2f} s | {failed} | {cpu_ms:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="Ti", choices=list(SIZES), help="size of the ViT (default: Ti)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS", help="default: 224")
    parser.add_argument("--clients", type=int, default=64, metavar="COUNT", help="default: 64")
    parser.add_argument(
        "--warmup-s", type=float, default=5, metavar="SECONDS", help="time before responses count (default: 5)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20, metavar="SECONDS", help="time per server and round (default: 20)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="COUNT", help="default: 3")
    parser.add_argument("--only", action="append", choices=SERVERS, help="measure only this server; repeatable")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this document")
    arguments = parser.parse_args()
    results = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    text = format_table(results)
    if arguments.write:
        replace_table(text, "serving", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
