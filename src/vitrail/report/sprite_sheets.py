"""Sprite sheets: many small pictures in a few WebP files, which take far less space than one file per picture."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

COLUMNS = 32
TILES_PER_SHEET = 1024  # WebP allows 16383 pixels per edge
QUALITY = 82


def make_sheets(name: str, tiles: Sequence[np.ndarray] | np.ndarray) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns the layout of tiles (n, h, w, 3), and the sheets as WebP by the names in the layout."""
    array = np.asarray(tiles)
    if not len(array):
        return {"files": [], "tiles": 0, "columns": 1, "rows": [], "height": 1, "width": 1}, {}
    n, h, w = array.shape[:3]
    columns = min(COLUMNS, n)
    files: dict[str, bytes] = {}
    rows = []
    for number, start in enumerate(range(0, n, TILES_PER_SHEET)):
        sheet = array[start : start + TILES_PER_SHEET]
        rows.append(-(-len(sheet) // columns))
        canvas = np.zeros((rows[-1] * h, columns * w, 3), dtype=np.uint8)
        for k, tile in enumerate(sheet):
            y, x = divmod(k, columns)
            canvas[y * h : (y + 1) * h, x * w : (x + 1) * w] = tile
        files[f"{name}-{number}"] = encode_webp(Image.fromarray(canvas))
    return {"files": list(files), "tiles": n, "columns": columns, "rows": rows, "height": h, "width": w}, files


def sprite_position(layout: dict[str, Any], tile: int) -> dict[str, Any]:
    """Returns the sheet of a tile, and its CSS background position in percent."""
    per_sheet = layout["columns"] * max(layout["rows"], default=1)
    sheet, inside = divmod(tile, per_sheet)
    row, column = divmod(inside, layout["columns"])
    last_column, last_row = layout["columns"] - 1, layout["rows"][sheet] - 1
    return {
        "file": layout["files"][sheet],
        "x": round(100 * column / last_column, 4) if last_column else 0,
        "y": round(100 * row / last_row, 4) if last_row else 0,
    }


def encode_webp(image: Image.Image, quality: int = QUALITY) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()
