"""The queue of one model: admission, dynamic batching and deadlines, as plain data without I/O.

Times are seconds on any monotonic clock, passed in by the caller. Nothing here blocks or reads a clock, so a test can
try every order of events (tests/test_scheduler.py).
"""

from dataclasses import dataclass, field
from typing import Any


class QueueFull(Exception):
    """The queue has no room for these images."""


@dataclass(eq=False)
class Item:
    """An image in the queue: what the worker needs, and the future that receives the result."""

    deadline: float
    payload: Any = ()
    request: dict[str, Any] = field(default_factory=dict)
    future: Any = None  # an asyncio.Future; None in tests without an event loop
    arrival_time: float = 0.0


class Scheduler:
    """A first-in, first-out queue of at most `queue_size` images that forms batches of at most `max_batch_size`.

    An incomplete batch starts when its first image has waited for `max_delay` seconds.
    """

    def __init__(self, max_batch_size: int, queue_size: int, max_delay: float = 0.0):
        self.max_batch_size = max_batch_size
        self.queue_size = queue_size
        self.max_delay = max_delay
        self.waiting: dict[Item, None] = {}  # in order of arrival; a dict, for fast removal from the middle

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, items: list[Item], now: float) -> None:
        """Adds all items; raises `QueueFull` and adds none if there is no room for all of them."""
        if len(self.waiting) + len(items) > self.queue_size:
            raise QueueFull
        for item in items:
            item.arrival_time = now
            self.waiting[item] = None

    def cancel(self, item: Item) -> bool:
        """Removes an item; returns whether it was still waiting."""
        return self.waiting.pop(item, self) is None

    def next_batch_time(self) -> float | None:
        """Returns when the next batch may start (possibly in the past); None if the queue is empty."""
        if not self.waiting:
            return None
        first = next(iter(self.waiting)).arrival_time
        return first if len(self.waiting) >= self.max_batch_size else first + self.max_delay

    def take(self, now: float) -> tuple[list[Item], list[Item]]:
        """Removes and returns the next batch (empty if none is due) and the expired items before its end."""
        batch: list[Item] = []
        expired: list[Item] = []
        due = self.next_batch_time()
        if due is None or due > now:
            return batch, expired
        for item in list(self.waiting):
            if len(batch) == self.max_batch_size:
                break
            del self.waiting[item]
            (expired if item.deadline <= now else batch).append(item)
        return batch, expired
