"""The queue before a model, through every order of events that hypothesis can think of, on a clock made of numbers."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vitrail.serving.scheduler import Item, QueueFull, Scheduler


class SchedulerMachine(RuleBasedStateMachine):
    """Beside the batcher stands a plain list of who came and a note of what became of each."""

    @initialize(most=st.integers(1, 5), room=st.integers(1, 9), wait=st.sampled_from([0.0, 0.5, 2.0]))
    def begin(self, most: int, room: int, wait: float) -> None:
        self.batcher = Scheduler(most, room, wait)
        self.now = 0.0
        self.line: list[Item] = []  # who waits, in order
        self.fate: dict[Item, str] = {}

    @rule(patience=st.lists(st.floats(0, 5), min_size=1, max_size=6))
    def come(self, patience: list[float]) -> None:
        items = [Item(self.now + each) for each in patience]
        if len(self.line) + len(items) > self.batcher.queue_size:
            with pytest.raises(QueueFull):
                self.batcher.add(items, self.now)
            return
        self.batcher.add(items, self.now)
        self.line += items

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        known = [*self.line, *self.fate]
        if not known:
            return
        item = data.draw(st.sampled_from(known))
        waited = item in self.line
        assert self.batcher.cancel(item) is waited  # once gone, or taken, there is nothing to withdraw
        if waited:
            self.line.remove(item)
            self.fate[item] = "left"

    @rule()
    def take(self) -> None:
        due = self.batcher.next_batch_time()
        batch, late = self.batcher.take(self.now)
        assert len(batch) <= self.batcher.max_batch_size
        assert due is not None or not (batch or late)
        if due is None or due > self.now:
            assert not batch
            assert not late
            return
        out = set(batch) | set(late)
        assert len(out) == len(batch) + len(late)
        assert self.line[: len(out)] == sorted(out, key=self.line.index)  # nobody is passed over
        assert batch == [item for item in self.line if item in set(batch)]
        assert all(item.deadline > self.now for item in batch)
        assert all(item.deadline <= self.now for item in late)
        for item in out:
            assert item not in self.fate  # no answer twice
            self.fate[item] = "answered" if item in batch else "late"
        self.line = self.line[len(out) :]

    @invariant()
    def nobody_is_lost(self) -> None:
        if not hasattr(self, "batcher"):
            return
        assert list(self.batcher.waiting) == self.line
        assert len(self.line) <= self.batcher.queue_size
        due = self.batcher.next_batch_time()
        assert (due is None) == (not self.line)
        if self.line:
            assert due <= self.line[0].arrival_time + self.batcher.max_delay  # the first waits no longer than that
            if len(self.line) >= self.batcher.max_batch_size or not self.batcher.max_delay:
                assert due <= self.now

    def teardown(self) -> None:
        """Left alone, the queue empties: every item has exactly one fate."""
        if not hasattr(self, "batcher"):
            return
        self.now += self.batcher.max_delay
        while self.line:
            before = len(self.line)
            self.take()
            assert len(self.line) < before
        assert not len(self.batcher)


TestQueue = SchedulerMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
