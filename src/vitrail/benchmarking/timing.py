"""Timing that is fair on a machine that is not quiet: everyone in turn, again and again, compared within a round.

What else the machine does falls on all alike; ratios are taken round by round and never against an older run
(docs/benchmarks.md).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, round by round: rounds of all contenders in one run stand beside one another."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median round."""
        return float(np.median(self.seconds))

    def ratio(self, other: "Timing") -> tuple[float, float, float]:
        """How many times as fast as the other: the median of the rounds' ratios, and their quartiles."""
        ratios = np.array(other.seconds) / np.array(self.seconds)
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        return float(middle), float(low), float(high)


def time_alternately(
    runs: Sequence[Run],
    *,
    rounds: int = 7,
    min_seconds: float = 0.2,
    clock: str = "wall",
    device: torch.device | None = None,
    tick: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Each run in turn, `rounds` times; a turn lasts about `turn` seconds, at least one call.

    Every round starts with another one, so that none always follows the same. `tick` is called after each turn. Each
    has been called twice before anything is timed. On a GPU a turn ends when the device has finished.
    """
    read = CLOCKS[clock]

    def timed(run: Run, calls: int) -> float:
        began = read()
        for _ in range(calls):
            run()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return (read() - began) / calls

    calls = []
    for run in runs:
        timed(run, 1)
        calls.append(max(1, round(min_seconds / max(timed(run, 1), 1e-6))))
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        for place in range(len(runs)):
            at = (place + number) % len(runs)
            seconds[at].append(timed(runs[at], calls[at]))
            tick()
    return [Timing(tuple(each)) for each in seconds]
