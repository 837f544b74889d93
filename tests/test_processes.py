"""Worker processes: messages, errors, exits, crash counts, and the end of a worker whose parent is gone."""

import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path

import pytest

from vitrail.errors import UsageError
from vitrail.processes import CrashBudget, Exited, Failed, ParentGone, ParentLink, start_worker, wait_for_messages

pytestmark = pytest.mark.newest


@dataclass(frozen=True)
class Number:
    value: int


def double_numbers(parent: ParentLink) -> None:
    while True:
        number = parent.receive().value
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise UsageError(f"{number} is negative", "send a positive number")
        parent.send(Number(2 * number))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_messages_errors_and_exits_reach_the_parent(method):
    good, failing, dying = (start_worker(double_numbers, method=method, daemon=True) for _ in range(3))
    for worker, value in ((good, 7), (failing, -1), (dying, 0)):
        worker.send(Number(value))
    assert good.receive() == Number(14)
    assert wait_for_messages([good, failing]) == [failing] and failing.has_message() and not good.has_message()
    message = failing.receive()
    assert isinstance(message, Failed) and isinstance(message.error, UsageError)
    assert (message.error.sentence, message.error.hint) == ("-1 is negative", "send a positive number")
    assert failing.receive() == Exited(1) and failing.exit_code == 1
    assert str(dying.receive()) == "killed by SIGKILL"
    dying.send(Number(1))  # has no effect
    assert good.exit_code is None
    good.terminate()
    for worker in (good, failing, dying):
        worker.close()


def start_and_leave(path: Path) -> None:
    worker = start_worker(double_numbers, method="fork")
    path.write_text(str(worker.process.pid))
    os._exit(0)


def test_a_worker_ends_when_its_parent_is_gone(tmp_path: Path):
    if (child := os.fork()) == 0:
        start_and_leave(tmp_path / "pid")
    os.waitpid(child, 0)
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_orphan_can_send_nothing():
    ours, theirs = Pipe()
    with pytest.raises(ParentGone):
        ParentLink(theirs, parent_pid=-1).send(Number(1))
    ours.close()
    with pytest.raises(ParentGone):
        ParentLink(theirs, parent_pid=os.getppid()).receive()


def test_a_crash_budget_counts_by_cause():
    budget = CrashBudget(2)
    budget.record("part 1")
    budget.record("part 2")
    assert not budget.is_exhausted("part 1")
    budget.record("part 1")
    assert budget.is_exhausted("part 1") and not budget.is_exhausted("part 2")
    budget.reset()
    assert not budget.is_exhausted("part 1")
