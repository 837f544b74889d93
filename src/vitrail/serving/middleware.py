"""What every request passes: an id, the key, the log, the headers; and the drain at the end."""

import base64
import binascii
import contextlib
import hmac
import json
import time
import traceback
from collections.abc import Set
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail.serving.logs import log, request_id
from vitrail.serving.metrics import Metrics

PUBLIC_PATHS = ("/v2/health/live", "/v2/health/ready")  # what a load balancer asks, which has no key
LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]"}  # what a browser on this machine may call us, beside where we listen


class AccessMiddleware:
    """Wraps the application: whoever comes is counted, and brings the key, or calls one of `hosts` if there are any."""

    def __init__(self, app: ASGIApp, metrics: Metrics, key: str | None, hosts: Set[str]):
        self.app = app
        self.metrics = metrics
        self.key = key
        self.hosts = hosts  # on loopback: a page elsewhere must not reach us under a name of its own (DNS rebinding)
        self.draining = False
        self.answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        started = time.monotonic()
        name = request_id(headers.get("x-request-id"))
        visit: dict[str, Any] = {"started": started, "noted": {}}
        scope["visit"] = visit
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                message["headers"] += [
                    (b"x-request-id", name.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cross-origin-resource-policy", b"same-origin"),
                ]
                if self.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            if refusal := self.check_access(scope["path"], headers):
                await send_error(sending, *refusal)
            else:
                await self.app(scope, receive, sending)
        except Exception:  # Starlette has sent a 500 by now
            visit["noted"]["traceback"] = traceback.format_exc()
        finally:
            seconds = time.monotonic() - started
            route = getattr(scope.get("route"), "path", "other")
            self.answered += 1
            self.metrics.requests.labels(route, str(status)).observe(seconds)
            log(
                "request", id=name, method=scope["method"], path=scope["path"][:200], status=status,
                seconds=round(seconds, 4), **visit["noted"],
            )  # fmt: skip

    def check_access(self, path: str, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        """Status, sentence and headers for who may not come in."""
        if self.key is not None:
            if path in PUBLIC_PATHS or any(
                hmac.compare_digest(self.key.encode(), given) for given in find_keys(headers)
            ):
                return None
            self.metrics.rejected.labels("key").inc()
            return 401, "the key is missing or wrong", {"www-authenticate": 'Basic realm="vitrail", charset="UTF-8"'}
        if self.hosts and parse_host(headers.get("host", "localhost")) not in self.hosts:
            self.metrics.rejected.labels("host").inc()
            return 403, "this server answers on this machine alone, under the name localhost or its own address", {}
        return None


def find_keys(headers: dict[str, str]) -> list[bytes]:
    """The keys that a request brings: X-API-Key, a bearer's, or the password that a browser asks for."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    given = [headers[name] for name in ("x-api-key",) if name in headers]
    given += [value.strip()] if kind.lower() == "bearer" else []
    found = [each.encode(code) for each in given for code in ("latin-1", "utf-8")]  # its bytes, or what they stand for
    if kind.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            found.append(base64.b64decode(value, validate=True).partition(b":")[2])
    return found


def parse_host(header: str) -> str:
    """The Host header without its port."""
    return (header.partition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]).lower()


async def send_error(send: Send, status: int, sentence: str, headers: dict[str, str]) -> None:
    """An answer without the application."""
    body = json.dumps({"error": sentence}).encode()
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
