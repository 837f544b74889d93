"""The HTTP protocol of each connection: uvicorn's, with early refusals, time limits and a limit on open connections."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vitrail.serving.admission import Admission, Refusal

HEADER_TIMEOUT_S = 10.0  # time limit for the headers of the first request on a connection
KEEP_ALIVE_S = 30  # an idle connection is closed after this time
DISCARD_S = 10.0  # time in which the body of a refused request must arrive
MAX_DISCARDED_BYTES = 1 << 20  # after the refusal of a request with a larger body the connection is closed


class HttpProtocol(HttpToolsProtocol):
    """Answers a request that `admission` refuses as soon as its headers have arrived, and discards its body.

    Clients read the response after they have sent the body: if the connection was closed before, most would report a
    broken connection instead of the refusal. After a small body the connection serves the next request.
    """

    def __init__(self, admission: Admission, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.admission = admission
        self.discards_body = False  # the current request was refused, and its body is arriving
        self.closes_after_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_handle = self.loop.call_later(HEADER_TIMEOUT_S, transport.close)
        if len(self.connections) > self.admission.max_connections and not self.close_idle_connection():
            self.send_refusal(self.admission.refuse_connection(), keep_alive=False)
            transport.close()

    def close_idle_connection(self) -> bool:
        """Closes a connection that waits for its next request; returns whether there was one."""
        for each in self.connections:
            if isinstance(each, HttpProtocol) and each.is_idle:
                each.transport.close()
                return True
        return False

    @property
    def is_idle(self) -> bool:
        """Whether a response was sent and no next request has begun.

        uvicorn's timer alone does not tell: it also runs while a request is answered that came with the one before.
        """
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return self.timeout_keep_alive_task is not None and not is_answering and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.discards_body and self.timeout_handle.cancelled():  # else the body is complete: it needs no time limit
            self.timeout_handle = self.loop.call_later(DISCARD_S, self.transport.close)

    def on_headers_complete(self) -> None:
        self.timeout_handle.cancel()
        is_first_in_line = self.cycle is None or self.cycle.response_complete  # else it follows in the same connection
        decision = None
        if is_first_in_line and not self.transport.is_closing():
            decision = self.admission.decide(self.parser.get_method(), self.url, self.headers)
        if not isinstance(decision, Refusal):
            self.scope["arrival"] = decision  # type: ignore[typeddict-unknown-key]
            super().on_headers_complete()
            return
        self.discards_body = True
        self.closes_after_body = not self.can_keep_alive()
        self.send_refusal(decision, keep_alive=not self.closes_after_body)

    def can_keep_alive(self) -> bool:
        """Returns whether the connection can be used again after the current request is refused."""
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return (
            self.parser.should_keep_alive()
            and self.parser.get_http_version() == "1.1"
            and not self.expect_100_continue  # the client may or may not send the body now
            and not self.admission.access.draining
            and bool(lengths)
            and int(lengths[0]) <= MAX_DISCARDED_BYTES
        )

    def send_refusal(self, refusal: Refusal, keep_alive: bool) -> None:
        self.transport.write(refusal.to_bytes(self.server_state.default_headers, keep_alive))

    def on_body(self, body: bytes) -> None:
        if not self.discards_body:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.discards_body:
            super().on_message_complete()
            return
        self.discards_body = False
        self.timeout_handle.cancel()
        if self.closes_after_body:
            self.transport.close()
        else:
            self.wait_for_next_request()
            self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE_S, self.timeout_keep_alive_handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.timeout_handle.cancel()
        if self.cycle.response_complete:  # else the next request has started already
            self.wait_for_next_request()

    def wait_for_next_request(self) -> None:
        self.timeout_handle = self.loop.call_later(KEEP_ALIVE_S + HEADER_TIMEOUT_S, self.transport.close)

    def shutdown(self) -> None:
        """Closes the connection when its response has been sent."""
        if self.discards_body:
            self.closes_after_body = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timeout_handle.cancel()
        super().connection_lost(exc)


def make_protocol(admission: Admission) -> type[HttpProtocol]:
    """Returns the protocol for uvicorn, which creates one for each connection."""

    class AdmittingProtocol(HttpProtocol):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(admission, *arguments, **options)

    return AdmittingProtocol
