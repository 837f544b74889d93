"""Plots loss and accuracy: metrics.jsonl -> curves.png."""

from pathlib import Path
from typing import Any

from vitrail.files import write_atomically

SPLIT_COLORS = {"train": "#0072b2", "validation": "#d55e00", "test": "#009e73"}
SCORE_NAMES = {  # the score that is drawn: the first that the rows have
    "map": "mAP",
    "quadratic_kappa": "quadratic weighted kappa",
    "r2": "R2",
    "accuracy": "accuracy",
}
MAX_MARKED_ROWS = 14  # lines with more points have no markers


def draw_curves(
    rows: list[dict[str, Any]],
    path: Path,
    title: str = "",
    x_key: str = "epoch",
    log_x: bool = False,
    best_x: float | None = None,
) -> None:
    """Plots loss and score of every split in the rows over their `x_key`; marks `best_x`, whose weights are kept.

    Rows without a score, those of numbers without validation images, have a plot of the loss alone.
    `log_x` makes the x axis logarithmic and reversed, for a regularization strength that falls from row to row.
    """
    from matplotlib.figure import Figure

    xs = [row[x_key] for row in rows]
    marker = "o" if len(rows) <= MAX_MARKED_ROWS else None
    measured = [name for name in SCORE_NAMES if any(f"{split}_{name}" in row for split in SPLIT_COLORS for row in rows)]
    metrics = ["loss", *measured[:1]]
    figure = Figure(figsize=(5 * len(metrics), 4), layout="constrained")
    for metric, axes in zip(metrics, figure.subplots(1, len(metrics), squeeze=False)[0], strict=True):
        for split, color in SPLIT_COLORS.items():
            values = [row.get(f"{split}_{metric}") for row in rows]
            if any(value is not None for value in values):
                axes.plot(xs, values, color=color, marker=marker, markersize=3, label=split)
        if metric == "loss":
            label = "cross-entropy loss" if metrics[-1] == "accuracy" else "loss"
            axes.set(xlabel=x_key, ylabel=label, title="loss")
        else:
            axes.set(xlabel=x_key, ylabel=SCORE_NAMES[metric], title=SCORE_NAMES[metric], ylim=(0, 1))
        if log_x:
            axes.set_xscale("log")
            axes.invert_xaxis()
        elif all(isinstance(x, int) for x in xs):
            axes.xaxis.get_major_locator().set_params(integer=True)
        if best_x is not None:
            axes.axvline(best_x, color="0.35", linestyle="--", linewidth=1, label=f"kept: {x_key} {best_x:g}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
