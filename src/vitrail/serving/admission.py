"""Refuses requests that cannot be answered in time as soon as their headers have arrived, before any other work.

Under overload most requests are refused. The CPU time of refusals is taken from the answers of the others, so a refusal
is one check and one write: no task, no routing, no body in memory, and one line in the log per second for all of them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from vitrail.serving.errors import RequestError, too_many_connections
from vitrail.serving.logs import choose_request_id, log
from vitrail.serving.metrics import Metrics
from vitrail.serving.middleware import (
    SECURITY_HEADERS,
    AccessMiddleware,
    ExpectedRequest,
    ExpectRequest,
    find_prediction_route,
    make_error_body,
)

REPORT_S = 1.0  # refusals of this time share one line of the log
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Refusal:
    """The response to a request that is refused."""

    error: RequestError
    request_id: str

    def to_bytes(self, more_headers: Headers, keep_alive: bool) -> bytes:
        """Returns the response in HTTP/1.1."""
        head, body = render_error(self.error.status, self.error.sentence, self.error.retry_after_s)
        others = [(b"x-request-id", self.request_id.encode()), *more_headers]
        if not keep_alive:
            others.append((b"connection", b"close"))
        return b"".join([head, *(b"%s: %s\r\n" % header for header in others), b"\r\n", body])


@lru_cache(maxsize=256)
def render_error(status: int, sentence: str, retry_after_s: int | None) -> tuple[bytes, bytes]:
    """Returns the beginning of the head and the body of a response."""
    error, body = RequestError(status, "", sentence, retry_after_s), make_error_body(sentence)
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *SECURITY_HEADERS]
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode(), *(b"%s: %s\r\n" % each for each in headers)]
    return b"".join(lines), body


@lru_cache(maxsize=256)
def parse_url(url: bytes) -> tuple[str, str, str | None]:
    """Returns path, query, and the route of a request for predictions (None for every other request)."""
    path, _, query = url.decode("latin-1").partition("?")
    return path, query, find_prediction_route(path)


class Admission:
    """Decides from the headers of a request whether it is refused or expected, and counts refusals.

    It knows only the ordinary request for a prediction; the application decides about every other one.
    """

    def __init__(
        self, access: AccessMiddleware, expect_request: ExpectRequest, metrics: Metrics, origins: Collection[str],
        max_connections: int,
    ):  # fmt: skip
        self.access = access
        self.expect_request = expect_request
        self.metrics = metrics
        self.allows_origins = bool(origins)  # then a website's request needs headers that the application adds
        self.max_connections = max_connections
        self.refused: Counter[str] = Counter()  # by reason, since the latest line of the log
        self.durations: dict[tuple[str, int], Any] = {}

    def decide(self, method: bytes, url: bytes, raw_headers: Headers) -> Refusal | ExpectedRequest | None:
        """Returns the response to a request that is refused, or that it is expected; None leaves the decision."""
        if method != b"POST":
            return None
        started = time.monotonic()
        path, query, route = parse_url(url)
        if route is None:
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw_headers}
        if (self.allows_origins and "origin" in headers) or self.access.find_access_error(path, headers):
            return None
        try:
            return self.expect_request(path, query, headers.get("x-request-timeout"), started)
        except RequestError as error:
            self.count(error, route, time.monotonic() - started)
            return Refusal(error, choose_request_id(headers.get("x-request-id")))

    def refuse_connection(self) -> Refusal:
        """Returns the response to a connection beyond the limit."""
        error = too_many_connections()
        self.count(error, "other", 0.0)
        return Refusal(error, choose_request_id(None))

    def count(self, error: RequestError, route: str, seconds: float) -> None:
        """Counts a refusal in the metrics and for the log."""
        self.metrics.rejected.labels(error.reason).inc()
        key = route, error.status
        if key not in self.durations:
            self.durations[key] = self.metrics.requests.labels(route, str(error.status))
        self.durations[key].observe(seconds)
        self.access.request_count += 1
        if not self.refused:
            asyncio.get_running_loop().call_later(REPORT_S, self.report)
        self.refused[error.reason] += 1

    def report(self) -> None:
        """Writes a line about the latest refusals."""
        for reason, requests in self.refused.items():
            log("refused", reason=reason, requests=requests, seconds=REPORT_S)
        self.refused.clear()
