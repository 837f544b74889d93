"""Two pictures of a sweep: its score by each field, and each trial as a line through all fields."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.files import write_atomically
from vitrail.sweeps.metrics import MINIMIZED, TITLES
from vitrail.sweeps.space import Axis, Range, Space, format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS = 3
MAX_LABELED_VALUES = 6
MAX_TICKS = 7
MAX_FLAT_CHARACTERS = 28  # of all tick labels of a panel; longer ones are turned
MIN_LOG_RATIO, LONG_LOG_RATIO = 5, 200  # of the ends of a logarithmic range, for other steps of its ticks
MARGIN = 0.06  # of the width of a panel, so that no point is cut
COLORMAP = "viridis"
TEXT_BOX = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}  # behind numbers that lines cross
STATE_COLORS = {"pruned": ("#999999", "none"), "complete": ("#0072b2", "#0072b2")}  # edge and face of a point
BEST_COLOR = "#d55e00"


def axis_coordinate(axis: Axis, value: Any) -> float:
    """Returns the coordinate of a value: of a logarithmic range its exponent, of a choice its index."""
    if isinstance(axis, Range):
        return math.log10(value) if axis.log else float(value)
    return float([repr(v) for v in axis.values].index(repr(value)))


def axis_limits(axis: Axis) -> tuple[float, float]:
    """Returns the coordinates of the first and of the last value."""
    if isinstance(axis, Range):
        return axis_coordinate(axis, axis.low), axis_coordinate(axis, axis.high)
    return 0.0, float(len(axis.values) - 1)


def axis_ticks(axis: Axis) -> tuple[list[float], list[str]]:
    """Returns coordinates and labels of the ticks: all values if they are few or no numbers, else round numbers."""
    values = axis.list_values()
    if values is not None and (len(values) <= MAX_LABELED_VALUES or not isinstance(axis, Range)):
        return [axis_coordinate(axis, value) for value in values], [format_value(value) for value in values]
    assert isinstance(axis, Range)
    numbers = round_numbers(axis)
    return [axis_coordinate(axis, number) for number in numbers], [f"{number:g}" for number in numbers]


def round_numbers(axis: Range) -> list[float]:
    """Returns about five round numbers in a range: 1, 2 and 5 times powers of ten, or powers alone, if it is long."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if not axis.log or axis.high < MIN_LOG_RATIO * axis.low:  # a short range has the round numbers of a linear one
        locator = MaxNLocator(5, integer=axis.is_integer, steps=(1, 2, 5, 10))
        numbers = locator.tick_values(axis.low, axis.high)
    else:
        is_long = axis.high / axis.low > LONG_LOG_RATIO
        numbers = LogLocator(subs=(1,) if is_long else (1, 2, 5), numticks=50).tick_values(axis.low, axis.high)
    slack = 1e-9 * abs(axis.high)
    inside = [float(f"{number:.6g}") for number in numbers if axis.low - slack <= number <= axis.high + slack]
    every = -(-len(inside) // MAX_TICKS)
    return inside[::every] or [axis.low, axis.high]


def scale_to_unit(axis: Axis, coordinate: float) -> float:
    """Returns a coordinate scaled so that the first value of the axis is 0 and the last one 1."""
    low, high = axis_limits(axis)
    return (coordinate - low) / ((high - low) or 1.0)


def draw_slices(space: Space, rows: Sequence[Mapping[str, Any]], score: str, path: Path) -> None:
    """Draws a panel for each field: complete trials with 95% intervals, pruned ones hollow, the best one circled."""
    from matplotlib.figure import Figure

    row_count, column_count = -(-len(space) // MAX_COLUMNS), min(len(space), MAX_COLUMNS)
    figure = Figure(figsize=(4.2 * column_count + 0.6, 3.4 * row_count), layout="constrained")
    panels = figure.subplots(row_count, column_count, squeeze=False, sharey=True).ravel()
    for panel, (name, axis) in zip(panels, space.items(), strict=False):
        draw_slice(panel, name, axis, rows, score)
    for panel in panels[::column_count]:
        panel.set_ylabel(f"validation {TITLES[score]}")
    for panel in panels[len(space) :]:
        panel.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def draw_slice(panel: "Axes", name: str, axis: Axis, rows: Sequence[Mapping[str, Any]], score: str) -> None:
    """Draws the score by one field."""
    for state, (edge_color, face_color) in STATE_COLORS.items():
        trials = [row for row in rows if row["state"] == state and row[score] is not None]
        xs = [axis_coordinate(axis, row["values"][name]) for row in trials]
        ys = [row[score] for row in trials]
        if state == "complete":
            intervals = np.array([row[f"{score}_interval"] or [row[score]] * 2 for row in trials]).reshape(-1, 2).T
            errors = np.abs(intervals - np.array(ys))
            panel.errorbar(xs, ys, yerr=errors, fmt="none", ecolor=edge_color, alpha=0.35, linewidth=1)
        panel.scatter(xs, ys, s=26, edgecolors=edge_color, facecolors=face_color, label=state, zorder=3)
    if rows and rows[0]["state"] == "complete":
        x, y = axis_coordinate(axis, rows[0]["values"][name]), rows[0][score]
        panel.scatter(
            x, y, s=120, edgecolors=BEST_COLOR, facecolors="none", linewidths=1.6, label="best", zorder=4, clip_on=False
        )
    ticks, labels = axis_ticks(axis)
    low, high = axis_limits(axis)
    margin = MARGIN * ((high - low) or 1.0)
    panel.set_xticks(ticks, labels, rotation=30 if sum(map(len, labels)) > MAX_FLAT_CHARACTERS else 0, parse_math=False)
    panel.set_xlim(low - margin, high + margin)
    panel.set_xlabel(name, parse_math=False)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def draw_parallel(space: Space, rows: Sequence[Mapping[str, Any]], score: str, path: Path) -> None:
    """Draws each trial as a line through its values, colored by its score; pruned trials are dashed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    trials = [row for row in rows if row[score] is not None]
    lowest = min((row[score] for row in trials), default=0.0)
    span = (max((row[score] for row in trials), default=1.0) - lowest) or 1.0
    figure = Figure(figsize=(1.9 * (len(space) + 1) + 1.2, 4.2), layout="constrained")
    panel = figure.subplots()
    for row in reversed(trials):  # the best on top
        relative = (row[score] - lowest) / span
        ys = [
            *(scale_to_unit(axis, axis_coordinate(axis, row["values"][name])) for name, axis in space.items()),
            relative,
        ]
        color = colormaps[COLORMAP]((1 - relative if score in MINIMIZED else relative) * 0.9)
        is_pruned = row["state"] == "pruned"
        style = {"alpha": 0.5, "linestyle": "--", "linewidth": 1} if is_pruned else {"alpha": 0.9, "linewidth": 1.6}
        panel.plot(range(len(ys)), ys, color=color, **style)
    draw_parallel_axes(panel, space, TITLES[score], lowest, span)
    stopped = ", dashed: stopped early" if any(row["state"] == "pruned" for row in trials) else ""
    panel.set_title(f"each line is a trial; the brighter, the better{stopped}", fontsize=9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def draw_parallel_axes(panel: "Axes", space: Space, title: str, lowest: float, span: float) -> None:
    """Draws a vertical axis for each field and one for the score, which has this title."""
    for x, axis in enumerate(space.values()):
        panel.axvline(x, color="#333333", linewidth=0.8)
        ticks, labels = axis_ticks(axis)
        for tick, label in zip(ticks, labels, strict=True):
            panel.text(
                x + 0.03, scale_to_unit(axis, tick), label, fontsize=7, va="center", parse_math=False, bbox=TEXT_BOX
            )
    panel.axvline(len(space), color="#333333", linewidth=0.8)
    for relative in (0.0, 0.5, 1.0):
        panel.text(len(space) + 0.03, relative, f"{lowest + relative * span:.3f}", fontsize=7, va="center")
    panel.set_xticks(range(len(space) + 1), [*space, title], parse_math=False)
    panel.set_yticks([])
    panel.set(xlim=(-0.1, len(space) + 0.35), ylim=(-0.05, 1.05))
    panel.spines[:].set_visible(False)
