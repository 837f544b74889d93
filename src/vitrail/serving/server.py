"""The server process: startup and shutdown of all parts, and signals."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import resource
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from vitrail.errors import UsageError, VitrailError
from vitrail.machine import count_cores
from vitrail.serving.admission import Admission
from vitrail.serving.app import make_app
from vitrail.serving.decoding import ImageDecoder
from vitrail.serving.endpoint import Endpoint
from vitrail.serving.fork_server import ForkServer, ModelSource, start_fork_server
from vitrail.serving.http_protocol import KEEP_ALIVE_S, make_protocol
from vitrail.serving.logs import JsonLinesHandler, flush, log, start_writer, warn
from vitrail.serving.metrics import Metrics
from vitrail.serving.middleware import LOCAL_HOSTS, AccessMiddleware
from vitrail.serving.model_info import ModelInfo, choose_names, describe_model
from vitrail.serving.origins import allow_origins, check_hosts, check_origins
from vitrail.serving.service import Service
from vitrail.serving.settings import Settings
from vitrail.serving.web_page import reason_for_plain_page
from vitrail.serving.worker import WorkerConfig

MAX_DEFAULT_WORKERS = 4  # worker processes per model, unless the settings say otherwise
SHUTDOWN_GRACE_S = 5.0  # time to finish accepted requests at shutdown, beyond the request timeout


class Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown in two steps.

    First it reports that it is not ready and closes connections after each response. After `shutdown_delay_s` it stops
    accepting connections.
    """

    def __init__(self, config: uvicorn.Config, access: AccessMiddleware, shutdown_delay_s: float):
        super().__init__(config)
        self.access = access
        self.shutdown_delay_s = shutdown_delay_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leaves a signal to the event loop.

        A handler runs between any two instructions of the program. The program may be adding a line to the log, and a
        line from here would wait forever for the lock of the queue; or it may be sorting its timers, and a timer from
        here would be lost.
        """
        asyncio.get_running_loop().call_soon_threadsafe(self.handle_signal, sig)

    def handle_signal(self, sig: int) -> None:
        """Starts the shutdown at signal one, skips the delay at signal two, drops running requests at signal three."""
        if not self.access.draining:
            self.access.draining = True
            log("draining", signal=signal.Signals(sig).name, seconds=self.shutdown_delay_s)
            asyncio.get_running_loop().call_later(self.shutdown_delay_s, self.stop)
        elif not self.should_exit:
            self.should_exit = True
        else:
            self.force_exit = True

    def stop(self) -> None:
        """Stops accepting connections; running requests are still answered."""
        self.should_exit = True


def serve(
    sources: Sequence[ModelSource],
    names: Sequence[str] = (),
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | None = None,
    api_key: str | None = None,
    allow_no_api_key: bool = False,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
) -> dict[str, Any]:
    """Serves until SIGTERM or Ctrl-C; returns URL, model names and number of requests.

    `allowed_hosts` are more names in the Host header (those of a proxy), `allowed_origins` websites whose scripts may
    read responses (CORS).

    Must be called in a process that has not started a thread or run a model. Raises `UsageError` for invalid arguments
    and `VitrailError` if a model cannot be loaded or run.
    """
    settings = settings or Settings()
    if api_key is None and not allow_no_api_key and not is_loopback(host):
        raise UsageError(
            f"listening on {host} requires an API key", "use --api-key-file FILE, or --no-api-key to allow everyone"
        )
    hosts, origins = check_hosts(allowed_hosts), check_origins(allowed_origins)
    torch.set_num_threads(1)  # a fork needs a single thread; decoding needs no more
    model_names = choose_names([source.model for source in sources], names)
    classifiers = [source.load() for source in sources]
    infos = [describe_model(name, i, sources[i], classifiers[i]) for i, name in enumerate(model_names)]
    listener = open_listener(host, port)
    for name, classifier in zip(model_names, classifiers, strict=True) if settings.page else ():
        if (reason := reason_for_plain_page(classifier)) is not None:
            log("plain_page", model=name, why=reason)
    if settings.explain:
        import_pictures()
    freeze_objects()
    fork_server = start_fork_server(sources, classifiers, sockets_to_close=[listener])
    max_connections = min(settings.max_connections, allow_many_files() // 2)
    cores_per_model = max(1, count_cores() // len(infos))
    workers = settings.processes or (1 if uses_accelerator(device) else min(cores_per_model, MAX_DEFAULT_WORKERS))
    worker_config = WorkerConfig(0, settings.threads or max(1, cores_per_model // workers), device)
    settings = replace(settings, processes=workers, max_connections=max_connections)
    logging.basicConfig(level=logging.WARNING, handlers=[JsonLinesHandler()], force=True)
    start_writer()
    try:
        return asyncio.run(_serve(infos, fork_server, settings, listener, worker_config, api_key, host, hosts, origins))
    finally:
        fork_server.close()
        flush()


def allow_many_files() -> int:
    """Raises the limit on open files as far as the system allows, and returns it."""
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        limit = hard_limit
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def freeze_objects() -> None:
    """Takes all present objects out of garbage collection.

    The libraries have about 400,000 of them. A search through all would stop the server for tenths of a second, and
    in a forked process it would copy all memory.
    """
    gc.collect()
    gc.freeze()


def import_pictures() -> None:
    """Imports what pictures of explanations need: all workers share it, and one that is replaced starts sooner."""
    with contextlib.suppress(ImportError):
        import matplotlib.figure
        import matplotlib.patches  # noqa: F401


async def _serve(
    infos: Sequence[ModelInfo], fork_server: ForkServer, settings: Settings, listener: socket.socket,
    worker_config: WorkerConfig, api_key: str | None, host: str,
    allowed_hosts: Set[str] = frozenset(), origins: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    metrics = Metrics()
    decoder = ImageDecoder(
        settings, metrics, lambda: fork_server.spawn(replace(worker_config, threads=1, task="decode"))
    )
    endpoints = {
        info.name: Endpoint(
            info, fork_server, settings, metrics, decoder, replace(worker_config, model_index=info.index)
        )
        for info in infos
    }
    startup_errors: list[VitrailError] = []

    async def start() -> None:
        try:
            await decoder.open()
            for endpoint in endpoints.values():
                await endpoint.open()
            batch_sizes = {name: endpoint.batch_size for name, endpoint in endpoints.items()}
            freeze_objects()
            log("ready", models=list(endpoints), batch=batch_sizes)
            for endpoint in endpoints.values() if settings.page else ():
                endpoint.page.prepare()
        except VitrailError as error:
            startup_errors.append(error)
            server.should_exit = True
        except Exception as error:  # else the server would listen forever without ever being ready
            warn("not_started", traceback=traceback.format_exc())
            startup_errors.append(VitrailError(f"the models cannot be started: {error!r}"))
            server.should_exit = True

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        startup = asyncio.create_task(start())
        yield
        startup.cancel()
        await asyncio.gather(startup, return_exceptions=True)
        for endpoint in endpoints.values():
            await endpoint.close()
        await decoder.close()

    service = Service(endpoints, settings, metrics, decoder)
    app = make_app(service, lifespan)
    address, port = listener.getsockname()[:2]
    host_name = f"[{address}]" if ":" in address else address
    hosts = {*LOCAL_HOSTS, host_name, *allowed_hosts} if is_loopback(host) or allowed_hosts else set()
    access = AccessMiddleware(app, metrics, api_key, hosts, service.expect_request)
    service.is_draining = lambda: access.draining
    admission = Admission(access, service.expect_request, metrics, origins, settings.max_connections)
    config = uvicorn.Config(
        allow_origins(access, origins), http=make_protocol(admission), ws="none", lifespan="on",
        log_config=None, access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.timeout_s + SHUTDOWN_GRACE_S),
    )  # fmt: skip
    server = Server(config, access, settings.shutdown_delay_s)
    url = f"http://{host_name}:{port}/"
    log("listening", url=url, models=list(endpoints))
    await server.serve(sockets=[listener])
    if startup_errors:
        raise startup_errors[0]
    log("stopped", requests=access.request_count)
    return {"url": url, "models": list(endpoints), "requests": access.request_count}


def uses_accelerator(device: str | None) -> bool:
    """Returns whether workers will use an accelerator, without initializing it: that would make forks fail."""
    if device is not None:
        return not device.startswith("cpu")
    return Path("/dev/nvidia0").exists() or torch.backends.mps.is_available()


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_listener(host: str, port: int) -> socket.socket:
    """Returns a listening socket; raises `UsageError` if the address is not available."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}", "choose another --port or --host") from None
    listener.setblocking(False)
    return listener
