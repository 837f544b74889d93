"""The scheduler, tested by hypothesis with random sequences of events and a simulated clock."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vitrail.serving.scheduler import Item, QueueFull, Scheduler


class SchedulerMachine(RuleBasedStateMachine):
    """Compares the scheduler with a reference model: a list of waiting items, and the outcome of the other items."""

    @initialize(
        max_batch_size=st.integers(1, 5), queue_size=st.integers(1, 9), max_delay=st.sampled_from([0.0, 0.5, 2.0])
    )
    def create(self, max_batch_size: int, queue_size: int, max_delay: float) -> None:
        self.scheduler = Scheduler(max_batch_size, queue_size, max_delay)
        self.now = 0.0
        self.waiting: list[Item] = []  # in order of arrival
        self.outcomes: dict[Item, str] = {}

    @rule(timeouts=st.lists(st.floats(0, 5), min_size=1, max_size=6))
    def add(self, timeouts: list[float]) -> None:
        items = [Item(self.now + timeout) for timeout in timeouts]
        if len(self.waiting) + len(items) > self.scheduler.queue_size:
            with pytest.raises(QueueFull):
                self.scheduler.add(items, self.now)
            return
        self.scheduler.add(items, self.now)
        self.waiting += items

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        items = [*self.waiting, *self.outcomes]
        if not items:
            return
        item = data.draw(st.sampled_from(items))
        is_waiting = item in self.waiting
        assert self.scheduler.cancel(item) is is_waiting
        if is_waiting:
            self.waiting.remove(item)
            self.outcomes[item] = "canceled"

    @rule()
    def take(self) -> None:
        due = self.scheduler.next_batch_time()
        batch, expired = self.scheduler.take(self.now)
        assert len(batch) <= self.scheduler.max_batch_size
        assert due is not None or not (batch or expired)
        if due is None or due > self.now:
            assert not batch
            assert not expired
            return
        removed = set(batch) | set(expired)
        assert len(removed) == len(batch) + len(expired)
        assert self.waiting[: len(removed)] == sorted(removed, key=self.waiting.index)  # items leave in order
        assert batch == [item for item in self.waiting if item in set(batch)]
        assert all(item.deadline > self.now for item in batch)
        assert all(item.deadline <= self.now for item in expired)
        for item in removed:
            assert item not in self.outcomes  # an item has one outcome
            self.outcomes[item] = "batched" if item in batch else "expired"
        self.waiting = self.waiting[len(removed) :]

    @invariant()
    def no_item_is_lost(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert list(self.scheduler.waiting) == self.waiting
        assert len(self.waiting) <= self.scheduler.queue_size
        due = self.scheduler.next_batch_time()
        assert (due is None) == (not self.waiting)
        if self.waiting:
            assert due <= self.waiting[0].arrival_time + self.scheduler.max_delay  # the longest wait of the first item
            if len(self.waiting) >= self.scheduler.max_batch_size or not self.scheduler.max_delay:
                assert due <= self.now

    def teardown(self) -> None:
        """Without new events the queue empties: every item has exactly one outcome."""
        if not hasattr(self, "scheduler"):
            return
        self.now += self.scheduler.max_delay
        while self.waiting:
            before = len(self.waiting)
            self.take()
            assert len(self.waiting) < before
        assert not len(self.scheduler)


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
