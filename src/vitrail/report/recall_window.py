"""The drawing at the top of a report: a stained-glass window for each class, filled up to the recall of the class."""

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from vitrail.report.embedding_map import CLASS_COLORS

WIDTH, HEIGHT = 60, 112
ARCH_START = 38  # y where the arch begins
COLUMNS, ROWS = 3, 7  # of the glass panes
SHADES = 3
MAX_WINDOWS = 20


def recall_windows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the shapes, which are drawn once, and a window for each class; of many classes for the weakest."""
    with_images = [(i, row) for i, row in enumerate(rows) if row["images"]]
    shown = with_images
    if len(shown) > MAX_WINDOWS:
        shown = sorted(sorted(shown, key=lambda pair: pair[1]["recall"])[:MAX_WINDOWS])
    windows = [
        {
            "class": row["class"],
            "recall": row["recall"],
            "images": row["images"],
            "shades": shades_of(CLASS_COLORS[i % len(CLASS_COLORS)]),
            "top": round(HEIGHT * (1 - row["recall"]), 1),
            "height": round(HEIGHT * row["recall"], 1),
        }
        for i, row in shown
    ]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "outline": outline_path(),
        "panes": pane_paths(),
        "windows": windows,
        "hidden_classes": len(with_images) - len(windows),
    }


def outline_path() -> Markup:
    """Returns the SVG path of the outline: two arcs that meet in a point."""
    w, h = WIDTH, HEIGHT
    return Markup("M1 {h} V{s} A{r} {r} 0 0 1 {m} 1 A{r} {r} 0 0 1 {e} {s} V{h} Z").format(
        h=h - 1, s=ARCH_START, r=w * 0.92, m=w / 2, e=w - 1
    )


def pane_paths() -> list[str]:
    """Returns the panes of each shade as one SVG path: an irregular grid, with some cells cut into two triangles."""
    generator = np.random.Generator(np.random.Philox(7))
    corners = np.empty((ROWS + 1, COLUMNS + 1, 2))
    for row in range(ROWS + 1):
        for column in range(COLUMNS + 1):
            is_inner = np.array([0 < column < COLUMNS, 0 < row < ROWS])
            shift = generator.uniform(-5.5, 5.5, 2) * is_inner
            corners[row, column] = np.array([column * WIDTH / COLUMNS, row * HEIGHT / ROWS]) + shift
    paths = [""] * SHADES
    for row in range(ROWS):
        for column in range(COLUMNS):
            a, b = corners[row, column], corners[row, column + 1]
            c, d = corners[row + 1, column + 1], corners[row + 1, column]
            pieces = [(a, b, c, d)] if generator.random() < 0.55 else [(a, b, c), (a, c, d)]
            for piece in pieces:
                shade = int(generator.integers(SHADES))
                paths[shade] += "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in piece) + "Z"
    return paths


def shades_of(color: str) -> list[str]:
    """Returns a darker shade of a color, the color, and a lighter shade, as #rrggbb."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    shades = [rgb * 0.72, rgb, rgb + (255 - rgb) * 0.34]
    return ["#" + "".join(f"{math.floor(value):02x}" for value in shade) for shade in shades]
