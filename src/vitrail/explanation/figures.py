"""Figures of explanations and of their faithfulness, as PNG, SVG or PDF by the file name's suffix."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrail.errors import UsageError
from vitrail.explanation.concentration import describe_all, describe_concentration
from vitrail.explanation.measures import MEASURES
from vitrail.explanation.relevance_map import RelevanceMap
from vitrail.explanation.render import (
    AGAINST_COLOR,
    FOR_COLOR,
    HIGH_COLOR,
    color_limits,
    color_map,
    enlarge_map,
    overlay_map,
    to_rgb,
)
from vitrail.explanation.scores import Faithfulness
from vitrail.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


ERROR_COLOR = "#b03000"
MIN_GALLERY_SIZE = 100  # pixels per edge of an image in a gallery
MIN_SHOWN_SHARE = 0.005  # of a map on padding: less rounds to 0%
QUERY_COLOR = "#00e5ff"
CURVE_LABELS = {
    "deletion": "the most relevant first: lower is better",
    "insertion": "the least relevant first: higher is better",
}


def save_explanation(explanation: RelevanceMap, path: Path, smooth: bool = False) -> Path:
    """Writes image, map with its color scale, and overlay side by side."""
    return save_figure(draw_panels(explanation, smooth), path, dpi=120)


def save_overlay(explanation: RelevanceMap, path: Path, smooth: bool = False) -> Path:
    """Writes the overlay alone, without a frame."""
    return save_figure(draw_overlay_figure(explanation, smooth), path, dpi=100)


def render_png(explanation: RelevanceMap, overlay_only: bool = False) -> bytes:
    """Returns the panels of `save_explanation`, or the overlay alone, as PNG bytes."""
    buffer = io.BytesIO()
    draw = draw_overlay_figure if overlay_only else draw_panels
    draw(explanation).savefig(buffer, dpi=100, format="png")
    return buffer.getvalue()


def draw_overlay_figure(explanation: RelevanceMap, smooth: bool = False, min_size: int = 448) -> "Figure":
    """Returns the overlay alone, enlarged by a whole number: its longer edge has about `min_size` pixels or more."""
    height, width = explanation.image.shape[:2]
    times = max(1, round(min_size / max(height, width)))
    figure = new_figure(width * times / 100, height * times / 100)
    axes = figure.add_axes((0, 0, 1, 1))
    show_image(axes, overlay_map(explanation, smooth=smooth))
    return figure


def draw_panels(explanation: RelevanceMap, smooth: bool = False) -> "Figure":
    """Image, map and overlay in a row."""
    figure = new_figure(10.4, 3.7, layout="constrained")
    image_axes, map_axes, overlay_axes = figure.subplots(1, 3)
    height, width = explanation.image.shape[:2]
    show_image(image_axes, to_rgb(explanation.image))
    show_image(overlay_axes, overlay_map(explanation, smooth=smooth))
    low, high = color_limits(explanation.map[explanation.content_patches], explanation.signed)
    mappable = map_axes.imshow(
        enlarge_map(explanation.map, height, width, smooth),
        cmap=color_map(explanation.signed), vmin=low, vmax=high, interpolation="nearest",
    )  # fmt: skip
    map_axes.set_axis_off()
    for axes in (image_axes, map_axes, overlay_axes):
        outline_query(axes, explanation)
    set_title(image_axes, prediction_label(explanation))
    set_title(map_axes, "\n".join([method_label(explanation) + (", smoothed" if smooth else ""), *notes(explanation)]))
    set_title(overlay_axes, explanation.question)
    bar = figure.colorbar(mappable, ax=map_axes, shrink=0.82, extend="both")
    bar.set_label(scale_label(explanation), parse_math=False)
    bar.ax.tick_params(labelsize=8)
    return figure


def save_heads(explanations: Sequence[RelevanceMap], path: Path) -> Path:
    """Writes the image and the map of each head of a layer."""
    return save_grid(explanations, [f"head {explanation.head}" for explanation in explanations], path)


def save_layers(explanations: Sequence[RelevanceMap], path: Path) -> Path:
    """Writes the image and the map of each layer, in a strip."""
    return save_grid(explanations, [f"layer {explanation.layer}" for explanation in explanations], path, columns=7)


def save_methods(explanations: Sequence[RelevanceMap], path: Path) -> Path:
    """Writes the image and the map of each method."""
    return save_grid(explanations, [explanation.method for explanation in explanations], path)


def save_grid(explanations: Sequence[RelevanceMap], titles: Sequence[str], path: Path, columns: int = 6) -> Path:
    """Writes one image and its overlays, each with a title and on its own color scale."""
    from matplotlib.patches import Patch

    columns = min(len(explanations) + 1, columns)
    rows = -(-(len(explanations) + 1) // columns)
    figure, grid = new_grid(rows, columns, 2.0 * columns, 2.2 * rows + 0.4)
    first = explanations[0]
    show_image(grid[0], to_rgb(first.image))
    outline_query(grid[0], first)
    set_title(grid[0], prediction_label(first), size=9)
    for axes, explanation, text in zip(grid[1:], explanations, titles, strict=False):
        show_image(axes, overlay_map(explanation))
        outline_query(axes, explanation)
        set_title(axes, text, size=9)
    figure.suptitle(first.question, fontsize=10, parse_math=False)
    if first.signed:
        signs = [Patch(color=FOR_COLOR, label="for"), Patch(color=AGAINST_COLOR, label="against")]
        figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save_figure(figure, path, dpi=120)


def save_gallery(explanations: Sequence[RelevanceMap], truths: Sequence[str], path: Path, title: str = "") -> Path:
    """Writes many images, each beside its overlay, with label and prediction; text and color mark the errors.

    The lines above the images say what is shown, and of how many images most of the map is on the border or on few
    patches; the legend below says what the colors are.
    """
    from matplotlib.patches import Patch

    columns = min(5, len(explanations))
    rows = -(-len(explanations) // columns)
    figure, grid = new_grid(rows, columns, 3.0 * columns, 1.95 * rows + 1.2)
    header = [
        title,
        "true class, then ✓, or ✗ and the predicted class, and its probability",
        *describe_all(explanations),
    ]
    figure.suptitle("\n".join(line for line in header if line), fontsize=10, parse_math=False)
    for axes, explanation, truth in zip(grid, explanations, truths, strict=False):
        show_image(axes, beside(to_rgb(explanation.image) / 255, overlay_map(explanation)))
        is_correct = explanation.label == truth
        text = f"{truth} ✓" if is_correct else f"{truth} ✗ {explanation.label}"
        lines = [f"{text}  {explanation.probability:.0%}", *concentration_note(explanation)]
        set_title(axes, "\n".join(lines), size=8, color="black" if is_correct else ERROR_COLOR)
    colors = [
        Patch(color=HIGH_COLOR, label="much attention, on the scale of each image"),
        Patch(facecolor="0.4", label="little attention: the photo, dimmed"),
    ]
    figure.legend(handles=colors, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save_figure(figure, path, dpi=110)


def beside(left_HW3: np.ndarray, right_HW3: np.ndarray) -> np.ndarray:
    """Returns two pictures of one height with a white line between them, enlarged if they are small."""
    times = max(1, -(-MIN_GALLERY_SIZE // left_HW3.shape[0]))
    left, right = (each.repeat(times, axis=0).repeat(times, axis=1) for each in (left_HW3, right_HW3))
    return np.concatenate([left, np.ones((len(left), max(1, len(left) // 50), 3)), right], axis=1)


def save_faithfulness(faithfulness: Faithfulness, path: Path) -> Path:
    """Writes the deletion and insertion curves of each method, and every measure with its interval."""
    from matplotlib import colormaps

    names = list(faithfulness.methods)
    palette = colormaps["tab10"].colors + colormaps["Dark2"].colors  # type: ignore[attr-defined]
    colors = {
        name: "0.6" if scores.is_control else palette[i % len(palette)]
        for i, (name, scores) in enumerate(faithfulness.methods.items())
    }
    figure = new_figure(15, 5.2 + 0.24 * len(names), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[4.6, 1 + 0.24 * len(names)])  # type: ignore[misc]
    draw_curves(upper, faithfulness, colors)
    draw_scores(lower, faithfulness, colors)
    return save_figure(figure, path, dpi=110)


def draw_curves(figure: "SubFigure", faithfulness: Faithfulness, colors: Mapping[str, Any]) -> None:
    """Draws the deletion and the insertion curve of each method."""
    removed_percent = 100 * (1 - np.array(faithfulness.remaining))
    for axes, curve in zip(figure.subplots(1, 2), CURVE_LABELS, strict=True):
        for i, (name, scores) in enumerate(faithfulness.methods.items()):
            style = ("-", "--", ":")[i // 10 % 3]
            axes.plot(removed_percent, scores.curves[curve], style, color=colors[name], label=name, lw=1.6)
        axes.set(
            xlabel=f"% of patches removed, {CURVE_LABELS[curve]}", ylabel="mean probability of the class", ylim=(0, 1)
        )
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)


def draw_scores(figure: "SubFigure", faithfulness: Faithfulness, colors: Mapping[str, Any]) -> None:
    """Draws each measure of each method: mean and interval, filled where the method is best or tied."""
    names = list(faithfulness.methods)
    for axes, (measure, definition) in zip(
        figure.subplots(1, len(MEASURES), sharey=True), MEASURES.items(), strict=True
    ):
        for row, name in enumerate(names):
            score = faithfulness.methods[name].scores[measure]
            if score is not None:
                face = colors[name] if score.is_best else "white"
                axes.plot(score.interval or (score.mean,) * 2, [row] * 2, color=colors[name], lw=1.8)
                axes.plot(score.mean, row, "o", color=colors[name], mfc=face, ms=6)
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set_title(f"{definition.label}\n{definition.better} is better", fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="0.9")
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.invert_yaxis()
    figure.supxlabel(
        f"mean and 95% interval, {faithfulness.images} images; filled: best or statistically tied", fontsize=9
    )


def prediction_label(explanation: RelevanceMap) -> str:
    """Returns the predicted class, the explained class if it is another, and the latter's probability."""
    if not explanation.label:
        return "features, no classes"
    if explanation.label == explanation.predicted:
        return f"{explanation.label}  {explanation.probability:.1%}"
    return f"predicted {explanation.predicted}; {explanation.label}  {explanation.probability:.1%}"


