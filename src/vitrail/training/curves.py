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
    """Plots loss and accuracy of every split in the rows over their `x_key`; marks `best_x`, whose weights are kept.

    `log_x` makes the x axis logarithmic and reversed, for a regularization strength that falls from row to row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    xs = [row[x_key] for row in rows]
    marker = "o" if len(rows) <= MAX_MARKED_ROWS else None
    score, score_name = next(
        pair
        for pair in SCORE_NAMES.items()
        if any(f"{split}_{pair[0]}" in row for split in SPLIT_COLORS for row in rows)
    )
    is_cross_entropy = score == "accuracy"
    for split, color in SPLIT_COLORS.items():
        for axes, metric in ((loss_axes, "loss"), (accuracy_axes, score)):
            values = [row.get(f"{split}_{metric}") for row in rows]
            if any(value is not None for value in values):
                axes.plot(xs, values, color=color, marker=marker, markersize=3, label=split)
    loss_axes.set(xlabel=x_key, ylabel="cross-entropy loss" if is_cross_entropy else "loss", title="loss")
    accuracy_axes.set(xlabel=x_key, ylabel=score_name, title=score_name, ylim=(0, 1))
    for axes in (loss_axes, accuracy_axes):
        if log_x:
            axes.set_xscale("log")
            axes.invert_xaxis()
        if best_x is not None:
            axes.axvline(best_x, color="0.35", linestyle="--", linewidth=1, label=f"kept: {x_key} {best_x:g}")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
