"""Clients that load a server over HTTP: closed loop (a fixed number of clients) and open loop (a fixed rate).

They cost little CPU, because they share the cores with the server: one thread, requests that are prepared, connections
that are reused, and only as much of HTTP as these servers send. `python -m benchmarks.load_client RATE` measures them
alone: with a server that refuses every request and does nothing else.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import re
import resource
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(eq=False)
class Request:
    """A request: when it was due, and what became of it. Status 0: no answer."""

    due: float
    status: int = 0
    ended: float = 0.0


class Connection(asyncio.Protocol):
    """A connection with at most one request at a time; calls `on_answer` after each."""

    def __init__(self, on_answer: Callable[["Connection", Request], None]):
        self.on_answer = on_answer
        self.pending: Request | None = None
        self.received = b""
        self.transport: asyncio.Transport

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: Request, data: bytes) -> None:
        self.pending = request
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        data = self.received = self.received + data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            return
        length = LENGTH.search(data, 0, head)
        if len(data) < head + 4 + (int(length[1]) if length else 0):
            return
        self.received = b""
        if CLOSE.search(data, 0, head):
            self.transport.close()
        self.finish(int(data[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.finish(0)

    def finish(self, status: int) -> None:
        if (request := self.pending) is not None:
            self.pending = None
            request.status, request.ended = status, time.monotonic()
            self.on_answer(self, request)


@dataclass
class Load:
    """Sends requests to a port and collects them in `finished`."""

    port: int
    bodies: Sequence[bytes]  # complete requests, which are sent in turn
    finished: list[Request] = field(default_factory=list)
    idle: list[Connection] = field(default_factory=list)
    sent: deque[tuple[Request, Connection]] = field(default_factory=deque)
    count: int = 0

    def next_body(self) -> bytes:
        self.count += 1
        return self.bodies[self.count % len(self.bodies)]

    async def connect(self, on_answer: Callable[[Connection, Request], None]) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(on_answer), "127.0.0.1", self.port)
        return connection

    async def run_closed(self, clients: int, seconds: float) -> None:
        """Keeps `clients` requests under way for some time."""
        end = time.monotonic() + seconds

        def repeat(connection: Connection, request: Request) -> None:
            self.finished.append(request)
            if time.monotonic() < end and connection.is_open:
                connection.send(Request(time.monotonic()), self.next_body())

        connections = [await self.connect(repeat) for _ in range(clients)]
        for connection in connections:
            connection.send(Request(time.monotonic()), self.next_body())
        await asyncio.sleep(end - time.monotonic())
        for connection in connections:
            connection.pending = None
            connection.transport.abort()

    async def run_open(self, rate: float, seconds: float, patience_s: float) -> None:
        """Sends requests at random times (Poisson), whether or not earlier ones were answered.

        A request without an answer is given up after `patience_s`.
        """
        rng = random.Random(0)
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        due = started = time.monotonic()

        async def send_over_new_connection(request: Request) -> None:
            try:
                connection = await self.connect(self.keep_idle)
            except OSError:
                request.ended = time.monotonic()
                self.finished.append(request)
            else:
                self.start(connection, request)

        while due < started + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            now = time.monotonic()
            self.give_up(now - patience_s)
            while due <= now and due < started + seconds:
                request = Request(due)
                if connection := self.pop_idle():
                    self.start(connection, request)
                else:
                    task = loop.create_task(send_over_new_connection(request))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                due += rng.expovariate(rate)
        while tasks or any(connection.pending for _, connection in self.sent):
            await asyncio.sleep(0.05)
            self.give_up(time.monotonic() - patience_s)
        for connection in self.idle:
            connection.transport.close()

    def start(self, connection: Connection, request: Request) -> None:
        connection.send(request, self.next_body())
        self.sent.append((request, connection))

    def keep_idle(self, connection: Connection, request: Request) -> None:
        self.finished.append(request)
        self.idle.append(connection)

    def pop_idle(self) -> Connection | None:
        while self.idle:
            if (connection := self.idle.pop()).is_open:
                return connection
        return None

    def give_up(self, due: float) -> None:
        """Closes connections whose request was due before this time."""
        while self.sent and (self.sent[0][0].due < due or self.sent[0][0].ended):
            request, connection = self.sent.popleft()
            if connection.pending is request:
                connection.transport.abort()
                connection.finish(0)


def allow_many_connections() -> None:
    """Raises the limit on open files of this process as far as the system allows."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def measure_closed(port: int, bodies: Sequence[bytes], clients: int, warmup_s: float, seconds: float) -> float:
    """Returns answers with status 200 per second, in the `seconds` after the warm-up."""
    load = Load(port, bodies)
    started = time.monotonic() + warmup_s
    asyncio.run(load.run_closed(clients, warmup_s + seconds))
    return sum(each.status == 200 and each.ended >= started for each in load.finished) / seconds


def measure_open(port: int, bodies: Sequence[bytes], rate: float, seconds: float, timeout_s: float) -> dict[str, Any]:
    """Returns how the requests of the second half of the time were answered."""
    allow_many_connections()
    load = Load(port, bodies)
    started, cpu_started = time.monotonic(), time.process_time()
    asyncio.run(load.run_open(rate, seconds, timeout_s + 1))
    cpu = time.process_time() - cpu_started
    counted = [each for each in load.finished if each.due >= started + seconds / 2]
    waits = [each.ended - each.due for each in counted if each.status == 200]
    in_time = sorted(wait for wait in waits if wait <= timeout_s)
    refused = sorted(each.ended - each.due for each in counted if each.status == 503)
    return {
        "requests": len(counted),
        "in_time_per_second": len(in_time) / (seconds / 2),
        "p50": in_time[len(in_time) // 2] if in_time else None,
        "p50_refused": refused[len(refused) // 2] if refused else None,
        "p99_refused": refused[int(len(refused) * 0.99)] if refused else None,
        "too_late": len(waits) - len(in_time),
        "statuses": dict(Counter(str(each.status) for each in counted)),
        "client_cpu_ms": 1000 * cpu / max(1, len(load.finished)),
    }  # fmt: skip


class Refuser(asyncio.Protocol):
    """The cheapest server: refuses each request when it has arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.missing = transport, 0

    def data_received(self, data: bytes) -> None:
        if self.missing == 0:
            head = data.index(b"\r\n\r\n")
            self.missing = head + 4 + int(LENGTH.search(data, 0, head)[1])
        self.missing -= len(data)
        if self.missing == 0:
            self.transport.write(REFUSAL)


def run_refuser(listener: socket.socket) -> None:
    allow_many_connections()

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Refuser, sock=listener, backlog=2048)
        await server.serve_forever()

    asyncio.run(serve())


def main() -> None:
    """Measures the clients alone."""
    from benchmarks.serving import encode_request, make_photos

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rates", type=float, nargs="+", help="requests per second")
    arguments = parser.parse_args()
    bodies = [encode_request("vitrail serve", file) for file in make_photos(count=16)]
    for rate in arguments.rates:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        process = multiprocessing.get_context("fork").Process(target=run_refuser, args=[listener], daemon=True)
        process.start()
        with contextlib.suppress(KeyboardInterrupt):
            print(rate, measure_open(listener.getsockname()[1], bodies, rate, 6, 4))
        process.kill()


if __name__ == "__main__":
    main()
