"""Pictures of the data: some images of every class, and pairs of near-duplicates."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.data.bands import Bands
from vitrail.data.decode import ImageError
from vitrail.data.geometry import resize
from vitrail.data.labels import NUMBER_SEPARATOR
from vitrail.data.near_duplicates import bands_to_gray
from vitrail.data.survey import ImageRecord, Survey
from vitrail.files import write_atomically
from vitrail.tasks import REGRESSION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMBNAIL_SIZE = 96
FIFTHS = 5  # of numbers
MAX_CLASSES, EXAMPLES_PER_CLASS, MAX_PAIRS = 30, 8, 32
PAIRS_PER_ROW = 4


def draw_class_sheet(survey: Survey, path: Path) -> None:
    """Draws up to 30 classes, each with the number of its images and eight of them, evenly spaced.

    Images with numbers are drawn by fifths of the first number.
    """
    from matplotlib.figure import Figure

    by_class = group_by_fifth(survey) if survey.source.task == REGRESSION else group_by_class(survey)
    drawn = list(by_class)[:MAX_CLASSES]
    n_rows = max(len(drawn), 1)
    figure = Figure(figsize=(1.1 * EXAMPLES_PER_CLASS + 2.2, 1.15 * n_rows + 0.4), layout="constrained")
    grid = figure.subplots(n_rows, EXAMPLES_PER_CLASS, squeeze=False)
    for row, label in zip(grid, drawn, strict=False):
        members = by_class[label]
        chosen = [members[i] for i in np.linspace(0, len(members) - 1, EXAMPLES_PER_CLASS).round().astype(int)]
        title = f"{shorten(label)}\n{len(members)}"
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", parse_math=False)
        for axes, record in zip(row, chosen[: len(members)], strict=False):
            axes.imshow(make_thumbnail(survey, record))
    n_omitted = len(by_class) - len(drawn)
    more = f", {n_omitted} more not shown" if n_omitted else ""
    kind = "fifths" if survey.source.task == REGRESSION else "classes"
    figure.suptitle(f"{len(survey.readable)} images of {len(by_class)} {kind}{more}")
    hide_axes(grid)
    save_figure(figure, path)


def group_by_class(survey: Survey) -> dict[str, list[ImageRecord]]:
    """Returns the readable images of each class, in alphabetical order."""
    by_class: dict[str, list[ImageRecord]] = {}
    for record, _ in survey.readable:
        by_class.setdefault(record.label, []).append(record)
    return dict(sorted(by_class.items()))


def group_by_fifth(survey: Survey) -> dict[str, list[ImageRecord]]:
    """Returns the readable images by fifths of their first number, each named by its range."""
    records = [record for record, _ in survey.readable]
    numbers = np.array([float(record.label.split(NUMBER_SEPARATOR)[0]) for record in records])
    groups: dict[str, list[ImageRecord]] = {}
    for part in np.array_split(np.argsort(numbers, kind="stable"), min(FIFTHS, len(records)) or 1):
        if len(part):
            name = f"{numbers[part[0]]:.4g} to {numbers[part[-1]]:.4g}"
            groups.setdefault(name, []).extend(records[i] for i in part)  # fifths of one number have one name
    return groups


def draw_near_duplicate_sheet(survey: Survey, path: Path) -> None:
    """Draws up to 32 pairs of near-duplicates side by side, those in different splits or classes first."""
    from matplotlib.figure import Figure

    pairs = sorted(survey.near_duplicates, key=lambda p: (p[0].split == p[1].split, p[0].label == p[1].label, -p[2]))
    pairs = pairs[:MAX_PAIRS]
    n_rows = max(-(-len(pairs) // PAIRS_PER_ROW), 1)
    figure = Figure(figsize=(12, 1.9 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, 2 * PAIRS_PER_ROW, squeeze=False)
    for i, (a, b, similarity) in enumerate(pairs):
        row, column = divmod(i, PAIRS_PER_ROW)
        for offset, (record, second_line) in enumerate(((a, ""), (b, f"{similarity:.2f}"))):
            axes = grid[row, 2 * column + offset]
            axes.imshow(make_thumbnail(survey, record))
            axes.set_title(f"{record.split}: {shorten(record.label)}\n{second_line}", fontsize=7, parse_math=False)
    hide_axes(grid)
    save_figure(figure, path)


def make_thumbnail(survey: Survey, record: ImageRecord) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns an image as uint8 (h, w, 3), at most 96 pixels high and wide; white if it can no longer be read."""
    try:
        pixels = survey.source.splits[record.split].pixels[record.index]
    except ImageError:
        return np.full((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), 255, dtype=np.uint8)
    h, w = pixels.shape[-2:]
    scale = THUMBNAIL_SIZE / max(h, w)
    if scale < 1:
        pixels = resize(pixels, max(1, round(h * scale)), max(1, round(w * scale)))
    if isinstance(survey.source.channels, Bands):
        pixels = bands_to_gray(pixels)
    thumbnail: np.ndarray[Any, np.dtype[np.uint8]] = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return thumbnail


def shorten(label: str, max_length: int = 20) -> str:
    return label if len(label) <= max_length else label[: max_length - 1] + "…"


def hide_axes(grid: np.ndarray) -> None:
    """Removes ticks and frames."""
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def save_figure(figure: "Figure", path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100))
