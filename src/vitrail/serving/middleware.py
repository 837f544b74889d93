"""The middleware for every request: request id, access check, log line, metrics and response headers."""

import base64
import binascii
import contextlib
import hmac
import json
import re
import time
import traceback
from collections.abc import Callable, Set
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail.serving.errors import RequestError
from vitrail.serving.logs import choose_request_id, describe_error, log
from vitrail.serving.metrics import Metrics

PUBLIC_PATHS = ("/v2/health/live", "/v2/health/ready")  # for load balancers, which have no key
PREDICTION_PATHS = re.compile(r"/predict|/v2/models/(?P<name>[^/]+)(/versions/[^/]+)?/infer")
SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))


class ExpectedRequest(Protocol):
    """A request that was accepted from its headers (`endpoint.Arrival`)."""

    def end(self) -> None:
        """Stops counting the request."""


ExpectRequest = Callable[[str, str, str | None, float], ExpectedRequest | None]  # of path, query, time limit and start
AccessError = tuple[int, str, dict[str, str]]  # status, message and headers
LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]"}  # allowed Host headers, in addition to the address of the server


class AccessMiddleware:
    """Wraps the application and refuses requests without access.

    With an API key, every request needs it. Without one, the Host header must be in `hosts`, unless `hosts` is empty.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, api_key: str | None, hosts: Set[str],
        expect_request: ExpectRequest = lambda *_: None,
    ):  # fmt: skip
        self.app = app
        self.metrics = metrics
        self.api_key = api_key
        self.hosts = hosts  # prevents DNS rebinding: a website that reaches the server through its own domain
        self.expect_request = expect_request  # raises `RequestError`
        self.draining = False
        self.request_count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        started = time.monotonic()
        request_id = choose_request_id(headers.get("x-request-id"))
        context: dict[str, Any] = {"started": started, "log_fields": {}, "arrival": scope.get("arrival")}
        method = scope["method"]
        if method == "HEAD":  # the same as GET, without the body
            scope = {**scope, "method": "GET"}
        scope["request_context"] = context
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                message["headers"] += [(b"x-request-id", request_id.encode()), *SECURITY_HEADERS]
                if self.draining:
                    message["headers"].append((b"connection", b"close"))
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            if error := self.check_access(scope["path"], headers) or self.check_overload(scope, headers, context):
                await send_error(send_with_headers, *error)
            else:
                await self.app(scope, receive, send_with_headers)
        except Exception:  # Starlette has sent the response with status 500 already
            context["log_fields"]["traceback"] = traceback.format_exc()
        finally:
            if context["arrival"]:
                context["arrival"].end()
            seconds = time.monotonic() - started
            route = context.get("route") or getattr(scope.get("route"), "path", "other")
            self.request_count += 1
            self.metrics.requests.labels(route, str(status)).observe(seconds)
            log(
                "request", id=request_id, method=method, path=scope["path"][:200], status=status,
                seconds=round(seconds, 4), **context["log_fields"],
            )  # fmt: skip

    def check_overload(self, scope: Scope, headers: dict[str, str], context: dict[str, Any]) -> AccessError | None:
        """Returns the error for a request that cannot be answered in time now.

        `Admission` has refused or accepted most requests already; it does not know every form of a request.
        """
        if scope["method"] != "POST" or context["arrival"]:
            return None
        path, query = scope["path"], scope["query_string"].decode("latin-1")
        try:
            context["arrival"] = self.expect_request(path, query, headers.get("x-request-timeout"), context["started"])
        except RequestError as error:
            self.metrics.rejected.labels(error.reason).inc()
            context["log_fields"].update(describe_error(error))
            context["route"] = find_prediction_route(path)
            return error.status, error.sentence, error.headers
        return None

    def check_access(self, path: str, headers: dict[str, str]) -> AccessError | None:
        """Returns the error for a request without access, and counts it; None if it has access."""
        if error := self.find_access_error(path, headers):
            self.metrics.rejected.labels("host" if self.api_key is None else "key").inc()
        return error

    def find_access_error(self, path: str, headers: dict[str, str]) -> AccessError | None:
        """Returns the error for a request without access; None if it has access."""
        if self.api_key is not None:
            if path in PUBLIC_PATHS or any(
                hmac.compare_digest(self.api_key.encode(), candidate) for candidate in read_api_keys(headers)
            ):
                return None
            authenticate = {"www-authenticate": 'Basic realm="vitrail", charset="UTF-8"'}
            return 401, "the API key is missing or wrong", authenticate
        if self.hosts and parse_host(headers.get("host", "localhost")) not in self.hosts:
            return 403, "this server is only for this machine: use localhost or the address it listens on", {}
        return None


def find_prediction_route(path: str) -> str | None:
    """Returns the route of a request for predictions, for the metrics; None for every other path."""
    if PREDICTION_PATHS.fullmatch(path) is None:
        return None
    return "/predict" if path == "/predict" else "/v2/models/{name}/infer"


def read_api_keys(headers: dict[str, str]) -> list[bytes]:
    """Returns the possible keys of a request: X-API-Key, a bearer token, or the password of basic authentication."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    texts = [headers["x-api-key"]] if "x-api-key" in headers else []
    texts += [value.strip()] if scheme.lower() == "bearer" else []
    keys = [text.encode(encoding) for text in texts for encoding in ("latin-1", "utf-8")]  # clients send either
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            keys.append(base64.b64decode(value, validate=True).partition(b":")[2])
    return keys


def parse_host(header: str) -> str:
    """Returns the Host header without the port."""
    return (header.partition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]).lower()


async def send_error(send: Send, status: int, message: str, headers: dict[str, str]) -> None:
    """Sends an error response without calling the application."""
    body = make_error_body(message)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def make_error_body(message: str) -> bytes:
    return json.dumps({"error": message}).encode()
