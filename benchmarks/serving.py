"""vitrail serve beside LitServe and a plain FastAPI endpoint around the same model, all in one run, and the bare model.

    python -m benchmarks.serving --write docs/benchmarks.md --out serving.json

Every server gets the same JPEG files from the same clients, which ask again as soon as they are answered. The bare
model is the same classifier in a loop at its best batch, images decoded already. Ratios are within a round, in which
the bare model is measured before and after the servers.
Needs `pip install litserve` beside vitrail[serve]. With `--only "Ray Serve"`, beside others, the Ray deployment too.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import multiprocessing
import os
import platform
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
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
from vitrail.machine import count_cores
from vitrail.serving.predictor import Predictor
from vitrail.weights.sizes import SIZES

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "temple.jpg"


def model_file(size: str, side: int, folder: Path) -> Path:
    """An artefact of this size with random weights: how fast it is does not depend on what it has learnt."""
    torch.manual_seed(0)
    config = vitrail.ViTConfig(**SIZES[size], patch=16, image_size=side, classes=1000)
    path = folder / "bench.safetensors"
    names = tuple(f"class {i}" for i in range(1000))
    Classifier(vitrail.ViT(config), names, Preprocess(image_size=(side, side))).save(path)
    return path


def photos(n: int = 32) -> list[bytes]:
    """Different crops of a photograph, 256x256, as JPEG files of about 20 kB."""
    source = Image.open(PHOTO).convert("RGB")
    chance = np.random.default_rng(0)
    files = []
    for _ in range(n):
        side = int(chance.integers(200, min(source.size)))
        x, y = (int(chance.integers(0, full - side + 1)) for full in source.size)
        buffer = io.BytesIO()
        source.crop((x, y, x + side, y + side)).resize((256, 256)).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files


# The servers: each a command that listens on a port, and how an image is sent to it


def command(name: str, path: Path, port: int, batch: int) -> list[str]:
    """How a server is started."""
    if name.startswith("vitrail"):
        runtime = "onnxruntime" if "ONNX" in name else "torch"
        limits = ["--backend", runtime, "--max-batch-size", str(batch), "--timeout-s", "120", "--no-explain"]
        return [sys.executable, "-m", "vitrail", "serve", str(path), "--port", str(port), *limits]
    modules = {"LitServe": "serving_litserve", "FastAPI, plain": "serving_fastapi", "Ray Serve": "serving_ray"}
    module = modules[name]
    return [sys.executable, "-m", f"benchmarks.{module}", str(path), str(port), str(batch)]


def packed(name: str, data: bytes) -> bytes:
    """One request with this image, as bytes on the wire."""
    kind, body = "image/jpeg", data
    if name == "LitServe":
        kind, body = "application/json", json.dumps({"image": base64.b64encode(data).decode()}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# The clients


async def client(
    port: int, requests: list[bytes], start: int, stop: float, took: list[tuple[float, float, int]]
) -> None:
    """Asks again as soon as it is answered, over one connection, until `stop`."""
    reader = writer = None
    number = start
    while (began := time.perf_counter()) < stop:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"\r\ncontent-length: (\d+)", head.lower()).group(1)))
            took.append((began, time.perf_counter(), int(head[9:12])))
        except (OSError, asyncio.IncompleteReadError):
            took.append((began, time.perf_counter(), 0))
            writer = None
            await asyncio.sleep(0.05)
        number += 1
    if writer is not None:
        writer.close()


def load(port: int, requests: list[bytes], clients: int, warm: float, seconds: float) -> dict[str, Any]:
    """Images a second and latencies of what was answered in the `seconds` after `warm`."""

    async def everyone() -> list[tuple[float, float, int]]:
        took: list[tuple[float, float, int]] = []
        stop = time.perf_counter() + warm + seconds
        await asyncio.gather(*(client(port, requests, i * 7, stop, took) for i in range(clients)))
        return took

    begin = time.perf_counter() + warm
    took = asyncio.run(everyone())
    inside = [(b, e, s) for b, e, s in took if begin <= e <= begin + seconds]
    good = sorted(e - b for b, e, s in inside if s == 200)
    return {
        "images_per_second": len(good) / seconds,
        "p50": good[len(good) // 2] if good else None,
        "p99": good[int(len(good) * 0.99)] if good else None,
        "answered": len(good),
        "failed": len(inside) - len(good),
        "all": sum(status == 200 for _, _, status in took),
    }


def measured(name: str, path: Path, batch: int, files: list[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """One server, started, loaded, stopped."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(name, path, port, batch), stdout=log, stderr=log, start_new_session=True)
        try:
            wait_ready(name, port, packed(name, files[0]), process)
            requests = [packed(name, data) for data in files]
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # clients in a process of their own
                before = processor_seconds(process.pid)
                found = pool.apply(load, (port, requests, arguments.clients, arguments.warm, arguments.seconds))
                spent = processor_seconds(process.pid) - before
                return {**found, "processor_seconds_per_image": spent / max(found.pop("all"), 1)}
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def processor_seconds(first: int) -> float:
    """What a process and all that it has started have spent so far; steadier than the clock on a busy machine."""
    parents, spent = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            number = int(stat.parent.name)
            parents[number], spent[number] = int(fields[1]), int(fields[11]) + int(fields[12])

    def ours(number: int) -> bool:
        return number == first or (number in parents and ours(parents[number]))

    return sum(ticks for number, ticks in spent.items() if ours(number)) / os.sysconf("SC_CLK_TCK")


