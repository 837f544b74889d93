"""Fair timing on a machine with other load: all candidates in turn, for several rounds.

Other load affects all candidates alike; ratios are computed within a round and never against an older run
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
    """Seconds per call in each round; the same round of two timings of one run is comparable."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over rounds."""
        return float(np.median(self.seconds))

    def ratio(self, other: "Timing") -> tuple[float, float, float]:
        """Returns the speed divided by that of the other: median, lower and upper quartile of the rounds' ratios."""
        ratios = np.array(other.seconds) / np.array(self.seconds)
        low, median, high = np.percentile(ratios, [25, 50, 75])
        return float(median), float(low), float(high)


def time_alternately(
    runs: Sequence[Run],
    *,
    rounds: int = 7,
    min_seconds: float = 0.2,
    clock: str = "wall",
    device: torch.device | None = None,
    on_measurement: Callable[[], object] = lambda: None,
) -> list[Timing]:
    """Times each run in turn, `rounds` times; a measurement lasts about `min_seconds`, and at least one call.

    Each round starts with another run, so that no run always follows the same one. Every run is called twice before the
    timing. `on_measurement` is called after each measurement. On a GPU a measurement ends when the device has finished.
    """
    read_clock = CLOCKS[clock]

    def seconds_per_call(run: Run, calls: int) -> float:
        started = read_clock()
        for _ in range(calls):
            run()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return (read_clock() - started) / calls

    calls = []
    for run in runs:
        seconds_per_call(run, 1)
        calls.append(max(1, round(min_seconds / max(seconds_per_call(run, 1), 1e-6))))
    seconds: list[list[float]] = [[] for _ in runs]
    for first in range(rounds):
        for offset in range(len(runs)):
            index = (first + offset) % len(runs)
            seconds[index].append(seconds_per_call(runs[index], calls[index]))
            on_measurement()
    return [Timing(tuple(each)) for each in seconds]
