"""The figures of an evaluation: a confusion matrix, and predicted against true numbers."""

from pathlib import Path

import numpy as np

from vitrail.evaluation.numbers import NumberOutcome
from vitrail.files import write_atomically

MAX_NUMBERED_CLASSES = 30  # with more classes the cells have no numbers
MAX_PANELS = 6  # of more numbers the first are drawn
MAX_NAMED_CLASSES = 100  # with more classes the axes have no names


def draw_confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], path: Path) -> None:
    """Writes the matrix as an image: rows are true classes, colors are fractions of the row, numbers are images."""
    from matplotlib.figure import Figure

    n = len(classes)
    inches = min(4 + 0.35 * n, 24)
    figure = Figure(figsize=(inches + 1, inches), layout="constrained")
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(fractions, cmap="cividis", vmin=0, vmax=1)
    if n <= MAX_NUMBERED_CLASSES:
        for i, j in np.ndindex(n, n):
            if matrix[i, j]:
                axes.text(
                    j, i, str(matrix[i, j]), ha="center", va="center",
                    fontsize=8, color="white" if fractions[i, j] < 0.5 else "black",
                )  # fmt: skip
    if n <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(n), classes, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(n), classes, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def draw_predictions(outcome: NumberOutcome, path: Path) -> None:
    """Writes predicted against true numbers as an image, a panel per number; on the line they are equal."""
    from matplotlib.figure import Figure

    panels = min(len(outcome.classes), MAX_PANELS)
    figure = Figure(figsize=(4.5 * panels, 4.5), layout="constrained")
    for k, axes in enumerate(figure.subplots(1, panels, squeeze=False)[0]):
        true, predicted = outcome.labels[:, k], outcome.predicted[:, k]
        ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
        axes.plot(ends, ends, color="0.35", linestyle="--", linewidth=1)
        axes.scatter(true, predicted, s=6, alpha=0.5, color="#0072b2", linewidths=0)
        axes.set(xlabel="true", ylabel="predicted")
        axes.set_title(outcome.classes[k], parse_math=False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
