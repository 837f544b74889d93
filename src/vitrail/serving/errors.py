"""What a client is told instead of an answer, each with its status and the word it is counted under."""

from dataclasses import dataclass


@dataclass(eq=False)
class RequestError(Exception):
    """A request that gets no answer; `retry` is after how many seconds it may be sent again."""

    status: int
    reason: str
    sentence: str
    retry: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What goes beside the sentence."""
        return {} if self.retry is None else {"Retry-After": str(self.retry)}


def bad_request(sentence: str) -> RequestError:
    """A request that makes no sense."""
    return RequestError(400, "wrong", sentence)


def too_large(sentence: str) -> RequestError:
    """A request beyond a limit."""
    return RequestError(413, "limit", sentence)


def unreadable_image(sentence: str) -> RequestError:
    """An image that cannot be read."""
    return RequestError(400, "image", sentence)


def not_found(sentence: str) -> RequestError:
    """What is asked for is not there."""
    return RequestError(404, "unknown", sentence)


def overloaded(retry: float) -> RequestError:
    """Too many wait already."""
    return RequestError(503, "queue", "too many images are waiting; send this again later", max(1, round(retry)))


def deadline_exceeded() -> RequestError:
    """The deadline passed first."""
    return RequestError(504, "deadline", "there was no answer before the deadline")


def worker_crashed() -> RequestError:
    """The process that worked on it ended."""
    return RequestError(503, "crash", "the process that worked on this request ended; send it again", 1)


def internal_error(sentence: str) -> RequestError:
    """The server's own fault."""
    return RequestError(500, "failed", sentence)


class ClientDisconnected(Exception):
    """The client went away; nobody is left to be told."""
