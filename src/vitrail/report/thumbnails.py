"""Thumbnails: which images of a report have one, and their pixels."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.geometry import resize
from vitrail.data.images import Images
from vitrail.evaluation.outcome import Outcome

MAX_SIZE = 64  # pixels of the longer edge


class ThumbnailIndex:
    """Numbers the thumbnails of a report. An image has at most one; there are at most `max_thumbnails`."""

    def __init__(self, max_thumbnails: int):
        self.max_thumbnails = max_thumbnails
        self.numbers: dict[tuple[str, int], int] = {}  # by split and image

    def add(self, split: str, image: int) -> int | None:
        """Returns the number of the image's thumbnail; None if it has none and there is no room."""
        if (split, image) not in self.numbers and len(self.numbers) >= self.max_thumbnails:
            return None
        return self.numbers.setdefault((split, image), len(self.numbers))

    def images_of(self, split: str) -> list[int]:
        """Returns the images of a split that have a thumbnail."""
        return [image for name, image in self.numbers if name == split]

    def describe(self, splits: dict[str, Images], scored_split: str, outcome: Outcome) -> list[dict[str, Any]]:
        """Returns split, path and true class of each thumbnail; for scored images also prediction and confidence."""
        rows: list[dict[str, Any]] = []
        for split, i in self.numbers:
            row = {"split": split, "path": splits[split].paths[i], "true": int(splits[split].labels[i])}
            if split == scored_split:
                row |= {
                    "predicted": int(outcome.predicted[i]), "probability": round(float(outcome.confidence[i]), 4),
                }  # fmt: skip
            rows.append(row)
        return rows


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """Returns height and width of the thumbnail of an image: at most `MAX_SIZE`."""
    scale = min(1.0, MAX_SIZE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def make_thumbnail(image_CHW: Tensor) -> np.ndarray:
    """Returns uint8 (h, w, 3)."""
    return resize_to_rgb(image_CHW, *thumbnail_size(*image_CHW.shape[-2:]))


def resize_to_rgb(image_CHW: Tensor, height: int, width: int) -> np.ndarray:
    """Returns uint8 (height, width, 3); a gray channel is repeated."""
    if image_CHW.shape[-2:] != (height, width):
        image_CHW = resize(image_CHW, height, width)
    array: np.ndarray = image_CHW.expand(3, -1, -1).permute(1, 2, 0).contiguous().to(torch.uint8).cpu().numpy()
    return array
