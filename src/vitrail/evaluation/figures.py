"""The confusion matrix as a picture."""

from pathlib import Path

import numpy as np

from vitrail.files import write_atomically


def draw_confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], path: Path) -> None:
    """Rows are true classes, columns predicted ones; colour is the part of the row, numbers are images."""
    from matplotlib.figure import Figure

    n = len(classes)
    side = min(4 + 0.35 * n, 24)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(parts, cmap="cividis", vmin=0, vmax=1)
    if n <= 30:
        for i, j in np.ndindex(n, n):
            if matrix[i, j]:
                axes.text(
                    j, i, str(matrix[i, j]), ha="center", va="center",
                    fontsize=8, color="white" if parts[i, j] < 0.5 else "black",
                )  # fmt: skip
    if n <= 100:
        axes.set_xticks(range(n), classes, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(n), classes, fontsize=8, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="part of the true class")
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=110))
