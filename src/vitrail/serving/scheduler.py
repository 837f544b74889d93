"""The queue before a model: who may wait, who goes together, who is too late. It knows no clock, no task, no socket.

Times are seconds on any clock that never runs backwards; whoever calls says what time it is. Nothing here waits, so
that every order of events can be tried (tests/test_batcher.py).
"""

from dataclasses import dataclass, field
from typing import Any


class QueueFull(Exception):
    """The queue has no room for so many images."""


@dataclass(eq=False)
class Item:
    """An image that waits, in the form its process takes, and whoever waits for it."""

    deadline: float
    parts: Any = ()
    ask: dict[str, Any] = field(default_factory=dict)
    answer: Any = None  # asyncio.Future, where there is an event loop
    arrived: float = 0.0


class Scheduler:
    """First come, first served, up to `most` at once; `room` may wait, the first of them at most `wait` for company."""

    def __init__(self, max_batch_size: int, queue_size: int, max_delay: float = 0.0):
        self.max_batch_size = max_batch_size
        self.queue_size = queue_size
        self.max_delay = max_delay
        self.waiting: dict[Item, None] = {}  # in the order of arrival; a dict so that one in the middle can leave

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, items: list[Item], now: float) -> None:
        """All of these wait from now on; raises `Full`, and none does, where there is no room for all."""
        if len(self.waiting) + len(items) > self.queue_size:
            raise QueueFull
        for item in items:
            item.arrived = now
            self.waiting[item] = None

    def cancel(self, item: Item) -> bool:
        """Whoever waited has gone; whether the item was still waiting."""
        return self.waiting.pop(item, self) is None

    def next_batch_time(self) -> float | None:
        """When the next batch may go (a time that may have passed); None where nobody waits."""
        if not self.waiting:
            return None
        first = next(iter(self.waiting)).arrived
        return first if len(self.waiting) >= self.max_batch_size else first + self.max_delay

    def take(self, now: float) -> tuple[list[Item], list[Item]]:
        """The next batch, and those found too late on the way; the batch is empty where none is due."""
        batch: list[Item] = []
        late: list[Item] = []
        due = self.next_batch_time()
        if due is None or due > now:
            return batch, late
        for item in list(self.waiting):
            if len(batch) == self.max_batch_size:
                break
            del self.waiting[item]
            (late if item.deadline <= now else batch).append(item)
        return batch, late