def method_label(explanation: RelevanceMap) -> str:
    """Returns the method with its options."""
    parts = [explanation.method]
    if explanation.layer is not None:
        parts.append(f"layer {explanation.layer}")
    if explanation.head is not None:
        parts.append(f"head {explanation.head}")
    return ", ".join(parts)


def notes(explanation: RelevanceMap) -> list[str]:
    """Returns what a reader should know of a map: most of the attention on the border or few patches, and padding."""
    texts = concentration_note(explanation) if explanation.class_blind else []
    if explanation.padding_share >= MIN_SHOWN_SHARE:
        texts.append(f"{explanation.padding_share:.0%} on padding, not shown")
    return texts


def concentration_note(explanation: RelevanceMap) -> list[str]:
    """Returns where most of the map is, if that is suspicious, else nothing."""
    suspicious = describe_concentration(explanation)
    return [f"mostly {suspicious}"] if suspicious else []


def scale_label(explanation: RelevanceMap) -> str:
    """Returns what the values of the color scale are."""
    if explanation.class_blind:
        return "share of attention"
    if not explanation.signed:
        return "relevance"
    if explanation.against is not None:
        return f"{explanation.against}  ←  →  {explanation.label}"
    return f"against  ←  {explanation.label}  →  for"


def outline_query(axes: "Axes", explanation: RelevanceMap) -> None:
    """Draws a frame around the patch whose attention is shown, if any."""
    from matplotlib.patches import Rectangle

    if explanation.query is not None:
        height, width = (
            pixels / patches for pixels, patches in zip(explanation.image.shape[:2], explanation.map.shape, strict=True)
        )
        row, column = explanation.query
        corner = (column * width - 0.5, row * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=QUERY_COLOR, linewidth=2))


def show_image(axes: "Axes", pixels: np.ndarray) -> None:
    """Draws an image without interpolation and without axes."""
    axes.imshow(pixels, interpolation="nearest")
    axes.set_axis_off()


def set_title(axes: "Axes", text: str, size: float = 11, color: str = "black") -> None:
    """Sets a title as plain text: a class name may contain `$`."""
    axes.set_title(text, fontsize=size, color=color, parse_math=False)


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """Returns an empty figure of this size in inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **options)


def new_grid(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, Sequence[Axes]]":
    """Returns a figure and its subplots, row by row, without axis lines."""
    figure = new_figure(width, height, layout="constrained")
    grid: Sequence[Axes] = np.atleast_1d(figure.subplots(rows, columns)).ravel()  # type: ignore[assignment]
    for axes in grid:
        axes.set_axis_off()
    return figure, grid


def save_figure(figure: "Figure", path: Path, dpi: int) -> Path:
    """Writes the figure in the format of the suffix, PNG without one; raises `UsageError` for an unknown suffix."""
    suffix = path.suffix[1:].lower() or "png"
    if suffix not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{path} does not have the suffix of a picture format", "use .png, .svg or .pdf")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format=suffix))
    return path
