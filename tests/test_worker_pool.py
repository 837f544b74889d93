"""Worker processes that fail to start or hang, and clients that start a request and do not finish it."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

import vitrail
from serving import TIMEOUT_S
from vitrail.errors import UsageError, VitrailError
from vitrail.serving import server as server_module
from vitrail.serving import worker_process
from vitrail.serving.fork_server import ForkServer, ModelSource
from vitrail.serving.http_protocol import make_protocol
from vitrail.serving.messages import send_message
from vitrail.serving.metrics import Metrics
from vitrail.serving.model_info import describe_model
from vitrail.serving.scheduler import Scheduler
from vitrail.serving.settings import Settings
from vitrail.serving.worker import WorkerConfig, make_error_document
from vitrail.serving.worker_pool import WorkerPool
from vitrail.serving.worker_process import Worker, WorkerCrashed

pytestmark = pytest.mark.newest


class SleepingWorkers:
    """Starts processes that send their pid and these messages, and then do nothing."""

    def __init__(self, *messages: dict[str, Any]):
        self.messages = messages
        self.started: list[tuple[subprocess.Popen[bytes], socket.socket]] = []

    def __enter__(self) -> "SleepingWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self.started:
            connection.close()
            process.kill()
            process.wait()

    async def spawn(self) -> socket.socket:
        connection, theirs = socket.socketpair()
        connection.setblocking(False)
        with theirs:
            process = subprocess.Popen(["sleep", "600"], pass_fds=[theirs.fileno()])
            self.started.append((process, connection))
            for message in ({"pid": process.pid}, *self.messages):
                send_message(theirs, message)
        return connection


@contextmanager
def exhaust_file_descriptors() -> Iterator[None]:
    """Leaves this process without free file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(1))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_pool_retries_after_the_system_refused_a_process(capfd: pytest.CaptureFixture[str]):
    attempts: list[bool] = []

    async def scenario(workers: SleepingWorkers) -> None:
        async def spawn() -> socket.socket:
            attempts.append(True)
            with exhaust_file_descriptors() if len(attempts) == 1 else nullcontext():
                return await workers.spawn()

        pool = WorkerPool("m", "predict", spawn, Scheduler(1, 8), Metrics())
        with pytest.raises(VitrailError, match="m cannot be started: .*Too many open files"):
            await pool.open()
        async with asyncio.timeout(TIMEOUT_S):
            while not pool.is_ready:
                await asyncio.sleep(0.01)
        await pool.close()

    with SleepingWorkers({"batch_size": 1}) as workers:
        asyncio.run(scenario(workers))
    assert len(attempts) == 2
    assert '"worker_not_started"' in capfd.readouterr().err


@pytest.mark.parametrize(
    "error", [UsageError("there is no device 'gpu' here", "leave it out"), VitrailError("damaged")]
)
def test_the_error_of_a_failed_start_keeps_its_type(error: VitrailError):
    """`serve m --device gpu` is a usage error with exit code 2."""

    async def scenario(workers: SleepingWorkers) -> None:
        pool = WorkerPool("m", "predict", workers.spawn, Scheduler(1, 8), Metrics())
        with pytest.raises(VitrailError, match=error.sentence) as caught:
            await pool.open()
        await pool.close()
        assert type(caught.value) is type(error)

    with SleepingWorkers(make_error_document(error)) as workers:
        asyncio.run(scenario(workers))


def test_a_process_that_hangs_during_its_start_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_process, "MAX_BATCH_S", 0.2)

    async def scenario(workers: SleepingWorkers) -> None:
        with pytest.raises(WorkerCrashed):
            await Worker.start(workers.spawn)
        process, connection = workers.started[0]
        assert await asyncio.to_thread(process.wait, 20) == -signal.SIGKILL
        async with asyncio.timeout(TIMEOUT_S):
            while connection.fileno() != -1:
                await asyncio.sleep(0.01)

    with SleepingWorkers() as workers:
        asyncio.run(scenario(workers))


class BrokenForkServer(ForkServer):
    """Raises an unexpected error."""

    async def spawn(self, config: WorkerConfig) -> socket.socket:
        raise RuntimeError("unexpected")


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_an_unexpected_error_during_the_start_ends_the_server(clf: vitrail.Classifier, backend: Any):
    listener = server_module.open_listener("127.0.0.1", 0)
    fork_server = BrokenForkServer([], listener, 0)
    infos = [describe_model("m", 0, ModelSource("m"), clf)]
    settings = Settings(backend=backend, processes=1, explain=False)
    with listener, pytest.raises(VitrailError, match="cannot be started: .*unexpected"):
        asyncio.run(server_module._serve(infos, fork_server, settings, listener, WorkerConfig(0, 1), None, "127.0.0.1"))


def test_a_client_that_does_not_finish_its_request_is_disconnected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vitrail.serving.http_protocol.KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr("vitrail.serving.http_protocol.HEADER_TIMEOUT_S", 0.1)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def scenario(listener: socket.socket) -> None:
        admission = SimpleNamespace(max_connections=8, decide=lambda *headers: None)
        protocol = make_protocol(admission)  # type: ignore[arg-type]
        server = uvicorn.Server(uvicorn.Config(application, http=protocol, lifespan="off", log_config=None))
        server_task = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200" in await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(2) == b"ok"
            writer.write(b"G")
            assert await reader.read() == b""  # the server has closed the connection
        writer.close()
        server.should_exit = True
        await server_task

    with server_module.open_listener("127.0.0.1", 0) as listener:
        asyncio.run(scenario(listener))
