"""The state that the routes share, and helpers for every request: deadline, log fields, cancellation."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl

from fastapi import Depends, Header, Query, Request

from vitrail.errors import did_you_mean
from vitrail.serving.body import BodyReader
from vitrail.serving.decoding import ImageDecoder
from vitrail.serving.endpoint import Arrival, Endpoint, compute_deadline
from vitrail.serving.errors import ClientDisconnected, bad_request, deadline_exceeded
from vitrail.serving.metrics import Metrics
from vitrail.serving.middleware import PREDICTION_PATHS
from vitrail.serving.settings import MIB, Settings

Result = TypeVar("Result")
Timeout = Annotated[
    float | None, Query(gt=0, description="time limit of the request in seconds, at most the server's own")
]
TimeoutHeader = Annotated[str | None, Header(alias="x-request-timeout", description="the same as a header")]
ModelName = Annotated[str | None, Query(description="the model's name (default: the first model)")]


@dataclass
class Service:
    """The endpoints, settings and helpers of one server."""

    endpoints: dict[str, Endpoint]
    settings: Settings
    metrics: Metrics
    decoder: ImageDecoder
    is_draining: Callable[[], bool] = lambda: False
    bodies: BodyReader = field(init=False)

    def __post_init__(self) -> None:
        self.bodies = BodyReader(self.settings.max_body_mib * MIB)

    def expect_request(self, path: str, query: str, timeout_header: str | None, started: float) -> Arrival | None:
        """Accepts a request for predictions before it is read; returns None for any other request.

        Raises `RequestError` if it cannot be answered in time because of other requests. Invalid requests pass: the
        route describes what is wrong.
        """
        route = PREDICTION_PATHS.fullmatch(path)
        if route is None:
            return None
        options = dict(parse_qsl(query)) if query else {}
        name = route["name"] or options.get("model") or next(iter(self.endpoints))
        try:
            timeout = float(options.get("timeout") or timeout_header or self.settings.timeout_s)
        except ValueError:
            return None
        if name not in self.endpoints or not timeout > 0:
            return None
        return self.endpoints[name].expect_request(started + min(timeout, self.settings.timeout_s))

    def deadline(self, request: Request, timeout: str | float | None) -> float:
        """Returns the monotonic time by which a request must be answered."""
        return compute_deadline(get_start_time(request), timeout, self.settings.timeout_s)


def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def depend_on_service(request: Request) -> Service:
    """Returns the service. FastAPI would run a function that is not `async` in a thread, for each request."""
    return get_service(request)


ServiceState = Annotated[Service, Depends(depend_on_service)]


def get_start_time(request: Request) -> float:
    return float(request.scope["request_context"]["started"])


def add_log_fields(request: Request, **fields: object) -> None:
    """Adds fields to the request's log line."""
    request.scope["request_context"]["log_fields"].update(fields)


async def count_images(request: Request, work: Awaitable[Result]) -> Result:
    """Returns the result of `work`, which counts its images; until it starts, the request counts as one that arrives.

    Both happen in one step of the event loop. In between, it would count nowhere, and too many would be accepted.
    """
    if arrival := request.scope["request_context"]["arrival"]:
        arrival.complete()
    return await work


async def run_until_deadline(request: Request, work: Awaitable[Result], deadline: float) -> Result:
    """Returns the result of `work`, which is canceled if the client disconnects or the deadline passes.

    Raises `ClientDisconnected`, or the error for status 504.
    """

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(wait_for_disconnect())
    try:
        remaining = max(0.0, deadline - time.monotonic())
        await asyncio.wait({task, watch}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected if watch.done() else deadline_exceeded()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def refuse_unknown_query(request: Request) -> None:
    """Raises `RequestError` for a query parameter that the route does not have."""
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            hint = did_you_mean(name[:60], known) if known else "this route has none"
            raise bad_request(f"there is no query parameter {name[:60]!r}" + (f": {hint}" if hint else ""))
