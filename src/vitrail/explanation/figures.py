"""Explanations -> figures, PNG or SVG by the name of the file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.errors import UsageError
from vitrail.explanation.measures import MEASURES
from vitrail.explanation.render import (
    AGAINST_COLOR,
    FOR_COLOR,
    color_limits,
    color_map,
    enlarge_map,
    overlay_map,
    to_rgb,
)
from vitrail.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vitrail.explanation.explanation import Explanation
    from vitrail.explanation.faithfulness import Faithfulness

WRONG = "#b03000"


def save_explanation(explanation: "Explanation", path: Path, smooth: bool = False) -> Path:
    """Image, map with its numbered scale, and overlay side by side."""
    return save_figure(draw_panels(explanation, smooth), path, dpi=120)


def render_png(explanation: "Explanation", overlay_only: bool = False) -> bytes:
    """The same picture as PNG bytes, for a notebook; or the overlay alone."""
    buffer = io.BytesIO()
    draw = draw_overlay_figure if overlay_only else draw_panels
    draw(explanation).savefig(buffer, dpi=100, format="png")
    return buffer.getvalue()


def save_overlay(explanation: "Explanation", path: Path, smooth: bool = False) -> Path:
    """The overlay alone, without a frame."""
    return save_figure(draw_overlay_figure(explanation, smooth), path, dpi=100)


def draw_overlay_figure(explanation: "Explanation", smooth: bool = False, side: int = 448) -> "Figure":
    """The overlay alone, at least `side` pixels long."""
    height, width = explanation.image.shape[:2]
    times = max(1, round(side / max(height, width)))
    figure = new_figure(width * times / 100, height * times / 100)
    axes = figure.add_axes((0, 0, 1, 1))
    show_image(axes, overlay_map(explanation, smooth=smooth))
    return figure


def draw_panels(explanation: "Explanation", smooth: bool = False) -> "Figure":
    """Image, map and overlay in a row."""
    figure = new_figure(10.4, 3.7, layout="constrained")
    seen, map_axes, over = figure.subplots(1, 3)
    height, width = explanation.image.shape[:2]
    show_image(seen, to_rgb(explanation.image))
    show_image(over, overlay_map(explanation, smooth=smooth))
    low, high = color_limits(explanation.map, explanation.signed)
    shown = map_axes.imshow(
        enlarge_map(explanation.map, height, width, smooth),
        cmap=color_map(explanation.signed), vmin=low, vmax=high, interpolation="nearest",
    )  # fmt: skip
    map_axes.set_axis_off()
    for axes in (seen, map_axes, over):
        mark_query(axes, explanation)
    set_title(seen, answer(explanation))
    set_title(map_axes, named(explanation) + (", smoothed" if smooth else ""))
    set_title(over, explanation.question)
    bar = figure.colorbar(shown, ax=map_axes, shrink=0.82, extend="both")
    bar.set_label(unit(explanation), parse_math=False)
    bar.ax.tick_params(labelsize=8)
    return figure


def save_heads(explanations: "Sequence[Explanation]", path: Path) -> Path:
    """The image, then the map of each head of a layer."""
    return save_grid(explanations, [f"head {each.head}" for each in explanations], path)


def save_layers(explanations: "Sequence[Explanation]", path: Path) -> Path:
    """The image, then the map after each layer, in a strip."""
    return save_grid(explanations, [f"layer {each.layer}" for each in explanations], path, columns=7)


def save_methods(explanations: "Sequence[Explanation]", path: Path) -> Path:
    """The image, then the map of each method."""
    return save_grid(explanations, [each.method for each in explanations], path)


def save_grid(explanations: "Sequence[Explanation]", titles: Sequence[str], path: Path, columns: int = 6) -> Path:
    """One image, then its overlays, each under its title and on its own scale."""
    from matplotlib.patches import Patch

    columns = min(len(explanations) + 1, columns)
    rows = -(-(len(explanations) + 1) // columns)
    figure = new_figure(2.0 * columns, 2.2 * rows + 0.4, layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.set_axis_off()
    first = explanations[0]
    show_image(grid[0], to_rgb(first.image))
    mark_query(grid[0], first)
    set_title(grid[0], answer(first), size=9)
    for axes, explanation, words in zip(grid[1:], explanations, titles, strict=False):
        show_image(axes, overlay_map(explanation))
        mark_query(axes, explanation)
        set_title(axes, words, size=9)
    figure.suptitle(first.question, fontsize=10, parse_math=False)
    if first.signed:
        signs = [Patch(color=FOR_COLOR, label="for"), Patch(color=AGAINST_COLOR, label="against")]
        figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save_figure(figure, path, dpi=120)


def save_gallery(explanations: "Sequence[Explanation]", truths: Sequence[str], path: Path) -> Path:
    """Many images, each beside its overlay, with truth and prediction; mistakes are marked in words and colour."""
    columns = 5
    rows = -(-len(explanations) // columns)
    figure = new_figure(3.0 * columns, 1.9 * rows, layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, explanation, truth in zip(grid, explanations, truths, strict=False):
        show_image(axes, np.concatenate([to_rgb(explanation.image) / 255, overlay_map(explanation)], axis=1))
        right = explanation.label == truth
        said = f"{truth} ✓" if right else f"{truth} ✗ {explanation.label}"
        set_title(axes, f"{said}  {explanation.probability:.0%}", size=8, colour="black" if right else WRONG)
    return save_figure(figure, path, dpi=110)


def save_faithfulness(found: "Faithfulness", path: Path) -> Path:
    """The two curves of each method, and every measure with its interval."""
    from matplotlib import colormaps

    names = list(found.methods)
    palette = colormaps["tab10"].colors + colormaps["Dark2"].colors  # type: ignore[attr-defined]
    colours = {
        name: "0.6" if found.methods[name].is_control else palette[i % len(palette)] for i, name in enumerate(names)
    }
    figure = new_figure(15, 5.2 + 0.24 * len(names), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[4.6, 1 + 0.24 * len(names)])  # type: ignore[misc]
    for axes, kind in zip(upper.subplots(1, 2), ("deletion", "insertion"), strict=True):
        for i, (name, row) in enumerate(found.methods.items()):
            style = ("-", "--", ":")[i // 10 % 3]
            axes.plot(
                100 * (1 - np.array(found.remaining)), row.curves[kind], style, color=colours[name], label=name, lw=1.6
            )
        gone = "the most relevant first: lower is better" if kind == "deletion" else "the least first: higher is better"
        axes.set(xlabel=f"% of patches left out, {gone}", ylabel="mean probability of the class", ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    upper.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    for axes, (measure, about) in zip(lower.subplots(1, len(MEASURES), sharey=True), MEASURES.items(), strict=True):
        for place, name in enumerate(names):
            score = found.methods[name].scores[measure]
            if score is not None:
                face = colours[name] if score.is_best else "white"
                axes.plot(score.interval, [place] * 2, color=colours[name], lw=1.8)
                axes.plot(score.mean, place, "o", color=colours[name], mfc=face, ms=6)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set_title(f"{measure.replace('_', ', ')}\n{about.better} is better", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.invert_yaxis()
    lower.supxlabel(
        f"mean and 95 % interval, {found.images} images; filled: best, or not to be told from the best", fontsize=9
    )
    return save_figure(figure, path, dpi=110)


def answer(explanation: "Explanation") -> str:
    """The model's answer, and what was asked for if that is another class."""
    if not explanation.label:
        return "features, no classes"
    if explanation.label == explanation.predicted:
        return f"{explanation.label}  {explanation.probability:.1%}"
    return f"{explanation.predicted}; asked: {explanation.label}  {explanation.probability:.1%}"


