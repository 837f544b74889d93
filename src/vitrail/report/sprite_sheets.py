"""Many small pictures in few files: sheets of tiles as WebP, far smaller than a file for each."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor

from vitrail.data import Images, Preprocess

COLUMNS = 32
TILES = 1024  # in a sheet: WebP ends at 16383 pixels
LARGEST = 64  # longest side of a thumbnail, in pixels
QUALITY = 82


def tile_size(preprocess: Preprocess) -> tuple[int, int]:
    """Height and width of a thumbnail: as the model sees the image, but at most `LARGEST`."""
    height, width = preprocess.image_size
    scale = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Thumbnails:
    """The images that a report shows, each once, with what is said of it."""

    def __init__(self, parts: dict[str, Images], preprocess: Preprocess, most: int):
        self.parts = parts
        self.preprocess = preprocess
        self.most = most
        self.places: dict[tuple[str, int], int] = {}

    def __len__(self) -> int:
        return len(self.places)

    def add(self, split: str, i: int) -> int | None:
        """The number of this image's thumbnail; None where there is no more room."""
        if (split, i) not in self.places and len(self.places) >= self.most:
            return None
        return self.places.setdefault((split, i), len(self.places))

    def pixels(self) -> np.ndarray:
        """All tiles in their order, uint8 (n, h, w, 3)."""
        h, w = tile_size(self.preprocess)
        tiles = [
            to_rgb(resized(self.parts[split].load_batch(self.preprocess, [i])[0], h, w)) for split, i in self.places
        ]
        return np.stack(tiles) if tiles else np.zeros((0, h, w, 3), dtype=np.uint8)

    def names(self) -> list[dict[str, Any]]:
        """For each thumbnail its split, path and true class."""
        return [
            {"split": split, "path": self.parts[split].paths[i], "true": int(self.parts[split].labels[i])}
            for split, i in self.places
        ]


class ThumbnailIndex:
    """Gives images of the scored split a thumbnail."""

    def __init__(self, thumbnails: Thumbnails, split: str):
        self.thumbnails = thumbnails
        self.split = split

    def __call__(self, i: int, split: str | None = None) -> int | None:
        """The number of the thumbnail; None where there is no more room."""
        return self.thumbnails.add(split or self.split, int(i))


def resized(image_CHW: Tensor, h: int, w: int) -> Tensor:
    """The image at this size."""
    return image_CHW if image_CHW.shape[-2:] == (h, w) else F.resize(image_CHW, [h, w], antialias=True)


def to_rgb(image_CHW: Tensor) -> np.ndarray:
    """uint8 (C, H, W) -> (H, W, 3), grey repeated."""
    array: np.ndarray = image_CHW.expand(3, -1, -1).permute(1, 2, 0).contiguous().to(torch.uint8).cpu().numpy()
    return array


def sheets(name: str, tiles: Sequence[np.ndarray] | np.ndarray) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Tiles (n, h, w, 3) -> how they are laid out, and the sheets as WebP under the names that the layout gives."""
    array = np.asarray(tiles)
    if not len(array):
        return {"files": [], "tiles": 0, "columns": 1, "rows": [], "height": 1, "width": 1}, {}
    n, h, w = array.shape[:3]
    columns = min(COLUMNS, n)
    files: dict[str, bytes] = {}
    rows = []
    for number, at in enumerate(range(0, n, TILES)):
        part = array[at : at + TILES]
        rows.append(-(-len(part) // columns))
        canvas = np.zeros((rows[-1] * h, columns * w, 3), dtype=np.uint8)
        for k, tile in enumerate(part):
            y, x = divmod(k, columns)
            canvas[y * h : (y + 1) * h, x * w : (x + 1) * w] = tile
        files[f"{name}-{number}"] = webp(Image.fromarray(canvas))
    layout = {"files": list(files), "tiles": n, "columns": columns, "rows": rows, "height": h, "width": w}
    return layout, files


def webp(image: Image.Image, quality: int = QUALITY) -> bytes:
    """The picture as WebP."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()
