"""What a client is told instead of an answer, each with its status and the word it is counted under."""

from dataclasses import dataclass


@dataclass(eq=False)
class Refusal(Exception):
    """A request that gets no answer; `retry` is after how many seconds it may be sent again."""

    status: int
    reason: str
    sentence: str
    retry: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What goes beside the sentence."""
        return {} if self.retry is None else {"Retry-After": str(self.retry)}


def wrong(sentence: str) -> Refusal:
    """A request that makes no sense."""
    return Refusal(400, "wrong", sentence)


def too_much(sentence: str) -> Refusal:
    """A request beyond a limit."""
    return Refusal(413, "limit", sentence)


def unreadable(sentence: str) -> Refusal:
    """An image that cannot be read."""
    return Refusal(400, "image", sentence)


def not_found(sentence: str) -> Refusal:
    """What is asked for is not there."""
    return Refusal(404, "unknown", sentence)


def overloaded(retry: float) -> Refusal:
    """Too many wait already."""
    return Refusal(503, "queue", "too many images are waiting; send this again later", max(1, round(retry)))


def expired() -> Refusal:
    """The deadline passed first."""
    return Refusal(504, "deadline", "there was no answer before the deadline")


def crashed() -> Refusal:
    """The process that worked on it ended."""
    return Refusal(503, "crash", "the process that worked on this request ended; send it again", 1)


def failed(sentence: str) -> Refusal:
    """The server's own fault."""
    return Refusal(500, "failed", sentence)


class Gone(Exception):
    """The client went away; nobody is left to be told."""
