"""The window at the head of a report: a lancet of stained glass for each class, lit as far up as its recall."""

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from vitrail.report.embedding_map import COLOURS

WIDTH, HEIGHT = 60, 112
SPRING = 38  # where the arch begins to bend
ACROSS, DOWN = 3, 7  # panes
TONES = 3
MOST = 20


def window(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The shapes, drawn once, and the lancets that use them; of many classes the weakest."""
    seen = [(i, row) for i, row in enumerate(rows) if row["images"]]
    if len(seen) > MOST:
        seen = sorted(sorted(seen, key=lambda pair: pair[1]["recall"])[:MOST])
    lancets = [
        {
            "class": row["class"],
            "recall": row["recall"],
            "images": row["images"],
            "tones": tones(COLOURS[i % len(COLOURS)]),
            "top": round(HEIGHT * (1 - row["recall"]), 1),
            "lit": round(HEIGHT * row["recall"], 1),
        }
        for i, row in seen
    ]
    return {
        "width": WIDTH, "height": HEIGHT, "arch": arch(), "panes": panes(), "lancets": lancets,
        "left_out": sum(bool(row["images"]) for row in rows) - len(lancets),
    }  # fmt: skip


def arch() -> Markup:
    """The outline: two arcs of the width as radius meet in a point."""
    w, h = WIDTH, HEIGHT
    return Markup("M1 {h} V{s} A{r} {r} 0 0 1 {m} 1 A{r} {r} 0 0 1 {e} {s} V{h} Z").format(
        h=h - 1, s=SPRING, r=w * 0.92, m=w / 2, e=w - 1
    )


def panes() -> list[str]:
    """The panes of each tone as one path: a grid whose corners are moved a little, some quads cut in two."""
    generator = np.random.Generator(np.random.Philox(7))
    corners = np.empty((DOWN + 1, ACROSS + 1, 2))
    for row in range(DOWN + 1):
        for column in range(ACROSS + 1):
            inner = np.array([0 < column < ACROSS, 0 < row < DOWN])
            shift = generator.uniform(-5.5, 5.5, 2) * inner
            corners[row, column] = np.array([column * WIDTH / ACROSS, row * HEIGHT / DOWN]) + shift
    paths = [""] * TONES
    for row in range(DOWN):
        for column in range(ACROSS):
            a, b = corners[row, column], corners[row, column + 1]
            c, d = corners[row + 1, column + 1], corners[row + 1, column]
            pieces = [(a, b, c, d)] if generator.random() < 0.55 else [(a, b, c), (a, c, d)]
            for piece in pieces:
                tone = int(generator.integers(TONES))
                paths[tone] += "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in piece) + "Z"
    return paths


def tones(colour: str) -> list[str]:
    """A colour as darker, plain and lighter glass."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    mixed = [rgb * 0.72, rgb, rgb + (255 - rgb) * 0.34]
    return ["#" + "".join(f"{math.floor(value):02x}" for value in each) for each in mixed]
