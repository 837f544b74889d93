"""Pictures of the data: some images of every class, and the copies that were found."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torchvision.transforms.v2.functional as F

from vitrail.data.check import ImageRecord, Survey
from vitrail.data.decode import ImageError
from vitrail.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 96  # pixels of an image in a picture
CLASSES, EXAMPLES, PAIRS = 30, 8, 32


def draw_class_sheet(survey: Survey, path: Path) -> None:
    """Up to 30 classes, each with the number of its images and eight of them, evenly spread."""
    from matplotlib.figure import Figure

    classes: dict[str, list[ImageRecord]] = {}
    for place, _ in survey.readable:
        classes.setdefault(place.label, []).append(place)
    shown = sorted(classes)[:CLASSES]
    figure = Figure(figsize=(1.1 * EXAMPLES + 2.2, 1.15 * max(len(shown), 1) + 0.4), layout="constrained")
    grid = figure.subplots(max(len(shown), 1), EXAMPLES, squeeze=False)
    for row, label in zip(grid, shown, strict=False):
        members = classes[label]
        chosen = [members[i] for i in np.linspace(0, len(members) - 1, EXAMPLES).round().astype(int)]
        row[0].set_ylabel(f"{clipped(label)}\n{len(members)}", rotation=0, ha="right", va="center", parse_math=False)
        for axes, place in zip(row, chosen[: len(members)], strict=False):
            axes.imshow(thumbnail(survey, place))
    more = f", {len(classes) - len(shown)} more not shown" if len(classes) > len(shown) else ""
    figure.suptitle(f"{len(survey.readable)} images of {len(classes)} classes{more}")
    bare(grid)
    write(figure, path)


def draw_near_duplicate_sheet(survey: Survey, path: Path) -> None:
    """Up to 32 pairs of near copies side by side, those in different splits or classes first."""
    from matplotlib.figure import Figure

    pairs = sorted(survey.near_duplicates, key=lambda p: (p[0].split == p[1].split, p[0].label == p[1].label, -p[2]))
    pairs = pairs[:PAIRS]
    rows = max(-(-len(pairs) // 4), 1)
    figure = Figure(figsize=(12, 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, 8, squeeze=False)
    for n, (a, b, likeness) in enumerate(pairs):
        for side, place in enumerate((a, b)):
            axes = grid[n // 4, n % 4 * 2 + side]
            axes.imshow(thumbnail(survey, place))
            said = f"{place.split}: {clipped(place.label)}"
            axes.set_title(said + (f"\n{likeness:.2f}" if side else "\n"), fontsize=7, parse_math=False)
    bare(grid)
    write(figure, path)


def thumbnail(survey: Survey, place: ImageRecord) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as uint8 (h, w, 3), no side longer than 96 pixels; a blank where it has gone since."""
    try:
        pixels = survey.source.splits[place.split].pixels[place.index]
    except ImageError:
        return np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    h, w = pixels.shape[-2:]
    scale = SIDE / max(h, w)
    if scale < 1:
        pixels = F.resize(pixels, [max(1, round(h * scale)), max(1, round(w * scale))], antialias=True)
    seen: np.ndarray[Any, np.dtype[np.uint8]] = pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return seen


def clipped(label: str, most: int = 20) -> str:
    """A name short enough for a picture."""
    return label if len(label) <= most else label[: most - 1] + "…"


def bare(grid: np.ndarray) -> None:
    """Axes without ticks and frames."""
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def write(figure: "Figure", path: Path) -> None:
    """The picture, whole or not at all."""
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=100))
