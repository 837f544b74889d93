"""Images with a planted object, and a small classifier that is trained on them.

An image is gray noise with one tile in one of six hues, which is its class, and two gray tiles as distractors. Tiles
cover exactly 2 x 2 patches, so the true evidence is a set of patches.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT

SIDE, PATCH, TILE = 24, 4, 8
CLASSES = tuple("abcdef")
HUES = [np.array(colorsys.hsv_to_rgb(i / 6, 0.8, 0.8)) * 255 for i in range(6)]


@dataclass
class PlantedImages:
    """uint8 images (n, 3, 24, 24), the class indices (n, objects) and the patches (n, objects, 36) of each object."""

    pixels: Tensor
    labels: np.ndarray
    truth: np.ndarray

    def images(self) -> Images:
        return Images(self.pixels, [str(i) for i in range(len(self.pixels))], self.labels[:, 0], CLASSES)


def texture(generator: np.random.Generator, color: np.ndarray) -> np.ndarray:
    return color[:, None, None] * generator.uniform(0.5, 1.2, (1, TILE, TILE))


def make_planted_images(n: int, seed: int, objects: int = 1) -> PlantedImages:
    """`n` images with one object anywhere, or with two of different classes, one left and one right."""
    generator = np.random.default_rng(seed)
    corners = [(y, x) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]
    left_and_right = [[0, 3, 6], [2, 5, 8]]
    pixels = generator.normal(110, 25, (n, 1, SIDE, SIDE)).repeat(3, axis=1)
    labels = np.stack([generator.permutation(len(CLASSES))[:objects] for _ in range(n)])
    truth = np.zeros((n, objects, SIDE // PATCH, SIDE // PATCH), bool)
    for i in range(n):
        order = list(generator.permutation(len(corners)))
        objects_at = [int(generator.choice(column)) for column in left_and_right] if objects == 2 else [order[0]]
        free = [tile for tile in order if tile not in objects_at]
        for tile in free[: 2 if objects == 1 else 1]:
            y, x = corners[tile]
            pixels[i, :, y : y + TILE, x : x + TILE] = texture(generator, np.full(3, 200.0))
        for number, tile in enumerate(objects_at):
            y, x = corners[tile]
            pixels[i, :, y : y + TILE, x : x + TILE] = texture(generator, HUES[labels[i, number]])
            truth[i, number, y // PATCH : (y + TILE) // PATCH, x // PATCH : (x + TILE) // PATCH] = True
    clipped = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return PlantedImages(clipped, labels, truth.reshape(n, objects, -1))


def train_planted_classifier(steps: int = 300, batch: int = 64) -> Classifier:
    """A 4-layer ViT that classifies the hues; training takes about twenty seconds."""
    torch.manual_seed(0)
    vit = ViT(ViTConfig(width=48, depth=4, heads=3, mlp_width=96, patch=PATCH, image_size=SIDE, classes=6))
    preprocess = Preprocess(image_size=(SIDE, SIDE))
    optimizer = torch.optim.AdamW(vit.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        data = make_planted_images(batch, seed=1000 + step)
        loss = torch.nn.functional.cross_entropy(
            vit(preprocess.normalize(data.pixels)), torch.from_numpy(data.labels[:, 0])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    vit.eval().requires_grad_(False)
    return Classifier(vit, CLASSES, preprocess)
