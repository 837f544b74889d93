"""metrics.jsonl -> curves.png."""

from pathlib import Path
from typing import Any

from vitrail.files import write_atomically


def draw_curves(rows: list[dict[str, Any]], path: Path, title: str = "", x_key: str = "epoch") -> None:
    """Loss and accuracy by epoch (or `along` another field), of training and of whatever was measured beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    places = [row[x_key] for row in rows]
    marker = "o" if len(rows) < 15 else None
    for split, colour in (("train", "#0072b2"), ("validation", "#d55e00"), ("test", "#009e73")):
        for axes, what in ((losses, "loss"), (accuracies, "accuracy")):
            values = [row.get(f"{split}_{what}") for row in rows]
            if any(value is not None for value in values):
                axes.plot(places, values, color=colour, marker=marker, markersize=3, label=split)
    losses.set(xlabel=x_key, ylabel="cross-entropy loss", title="loss")
    accuracies.set(xlabel=x_key, ylabel="accuracy", title="accuracy", ylim=(0, 1))
    for axes in (losses, accuracies):
        if x_key == "penalty":  # in powers of ten, weaker ones to the right
            axes.set_xscale("log")
            axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title)
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=120))
