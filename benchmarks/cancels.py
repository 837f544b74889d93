"""100,000 requests to a real server, each with its own image, while clients leave at random and workers are killed.

    python -m benchmarks.cancels

Every answer is compared with the classifier's own logits for that image: a lost, doubled or swapped one is counted, and
is an exit code of 1, and so are fewer kills than were asked for. Who is refused (503) asks again. The time from each
kill to `ready` is measured.
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

SIDE, PIECE = 16, 500
PATIENCE = 60.0


def classifier() -> Classifier:
    """Small, so that the server and not the model is at work; random, so that no two images are answered alike."""
    torch.manual_seed(0)
    vit = vitrail.ViT(
        vitrail.ViTConfig(width=64, depth=2, heads=2, mlp_width=128, patch=4, image_size=SIDE, classes=10)
    )
    for parameter in vit.head.parameters():
        torch.nn.init.normal_(parameter)
    vit.eval().requires_grad_(False)
    return Classifier(vit, tuple("abcdefghij"), Preprocess(image_size=(SIDE, SIDE)))


def piece(clf: Classifier, number: int, size: int) -> list[tuple[bytes, np.ndarray]]:
    """So many images that come in no other piece, as files, each with its logits."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8)
    logits = clf.logits(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()).numpy()
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=0)
        files.append(buffer.getvalue())
    return list(zip(files, logits, strict=True))


class Client:
    """One connection at a time, closed in the middle of things where chance says so."""

    def __init__(self, port: int, chance: random.Random, leaving: float, counts: Counter[str]):
        self.port, self.chance, self.leaving, self.counts = port, chance, leaving, counts
        self.reader: Any = None
        self.writer: Any = None

    async def one(self, file: bytes, expected: np.ndarray) -> None:
        """One image, until it is answered or given up on purpose."""
        if self.chance.random() < self.leaving:
            await self.leave(file)
            return
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    status, logits = await self.ask(file)
            except TimeoutError:
                self.counts["lost"] += 1
                self.drop()
                return
            except (OSError, asyncio.IncompleteReadError):
                self.counts["lost"] += 1
                self.drop()
                return
            if status == 503:
                self.counts["refused, and asked again"] += 1
                await asyncio.sleep(0.02)
                continue
            right = status == 200 and np.abs(logits - expected).max() < 1e-3
            self.counts["answered" if right else "wrong"] += 1
            return

    async def ask(self, file: bytes) -> tuple[int, np.ndarray]:
        """Status and logits."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        if self.reader._buffer:
            self.counts["doubled"] += 1
        self.writer.write(request(file))
        head = await self.reader.readuntil(b"\r\n\r\n")
        body = await self.reader.readexactly(int(re.search(rb"\r\ncontent-length: (\d+)", head.lower()).group(1)))
        status = int(head[9:12])
        if status != 200:
            return status, np.zeros(10)
        text = int(re.search(rb"inference-header-content-length: (\d+)", head.lower()).group(1))
        return status, np.frombuffer(body[text : text + 40], "<f4")

    async def leave(self, file: bytes) -> None:
        """Sends a request, or a part of one, and goes."""
        self.counts["left"] += 1
        self.drop()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            data = request(file)
            writer.write(data if self.chance.random() < 0.8 else data[: self.chance.randrange(len(data))])
            await writer.drain()
            await asyncio.sleep(self.chance.choice([0, 0.0005, 0.002, 0.01, 0.05]))
            writer.close()
        except OSError:
            self.counts["could not even leave"] += 1

    def drop(self) -> None:
        """Closes the connection."""
        if self.writer is not None:
            self.writer.close()
            self.reader = self.writer = None


def request(file: bytes) -> bytes:
    """The protocol's raw form."""
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: 0\r\n"
    return f"{head}Content-Length: {len(file)}\r\n\r\n".encode() + file


