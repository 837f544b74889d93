"""Idle OpenMP threads sleep, also if torch was imported before vitrail."""

import os
import subprocess
import sys

import pytest

from vitrail import openmp

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or (os.cpu_count() or 1) < 2, reason="needs /proc and two cores"
)

# A spinning thread waits for about 3 ms before it sleeps, which is longer than the pauses between these sums.
COUNT_SLEEPS = """
import os, time
from contextlib import suppress
from pathlib import Path
{imports}
torch.set_num_threads(2)
values = torch.ones(1 << 20)
values.sum()
team = [task for task in Path("/proc/self/task").iterdir() if int(task.name) not in before]

def sleeps():
    total = 0
    for task in team:
        with suppress(OSError):  # a thread of the start that has ended
            lines = (task / "status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total

start = sleeps()
for _ in range(200):
    values.sum()
    end = time.perf_counter() + 0.0005
    while time.perf_counter() < end:
        pass
print(sleeps() - start)
"""
TORCH_FIRST = "import torch\nimport vitrail\nbefore = {int(name) for name in os.listdir('/proc/self/task')}"
WITHOUT_VITRAIL = "import torch\nbefore = {int(name) for name in os.listdir('/proc/self/task')}"


def count_sleeps(imports: str, **variables: str) -> int:
    """Returns how often the threads of torch went to sleep in 200 pauses of half a millisecond."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    command = [sys.executable, "-c", COUNT_SLEEPS.format(imports=imports)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_idle_threads_sleep_though_torch_was_imported_first():
    assert count_sleeps(TORCH_FIRST) >= 100


def test_the_choice_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch):
    quieted: list[str] = []
    monkeypatch.setattr(openmp, "quiet_loaded_library", quieted.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for name in openmp.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    openmp.let_idle_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and not quieted
    monkeypatch.delenv("OMP_WAIT_POLICY")
    openmp.let_idle_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and quieted == openmp.loaded_libraries()
    assert quieted


def test_what_is_counted_shows_spinning_threads():
    assert count_sleeps(WITHOUT_VITRAIL) < 100
