"""Bar charts of benchmarks."""

from pathlib import Path

from vitrail.benchmarking.candidates import VITRAIL
from vitrail.benchmarking.results import BenchmarkRow, sort_rows
from vitrail.files import write_atomically

VITRAIL_COLOR, PEER_COLOR = "#1f5fa8", "#b9bec6"


def save_benchmark_chart(benchmarks: dict[str, list[BenchmarkRow]], path: Path) -> None:
    """Writes images per second by candidate, one panel for each benchmark with its title."""
    from matplotlib.figure import Figure

    height = sum(1.1 + 0.28 * len(rows) for rows in benchmarks.values())
    figure = Figure(figsize=(9, height), layout="constrained")
    heights = [3 + len(rows) for rows in benchmarks.values()]
    panels = figure.subplots(len(benchmarks), 1, squeeze=False, height_ratios=heights)
    for axes, (title, rows) in zip(panels[:, 0], benchmarks.items(), strict=True):
        rows = sort_rows(rows)[::-1]
        speeds = [row.images_per_second for row in rows]
        colors = [VITRAIL_COLOR if row.library == VITRAIL else PEER_COLOR for row in rows]
        axes.barh([f"{row.library}, {row.mode}" for row in rows], speeds, color=colors)
        for position, row in enumerate(rows):
            ratio = "" if row.ratio is None else f"  {row.ratio[0]:.2f} times"
            label = f" {row.images_per_second:,.1f}{ratio}"
            axes.text(row.images_per_second, position, label, va="center", fontsize=8)
        axes.set_xlim(0, max(speeds) * 1.25)
        axes.set_title(title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("images per second; ratio to the fastest peer")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
