"""Maps -> pictures, with a colour map that every eye can read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.errors import UsageError
from vitrail.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitrail.explain.explanation import Explanation

COLOURS = "cividis"  # made for colour-blind readers (Nuñez, Anderton & Renslow 2018); brighter is more


def scaled(map_hw: np.ndarray) -> np.ndarray:
    """The map from 0 to 1 between its 1st and 99th percentile: one loud patch must not black out the others."""
    low, high = np.percentile(map_hw, [1, 99])
    shown: np.ndarray = np.clip((map_hw - low) / max(high - low, 1e-12), 0, 1)
    return shown


def overlay(explanation: "Explanation", strength: float = 0.6) -> np.ndarray:
    """The image, grey, with the coloured map over it: floats (H, W, 3) from 0 to 1. Patch edges stay honest."""
    from matplotlib import colormaps

    height, width = explanation.image.shape[:2]
    h, w = explanation.map.shape
    big_hw = np.kron(scaled(explanation.map), np.ones((height // h, width // w)))
    grey = explanation.image.mean(axis=2, keepdims=True) / 255
    mixed: np.ndarray = (1 - strength) * grey + strength * colormaps[COLOURS](big_hw)[..., :3]
    return mixed


def save_explanation(explanation: "Explanation", path: Path) -> Path:
    """Image, map with its scale, and overlay side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    seen, map_axes, over = figure.subplots(1, 3)
    seen.imshow(picture(explanation.image))
    shown = map_axes.imshow(explanation.map, cmap=COLOURS)
    over.imshow(overlay(explanation))
    head = "all heads" if explanation.head is None else f"head {explanation.head}"
    seen.set_title(f"{explanation.label}  {explanation.probability:.1%}", parse_math=False)
    map_axes.set_title(f"{explanation.method}, layer {explanation.layer}, {head}")
    says = "where the model looks" if explanation.class_blind else f"what speaks for {explanation.label}"
    over.set_title(says, parse_math=False)
    for axes in (seen, map_axes, over):
        axes.set_axis_off()
    figure.colorbar(shown, ax=map_axes, shrink=0.8, label="share of attention")
    write_figure(figure, path, dpi=120)
    return path


def save_heads(explanations: "Sequence[Explanation]", path: Path) -> Path:
    """One image under each head of a layer."""
    from matplotlib.figure import Figure

    columns = min(len(explanations) + 1, 5)
    rows = -(-(len(explanations) + 1) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.set_axis_off()
    grid[0].imshow(picture(explanations[0].image))
    grid[0].set_title(f"{explanations[0].label}  {explanations[0].probability:.0%}", fontsize=9, parse_math=False)
    for axes, explanation in zip(grid[1:], explanations, strict=False):
        axes.imshow(overlay(explanation))
        axes.set_title(f"layer {explanation.layer}, head {explanation.head}", fontsize=9)
    write_figure(figure, path, dpi=120)
    return path


def save_gallery(explanations: "Sequence[Explanation]", truths: Sequence[str], path: Path) -> Path:
    """Many images, each beside its overlay, with truth and prediction; mistakes are marked in words and colour."""
    from matplotlib.figure import Figure

    columns = 5
    rows = -(-len(explanations) // columns)
    figure = Figure(figsize=(3.0 * columns, 1.9 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, explanation, truth in zip(grid, explanations, truths, strict=False):
        pair = np.concatenate([picture(explanation.image) / 255, overlay(explanation)], axis=1)
        axes.imshow(pair)
        right = explanation.label == truth
        said = f"{truth} ✓" if right else f"{truth} ✗ {explanation.label}"
        colour = "black" if right else "#b03000"
        axes.set_title(f"{said}  {explanation.probability:.0%}", fontsize=8, color=colour, parse_math=False)
    write_figure(figure, path, dpi=110)
    return path


def write_figure(figure: "Figure", path: Path, dpi: int) -> None:
    """The figure in the format of the name's ending, PNG where there is none; raises `UsageError` for another."""
    kind = path.suffix[1:].lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{path} does not end like a picture that can be written", "use .png, .svg or .pdf")
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=dpi, format=kind))


def picture(image_HWC: np.ndarray) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (H, W, 3), grey images repeated."""
    return image_HWC if image_HWC.shape[2] == 3 else image_HWC.repeat(3, axis=2)
