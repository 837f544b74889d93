"""Composite images with a known answer: mosaics of four images, and pairs side by side.

Both have the model's image size, so tokens, positions and cost stay the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.data.geometry import center_crop, resize

Box = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right) in pixels


@dataclass(frozen=True)
class CompositeImages:
    """Composite images (M, C, H, W), each once for every object in it, with the object's class.

    `object_MP` and `other_MP` mark the patches that lie entirely on that object, and entirely on another one. `chance`
    is the fraction of relevance on the object, on average, for a map that does not depend on the class. Every
    `cluster_size` consecutive ones consist of the same photographs: they are not independent. No photograph is in two
    clusters.
    """

    pixels: Tensor
    labels: list[str]
    object_MP: np.ndarray
    other_MP: np.ndarray
    chance: float
    cluster_size: int


def make_mosaics(pixels: Tensor, labels: list[str], patch: int, count: int, seed: int) -> CompositeImages | None:
    """2 x 2 mosaics of images of four classes, at half their size (GridPG: Rao et al. 2022, arXiv 2205.10435)."""
    height, width = pixels.shape[-2:]
    middle_y, middle_x = height // 2, width // 2
    boxes = [(y, x) for y in ((0, middle_y), (middle_y, height)) for x in ((0, middle_x), (middle_x, width))]
    return compose(pixels, labels, patch, boxes, count, seed, shrink=True)


def make_pairs(pixels: Tensor, labels: list[str], patch: int, count: int, seed: int) -> CompositeImages | None:
    """Returns the middle halves of two images of different classes side by side, in both orders."""
    height, width = pixels.shape[-2:]
    middle = width // 2
    boxes = [((0, height), (0, middle)), ((0, height), (middle, width))]
    return compose(pixels, labels, patch, boxes, count, seed, shrink=False)


def compose(
    pixels: Tensor, labels: list[str], patch: int, boxes: list[Box], count: int, seed: int, shrink: bool
) -> CompositeImages | None:
    """At most `count` composites with one image in each box; None with fewer classes than boxes.

    `shrink` resizes an image to its box; else its center is cropped.
    """
    groups = draw_groups(labels, len(boxes), count, seed)
    if not groups:
        return None
    height, width = pixels.shape[-2:]
    masks = [patches_in_box(box, height // patch, width // patch, patch) for box in boxes]
    composites, objects, object_masks, other_masks = [], [], [], []
    for group in groups:
        canvas = torch.empty_like(pixels[0])
        for ((top, bottom), (left, right)), index in zip(boxes, group, strict=True):
            fit = resize if shrink else center_crop
            tile = fit(pixels[index], bottom - top, right - left)
            canvas[:, top:bottom, left:right] = tile
        for box, index in enumerate(group):
            composites.append(canvas)
            objects.append(labels[index])
            object_masks.append(masks[box])
            other_masks.append(np.any(masks[:box] + masks[box + 1 :], axis=0))
    return CompositeImages(
        torch.stack(composites), objects, np.stack(object_masks), np.stack(other_masks), 1 / len(boxes),
        cluster_size=len(boxes) * (2 if len(boxes) == 2 else 1),
    )  # fmt: skip


def draw_groups(labels: list[str], size: int, count: int, seed: int) -> list[list[int]]:
    """At most `count` groups of image indices, each of `size` different classes; a pair comes in both orders.

    No image is in two groups, so that groups are independent. The classes with the most unused images are taken next.
    """
    generator = np.random.default_rng(seed)
    unused = {
        label: generator.permutation([i for i, other in enumerate(labels) if other == label]).tolist()
        for label in sorted(set(labels))
    }
    groups: list[list[int]] = []
    while len(groups) < max(count, 1):
        classes = [label for label in generator.permutation(sorted(unused)).tolist() if unused[label]]
        if len(classes) < size:
            break
        classes = sorted(classes, key=lambda label: -len(unused[label]))[:size]
        group = [unused[label].pop() for label in generator.permutation(classes).tolist()]
        groups += [group, group[::-1]] if size == 2 else [group]
    return groups


def patches_in_box(box: Box, h: int, w: int, patch: int) -> np.ndarray:
    """Returns the patches that lie entirely within a box, bool (P,)."""
    (top, bottom), (left, right) = box
    y, x = np.mgrid[:h, :w] * patch
    inside_P: np.ndarray = ((y >= top) & (y + patch <= bottom) & (x >= left) & (x + patch <= right)).ravel()
    return inside_P
