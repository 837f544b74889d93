"""Runs a benchmark and turns its timings into rows: images per second, and the ratio to the fastest peer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vitrail.benchmarking.candidates import VITRAIL, Candidate, Run
from vitrail.benchmarking.timing import Timing, time_alternately
from vitrail.errors import VitrailError, first_line
from vitrail.machine import measure_steal_time

MAX_STEAL_FRACTION = 0.05  # above this fraction of CPU steal time, timings are reported as disturbed


@dataclass(frozen=True)
class BenchmarkRow:
    """The results of one candidate; `ratio` is (median, lower quartile, upper quartile) over rounds."""

    library: str
    mode: str
    images_per_second: float
    milliseconds: float  # per batch
    ratio: tuple[float, float, float] | None  # speed divided by that of the fastest peer; None without peers
    peak_memory: int | None = None  # bytes
    seconds: tuple[float, ...] = ()  # per batch, for each round

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class BenchmarkResult:
    """The rows of one benchmark, and the candidates that failed with the reason."""

    rows: list[BenchmarkRow]
    failed: dict[str, str]
    steal_fraction: float | None = None  # CPU steal time during the timing, as a fraction of busy time

    @property
    def best_peer(self) -> BenchmarkRow | None:
        """The fastest row of another library."""
        peers = [row for row in self.rows if row.library != VITRAIL]
        return max(peers, key=lambda row: row.images_per_second, default=None)


def run_benchmark(
    candidates: Sequence[Candidate],
    batch_size: int,
    *,
    rounds: int,
    min_seconds: float,
    clock: str,
    device: torch.device,
    on_step: Callable[[str], object] = lambda step: None,
) -> BenchmarkResult:
    """Builds the candidates and times them in turn; one that cannot be built or run is reported with its reason.

    `on_step` is called with a description of each step. Raises `VitrailError` if no candidate runs.
    """
    torch._dynamo.reset()  # code compiled for an earlier benchmark would count against torch's recompilation limit
    runs: dict[Candidate, Run] = {}
    failed: dict[str, str] = {}
    for candidate in candidates:
        on_step(f"building {candidate.library} {candidate.mode}")
        try:
            run = candidate.build()
            run()
        except Exception as error:  # of any library: no compiler, an unknown operator
            failed[f"{candidate.library} {candidate.mode}"] = first_line(error)
        else:
            runs[candidate] = run
    if not runs:
        raise VitrailError("no candidate could be run", next(iter(failed.values()), None))
    on_step(f"timing {len(runs)} candidates")
    read_steal_fraction = measure_steal_time()
    timings = time_alternately(list(runs.values()), rounds=rounds, min_seconds=min_seconds, clock=clock, device=device)
    rows = make_rows(dict(zip(runs, timings, strict=True)), batch_size)
    return BenchmarkResult(rows, failed, read_steal_fraction())


def make_rows(timings: Mapping[Candidate, Timing], batch_size: int) -> list[BenchmarkRow]:
    """Returns a row for each candidate, with its ratio to the peer with the shortest median."""
    peers = [timing for candidate, timing in timings.items() if candidate.library != VITRAIL]
    best = min(peers, key=lambda timing: timing.median, default=None)
    return [
        BenchmarkRow(
            candidate.library,
            candidate.mode,
            images_per_second=batch_size / timing.median,
            milliseconds=1000 * timing.median,
            ratio=timing.ratio(best) if best else None,
            seconds=timing.seconds,
        )
        for candidate, timing in timings.items()
    ]


def describe_steal(fraction: float | None) -> str | None:
    """Returns a warning for timings with much CPU steal time, else None."""
    if fraction is None or fraction < MAX_STEAL_FRACTION:
        return None
    return f"the host took {fraction:.0%} of the CPU time during the timing (steal time)"


def add_peak_memory(
    rows: Sequence[BenchmarkRow], candidates: Sequence[Candidate], peaks: Sequence[int | None]
) -> list[BenchmarkRow]:
    """Returns the rows with the peak memory of their candidates; `peaks` has the order of `candidates`."""
    by_candidate = {(each.library, each.mode): peak for each, peak in zip(candidates, peaks, strict=True)}
    return [replace(row, peak_memory=by_candidate[row.library, row.mode]) for row in rows]


def sort_rows(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """vitrail first, then by speed."""
    return sorted(rows, key=lambda row: (row.library != VITRAIL, -row.images_per_second))


def format_markdown(rows: Sequence[BenchmarkRow]) -> str:
    """Returns the rows as a Markdown table, sorted."""
    lines = [
        "| library | mode | images/s | ratio to the fastest peer (quartiles) | peak memory, MiB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in sort_rows(rows):
        memory = "-" if row.peak_memory is None else f"{row.peak_memory / 2**20:,.0f}"
        speed = f"{row.images_per_second:,.1f}"
        lines.append(f"| {row.library} | {row.mode} | {speed} | {format_ratio(row)} | {memory} |")
    return "\n".join(lines) + "\n"


def format_ratio(row: BenchmarkRow) -> str:
    """Returns a ratio with its quartiles."""
    if row.ratio is None:
        return "-"
    median, low, high = row.ratio
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
