"""The figures of an evaluation: a confusion matrix, and predicted against true numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrail.evaluation.confusion import (
    CORRECT_SHADES,
    FIRST_DARK_SHADE,
    MISTAKE_SHADES,
    cell_shade,
    order_by_confusion,
    shade_limits,
)
from vitrail.evaluation.numbers import NumberOutcome
from vitrail.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NUMBERED_CLASSES = 30  # with more classes the cells have no numbers
MAX_PANELS = 6  # of more numbers the first are drawn
MAX_NAMED_CLASSES = 100  # with more classes the axes have no names


def draw_confusion_matrix(matrix: np.ndarray, classes: tuple[str, ...], path: Path) -> None:
    """Writes the matrix as an image: rows are true classes, colors are fractions of the row, numbers are images.

    Colors and order of the classes are those of the report.
    """
    from matplotlib.figure import Figure

    n = len(classes)
    order = order_by_confusion(matrix) if n <= MAX_NUMBERED_CLASSES else list(range(n))
    matrix = matrix[np.ix_(order, order)]
    inches = min(3.2 + 0.42 * n, 24)
    figure = Figure(figsize=(max(inches, 5), inches + 1), layout="constrained")
    axes, scale = figure.subplots(2, 1, height_ratios=(inches - 0.5, 0.5))
    shades = matrix_shades(matrix)
    axes.imshow(shade_colors(shades, np.eye(n, dtype=bool)), interpolation="nearest")
    if n <= MAX_NUMBERED_CLASSES:
        for i, j in np.ndindex(n, n):
            color = "0.6" if not matrix[i, j] else "white" if shades[i, j] >= FIRST_DARK_SHADE else "black"
            axes.text(j, i, str(matrix[i, j] or "·"), ha="center", va="center", fontsize=8, color=color)
    if n <= MAX_NAMED_CLASSES:
        names = [classes[i] for i in order]
        longest = max(map(len, names))
        axes.set_xticks(range(n), names, rotation=0 if longest * n <= 24 else 90, fontsize=8, parse_math=False)
        axes.set_yticks(range(n), names, fontsize=8, parse_math=False)
    if n <= MAX_NUMBERED_CLASSES:
        for set_ticks in (axes.set_xticks, axes.set_yticks):
            set_ticks(np.arange(n - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class", title=title_of_matrix(matrix))
    draw_shades(scale, "; numbers are images" if n <= MAX_NUMBERED_CLASSES else "")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def title_of_matrix(matrix: np.ndarray) -> str:
    """Returns what the numbers of a matrix are, and how many images are correct."""
    return f"Confusion matrix: {np.trace(matrix):,} of {matrix.sum():,} images are correct"


def matrix_shades(matrix: np.ndarray) -> np.ndarray:
    """Returns the shade of each cell; -1 for a cell without images."""
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shades = np.array([cell_shade(float(fraction)) for fraction in fractions.ravel()]).reshape(matrix.shape)
    return np.where(matrix > 0, shades, -1)


def shade_colors(shades: np.ndarray, is_correct: np.ndarray) -> np.ndarray:
    """Returns the color of each cell, (rows, columns, 3): green for correct predictions, red for mistakes."""
    from matplotlib.colors import to_rgb

    correct, mistakes = (np.array([to_rgb(c) for c in (*row, "#ffffff")]) for row in (CORRECT_SHADES, MISTAKE_SHADES))
    colors: np.ndarray = np.where(is_correct[..., None], correct[shades], mistakes[shades])
    return colors


def draw_shades(axes: "Axes", note: str) -> None:
    """Draws the two color scales of the matrix, with the fractions between the shades, and a note below."""
    limits = shade_limits()
    shades = np.tile(np.arange(len(limits) - 1), (2, 1))
    axes.imshow(shade_colors(shades, np.array([[True], [False]])), interpolation="nearest", aspect="auto")
    axes.set_xticks(np.arange(len(limits)) - 0.5, [f"{limit:.0%}" for limit in limits], fontsize=8)
    axes.set_yticks([0, 1], ["correct", "mistake"], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"fraction of the images of the true class{note}", fontsize=8)


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
