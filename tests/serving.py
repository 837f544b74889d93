"""Helpers for tests of the server: a server process, and clients that are slow or disconnect early."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUEUE_SIZE, MAX_BATCH_SIZE = 8, 4  # small, so that tests can fill the queue and a batch
TIMEOUT_S = 120.0  # for any single step, also on a busy machine


@dataclass
class Reply:
    """The response of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningServer:
    """Runs `vitrail serve` with these arguments and collects its log lines."""

    arguments: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    quiet_host: str | None = None  # the address of a server that runs with --quiet and does not print its URL
    log_lines: list[dict[str, Any]] = field(default_factory=list)
    other_lines: list[str] = field(default_factory=list)

    def __enter__(self) -> "RunningServer":
        options = ["--port", "0"]
        if self.quiet_host is not None:
            with socket.create_server((self.quiet_host, 0)) as free:
                self.host, self.port = free.getsockname()
            options = ["--port", str(self.port), "--host", self.host, "--quiet"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vitrail", "serve", *map(str, self.arguments), *options, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **self.env},
            start_new_session=True,
        )  # fmt: skip
        self.reader_thread = threading.Thread(target=self._read_log, daemon=True)
        self.reader_thread.start()
        try:
            if self.quiet_host is not None:
                self.wait_for(self.is_ready)
                return self
            url = self.wait_for(lambda: next((event["url"] for event in self.select_events("listening")), None))
            self.host, port = url.removeprefix("http://").rstrip("/").rsplit(":", 1)
            self.host, self.port = self.host.replace("0.0.0.0", "127.0.0.1"), int(port)
            self.wait_for(lambda: self.select_events("ready"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def is_ready(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return self.get("/v2/health/ready").status == 200
        return False

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log_lines.append(json.loads(line))
            except ValueError:
                self.other_lines.append(line)

    def select_events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in self.log_lines
            if line["event"] == name and all(line.get(key) == value for key, value in fields.items())
        ]

    def wait_for(self, get_value: Callable[[], Any]) -> Any:
        stop = time.monotonic() + TIMEOUT_S
        while not (value := get_value()):
            assert time.monotonic() < stop, (self.log_lines[-5:], self.other_lines)
            assert self.process.poll() is None, (self.log_lines[-5:], self.other_lines)
            time.sleep(0.01)
        return value

    def find_worker(self, task: str = "predict", model: str = "colors") -> int:
        """Returns the pid of the current worker for a task."""
        return int(self.select_events("worker_ready", task=task, model=model)[-1]["pid"])

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def send_raw(self, data: bytes, timeout_s: float = TIMEOUT_S) -> bytes:
        """Sends bytes unchanged; returns everything that the server sends until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                reply = b""
                while chunk := connection.recv(65536):
                    reply += chunk
            except (ConnectionError, OSError):
                return b""
            return reply

    def read_metric(self, name: str) -> float:
        """Returns the sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))

    def measure_memory(self) -> int:
        """Returns the resident memory of the server process in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))

    def stop(self) -> dict[str, Any]:
        """Stops the server with SIGTERM; returns the JSON that it prints at the end."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        assert self.process.wait(TIMEOUT_S) == 0
        self.reader_thread.join()
        return json.loads(output)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with its workers, which may be making a page
        self.process.wait()
        self.reader_thread.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


@dataclass
class ForkedWorkers:
    """Forks worker processes without a fork server: `work` runs in each, with its end of a connection."""

    work: Callable[[socket.socket], None]
    pids: list[int] = field(default_factory=list)

    async def spawn(self) -> socket.socket:
        """Returns a connection to a new process."""
        ours, theirs = socket.socketpair()
        if (pid := os.fork()) == 0:
            ours.close()
            try:
                self.work(theirs)
            finally:
                os._exit(0)
        self.pids.append(pid)
        theirs.close()
        ours.setblocking(False)
        return ours

    def kill(self) -> None:
        """Ends all processes."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@dataclass
class PendingRequest:
    """A request that runs in a thread."""

    reply: Reply | None = None
    error: Exception | None = None
    thread: threading.Thread | None = None

    def result(self) -> Reply:
        assert self.thread is not None
        self.thread.join(TIMEOUT_S)
        assert self.reply is not None, self.error or "no answer"
        return self.reply


def start_request(server: RunningServer, path: str, body: bytes, **headers: str) -> PendingRequest:
    """Sends a request in a thread; does not wait for the response."""
    pending = PendingRequest()

    def work() -> None:
        try:
            pending.reply = server.post(path, body, **headers)
        except Exception as error:
            pending.error = error

    pending.thread = threading.Thread(target=work, daemon=True)
    pending.thread.start()
    return pending


def send_without_waiting(server: RunningServer, path: str, body: bytes) -> socket.socket:
    """Sends a whole request and returns the socket, which the caller closes before the response."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection
