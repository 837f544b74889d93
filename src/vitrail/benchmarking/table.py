"""Timings -> rows: images a second, and how many times the best of the peers."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vitrail.benchmarking.alternate import Timing, alternate
from vitrail.benchmarking.contenders import OURS, Contender, Run
from vitrail.errors import VitrailError, first_line
from vitrail.machine import measure_steal_time

QUIET = 0.05  # part of the processors that a host may take away before timings have to be told as disturbed


@dataclass(frozen=True)
class Row:
    """A contender's figures; ratios are medians of the rounds' ratios with their quartiles."""

    who: str
    way: str
    images_per_second: float
    milliseconds: float  # of a batch
    ratio: tuple[float, float, float] | None  # times as fast as the best peer; of the best peer itself one
    memory: int | None = None
    seconds: tuple[float, ...] = ()  # of each round, for whoever wants to compute something else

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """The rows of one race, and who could not take part and why."""

    rows: list[Row]
    failed: dict[str, str]
    taken: float | None = None  # part of the processors that the host took away while it was timed

    @property
    def best_peer(self) -> Row | None:
        """The fastest row that is not ours."""
        theirs = [row for row in self.rows if row.who != OURS]
        return max(theirs, key=lambda row: row.images_per_second, default=None)


def race(
    contenders: Sequence[Contender],
    batch: int,
    *,
    rounds: int,
    turn: float,
    clock: str,
    device: torch.device,
    tick: Callable[[str], object] = lambda doing: None,
) -> Result:
    """Builds the contenders and times them in turn; one that cannot be built or run is named with its reason."""
    torch._dynamo.reset()  # code compiled for an earlier race would count against the compiler's limit for one function
    runs: dict[Contender, Run] = {}
    failed: dict[str, str] = {}
    for each in contenders:
        tick(f"building {each.who} {each.way}")
        try:
            run = each.make()
            run()
        except Exception as error:  # whatever another library raises: a compiler that is missing, an operator unknown
            failed[f"{each.who} {each.way}"] = first_line(error)
        else:
            runs[each] = run
    if not runs:
        raise VitrailError("nothing could be run", next(iter(failed.values()), None))
    tick(f"timing {len(runs)} contenders")
    taken = measure_steal_time()
    timings = alternate(list(runs.values()), rounds=rounds, turn=turn, clock=clock, device=device)
    return Result(rows_of(dict(zip(runs, timings, strict=True)), batch), failed, taken())


def rows_of(timings: dict[Contender, Timing], batch: int) -> list[Row]:
    """A row for each, beside the peer with the shortest median."""
    theirs = [timing for each, timing in timings.items() if each.who != OURS]
    best = min(theirs, key=lambda timing: timing.median, default=None)
    return [
        Row(
            each.who,
            each.way,
            images_per_second=batch / timing.median,
            milliseconds=1000 * timing.median,
            ratio=timing.ratio(best) if best else None,
            seconds=timing.seconds,
        )
        for each, timing in timings.items()
    ]


def disturbed(taken: float | None) -> str | None:
    """A sentence for timings that the machine's host disturbed, else None."""
    if taken is None or taken < QUIET:
        return None
    return f"the host took {taken:.0%} of the processors away while it was timed"


def with_memory(rows: Sequence[Row], contenders: Sequence[Contender], peaks: Sequence[int | None]) -> list[Row]:
    """The rows with their peaks of memory, which were measured in the order of the contenders."""
    known = {(each.who, each.way): peak for each, peak in zip(contenders, peaks, strict=True)}
    return [replace(row, memory=known[row.who, row.way]) for row in rows]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table, ours first, then by speed."""
    lines = [
        "| who | how | images/s | times the best peer (quartiles) | peak memory, MiB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in in_order(rows):
        memory = "-" if row.memory is None else f"{row.memory / 2**20:,.0f}"
        lines.append(f"| {row.who} | {row.way} | {row.images_per_second:,.1f} | {ratio_said(row)} | {memory} |")
    return "\n".join(lines) + "\n"


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Ours first, then by speed."""
    return sorted(rows, key=lambda row: (row.who != OURS, -row.images_per_second))


def ratio_said(row: Row) -> str:
    """A ratio with its quartiles."""
    if row.ratio is None:
        return "-"
    middle, low, high = row.ratio
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
