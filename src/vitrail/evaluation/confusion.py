"""The look of a confusion matrix, in pictures and in reports: the order of the classes and the colors of the cells."""

import numpy as np

# from a small to a large fraction of the true class; report/templates/style.css has the same
CORRECT_SHADES = ("#eaf4f1", "#d3ebe3", "#b5ddcf", "#92cdb8", "#1a7a5f", "#0f654d", "#08503c")
MISTAKE_SHADES = ("#fdf1ee", "#fbdcd6", "#f7c0b8", "#f09f98", "#b02a3f", "#931d33", "#761427")
FIRST_DARK_SHADE = 4  # from here on numbers are white
SHADE_EXPONENT = 0.6  # below 1, so that small fractions of mistakes differ


def cell_shade(fraction: float) -> int:
    """Returns the shade of a cell of the matrix, 0 to 6, for its fraction of the row."""
    return min(6, int(7 * fraction**SHADE_EXPONENT)) if fraction else 0


def shade_limits() -> list[float]:
    """Returns the fractions between which the shades lie, from 0 to 1."""
    count = len(CORRECT_SHADES)
    return [float((shade / count) ** (1 / SHADE_EXPONENT)) for shade in range(count + 1)]


def order_by_confusion(matrix: np.ndarray) -> list[int]:
    """Returns an order of the classes that puts confused classes next to each other.

    The order is the optimal leaf order of an average-linkage clustering.
    """
    n = len(matrix)
    if n < 4:
        return list(range(n))
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    similarity = (fractions + fractions.T) / 2
    distance = 1 - similarity
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    return [int(i) for i in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]
