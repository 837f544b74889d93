"""A sweep as two pictures: accuracy by each field, and every trial as a line through all fields."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.files import write_atomically
from vitrail.sweeps.results import Line
from vitrail.sweeps.space import Axis, Range, Space, format_value

ACROSS = 3  # panels in a row
COLOURS = "viridis"


def place(each: Axis, value: Any) -> float:
    """Where a value stands on its axis: powers by their exponent, words by their number."""
    if isinstance(each, Range):
        return math.log10(value) if each.log else float(value)
    return float([repr(v) for v in each.values].index(repr(value)))


def ticks(each: Axis) -> tuple[list[float], list[str]]:
    """Places on an axis and what stands there: every value where there are few, else five numbers."""
    counted = each.counted()
    if counted is not None and len(counted) <= 6:
        return [place(each, value) for value in counted], [format_value(value) for value in counted]
    if not isinstance(each, Range):
        return list(map(float, range(len(each.values)))), [format_value(value) for value in each.values]
    low, high = place(each, each.low), place(each, each.high)
    values = [10**x if each.log else x for x in (low + (high - low) * i / 4 for i in range(5))]
    if each.whole:
        values = [float(value) for value in sorted(set(map(round, values)))]
    return [place(each, value) for value in values], [f"{value:.3g}" for value in values]


def draw_slices(space: Space, lines: list[Line], path: Path) -> None:
    """A panel for each field; complete trials with their 95 % intervals, pruned ones hollow, the best one ringed."""
    from matplotlib.figure import Figure

    scored = [each for each in lines if each["accuracy"] is not None]
    down = -(-len(space) // ACROSS)
    across = min(len(space), ACROSS)
    figure = Figure(figsize=(4.2 * across + 0.6, 3.4 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, (name, each) in zip(panels, space.items(), strict=False):
        for state, colour, fill in (("pruned", "#999999", "none"), ("complete", "#0072b2", "#0072b2")):
            some = [line for line in scored if line["state"] == state]
            xs = [place(each, line["values"][name]) for line in some]
            ys = [line["accuracy"] for line in some]
            ends = [[y - line["accuracy_interval"][0] for y, line in zip(ys, some, strict=True)],
                    [line["accuracy_interval"][1] - y for y, line in zip(ys, some, strict=True)]]  # fmt: skip
            if state == "complete":
                axes.errorbar(xs, ys, yerr=np.abs(ends), fmt="none", ecolor=colour, alpha=0.35, linewidth=1)
            axes.scatter(xs, ys, s=26, edgecolors=colour, facecolors=fill, label=state, zorder=3)
        if lines and lines[0]["state"] == "complete":
            best = lines[0]
            axes.scatter(
                place(each, best["values"][name]), best["accuracy"], s=120, edgecolors="#d55e00", facecolors="none",
                linewidths=1.6, label="best", zorder=4,
            )  # fmt: skip
        axes.set_xticks(*ticks(each), rotation=30 if len(ticks(each)[0]) > 4 else 0, parse_math=False)
        axes.set_xlabel(name, parse_math=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[::across]:
        axes.set_ylabel("validation accuracy")
    for axes in panels[len(space) :]:
        axes.set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=120))


def draw_parallel(space: Space, lines: list[Line], path: Path) -> None:
    """Each trial as a line through its values to its accuracy, which colours it; pruned ones are dashed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    scored = [each for each in lines if each["accuracy"] is not None]
    low = min((each["accuracy"] for each in scored), default=0.0)
    high = max((each["accuracy"] for each in scored), default=1.0)
    span = high - low or 1.0
    figure = Figure(figsize=(1.9 * (len(space) + 1) + 1.2, 4.2), layout="constrained")
    axes = figure.subplots()

    def height(each: Axis, value: Any) -> float:
        places = ticks(each)[0]
        return (place(each, value) - places[0]) / ((places[-1] - places[0]) or 1.0)

    for line in reversed(scored):  # the best on top
        part = (line["accuracy"] - low) / span
        ys = [*(height(each, line["values"][name]) for name, each in space.items()), part]
        pruned = line["state"] == "pruned"
        axes.plot(
            range(len(ys)), ys, color=colormaps[COLOURS](part * 0.9), alpha=0.5 if pruned else 0.9,
            linestyle="--" if pruned else "-", linewidth=1 if pruned else 1.6,
        )  # fmt: skip
    for x, each in enumerate(space.values()):
        axes.axvline(x, color="#333333", linewidth=0.8)
        places, words = ticks(each)
        for y, word in zip(places, words, strict=True):
            axes.text(x + 0.03, (y - places[0]) / ((places[-1] - places[0]) or 1.0), word, fontsize=7, va="center",
                      parse_math=False)  # fmt: skip
    axes.axvline(len(space), color="#333333", linewidth=0.8)
    for part in (0.0, 0.5, 1.0):
        axes.text(len(space) + 0.03, part, f"{low + part * span:.3f}", fontsize=7, va="center")
    axes.set_xticks(range(len(space) + 1), [*space, "accuracy"], parse_math=False)
    axes.set_yticks([])
    axes.set(xlim=(-0.1, len(space) + 0.35), ylim=(-0.05, 1.05))
    axes.spines[:].set_visible(False)
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=120))
