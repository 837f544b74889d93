"""Where the classifier looks: maps of its worst mistakes, mean maps per class, and how much lies on the border."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitrail.classifier import Classifier
from vitrail.data import Images
from vitrail.evaluation.outcome import Outcome
from vitrail.explanation import DEFAULT_METHOD, METHODS, Explanation, explain_batch
from vitrail.explanation.render import AGAINST_COLOR, FOR_COLOR, parse_color, to_rgb
from vitrail.intervals import bootstrap_means, percentile_interval

SIDE = 128  # longest side of a drawn map, in pixels
BATCH = 64
ALARM = 1.25  # times the border's area: with so much evidence on it, it is worth a look


def explained(
    classifier: Classifier, images: Images, chosen: Sequence[int] | np.ndarray, labels: Sequence[str]
) -> list[Explanation]:
    """The default method's map for each of these images and classes."""
    found: list[Explanation] = []
    for at in range(0, len(chosen), BATCH):
        pixels = images.load_batch(classifier.preprocess, chosen[at : at + BATCH])
        found += explain_batch(classifier, pixels, target=list(labels[at : at + BATCH]))
    return found


def worst(outcome: Outcome, most: int) -> np.ndarray:
    """The mistaken images with the highest loss, worst first."""
    wrong = np.flatnonzero(outcome.predicted != outcome.labels)
    return wrong[np.argsort(-outcome.losses[wrong], kind="stable")][:most]


def mistake_maps(
    classifier: Classifier, images: Images, outcome: Outcome, chosen: np.ndarray
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """For each mistake its numbers, and the tiles to show: what speaks for the predicted and for the true class.

    Both maps of an image have one scale, to the 99th percentile of both: one loud patch must not black out the others.
    """
    classes = outcome.classes
    probabilities = outcome.probabilities
    predicted = [classes[i] for i in outcome.predicted[chosen]]
    true = [classes[i] for i in outcome.labels[chosen]]
    pairs = zip(
        explained(classifier, images, chosen, predicted), explained(classifier, images, chosen, true), strict=True
    )
    rows: list[dict[str, Any]] = []
    tiles: list[np.ndarray] = []
    for i, (for_predicted, for_true) in zip(chosen, pairs, strict=True):
        both = np.abs([for_predicted.map, for_true.map])
        limit = max(float(np.percentile(both, 99)), 1e-12)
        row: dict[str, Any] = {"image": int(i), "loss": float(outcome.losses[i]), "limit": limit}
        for name, explanation, number in (
            ("predicted", for_predicted, outcome.predicted[i]),
            ("true", for_true, outcome.labels[i]),
        ):
            row[name] = {
                "class": classes[number],
                "probability": float(probabilities[i, number]),
                "map": rounded(explanation.map),
                "tile": len(tiles),
            }
            tiles.append(painted(explanation, limit))
        rows.append(row)
    return rows, tiles


def mean_maps(
    classifier: Classifier, images: Images, outcome: Outcome, most: int, seed: int = 0
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """For each class where the evidence for it lies on average, over images that were given that class.

    Each image's positive evidence is taken as parts of a whole, so that no image counts more than another. The border
    is the outermost ring of patches; its share of the evidence stands beside its share of the area.
    """
    chosen = by_class(outcome.predicted, most, seed)
    labels = [outcome.classes[i] for i in outcome.predicted[chosen]]
    found = explained(classifier, images, chosen, labels)
    h, w = found[0].map.shape if found else (0, 0)
    ring = border(h, w)
    area = float(ring.mean()) if ring.size else 0.0
    known = min(h, w) >= 4
    generator = np.random.Generator(np.random.Philox(seed))
    rows: list[dict[str, Any]] = []
    means: list[np.ndarray] = []
    for number, name in enumerate(outcome.classes):
        parts = np.array([shares(e.map) for e, i in zip(found, chosen, strict=True) if outcome.predicted[i] == number])
        if not len(parts):
            continue
        on_border = (parts * ring).sum(axis=(1, 2))
        low, high = percentile_interval(bootstrap_means(on_border, generator))
        means.append(parts.mean(axis=0))
        rows.append(
            {
                "class": name,
                "images": len(parts),
                "map": rounded(means[-1]),
                "border": float(on_border.mean()) if known else None,
                "border_interval": [float(low), float(high)] if known else None,
                "alarm": bool(known and low > ALARM * area),
                "tile": len(means) - 1,
            }
        )
    highest = max((float(mean.max()) for mean in means), default=0.0)
    document = {
        "method": DEFAULT_METHOD,
        "about": METHODS[DEFAULT_METHOD].description,
        "signed": METHODS[DEFAULT_METHOD].signed,
        "images": len(chosen),
        "grid": [h, w],
        "border_area": area if known else None,
        "alarm_above": ALARM * area if known else None,
        "highest": highest,
        "even": 1 / (h * w) if h * w else None,
        "classes": rows,
    }
    return document, [heated(mean, highest) for mean in means]


def by_class(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most `most` places, about as many of each label, drawn by seed; in order."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    rank = np.zeros(len(labels), dtype=int)  # the how-manieth of its label an image is
    for number in np.unique(labels):
        members = order[labels[order] == number]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:most])


def shares(map_hw: np.ndarray) -> np.ndarray:
    """The positive part of a map, divided by its sum; even where nothing is positive."""
    positive = np.clip(map_hw.astype(np.float64), 0, None)
    total = positive.sum()
    return positive / total if total > 0 else np.full(positive.shape, 1 / positive.size)


def border(h: int, w: int) -> np.ndarray:
    """True in the outermost ring of an (h, w) grid."""
    ring = np.ones((h, w), dtype=bool)
    ring[1:-1, 1:-1] = False
    return ring


def rounded(map_hw: np.ndarray) -> list[list[float]]:
    """A map as JSON, to five decimals."""
    return [[round(float(value), 5) for value in row] for row in map_hw]


def drawn_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a tile of about `SIDE` pixels in these proportions."""
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def painted(explanation: Explanation, limit: float) -> np.ndarray:
    """The image in grey under its map between -limit and limit, uint8 (H, W, 3); near zero it shows through."""
    h, w = drawn_size(*explanation.image.shape[:2])
    grey = enlarged(to_rgb(explanation.image).mean(axis=2), h, w)[..., None] / 255
    value = np.clip(enlarged(explanation.map.astype(np.float64), h, w) / limit, -1, 1)[..., None]
    colour = np.where(value >= 0, parse_color(FOR_COLOR), parse_color(AGAINST_COLOR)) * (0.75 + 0.35 * grey)
    cover = 0.9 * np.abs(value) ** 0.8
    mixed = (1 - cover) * (0.2 + 0.7 * grey) + cover * colour
    return (255 * mixed).round().clip(0, 255).astype(np.uint8)


def heated(map_hw: np.ndarray, highest: float) -> np.ndarray:
    """A map of shares in cividis from none to `highest`, uint8 (H, W, 3)."""
    from matplotlib import colormaps

    h, w = drawn_size(*map_hw.shape)
    scaled = enlarged(map_hw, h, w) / max(highest, 1e-12)
    coloured: np.ndarray = (255 * colormaps["cividis"](scaled)[..., :3]).round().astype(np.uint8)
    return coloured


def enlarged(array_hw: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each value as a block: nothing is made up between patches."""
    h, w = array_hw.shape
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    big: np.ndarray = array_hw[np.ix_(rows, columns)]
    return big
