"""The picture of a 2-D embedding: each image at its position, with a frame in the color of its class."""

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from vitrail.report.sprite_sheets import encode_webp
from vitrail.report.thumbnails import resize_to_rgb, thumbnail_size

WIDTH, HEIGHT = 1600, 1100
IMAGE_SIZE = 34  # pixels of the longer edge of an image
FRAME = 3  # pixels
CLASS_COLORS = (  # distinct for most readers; the eleventh class has the first color again
    "#2f6fde", "#e0862c", "#2aa68a", "#c43b55", "#8c5bd6", "#b8a21f", "#27a7d8", "#d96bb0", "#6f8f2e", "#8d6e5a",
)  # fmt: skip


def draw_embedding_map(
    pixels_nCHW: Tensor, positions: np.ndarray, labels: np.ndarray, correct: np.ndarray
) -> tuple[bytes, np.ndarray]:
    """Returns the picture as WebP with a transparent background, and the center (x, y) of each image in it, (n, 2).

    Positions and centers are in [0, 1]. Images do not overlap: one whose cell is taken moves to the nearest free cell.
    A misclassified image has a cross.
    """
    h, w = thumbnail_size(*pixels_nCHW.shape[-2:])
    scale = IMAGE_SIZE / max(h, w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    cell_h, cell_w = h + 2 * FRAME, w + 2 * FRAME
    rows, columns = HEIGHT // cell_h, WIDTH // cell_w
    canvas = Image.new("RGBA", (columns * cell_w, rows * cell_h), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    cells = assign_cells(positions, rows, columns)
    for image, (row, column), label, is_correct in zip(pixels_nCHW, cells, labels, correct, strict=True):
        x, y = column * cell_w, row * cell_h
        pen.rectangle((x, y, x + cell_w - 1, y + cell_h - 1), fill=CLASS_COLORS[int(label) % len(CLASS_COLORS)])
        left, top = x + FRAME, y + FRAME
        canvas.paste(Image.fromarray(resize_to_rgb(image, h, w)), (left, top))
        if not is_correct:
            for ends in ((left, top, left + w, top + h), (left + w, top, left, top + h)):
                pen.line(ends, fill=(255, 255, 255), width=3)
                pen.line(ends, fill=(190, 20, 40), width=1)
    centers = (np.array(cells)[:, ::-1] + 0.5) / (columns, rows)
    return encode_webp(canvas), centers


def assign_cells(positions: np.ndarray, rows: int, columns: int) -> list[tuple[int, int]]:
    """Returns for each position (x, y) in [0, 1] the nearest cell (row, column) that no earlier position has."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    centers = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=1)
    is_free = np.ones(len(centers), dtype=bool)
    cells = []
    for position in positions:
        distance = np.where(is_free, ((centers - position) ** 2).sum(axis=1), np.inf)
        cell = int(distance.argmin())
        is_free[cell] = False
        cells.append((cell // columns, cell % columns))
    return cells
