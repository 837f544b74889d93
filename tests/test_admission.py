"""Requests that are refused when their headers have arrived: what their clients see, and what they cost the server."""

import asyncio
import http.client
import inspect
import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import uvicorn
from fastapi.dependencies.models import Dependant

from serving import TIMEOUT_S
from vitrail.serving import image_routes, operation_routes, v2_routes
from vitrail.serving.admission import Admission
from vitrail.serving.app import HANDLERS
from vitrail.serving.errors import overloaded
from vitrail.serving.http_protocol import MAX_DISCARDED_BYTES, make_protocol
from vitrail.serving.metrics import Metrics
from vitrail.serving.middleware import AccessMiddleware
from vitrail.serving.service import refuse_unknown_query

pytestmark = pytest.mark.newest

FULL, FREE, SLOW = "/predict?model=full", "/predict?model=free", "/predict?model=slow"
KEY = "secret"


class SmallServer:
    """The server's HTTP layer over an application that answers with the number of bytes that it received."""

    def __init__(self, api_key: str | None = None, max_connections: int = 100):
        self.received: list[str] = []  # the queries that reached the application
        self.opened: list[Any] = []  # connections of clients
        self.may_answer = threading.Event()  # for the model "slow"
        self.access = AccessMiddleware(self.app, Metrics(), api_key, {"localhost"}, self.expect_request)
        self.admission = Admission(self.access, self.expect_request, self.access.metrics, [], max_connections)
        config = uvicorn.Config(
            self.access, port=0, http=make_protocol(self.admission), lifespan="off", log_config=None,
            timeout_graceful_shutdown=int(TIMEOUT_S),
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def expect_request(self, path: str, query: str, timeout: str | None, started: float) -> None:
        if query == "model=full":
            raise overloaded(2.5)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        query = scope["query_string"].decode()
        self.received.append(query)
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        while query == "model=slow" and not self.may_answer.is_set():
            await asyncio.sleep(0.005)
        body = str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def __enter__(self) -> "SmallServer":
        self.thread.start()
        wait_for(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self.server.should_exit = True
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()
        for each in self.opened:
            each.close()

    def connect(self) -> http.client.HTTPConnection:
        self.opened.append(http.client.HTTPConnection("localhost", self.port, timeout=TIMEOUT_S))
        return self.opened[-1]

    def open_socket(self) -> socket.socket:
        self.opened.append(socket.create_connection(("localhost", self.port), timeout=TIMEOUT_S))
        return self.opened[-1]


def wait_for(is_true: Any) -> None:
    stop = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < stop
        time.sleep(0.005)


def ask(
    connection: http.client.HTTPConnection, path: str, body: Any = b"image", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def make_request(path: str, size: int, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *headers, "", ""]
    return "\r\n".join(lines).encode() + b"x" * size


def read_until_closed(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    return data


@pytest.fixture(scope="module")
def small() -> Iterator[SmallServer]:
    with SmallServer() as server:
        yield server


def test_a_refusal_keeps_the_connection_and_costs_no_request(small: SmallServer):
    connection, before = small.connect(), len(small.received)
    for number in range(3):
        status, headers, body = ask(connection, FULL, b"x" * 100_000, {"x-request-id": f"mine-{number}"})
        assert (status, headers["retry-after"], headers["x-request-id"]) == (503, "3", f"mine-{number}")
        assert "waiting" in json.loads(body)["error"]
        used = connection.sock
        assert used is not None
    assert len(small.received) == before
    assert ask(connection, FREE, b"x" * 100_000)[::2] == (200, b"100000")
    assert connection.sock is used


def test_an_early_refusal_is_the_same_as_one_of_the_application(small: SmallServer):
    """A path with an escape is left to the application, whose middleware refuses it."""
    early, late = (ask(small.connect(), path) for path in (FULL, FULL.replace("predict", "pr%65dict")))
    for _, headers, _ in (early, late):
        assert headers.pop("x-request-id")
        headers.pop("date", None)
    assert early == late


def test_pipelined_responses_keep_their_order(small: SmallServer):
    requests = [make_request(path, size) for size, path in enumerate((FREE, FULL, FREE, FULL, FULL, FREE), start=1)]
    with small.open_socket() as connection:
        connection.sendall(b"".join(requests) + make_request(FREE, 7, "Connection: close"))
        data = read_until_closed(connection)
    statuses = [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"503", b"200", b"503", b"503", b"200", b"200"]
    assert [part[-1:] for part in data.split(b"HTTP/1.1 ")[1:]][::2] == [b"1", b"3", b"}", b"7"]


@pytest.mark.parametrize("form", ["large", "chunked", "HTTP/1.0"])
def test_a_client_that_sends_its_whole_body_first_reads_the_refusal(small: SmallServer, form: str):
    body = b"x" * (4 * MAX_DISCARDED_BYTES)
    with small.open_socket() as connection:
        if form == "chunked":
            head = f"POST {FULL} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            connection.sendall(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        else:
            request = make_request(FULL, len(body) if form == "large" else 10)
            connection.sendall(request.replace(b"HTTP/1.1", b"HTTP/1.0") if form == "HTTP/1.0" else request)
        data = read_until_closed(connection)  # closed by the server, without an error
    assert data.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in data


def test_a_client_that_asks_before_it_sends_the_body_is_not_told_to_send_it(small: SmallServer):
    with small.open_socket() as connection:
        connection.sendall(make_request(FULL, 10, "Expect: 100-continue")[:-10])
        data = connection.recv(1 << 16)
    assert data.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in data


def test_refusals_are_counted_and_share_a_log_line(small: SmallServer, capsys: pytest.CaptureFixture[str]):
    metrics = small.access.metrics
    count = metrics.registry.get_sample_value
    refused = partial(count, "vitrail_rejected_total", {"reason": "queue"})
    answered = partial(count, "vitrail_request_seconds_count", {"route": "/predict", "status": "503"})
    wait_for(lambda: not small.admission.refused)
    capsys.readouterr()
    before, requests = (refused(), answered()), small.access.request_count
    connection = small.connect()
    for _ in range(20):
        assert ask(connection, FULL)[0] == 503
    assert (refused(), answered()) == ((before[0] or 0) + 20, (before[1] or 0) + 20)
    assert small.access.request_count == requests + 20
    wait_for(lambda: not small.admission.refused)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["event"] for line in lines} == {"refused"}
    assert sum(line["requests"] for line in lines) == 20


def test_who_has_no_access_does_not_learn_about_the_load(small: SmallServer):
    assert ask(small.connect(), FULL, headers={"host": "example.org"})[0] == 403
    with SmallServer(api_key=KEY) as server:
        assert ask(server.connect(), FULL)[0] == 401
        assert ask(server.connect(), FULL, headers={"x-api-key": KEY})[0] == 503


def test_a_connection_beyond_the_limit_replaces_an_idle_one_or_is_refused():
    with SmallServer(max_connections=3) as server:
        idle = server.connect()
        assert ask(idle, FULL)[0] == 503
        used = idle.sock
        busy = [server.open_socket() for _ in range(2)]
        for each in busy:
            each.sendall(make_request(SLOW, 5))
        wait_for(lambda: server.received == ["model=slow"] * 2)
        assert used is not None
        new = server.open_socket()
        assert used.recv(1) == b""  # the idle connection was closed for the new one
        new.sendall(make_request(SLOW, 5))
        wait_for(lambda: len(server.received) == 3)
        with server.open_socket() as refused:
            assert refused.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        server.may_answer.set()
        for each in (*busy, new):
            assert each.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_waits_for_a_pipelined_answer_is_not_idle():
    with SmallServer(max_connections=1) as server:
        busy = server.open_socket()
        busy.sendall(make_request(FREE, 5) + make_request(SLOW, 6))
        wait_for(lambda: server.received == ["model=free", "model=slow"])
        with server.open_socket() as other:
            assert other.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        server.may_answer.set()
        data = b""
        while data.count(b"HTTP/1.1 200 ") < 2 or not data.endswith(b"6"):
            part = busy.recv(1 << 16)
            assert part
            data += part


def test_a_refused_client_that_is_still_sending_when_the_server_stops_reads_the_refusal():
    with SmallServer() as server:
        connection = server.open_socket()
        request = make_request(FULL, 1000)
        connection.sendall(request[:-500])
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        server.access.draining = True
        with server.open_socket() as other:
            other.sendall(make_request(FULL, 5))
            assert b"connection: close" in read_until_closed(other)
        server.server.should_exit = True
        wait_for(lambda: not server.server.servers[0].is_serving())
        connection.sendall(request[-500:])  # no error: the server still reads
        assert connection.recv(1) == b""


def test_no_request_costs_a_thread():
    """FastAPI and Starlette run functions that are not coroutines in a thread for each request."""

    def list_calls(dependant: Dependant) -> Iterator[Any]:
        yield dependant.call
        for each in dependant.dependencies:
            yield from list_calls(each)

    routers = (image_routes.router, v2_routes.router, operation_routes.router, operation_routes.page_router)
    calls = {call for router in routers for route in router.routes for call in list_calls(route.dependant)}  # type: ignore[attr-defined]
    assert len(calls) > 12
    for call in (*calls, *HANDLERS.values(), refuse_unknown_query):
        assert inspect.iscoroutinefunction(call), call
