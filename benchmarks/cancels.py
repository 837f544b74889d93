"""Sends 100,000 requests to a real server while clients disconnect at random and workers are killed.

    python -m benchmarks.cancels

Each request has its own image, and every response is compared with the classifier's logits for that image. Lost,
duplicated and swapped responses are counted. The exit code is 1 if there is one, or if there were fewer kills than
--kills. A rejected request (503) is sent again. The time from each kill to a ready server is measured.
"""

import argparse
import asyncio
import http.client
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

import vitrail
from vitrail.classifier import Classifier
from vitrail.data.preprocess import Preprocess

IMAGE_SIZE = 16
IMAGES_PER_BATCH = 500  # images that are made at once
TIMEOUT_S = 60.0
TOLERANCE = 1e-3  # of a logit


def build_classifier() -> Classifier:
    """Returns a small classifier, so that the server dominates, with random weights, so that all logits differ."""
    torch.manual_seed(0)
    vit = vitrail.ViT(
        vitrail.ViTConfig(width=64, depth=2, heads=2, mlp_width=128, patch=4, image_size=IMAGE_SIZE, classes=10)
    )
    for parameter in vit.head.parameters():
        torch.nn.init.normal_(parameter)
    vit.eval().requires_grad_(False)
    return Classifier(vit, tuple("abcdefghij"), Preprocess(image_size=(IMAGE_SIZE, IMAGE_SIZE)))


def make_images(classifier: Classifier, seed: int, count: int) -> list[tuple[bytes, np.ndarray]]:
    """Returns PNG files of random images, which no other seed gives, each with its logits."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    logits = classifier.logits(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).numpy()
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=0)
        files.append(buffer.getvalue())
    return list(zip(files, logits, strict=True))


class Client:
    """A client with one connection, which it closes in the middle of a request with a given probability."""

    def __init__(self, port: int, rng: random.Random, disconnect_fraction: float, counts: Counter[str]):
        self.port, self.rng, self.disconnect_fraction, self.counts = port, rng, disconnect_fraction, counts
        self.reader: Any = None
        self.writer: Any = None

    async def process(self, file: bytes, expected: np.ndarray) -> None:
        """Sends an image until it is answered, or disconnects on purpose; counts the result."""
        if self.rng.random() < self.disconnect_fraction:
            await self.disconnect_early(file)
            return
        while True:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status, logits = await self.request_logits(file)
            except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
                self.counts["lost"] += 1
                self.close()
                return
            if status == 503:
                self.counts["rejected_and_retried"] += 1
                await asyncio.sleep(0.02)
                continue
            is_correct = status == 200 and np.abs(logits - expected).max() < TOLERANCE
            self.counts["answered" if is_correct else "wrong"] += 1
            return

    async def request_logits(self, file: bytes) -> tuple[int, np.ndarray]:
        """Sends a request; returns the status and the logits."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        if self.reader._buffer:
            self.counts["duplicated"] += 1
        self.writer.write(encode_request(file))
        head = await self.reader.readuntil(b"\r\n\r\n")
        body = await self.reader.readexactly(int(re.search(rb"\r\ncontent-length: (\d+)", head.lower()).group(1)))
        status = int(head[9:12])
        if status != 200:
            return status, np.zeros(10)
        start = int(re.search(rb"inference-header-content-length: (\d+)", head.lower()).group(1))
        return status, np.frombuffer(body[start : start + 40], "<f4")

    async def disconnect_early(self, file: bytes) -> None:
        """Sends a request, or the beginning of one, and disconnects."""
        self.counts["disconnected"] += 1
        self.close()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            data = encode_request(file)
            writer.write(data if self.rng.random() < 0.8 else data[: self.rng.randrange(len(data))])
            await writer.drain()
            await asyncio.sleep(self.rng.choice([0, 0.0005, 0.002, 0.01, 0.05]))
            writer.close()
        except OSError:
            self.counts["connection_failed"] += 1

    def close(self) -> None:
        """Closes the connection."""
        if self.writer is not None:
            self.writer.close()
            self.reader = self.writer = None


def encode_request(file: bytes) -> bytes:
    """Returns an HTTP request in the protocol's raw binary form."""
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: 0\r\n"
    return f"{head}Content-Length: {len(file)}\r\n\r\n".encode() + file


