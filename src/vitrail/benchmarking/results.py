"""Timings -> rows: images a second, and how many times the best of the peers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vitrail.benchmarking.candidates import VITRAIL, Candidate, Run
from vitrail.benchmarking.timing import Timing, time_alternately
from vitrail.errors import VitrailError, first_line
from vitrail.machine import measure_steal_time

MAX_STEAL_FRACTION = (
    0.05  # part of the processors that a host may take away before timings have to be told as disturbed
)


@dataclass(frozen=True)
class BenchmarkRow:
    """A contender's figures; ratios are medians of the rounds' ratios with their quartiles."""

    library: str
    mode: str
    images_per_second: float
    milliseconds: float  # of a batch
    ratio: tuple[float, float, float] | None  # times as fast as the best peer; of the best peer itself one
    peak_memory: int | None = None
    seconds: tuple[float, ...] = ()  # of each round, for whoever wants to compute something else

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class BenchmarkResult:
    """The rows of one race, and who could not take part and why."""

    rows: list[BenchmarkRow]
    failed: dict[str, str]
    steal_fraction: float | None = None  # part of the processors that the host took away while it was timed

    @property
    def best_peer(self) -> BenchmarkRow | None:
        """The fastest row that is not ours."""
        theirs = [row for row in self.rows if row.library != VITRAIL]
        return max(theirs, key=lambda row: row.images_per_second, default=None)


def run_benchmark(
    contenders: Sequence[Candidate],
    batch_size: int,
    *,
    rounds: int,
    min_seconds: float,
    clock: str,
    device: torch.device,
    on_step: Callable[[str], object] = lambda doing: None,
) -> BenchmarkResult:
    """Builds the contenders and times them in turn; one that cannot be built or run is named with its reason."""
    torch._dynamo.reset()  # code compiled for an earlier race would count against the compiler's limit for one function
    runs: dict[Candidate, Run] = {}
    failed: dict[str, str] = {}
    for each in contenders:
        on_step(f"building {each.library} {each.mode}")
        try:
            run = each.build()
            run()
        except Exception as error:  # whatever another library raises: a compiler that is missing, an operator unknown
            failed[f"{each.library} {each.mode}"] = first_line(error)
        else:
            runs[each] = run
    if not runs:
        raise VitrailError("nothing could be run", next(iter(failed.values()), None))
    on_step(f"timing {len(runs)} contenders")
    taken = measure_steal_time()
    timings = time_alternately(list(runs.values()), rounds=rounds, min_seconds=min_seconds, clock=clock, device=device)
    return BenchmarkResult(make_rows(dict(zip(runs, timings, strict=True)), batch_size), failed, taken())


def make_rows(timings: dict[Candidate, Timing], batch: int) -> list[BenchmarkRow]:
    """A row for each, beside the peer with the shortest median."""
    theirs = [timing for each, timing in timings.items() if each.library != VITRAIL]
    best = min(theirs, key=lambda timing: timing.median, default=None)
    return [
        BenchmarkRow(
            each.library,
            each.mode,
            images_per_second=batch / timing.median,
            milliseconds=1000 * timing.median,
            ratio=timing.ratio(best) if best else None,
            seconds=timing.seconds,
        )
        for each, timing in timings.items()
    ]


def describe_steal(taken: float | None) -> str | None:
    """A sentence for timings that the machine's host disturbed, else None."""
    if taken is None or taken < MAX_STEAL_FRACTION:
        return None
    return f"the host took {taken:.0%} of the processors away while it was timed"


def add_peak_memory(
    rows: Sequence[BenchmarkRow], contenders: Sequence[Candidate], peaks: Sequence[int | None]
) -> list[BenchmarkRow]:
    """The rows with their peaks of memory, which were measured in the order of the contenders."""
    known = {(each.library, each.mode): peak for each, peak in zip(contenders, peaks, strict=True)}
    return [replace(row, peak_memory=known[row.library, row.mode]) for row in rows]


def format_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """The rows as a table, ours first, then by speed."""
    lines = [
        "| who | how | images/s | times the best peer (quartiles) | peak memory, MiB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in sort_rows(rows):
        memory = "-" if row.peak_memory is None else f"{row.peak_memory / 2**20:,.0f}"
        lines.append(f"| {row.library} | {row.mode} | {row.images_per_second:,.1f} | {format_ratio(row)} | {memory} |")
    return "\n".join(lines) + "\n"


def sort_rows(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """Ours first, then by speed."""
    return sorted(rows, key=lambda row: (row.library != VITRAIL, -row.images_per_second))


def format_ratio(row: BenchmarkRow) -> str:
    """A ratio with its quartiles."""
    if row.ratio is None:
        return "-"
    middle, low, high = row.ratio
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
