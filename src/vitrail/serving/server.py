"""The process that listens: signals, the drain, slow connections, and everything started and ended in order."""

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import socket
import traceback
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vitrail.errors import UsageError, VitrailError
from vitrail.machine import count_cores
from vitrail.serving.app import make_app
from vitrail.serving.decoding import ImageDecoder
from vitrail.serving.endpoint import Endpoint, choose_names, describe_model
from vitrail.serving.fork_server import ForkServer, ModelSource, start_fork_server
from vitrail.serving.logs import JsonLinesHandler, log
from vitrail.serving.metrics import Metrics
from vitrail.serving.middleware import LOCAL_HOSTS, AccessMiddleware
from vitrail.serving.service import Service
from vitrail.serving.settings import Settings
from vitrail.serving.web_page import reason_for_plain_page
from vitrail.serving.worker import WorkerConfig

HEADER_TIMEOUT_S = 10.0  # seconds in which a new connection must have sent the head of a request
MAX_DEFAULT_WORKERS = 4  # for each model, unless more are asked for
KEEP_ALIVE_S = 30  # seconds that a connection may stay open without a request
SHUTDOWN_GRACE_S = 5.0  # seconds beyond the deadline that a stop waits for what was accepted


class Protocol(HttpToolsProtocol):
    """uvicorn's, with a limit on how long the head of a request may take."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.patience = self.loop.call_later(HEADER_TIMEOUT_S, transport.close)

    def on_headers_complete(self) -> None:
        self.patience.cancel()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.patience.cancel()
        if self.cycle.response_complete:  # else the next request is here, and being answered
            self.patience = self.loop.call_later(KEEP_ALIVE_S + HEADER_TIMEOUT_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self.patience.cancel()
        super().connection_lost(exc)


class Server(uvicorn.Server):
    """uvicorn's, stopped in two steps: first nobody is asked to come back, then nobody new is let in."""

    def __init__(self, config: uvicorn.Config, door: AccessMiddleware, drain: float):
        super().__init__(config)
        self.door = door
        self.drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the drain, the second ends it, the third does not wait for anybody."""
        if not self.door.draining:
            self.door.draining = True
            log("draining", signal=signal.Signals(sig).name, seconds=self.drain)
            asyncio.get_running_loop().call_later(self.drain, self.stop)
        elif not self.should_exit:
            self.should_exit = True
        else:
            self.force_exit = True

    def stop(self) -> None:
        """No new connections; those that are there finish what they have."""
        self.should_exit = True


def serve(
    sources: Sequence[ModelSource],
    names: Sequence[str] = (),
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | None = None,
    key: str | None = None,
    keyless: bool = False,
) -> dict[str, Any]:
    """Serves until SIGTERM or Ctrl-C; returns what was done.

    Must be called in a process that has started no thread and run no model. Raises `UsageError` for what does not fit
    together, `VitrailError` where a model cannot be loaded or run.
    """
    settings = settings or Settings()
    if key is None and not keyless and not is_loopback(host):
        raise UsageError(
            f"whoever reaches {host} could use the models", "give --api-key-file FILE, or --no-api-key if that is meant"
        )
    torch.set_num_threads(1)  # for the fork, and for the threads that decode
    named = choose_names([source.model for source in sources], names)
    classifiers = [source.load() for source in sources]
    models = [describe_model(name, i, sources[i], classifiers[i]) for i, name in enumerate(named)]
    listener = listen(host, port)
    for name, classifier in zip(named, classifiers, strict=True):
        if (why := reason_for_plain_page(classifier)) is not None:
            log("plain_page", model=name, why=why)
    nursery = start_fork_server(sources, classifiers, close=[listener])
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    share = max(1, count_cores() // len(models))
    workers = settings.processes or (1 if on_gpu(device) else min(share, MAX_DEFAULT_WORKERS))
    duty = WorkerConfig(0, settings.threads or max(1, share // workers), device)
    settings = replace(settings, processes=workers)
    logging.basicConfig(level=logging.WARNING, handlers=[JsonLinesHandler()], force=True)
    try:
        return asyncio.run(_serve(models, nursery, settings, listener, duty, key, host))
    finally:
        nursery.close()


async def _serve(
    models: Sequence[Any], nursery: ForkServer, settings: Settings, listener: socket.socket, duty: WorkerConfig,
    key: str | None, host: str,
) -> dict[str, Any]:  # fmt: skip
    metrics = Metrics()
    reader = ImageDecoder(settings, metrics)
    served = {
        each.name: Endpoint(
            each, nursery, settings, metrics, reader, WorkerConfig(**{**vars(duty), "model": each.number})
        )
        for each in models
    }
    trouble: list[VitrailError] = []

    async def start() -> None:
        try:
            for each in served.values():
                await each.open()
            log("ready", models=list(served), batch={name: each.batch for name, each in served.items()})
        except VitrailError as error:
            trouble.append(error)
            server.should_exit = True
        except Exception as error:  # else it would listen for ever and never be ready
            log("not_started", traceback=traceback.format_exc())
            trouble.append(VitrailError(f"the models cannot be started: {error!r}"))
            server.should_exit = True

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start())
        yield
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        for each in served.values():
            await each.close()
        reader.close()

    service = Service(served, settings, metrics, reader)
    app = make_app(service, lifespan)
    address, port = listener.getsockname()[:2]
    name = f"[{address}]" if ":" in address else address
    door = AccessMiddleware(app, metrics, key, hosts={*LOCAL_HOSTS, name} if is_loopback(host) else set())
    service.is_draining = lambda: door.draining
    config = uvicorn.Config(
        door, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.timeout_s + SHUTDOWN_GRACE_S),
    )  # fmt: skip
    server = Server(config, door, settings.shutdown_delay_s)
    url = f"http://{name}:{port}/"
    log("listening", url=url, models=list(served))
    await server.serve(sockets=[listener])
    if trouble:
        raise trouble[0]
    log("stopped", requests=door.answered)
    return {"url": url, "models": list(served), "requests": door.answered}


def on_gpu(device: str | None) -> bool:
    """Whether workers will run on an accelerator, found out without waking it: a fork would not survive that."""
    if device is not None:
        return not device.startswith("cpu")
    return Path("/dev/nvidia0").exists() or torch.backends.mps.is_available()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `UsageError` where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}", "choose another --port or --host") from None
    listener.setblocking(False)
    return listener