def is_ready(port: int) -> bool:
    """Whether the server reports that it is ready."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


class ServerLog:
    """Reads the log of a server in a thread; `events` holds all lines except those about requests."""

    def __init__(self, process: subprocess.Popen[str]):
        self.events: list[dict[str, Any]] = []
        assert process.stderr is not None
        self.lines = process.stderr
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        """Reads until the server ends."""
        with suppress(ValueError):  # the pipe is closed when the server has ended
            for line in self.lines:
                if '"event": "request"' not in line and line.startswith("{"):
                    self.events.append(json.loads(line))

    def wait(self, event: str, start: int = 0) -> dict[str, Any]:
        """Returns the first line with this event, from index `start`; raises `TimeoutError`."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            for line in self.events[start:]:
                if line["event"] == event:
                    return line
            time.sleep(0.005)
        raise TimeoutError(f"the server did not log {event} within {TIMEOUT_S:g} s")


async def kill_workers(port: int, log: ServerLog, kills: int, interval_s: float, recovery_s: list[float]) -> None:
    """Kills the newest worker at intervals; appends the seconds until the server is ready again."""
    for _ in range(kills):
        await asyncio.sleep(interval_s)
        count = len(log.events)
        pid = next(line["pid"] for line in reversed(log.events) if line["event"] == "worker_ready")
        started = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(log.wait, "worker_ready", count)
        async with asyncio.timeout(TIMEOUT_S):
            while not await asyncio.to_thread(is_ready, port):
                await asyncio.sleep(0.01)
        recovery_s.append(time.perf_counter() - started)


async def send_requests(
    port: int, classifier: Classifier, log: ServerLog, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Sends all requests and kills workers meanwhile; returns the counts and times."""
    counts: Counter[str] = Counter()
    recovery_s: list[float] = []
    queue = asyncio.Queue[tuple[bytes, np.ndarray] | None](2 * IMAGES_PER_BATCH)

    async def fill_queue() -> None:
        for start in range(0, arguments.requests, IMAGES_PER_BATCH):
            count = min(IMAGES_PER_BATCH, arguments.requests - start)
            for item in await asyncio.to_thread(make_images, classifier, start, count):
                await queue.put(item)
        for _ in range(arguments.clients):
            await queue.put(None)

    async def run_client(seed: int) -> None:
        client = Client(port, random.Random(seed), arguments.disconnect_fraction, counts)
        while (item := await queue.get()) is not None:
            await client.process(*item)
        client.close()

    started = time.perf_counter()
    killing = asyncio.create_task(kill_workers(port, log, arguments.kills, arguments.kill_interval_s, recovery_s))
    await asyncio.gather(fill_queue(), *(run_client(seed) for seed in range(arguments.clients)))
    killing.cancel()
    with suppress(asyncio.CancelledError):
        await killing  # raises an error of this task
    return {**counts, "seconds": time.perf_counter() - started, "seconds_from_kill_to_ready": recovery_s}


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, metavar="COUNT", help="default: 100,000")
    parser.add_argument("--clients", type=int, default=64, metavar="COUNT", help="default: 64")
    parser.add_argument(
        "--disconnect-fraction", type=float, default=0.2, metavar="FRACTION",
        help="fraction of the requests whose client disconnects (default: 0.2)",
    )  # fmt: skip
    parser.add_argument("--kills", type=int, default=5, metavar="COUNT", help="default: 5")
    parser.add_argument(
        "--kill-interval-s", type=float, default=15, metavar="SECONDS", help="time between two kills (default: 15)"
    )
    return parser.parse_args()


def run_server(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts the server, sends the requests and stops it; returns the results."""
    classifier = build_classifier()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        classifier.save(path)
        options = ["--port", "0", "--backend", "torch", "--no-explain"]
        command = [sys.executable, "-m", "vitrail", "serve", str(path), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            log = ServerLog(process)
            try:
                port = int(log.wait("listening")["url"].rstrip("/").rpartition(":")[2])
                log.wait("ready")
                results = asyncio.run(send_requests(port, classifier, log, arguments))
                status = Path(f"/proc/{process.pid}/status").read_text()
                results["megabytes_at_the_end"] = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) // 1024
            finally:
                process.send_signal(signal.SIGTERM)
    return results


def main() -> int:
    """Runs the benchmark and prints JSON; returns 1 for a faulty response or a missing kill."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    results = run_server(arguments)
    print(json.dumps(results, indent=1))
    is_short = len(results["seconds_from_kill_to_ready"]) < arguments.kills
    if is_short:
        print(
            "the requests ended before the last kill: use more --requests or a shorter --kill-interval-s",
            file=sys.stderr,
        )
    return int(is_short or any(results.get(fault) for fault in ("lost", "wrong", "duplicated")))


if __name__ == "__main__":
    sys.exit(main())
