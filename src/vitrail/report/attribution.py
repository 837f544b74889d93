"""Relevance maps: for both classes of the worst mistakes, and the mean map of each class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitrail.classifier import Classifier
from vitrail.evaluation import Outcome
from vitrail.explanation.api import explain_batch
from vitrail.explanation.concentration import BORDER_FACTOR, MIN_GRID, border_shares, positive_shares
from vitrail.explanation.explanation import Explanation
from vitrail.explanation.methods import DEFAULT_METHOD, METHODS
from vitrail.explanation.render import SEQUENTIAL_COLORMAP, TILE_STYLE, enlarge_map, paint_map, to_rgb
from vitrail.intervals import t_interval
from vitrail.report.sample import Sample
from vitrail.report.verdicts import MIN_VERDICT_IMAGES, exceeds

TILE_SIZE = 128  # pixels of the longer edge of a drawn map
BATCH_SIZE = 64

Tiles = list[np.ndarray]


def explain_images(
    classifier: Classifier, sample: Sample, indices: np.ndarray, labels: Sequence[str]
) -> list[Explanation]:
    """Returns the default method's map for each of these images and classes."""
    explanations: list[Explanation] = []
    for start in range(0, len(indices), BATCH_SIZE):
        batch = indices[start : start + BATCH_SIZE]
        explanations += explain_batch(
            classifier,
            sample.batch(batch),
            target=list(labels[start : start + BATCH_SIZE]),
            sizes=[sample.sizes[i] for i in batch.tolist()],
        )
    return explanations


def explain_mistakes(classifier: Classifier, outcome: Outcome, sample: Sample) -> tuple[list[dict[str, Any]], Tiles]:
    """Returns a row for each of the worst mistakes, and tiles with the maps for the predicted and the true class.

    Both maps of an image have the same color scale, up to the 99th percentile of both, so that one extreme patch does
    not hide the others.
    """
    indices = sample.selection.mistakes
    predicted = [outcome.classes[i] for i in outcome.predicted[indices]]
    true = [outcome.classes[i] for i in outcome.labels[indices]]
    rows: list[dict[str, Any]] = []
    tiles: Tiles = []
    for i, predicted_map, true_map in zip(
        indices,
        explain_images(classifier, sample, indices, predicted),
        explain_images(classifier, sample, indices, true),
        strict=True,
    ):
        limit = max(float(np.percentile(np.abs([predicted_map.map, true_map.map]), 99)), 1e-12)
        row: dict[str, Any] = {"image": int(i), "loss": float(outcome.losses[i]), "color_limit": limit}
        for name, explanation, label in (
            ("predicted", predicted_map, outcome.predicted[i]),
            ("true", true_map, outcome.labels[i]),
        ):
            row[name] = {
                "class": outcome.classes[label],
                "probability": float(outcome.probabilities[i, label]),
                "map": round_map(explanation.map),
                "tile": len(tiles),
            }
            tiles.append(draw_signed_map(explanation, limit))
        rows.append(row)
    return rows, tiles


def explain_classes(classifier: Classifier, outcome: Outcome, sample: Sample) -> tuple[dict[str, Any], Tiles]:
    """Returns the mean map of the evidence for each class, over images that were predicted as that class, and tiles.

    The positive evidence of each image is normalized to sum 1, so that every image has the same weight. The border is
    the outermost ring of patches: its share of the evidence is compared with its share of the area, for each class with
    enough images and for all images together (`verdicts.exceeds`).
    """
    indices = sample.selection.attribution
    predicted = outcome.predicted[indices]
    explanations = explain_images(classifier, sample, indices, [outcome.classes[i] for i in predicted])
    shares = [positive_shares(explanation) for explanation in explanations]
    h, w = shares[0].shape if shares else (0, 0)
    on_border, areas = np.array([border_shares(explanation) for explanation in explanations]).reshape(-1, 2).T
    border_area = float(areas.mean()) if len(areas) else 0.0
    has_border = min(h, w) >= MIN_GRID
    shares_of_class = [on_border[predicted == label] for label in range(len(outcome.classes))]
    relative = on_border / areas  # photos of other proportions have another border
    relative_of_class = [relative[predicted == label] for label in range(len(outcome.classes))]
    suspicious = exceeds([*relative_of_class, relative], BORDER_FACTOR)
    rows: list[dict[str, Any]] = []
    means: list[np.ndarray] = []
    for label, name in enumerate(outcome.classes):
        class_maps = np.array([share for share, i in zip(shares, predicted, strict=True) if i == label])
        if not len(class_maps):
            continue
        means.append(class_maps.mean(axis=0))
        rows.append(
            {
                "class": name,
                "images": len(class_maps),
                "map": round_map(means[-1]),
                "border_share": float(shares_of_class[label].mean()) if has_border else None,
                "border_share_interval": t_interval(shares_of_class[label]) if has_border else None,
                "is_suspicious": has_border and suspicious[label],
                "tile": len(means) - 1,
            }
        )
    max_share = max((float(mean.max()) for mean in means), default=0.0)
    section = {
        "method": DEFAULT_METHOD,
        "description": METHODS[DEFAULT_METHOD].description,
        "signed": METHODS[DEFAULT_METHOD].signed,
        "images": len(indices),
        "grid": [h, w],
        "border_area": border_area if has_border else None,
        "warning_above": BORDER_FACTOR * border_area if has_border else None,
        "min_images": MIN_VERDICT_IMAGES,
        "border_share": float(on_border.mean()) if has_border and len(shares) else None,
        "border_share_interval": t_interval(on_border) if has_border else None,
        "is_suspicious": has_border and suspicious[-1],
        "max_share": max_share,
        "uniform_share": 1 / (h * w) if h * w else None,
        "classes": rows,
    }
    return section, [draw_share_map(mean, max_share) for mean in means]


def round_map(map_hw: np.ndarray) -> list[list[float]]:
    return [[round(float(value), 5) for value in row] for row in map_hw]


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Returns height and width of a tile with these proportions."""
    scale = TILE_SIZE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_signed_map(explanation: Explanation, limit: float) -> np.ndarray:
    """Returns the photo under its map, whose color scale is -limit to limit: uint8 (H, W, 3)."""
    h, w = tile_size(*explanation.image.shape[:2])
    channels = np.moveaxis(to_rgb(explanation.image), 2, 0)
    photo_hw3 = np.stack([enlarge_map(channel, h, w) for channel in channels], axis=2) / 255
    value = np.clip(enlarge_map(explanation.map, h, w) / limit, -1, 1)[..., None]
    return (255 * paint_map(photo_hw3, value, True, TILE_STYLE)).round().clip(0, 255).astype(np.uint8)


def draw_share_map(map_hw: np.ndarray, max_share: float) -> np.ndarray:
    """Returns a map of shares with a color scale from 0 to `max_share`: uint8 (H, W, 3)."""
    from matplotlib import colormaps

    h, w = tile_size(*map_hw.shape)
    scaled = enlarge_map(map_hw, h, w) / max(max_share, 1e-12)
    colored: np.ndarray = (255 * colormaps[SEQUENTIAL_COLORMAP](scaled)[..., :3]).round().astype(np.uint8)
    return colored
