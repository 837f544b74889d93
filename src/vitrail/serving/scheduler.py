"""The queue of one model: admission, dynamic batching and deadlines, as plain data without I/O.

Times are seconds on any monotonic clock, passed in by the caller. Nothing here blocks or reads a clock, so a test can
try every order of events (tests/test_scheduler.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vitrail.serving.service_time import BatchTime, ServiceTime


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
    seconds: float = 0.0  # known time of this image, in addition to that of its batch


class Scheduler:
    """A first-in, first-out queue of at most `queue_size` images that forms batches of at most `max_batch_size`.

    An incomplete batch starts when its first image has waited for `max_delay` seconds. An image that could not be
    finished before its deadline never becomes part of a batch.
    """

    def __init__(
        self, max_batch_size: int, queue_size: int, max_delay: float = 0.0, service_time: ServiceTime | None = None
    ):
        self.max_batch_size = max_batch_size
        self.queue_size = queue_size
        self.max_delay = max_delay
        self.service_time: ServiceTime = service_time or BatchTime()
        self.waiting: dict[Item, None] = {}  # in order of arrival; a dict, for fast removal from the middle
        self.known_seconds = 0.0  # the known times of all waiting images

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, items: list[Item], now: float) -> None:
        """Adds all items; raises `QueueFull` and adds none if there is no room for all of them."""
        if len(self.waiting) + len(items) > self.queue_size:
            raise QueueFull
        for item in items:
            item.arrival_time = now
            self.waiting[item] = None
            self.known_seconds += item.seconds

    def cancel(self, item: Item) -> bool:
        """Removes an item; returns whether it was still waiting."""
        if item not in self.waiting:
            return False
        del self.waiting[item]
        self.known_seconds = self.known_seconds - item.seconds if self.waiting else 0.0
        return True

    def next_batch_time(self) -> float | None:
        """Returns when the next batch may start (possibly in the past); None if the queue is empty."""
        if not self.waiting:
            return None
        first = next(iter(self.waiting)).arrival_time
        return first if len(self.waiting) >= self.max_batch_size else first + self.max_delay

    def expected_wait(self, images: int, seconds_each: float, free_in: Sequence[float], other_images: int = 0) -> float:
        """Returns the expected seconds until `images` more images would be computed.

        `seconds_each` is their own known time, `free_in` the seconds until each worker is free, and `other_images` the
        images that will join the queue first.
        """
        before, last = divmod(len(self.waiting) + other_images + images - 1, self.max_batch_size)
        ahead = before * self.service_time.expected(self.max_batch_size) + self.known_seconds
        own = self.service_time.expected(last + 1) + seconds_each
        return (sum(free_in) + ahead + (images - 1) * seconds_each) / len(free_in) + own

    def cautious_seconds(self, size: int, known_seconds: float) -> float:
        """Returns the cautious prediction for a batch of `size` items whose known times add up to `known_seconds`."""
        return (self.service_time.expected(size) + known_seconds) * self.service_time.caution

    def take(self, now: float) -> tuple[list[Item], list[Item]]:
        """Removes and returns the next batch (empty if none is due), and the items for which it is too late.

        If more than one batch waits, batches stay full, and an image whose deadline is before the end of a full batch
        is too late. Otherwise the batch shrinks for an image with little time left.
        """
        batch: list[Item] = []
        late: list[Item] = []
        due = self.next_batch_time()
        if due is None or due > now:
            return batch, late
        is_crowded = len(self.waiting) > self.max_batch_size
        size = self.max_batch_size if is_crowded else 1
        for item in list(self.waiting):
            if len(batch) == self.max_batch_size:
                break
            is_late = item.deadline <= now + self.cautious_seconds(size, item.seconds)
            (late if is_late else batch).append(item)
        if not is_crowded:
            self.service_time.relax([item.request for item in late])
            batch.sort(key=lambda item: item.deadline)
            while len(batch) > 1 and batch[0].deadline <= now + self.cautious_seconds(
                len(batch), sum(item.seconds for item in batch)
            ):
                batch.pop()
        for item in (*batch, *late):
            self.cancel(item)
        return batch, late
