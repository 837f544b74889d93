"""The flat map of embeddings as one picture: each image where the model puts it, framed in its class's colour."""

import numpy as np
from PIL import Image, ImageDraw

from vitrail.data import Images, Preprocess
from vitrail.report.sprite_sheets import resized, tile_size, to_rgb, webp

WIDTH, HEIGHT = 1600, 1100
TILE = 34  # longest side of an image in the map, in pixels
FRAME = 3
COLOURS = (  # jewels, far enough apart for most eyes; the eleventh class begins again
    "#2f6fde", "#e0862c", "#2aa68a", "#c43b55", "#8c5bd6", "#b8a21f", "#27a7d8", "#d96bb0", "#6f8f2e", "#8d6e5a",
)  # fmt: skip


def draw_scatter(
    images: Images,
    preprocess: Preprocess,
    chosen: np.ndarray,
    places: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
) -> tuple[bytes, np.ndarray]:
    """WebP on a transparent ground, and where in it each image lies: the middle (x, y) of each from 0 to 1, (n, 2).

    Two images never lie on one another: the later one moves to the nearest free cell. A mistaken image has a cross.
    """
    h, w = tile_size(preprocess)
    scale = TILE / max(h, w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    cell_h, cell_w = h + 2 * FRAME, w + 2 * FRAME
    rows, columns = HEIGHT // cell_h, WIDTH // cell_w
    canvas = Image.new("RGBA", (columns * cell_w, rows * cell_h), (0, 0, 0, 0))
    pen = ImageDraw.Draw(canvas)
    cells = free_cells(places, rows, columns)
    for i, (row, column), label, correct in zip(chosen, cells, labels, right, strict=True):
        x, y = column * cell_w, row * cell_h
        pen.rectangle((x, y, x + cell_w - 1, y + cell_h - 1), fill=COLOURS[int(label) % len(COLOURS)])
        pixels = resized(images.load_batch(preprocess, [int(i)])[0], h, w)
        canvas.paste(Image.fromarray(to_rgb(pixels)), (x + FRAME, y + FRAME))
        if not correct:
            for ends in ((x + FRAME, y + FRAME, x + FRAME + w, y + FRAME + h),
                         (x + FRAME + w, y + FRAME, x + FRAME, y + FRAME + h)):  # fmt: skip
                pen.line(ends, fill=(255, 255, 255), width=3)
                pen.line(ends, fill=(190, 20, 40), width=1)
    middles = (np.array(cells)[:, ::-1] + 0.5) / (columns, rows)
    return webp(canvas), middles


def free_cells(places: np.ndarray, rows: int, columns: int) -> list[tuple[int, int]]:
    """For each place (x, y) from 0 to 1 the nearest cell (row, column) that none before it took."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    centres = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=1)
    free = np.ones(len(centres), dtype=bool)
    found = []
    for place in places:
        distance = np.where(free, ((centres - place) ** 2).sum(axis=1), np.inf)
        cell = int(distance.argmin())
        free[cell] = False
        found.append((cell // columns, cell % columns))
    return found
