"""What becomes of a server whose processes will not start, and of clients who begin a request and do not go on."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import uvicorn

import vitrail
from serving import TIMEOUT_S
from vitrail.errors import UsageError, VitrailError
from vitrail.serving import server as servers
from vitrail.serving import worker_pool as lanes
from vitrail.serving.endpoint import describe_model
from vitrail.serving.fork_server import ForkServer, ModelSource
from vitrail.serving.messages import send_message
from vitrail.serving.metrics import Metrics
from vitrail.serving.scheduler import Scheduler
from vitrail.serving.settings import Settings
from vitrail.serving.worker import WorkerConfig, make_error_document
from vitrail.serving.worker_pool import Worker, WorkerCrashed, WorkerPool


class SleepingWorkers:
    """Starts processes that have said this much, and say no more."""

    def __init__(self, *hello: dict[str, Any]):
        self.hello = hello
        self.started: list[tuple[subprocess.Popen[bytes], socket.socket]] = []

    def __enter__(self) -> "SleepingWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        for process, ours in self.started:
            ours.close()
            process.kill()
            process.wait()

    def spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(["sleep", "600"], pass_fds=[theirs.fileno()])
            self.started.append((process, ours))
            for each in ({"pid": process.pid}, *self.hello):
                send_message(theirs, each)
        return ours


@contextmanager
def exhaust_file_descriptors() -> Iterator[None]:
    """Inside, this process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(1))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lane_tries_again_where_the_system_gave_nothing(capfd: pytest.CaptureFixture[str]):
    tried: list[bool] = []

    async def scenario(workers: SleepingWorkers) -> None:
        def spawn() -> socket.socket:
            tried.append(True)
            with exhaust_file_descriptors() if len(tried) == 1 else nullcontext():
                return workers.spawn()

        lane = WorkerPool("m", "predict", spawn, Scheduler(1, 8), Metrics())
        with pytest.raises(VitrailError, match="m cannot be started: .*Too many open files"):
            await lane.open()
        async with asyncio.timeout(TIMEOUT_S):
            while not lane.is_ready:
                await asyncio.sleep(0.01)
        await lane.close()

    with SleepingWorkers({"batch": 1}) as workers:
        asyncio.run(scenario(workers))
    assert len(tried) == 2
    assert '"worker_not_started"' in capfd.readouterr().err


@pytest.mark.parametrize(
    "error", [UsageError("there is no device 'gpu' here", "leave it out"), VitrailError("damaged")]
)
def test_what_kept_a_process_from_starting_keeps_its_kind(error: VitrailError):
    """`serve m --device gpu` is wrong use, exit code 2."""

    async def scenario(workers: SleepingWorkers) -> None:
        lane = WorkerPool("m", "predict", workers.spawn, Scheduler(1, 8), Metrics())
        with pytest.raises(VitrailError, match=error.sentence) as caught:
            await lane.open()
        await lane.close()
        assert type(caught.value) is type(error)

    with SleepingWorkers(make_error_document(error)) as workers:
        asyncio.run(scenario(workers))


def test_a_process_that_is_stuck_while_it_starts_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "MAX_BATCH_S", 0.2)

    async def scenario(workers: SleepingWorkers) -> None:
        with pytest.raises(WorkerCrashed):
            await Worker.start(workers.spawn)
        process, ours = workers.started[0]
        assert await asyncio.to_thread(process.wait, 20) == -signal.SIGKILL
        async with asyncio.timeout(TIMEOUT_S):
            while ours.fileno() != -1:
                await asyncio.sleep(0.01)

    with SleepingWorkers() as workers:
        asyncio.run(scenario(workers))


class BrokenForkServer(ForkServer):
    """A nursery with a mistake in it."""

    def spawn(self, duty: WorkerConfig) -> socket.socket:
        raise RuntimeError("a mistake")


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_mistake_while_starting_ends_the_server(clf: vitrail.Classifier, backend: Any):
    listener = servers.open_listener("127.0.0.1", 0)
    nursery = BrokenForkServer([], listener, 0)
    models = [describe_model("m", 0, ModelSource("m"), clf)]
    settings = Settings(backend=backend, processes=1, explain=False)
    with listener, pytest.raises(VitrailError, match="cannot be started: .*a mistake"):
        asyncio.run(servers._serve(models, nursery, settings, listener, WorkerConfig(0, 1), None, "127.0.0.1"))


def test_who_begins_a_second_request_and_does_not_go_on_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(servers, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr(servers, "HEADER_TIMEOUT_S", 0.1)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def scenario(listener: socket.socket) -> None:
        server = uvicorn.Server(uvicorn.Config(application, http=servers.HttpProtocol, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200" in await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(2) == b"ok"
            writer.write(b"G")
            assert await reader.read() == b""  # the server has closed
        writer.close()
        server.should_exit = True
        await serving

    with servers.open_listener("127.0.0.1", 0) as listener:
        asyncio.run(scenario(listener))
