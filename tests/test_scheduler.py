"""The scheduler, tested by hypothesis with random sequences of events and a simulated clock; admission under overload
in simulated time.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vitrail.serving.scheduler import Item, QueueFull, Scheduler
from vitrail.serving.service_time import BatchTime, ExplanationTime, PassTimes

pytestmark = pytest.mark.newest


class SchedulerMachine(RuleBasedStateMachine):
    """Compares the scheduler with a reference model: a list of waiting items, and the outcome of the other items."""

    @initialize(
        max_batch_size=st.integers(1, 5),
        queue_size=st.integers(1, 9),
        max_delay=st.sampled_from([0.0, 0.5, 2.0]),
        seconds=st.sampled_from([0.0, 0.2, 1.0]),
    )
    def create(self, max_batch_size: int, queue_size: int, max_delay: float, seconds: float) -> None:
        self.scheduler = Scheduler(max_batch_size, queue_size, max_delay, BatchTime({1: seconds}, deviation=0.0))
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
        end = self.now + self.scheduler.service_time.expected(len(batch))
        assert all(item.deadline > end for item in batch)  # nothing is computed that cannot be answered
        is_crowded = len(self.waiting) > self.scheduler.max_batch_size
        size = self.scheduler.max_batch_size if is_crowded else 1
        assert all(item.deadline <= self.now + self.scheduler.service_time.expected(size) for item in expired)
        removed = set(batch) | set(expired)
        assert len(removed) == len(batch) + len(expired) > 0
        if is_crowded:
            assert self.waiting[: len(removed)] == sorted(removed, key=self.waiting.index)  # items leave in order
            assert len(batch) == self.scheduler.max_batch_size or len(removed) == len(self.waiting)
        else:  # the items that stay have more time than those of the batch
            later = [item.deadline for item in self.waiting if item not in removed]
            assert not later or max(item.deadline for item in batch) <= min(later)
        for item in removed:
            assert item not in self.outcomes  # an item has one outcome
            self.outcomes[item] = "batched" if item in batch else "expired"
        self.waiting = [item for item in self.waiting if item not in removed]

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


def test_the_time_of_a_batch_follows_the_real_one():
    time = BatchTime({1: 0.1, 8: 0.4})
    assert time.expected(1) == pytest.approx(0.1)
    assert time.expected(16) == pytest.approx(0.8)
    assert time.expected(4) == pytest.approx(0.1 + 0.3 * 3 / 7)
    for _ in range(40):
        time.observe([{}] * 8, 0.8)  # another program has taken half of the cores
    assert time.expected(1) == pytest.approx(0.2, rel=0.01)
    time.observe([{}] * 8, 1000.0)  # one batch hung
    assert time.expected(8) < 2
    for _ in range(40):
        time.relax([])
    assert time.expected(8) == pytest.approx(0.4, rel=0.01)


def test_the_time_of_an_explanation_is_known_before():
    time = ExplanationTime(patches=196)
    assert time.seconds("rise", False) == 0  # nothing is measured yet
    time.passes = PassTimes(forward=0.1, backward=0.2, batched_forward=0.05, picture=1.0)
    assert time.seconds("attention", False) == pytest.approx(0.1)
    assert time.seconds("libragrad", True) == pytest.approx(1.3)
    assert time.seconds("integrated", False) == pytest.approx(2.1 + 4.0)  # the old name of a method
    assert time.seconds("rise", False) == pytest.approx(0.1 + 100 * 0.05)
    assert time.seconds("occlusion", False) == pytest.approx(0.1 + 196 * 0.05)
    request = {"options": {"method": "rise"}, "picture": None}
    for _ in range(40):
        time.observe([request], 10.2)
    assert time.seconds("rise", False) == pytest.approx(10.2, rel=0.01)
    assert time.seconds("occlusion", False) == pytest.approx(9.9)
    for _ in range(40):
        time.relax([request])
    assert time.seconds("rise", False) == pytest.approx(5.1, rel=0.01)
