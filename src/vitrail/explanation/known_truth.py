"""Images put together so that the right answer is known: four in a mosaic, two side by side.

Both keep the model's image size, so tokens, positions and cost are those it was made for.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Composed:
    """Composed images (M, C, H, W), each asked once for every object in it: the class asked, and where it lies.

    `own` and `other` (M, P) mark the patches wholly on the asked object, and those wholly on another.
    """

    pixels: Tensor
    asked: list[str]
    own: np.ndarray
    other: np.ndarray


def mosaics(pixels: Tensor, labels: list[str], patch: int, count: int, seed: int) -> Composed | None:
    """2 x 2 images of different classes, each shrunk to half (GridPG: Rao et al. 2022, arXiv 2205.10435)."""
    height, width = pixels.shape[-2:]
    top, left = height // 2, width // 2
    boxes = [(y, x) for y in ((0, top), (top, height)) for x in ((0, left), (left, width))]
    return compose(pixels, labels, patch, boxes, count, seed, shrink=True)


def pairs(pixels: Tensor, labels: list[str], patch: int, count: int, seed: int) -> Composed | None:
    """The middle halves of two images of different classes side by side, in both orders."""
    height, width = pixels.shape[-2:]
    middle = width // 2
    boxes = [((0, height), (0, middle)), ((0, height), (middle, width))]
    return compose(pixels, labels, patch, boxes, count, seed, shrink=False)


def compose(
    pixels: Tensor,
    labels: list[str],
    patch: int,
    boxes: list[tuple[tuple[int, int], tuple[int, int]]],
    count: int,
    seed: int,
    shrink: bool,
) -> Composed | None:
    """`count` composed images at most, asked for each part; None where there are fewer classes than parts."""
    groups = drawn(labels, len(boxes), count, seed)
    if not groups:
        return None
    height, width = pixels.shape[-2:]
    masks = [inside(box, height // patch, width // patch, patch) for box in boxes]
    images, asked, own, other = [], [], [], []
    for group in groups:
        canvas = torch.empty_like(pixels[0])
        for ((y0, y1), (x0, x1)), number in zip(boxes, group, strict=True):
            size = [y1 - y0, x1 - x0]
            part = F.resize(pixels[number], size, antialias=True) if shrink else F.center_crop(pixels[number], size)
            canvas[:, y0:y1, x0:x1] = part
        for place, number in enumerate(group):
            images.append(canvas)
            asked.append(labels[number])
            own.append(masks[place])
            other.append(np.any([mask for i, mask in enumerate(masks) if i != place], axis=0))
    return Composed(torch.stack(images), asked, np.stack(own), np.stack(other))


def drawn(labels: list[str], size: int, count: int, seed: int) -> list[list[int]]:
    """Groups of images of different classes; each group comes in both orders when it is a pair."""
    generator = np.random.default_rng(seed)
    by_class = {label: [i for i, name in enumerate(labels) if name == label] for label in sorted(set(labels))}
    if len(by_class) < size:
        return []
    groups: list[list[int]] = []
    while len(groups) < count:
        chosen = generator.choice(sorted(by_class), size=size, replace=False)
        group = [int(generator.choice(by_class[label])) for label in chosen]
        groups += [group, group[::-1]] if size == 2 else [group]
    return groups[: max(count, 1)]


def inside(box: tuple[tuple[int, int], tuple[int, int]], h: int, w: int, patch: int) -> np.ndarray:
    """The patches that lie wholly within a box of pixels, (P,)."""
    (y0, y1), (x0, x1) = box
    y, x = np.mgrid[:h, :w] * patch
    within: np.ndarray = ((y >= y0) & (y + patch <= y1) & (x >= x0) & (x + patch <= x1)).ravel()
    return within