def wait_ready(name: str, port: int, request: bytes, process: subprocess.Popen[bytes]) -> None:
    """Until an image is answered."""
    stop = time.monotonic() + 240
    while time.monotonic() < stop and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(request)
                if connection.recv(12).endswith(b"200"):
                    return
        except OSError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"{name} did not start")


def bare(path: str, seconds: float, batch: int | None) -> dict[str, Any]:
    """The classifier alone: images a second at its best batch, or at this one."""
    torch.set_num_threads(count_cores())
    predictor = Predictor(vitrail.load(path))
    if batch is None:
        rates = predictor.measure_rates(32, seconds)
        return {"rates": rates, "batch": max(rates, key=rates.__getitem__)}
    predictor.warm_up(batch)
    began, runs = time.perf_counter(), 0
    spent = time.process_time()
    while time.perf_counter() - began < seconds:
        predictor.warm_up(batch)
        runs += 1
    return {
        "images_per_second": runs * batch / (time.perf_counter() - began),
        "processor_seconds_per_image": (time.process_time() - spent) / (runs * batch),
    }


def alone(function: Any, *given: Any) -> Any:
    """A function's result, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, given)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, round by round."""
    servers = ["vitrail serve", "vitrail serve, ONNX Runtime", "LitServe", "FastAPI, plain", "Ray Serve"]
    servers = [name for name in servers if name in (arguments.only or servers[:-1])]
    rounds: list[dict[str, Any]] = []
    loads = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        path, files = model_file(arguments.size, arguments.side, Path(folder)), photos()
        found = alone(bare, str(path), 6.0, None)
        batch = found["batch"]
        print(f"bare model: {found['rates']}, best at {batch}", file=sys.stderr)
        for number in range(arguments.rounds):
            this: dict[str, Any] = {"the bare model": alone(bare, str(path), arguments.seconds / 2, batch)}
            for name in servers[number % len(servers) :] + servers[: number % len(servers)]:
                this[name] = measured(name, path, batch, files, arguments)
                print(f"round {number}: {name}: {this[name]}", file=sys.stderr)
            after = alone(bare, str(path), arguments.seconds / 2, batch)["images_per_second"]
            this["the bare model"]["images_per_second"] = (this["the bare model"]["images_per_second"] + after) / 2
            rounds.append(this)
            loads.append(os.getloadavg())
    return {
        "model": f"ViT-{arguments.size}/16, {arguments.side} pixels, float32", "batch": batch,
        "clients": arguments.clients,
        "seconds": arguments.seconds, "rounds": rounds, "bare_by_batch": found["rates"], "cores": count_cores(),
        "processor": processor(), "torch": torch.__version__, "load_before_and_after": loads, "servers": servers,
    }  # fmt: skip


def processor() -> str:
    """What the machine calls its processor."""
    try:
        return next(line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(found: dict[str, Any]) -> str:
    """The results in markdown."""
    before, after = (found["load_before_and_after"][i][0] for i in (0, -1))
    lines = [
        f"{found['model']}, batches of at most {found['batch']}, {found['clients']} clients that ask again as soon as "
        f"they are answered, JPEG files of 256x256 pixels, {found['seconds']:g} s a server and round, "
        f"{len(found['rounds'])} rounds; {found['cores']} cores ({found['processor']}), torch {found['torch']}; the "
        f"clients run on the same cores. Load average before {before:.1f}, after {after:.1f}.",
        "",
        "| | images/s (each round) | of the bare model | p50 | p99 | failed | core-ms an image |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ("the bare model", *found["servers"]):
        rows = [each[name] for each in found["rounds"]]
        rates = [row["images_per_second"] for row in rows]
        ratios = [
            rate / each["the bare model"]["images_per_second"]
            for rate, each in zip(rates, found["rounds"], strict=True)
        ]
        spent = 1000 * statistics.mean(row["processor_seconds_per_image"] for row in rows)
        shown = ", ".join(f"{rate:.1f}" for rate in rates)
        if name == "the bare model":
            lines.append(f"| {name} | {shown} | 1 | | | | {spent:.1f} |")
            continue
        p50, p99 = (statistics.mean(row[k] or float("nan") for row in rows) for k in ("p50", "p99"))
        failed = sum(row["failed"] for row in rows)
        lines.append(
            f"| {name} | {shown} | {statistics.mean(ratios):.2f} | {p50:.2f} s | {p99:.2f} s | {failed} | {spent:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="Ti", choices=list(SIZES), help="of the ViT (Ti)")
    parser.add_argument("--side", type=int, default=224, help="of its images (224)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--warm", type=float, default=5, help="seconds before anything counts (5)")
    parser.add_argument("--seconds", type=float, default=20, help="seconds of each server in a round (20)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a server, as it is called in the table")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--write", type=Path, help="put the table into this document")
    arguments = parser.parse_args()
    found = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    text = table(found)
    if arguments.write:
        replace_table(text, "serving", arguments.write)
    print(text)


if __name__ == "__main__":
    main()
