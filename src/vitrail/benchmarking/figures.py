"""Races as a picture: a bar for each contender."""

from pathlib import Path

from vitrail.benchmarking.candidates import VITRAIL
from vitrail.benchmarking.results import BenchmarkRow, sort_rows
from vitrail.files import write_atomically


def save_benchmark_chart(races: dict[str, list[BenchmarkRow]], path: Path) -> None:
    """Images a second by contender, a panel for each race by its title; ours in colour."""
    from matplotlib.figure import Figure

    height = sum(1.1 + 0.28 * len(rows) for rows in races.values())
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = figure.subplots(len(races), 1, squeeze=False, height_ratios=[3 + len(rows) for rows in races.values()])
    for axes, (title, rows) in zip(panels[:, 0], races.items(), strict=True):
        rows = sort_rows(rows)[::-1]
        speeds = [row.images_per_second for row in rows]
        colours = ["#1f5fa8" if row.library == VITRAIL else "#b9bec6" for row in rows]
        axes.barh([f"{row.library}, {row.mode}" for row in rows], speeds, color=colours)
        for place, row in enumerate(rows):
            beside = "" if row.ratio is None else f"  {row.ratio[0]:.2f} times"
            axes.text(row.images_per_second, place, f" {row.images_per_second:,.1f}{beside}", va="center", fontsize=8)
        axes.set_xlim(0, max(speeds) * 1.25)
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("images a second; times the best of the others")
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=110))