def ready(port: int) -> bool:
    """What a load balancer would be told."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


class Log:
    """The server's log lines, of which only those about workers are kept."""

    def __init__(self, process: subprocess.Popen[str]):
        self.kept: list[dict[str, Any]] = []
        assert process.stderr is not None
        self.lines = process.stderr
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        """Until the server has gone."""
        with suppress(ValueError):  # closed where the server has ended
            for line in self.lines:
                if '"event": "request"' not in line and line.startswith("{"):
                    self.kept.append(json.loads(line))

    def wait(self, event: str, after: int = 0) -> dict[str, Any]:
        """The first such line after so many others; raises `TimeoutError` where none comes."""
        stop = time.monotonic() + PATIENCE
        while time.monotonic() < stop:
            for each in self.kept[after:]:
                if each["event"] == event:
                    return each
            time.sleep(0.005)
        raise TimeoutError(f"the server did not say {event} in {PATIENCE:g} s")


async def killer(port: int, log: Log, kills: int, every: float, times: list[float]) -> None:
    """Kills the worker again and again; notes how long the server was not ready."""
    for _ in range(kills):
        await asyncio.sleep(every)
        seen = len(log.kept)
        pid = next(each["pid"] for each in reversed(log.kept) if each["event"] == "worker_ready")
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(log.wait, "worker_ready", seen)
        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(ready, port):
                await asyncio.sleep(0.01)
        times.append(time.perf_counter() - began)


async def everything(port: int, clf: Classifier, log: Log, arguments: argparse.Namespace) -> dict[str, Any]:
    """All requests, and the kills among them."""
    counts: Counter[str] = Counter()
    times: list[float] = []
    left = asyncio.Queue[tuple[bytes, np.ndarray] | None](2 * PIECE)

    async def supply() -> None:
        for at in range(0, arguments.requests, PIECE):
            for each in await asyncio.to_thread(piece, clf, at, min(PIECE, arguments.requests - at)):
                await left.put(each)
        for _ in range(arguments.clients):
            await left.put(None)

    async def work(number: int) -> None:
        client = Client(port, random.Random(number), arguments.leaving, counts)
        while (given := await left.get()) is not None:
            await client.one(*given)
        client.drop()

    began = time.perf_counter()
    killing = asyncio.create_task(killer(port, log, arguments.kills, arguments.every, times))
    await asyncio.gather(supply(), *(work(number) for number in range(arguments.clients)))
    killing.cancel()
    with suppress(asyncio.CancelledError):
        await killing  # what went wrong in it is raised here
    return {**counts, "seconds": time.perf_counter() - began, "seconds_from_kill_to_ready": times}


def main() -> int:
    """The options; 1 where an answer was lost, doubled or swapped, or a kill is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--leaving", type=float, default=0.2, help="part of the requests whose client goes (0.2)")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--every", type=float, default=15, help="seconds between two kills (15)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clf = classifier()
    with tempfile.TemporaryDirectory() as folder:
        clf.save(Path(folder) / "m.safetensors")
        command = [
            sys.executable,
            "-m",
            "vitrail",
            "serve",
            f"{folder}/m.safetensors",
            "--port",
            "0",
            "--backend",
            "torch",
        ]
        with subprocess.Popen([*command, "--no-explain"], stderr=subprocess.PIPE, text=True) as process:
            log = Log(process)
            try:
                port = int(log.wait("listening")["url"].rstrip("/").rpartition(":")[2])
                log.wait("ready")
                found = asyncio.run(everything(port, clf, log, arguments))
                status = Path(f"/proc/{process.pid}/status").read_text()
                found["megabytes_at_the_end"] = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) // 1024
            finally:
                process.send_signal(signal.SIGTERM)
    print(json.dumps(found, indent=1))
    if short := len(found["seconds_from_kill_to_ready"]) < arguments.kills:
        print("the requests ended before the kills: ask for more --requests, or a kill more often", file=sys.stderr)
    return 1 if short or found.get("lost") or found.get("wrong") or found.get("doubled") else 0


if __name__ == "__main__":
    sys.exit(main())
