"""Errors that end a request, each with an HTTP status and a reason: the label of the metric `rejected`."""

import math
from dataclasses import dataclass


@dataclass(eq=False)
class RequestError(Exception):
    """A request that is answered with an error; `retry_after_s` is when the client may try again."""

    status: int
    reason: str
    sentence: str
    retry_after_s: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def bad_request(sentence: str) -> RequestError:
    """Returns the error for an invalid request."""
    return RequestError(400, "wrong", sentence)


def too_large(sentence: str) -> RequestError:
    """Returns the error for a request that exceeds a limit."""
    return RequestError(413, "limit", sentence)


def unreadable_image(sentence: str) -> RequestError:
    """Returns the error for an image that cannot be read."""
    return RequestError(400, "image", sentence)


def not_found(sentence: str) -> RequestError:
    """Returns the error for a model or version that does not exist."""
    return RequestError(404, "unknown", sentence)


def overloaded(retry_after_s: float) -> RequestError:
    """Returns the error for a full queue, or one in which the request would wait too long."""
    seconds = max(1, math.ceil(retry_after_s))
    return RequestError(
        503,
        "queue",
        f"too many images are waiting: an answer would take about {seconds} s; send this again later",
        seconds,
    )


def too_many_connections() -> RequestError:
    """Returns the error for a connection beyond the limit."""
    return RequestError(503, "connections", "too many connections are open; send this again later", 1)


def deadline_exceeded() -> RequestError:
    """Returns the error for a request that was not answered in time."""
    return RequestError(504, "deadline", "there was no answer before the deadline")


def too_little_time(needed_s: float) -> RequestError:
    """Returns the error for a request whose time limit is too short even for an idle server."""
    return RequestError(504, "deadline", f"the time limit is too short: an image takes about {needed_s:.2g} s")


def worker_crashed() -> RequestError:
    """Returns the error for a request whose worker process ended."""
    return RequestError(503, "crash", "the process that worked on this request ended; send it again", 1)


def internal_error(sentence: str) -> RequestError:
    """Returns the error for a failure of the server itself."""
    return RequestError(500, "failed", sentence)


class ClientDisconnected(Exception):
    """The client closed the connection; no response can be sent."""