def named(explanation: "Explanation") -> str:
    """The method with its options."""
    parts = [explanation.method]
    if explanation.layer is not None:
        parts.append(f"layer {explanation.layer}")
    if explanation.head is not None:
        parts.append(f"head {explanation.head}")
    return ", ".join(parts)


def unit(explanation: "Explanation") -> str:
    """What the numbers of the colour bar are."""
    if explanation.method in ("attention", "rollout"):
        return "share of attention"
    if not explanation.signed:
        return "relevance"
    if explanation.against is not None:
        return f"{explanation.against}  ←  →  {explanation.label}"
    return f"against  ←  {explanation.label}  →  for"


def mark_query(axes: "Axes", explanation: "Explanation") -> None:
    """A frame around the patch whose attention is shown."""
    from matplotlib.patches import Rectangle

    if explanation.query is not None:
        height, width = (
            side / patches for side, patches in zip(explanation.image.shape[:2], explanation.map.shape, strict=True)
        )
        row, column = explanation.query
        corner = (column * width - 0.5, row * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#00e5ff", linewidth=2))


def show_image(axes: "Axes", pixels: np.ndarray) -> None:
    """An image, pixel for pixel, without axes."""
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()


def set_title(axes: "Axes", text: str, size: float = 11, colour: str = "black") -> None:
    """A title that is text, not a formula."""
    axes.set_title(text, fontsize=size, color=colour, parse_math=False)


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """An empty figure of so many inches, of no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **options)


def save_figure(figure: "Figure", path: Path, dpi: int) -> Path:
    """The figure in the format of the name's ending, PNG where there is none; raises `UsageError` for another."""
    kind = path.suffix[1:].lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{path} does not end like a picture that can be written", "use .png, .svg or .pdf")
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=dpi, format=kind))
    return path
