"""Scores the explanations of one classifier on labelled images: whether its maps can be believed."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.classifier import Classifier
from vitrail.data import Images
from vitrail.data.augment import fitting
from vitrail.data.loader import read
from vitrail.errors import UsageError
from vitrail.explanation.controls import CONTROLS
from vitrail.explanation.explanation import Target, explain_batch, grid_of, open_scene, piece_size, read_target
from vitrail.explanation.known_truth import Composed, mosaics, pairs
from vitrail.explanation.measures import (
    MEASURES,
    area,
    curve,
    left,
    rank_correlation,
    ranking,
    saco,
    share,
)
from vitrail.explanation.methods import METHODS, find_method

Mapper = Callable[[Classifier, Tensor, list[str]], np.ndarray]  # pixels (B, C, H, W), classes asked -> map (B, P)
PIECE = 64  # images that are scored at once, fewer where they have many patches


@dataclass(frozen=True)
class Score:
    """A measure of a method: the mean over images, its 95 % bootstrap interval, and each image's value."""

    mean: float
    interval: tuple[float, float]
    values: np.ndarray = field(repr=False)
    best: bool = False  # best of the methods, or not to be told from the best

    def to_json(self) -> dict[str, Any]:
        """Mean, interval, number of images."""
        return {"mean": self.mean, "interval": list(self.interval), "images": len(self.values), "best": self.best}


@dataclass(frozen=True)
class Row:
    """What is known of a method: its scores, its curves (points,), and milliseconds for an image's map."""

    scores: dict[str, Score | None]  # None where it cannot be measured on these images
    curves: dict[str, list[float]]
    milliseconds: float | None
    forwards: float | None  # the same time in forward passes of this model
    control: bool = False

    def to_json(self) -> dict[str, Any]:
        """Every number but the images' own."""
        return {
            **{name: None if score is None else score.to_json() for name, score in self.scores.items()},
            "curves": self.curves,
            "milliseconds": self.milliseconds,
            "forwards": self.forwards,
            "control": self.control,
        }


@dataclass(frozen=True)
class Faithfulness:
    """The scores of each method, and of controls that know nothing of the model."""

    rows: dict[str, Row]
    images: int
    left: list[float]  # part of the patches left at each point of the curves
    said: str = ""  # which images these are, in words
    unreadable: int = 0  # images that were drawn and are left out

    def to_json(self) -> dict[str, Any]:
        """`methods` by name with every score; `measures` say what they are."""
        return {
            "images": self.images,
            "unreadable": self.unreadable,
            "data": self.said,
            "measures": {name: {"about": row.about, "better": row.better} for name, row in MEASURES.items()},
            "left": self.left,
            "methods": {
                name: {
                    **row.to_json(),
                    "class_blind": row.control or (name in METHODS and METHODS[name].class_blind),
                    "signed": name in METHODS and METHODS[name].signed,
                    "cost": METHODS[name].cost if name in METHODS else None,
                }
                for name, row in self.rows.items()
            },
        }


def faithfulness(
    classifier: Classifier,
    images: Images,
    *,
    methods: Iterable[str] | None = None,
    most: int = 200,
    steps: int = 12,
    seed: int = 0,
    others: Mapping[str, Mapper] | None = None,
    said: str = "",
    tick: Callable[[str], object] = lambda doing: None,
    skip_unreadable: bool = False,
) -> Faithfulness:
    """Scores `methods` (all unless said) on `most` images at most, drawn by `seed`.

    The predicted class is explained. Curves and SaCo take all drawn images; mosaics and pairs are made of those that
    are classified rightly; a sixth of the images meets shuffled weights. `others` are methods from elsewhere, scored
    alike. `tick` is called with the name of each row when it begins. The model is left as it was. Raises `UsageError`
    for a method that is not there and for a model to which an image is one patch, `ImageError` naming a file that
    cannot be read, or with `skip_unreadable` counts it.
    """
    classifier.require_classes()
    mappers: dict[str, Mapper] = {name: ours(name) for name in (METHODS if methods is None else methods)}
    mappers |= others or {}
    if not len(images) or most < 1:
        raise UsageError("there are no images to score explanations on")
    stage = Stage.of(classifier, images, most, steps, seed, skip_unreadable)
    if stage.grid == (1, 1):
        raise UsageError("this model sees an image as one patch: a map of it says nothing")
    rows: dict[str, Row] = {}
    for name, mapper in mappers.items():
        tick(name)
        rows[name] = stage.row(mapper, seed)
    for name in CONTROLS:
        tick(name)
        rows[name] = replace(stage.row(control(name, seed), seed), control=True)
    patches = stage.grid[0] * stage.grid[1]
    parts = [n / patches for n in left(patches, steps)]
    return Faithfulness(with_best(rows, seed), len(stage.pixels), parts, said, stage.unreadable)


def ours(method: str) -> Mapper:
    """A method of the table, as a function."""
    find_method(method)

    def map_of(classifier: Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
        targets: list[Target] = list(labels)
        return np.stack([each.map.ravel() for each in explain_batch(classifier, pixels, method=method, target=targets)])

    return map_of


def control(name: str, seed: int) -> Mapper:
    """A control, as a function."""

    def map_of(classifier: Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
        return CONTROLS[name](pixels, *grid_of(classifier, pixels), seed)

    return map_of


@dataclass
class Stage:
    """What all methods are scored on: the same images, compositions and shuffled models for each."""

    classifier: Classifier
    pixels: Tensor
    labels: list[str]  # the predicted classes
    grid: tuple[int, int]
    steps: int
    composed: dict[str, tuple[Composed | None, float]]  # with the chance value
    shuffled: list[Classifier]
    forward: float  # seconds for an image
    unreadable: int  # images that were drawn and could not be read

    @staticmethod
    def of(
        classifier: Classifier, images: Images, most: int, steps: int, seed: int, skip_unreadable: bool = False
    ) -> "Stage":
        """Draws the images and puts the compositions together."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:most])
        (pixels, truth), refused = read(images, fitting(classifier.preprocess), chosen, seed, epoch=0)
        if refused and not (skip_unreadable and len(pixels)):
            raise refused[0]
        piece = min(PIECE, piece_size(pixels.shape[-2] * pixels.shape[-1] // classifier.vit.config.patch**2))
        classifier.logits(pixels[:piece])  # so that the first timing is no slower
        began = time.perf_counter()
        logits_BY = torch.cat([classifier.logits(some) for some in torch.split(pixels, piece)])
        predicted = logits_BY.argmax(dim=1).cpu().numpy()
        forward = (time.perf_counter() - began) / len(pixels)
        labels = [classifier.classes[i] for i in predicted]
        right = np.flatnonzero(predicted == truth.numpy())
        sound, names = pixels[right], [labels[i] for i in right]
        patch = classifier.vit.config.patch
        return Stage(
            classifier,
            pixels,
            labels,
            grid_of(classifier, pixels),
            steps,
            {
                "mosaic": (mosaics(sound, names, patch, -(-most // 4), seed), 0.25),
                "pair": (pairs(sound, names, patch, 2 * -(-most // 4), seed), 0.5),
            },
            shuffled_models(classifier, seed),
            forward,
            len(refused),
        )

    def row(self, mapper: Mapper, seed: int) -> Row:
        """Everything about one method."""
        maps = mapped(mapper, self.classifier, self.pixels[:8], self.labels[:8])  # so that the timing is of warm code
        began = time.perf_counter()
        maps = mapped(mapper, self.classifier, self.pixels, self.labels)
        seconds = (time.perf_counter() - began) / len(maps)
        values, curves = self.dropped(maps, seed)
        for name, (composed, chance) in self.composed.items():
            values[name] = None
            if composed is not None:
                found = mapped(mapper, self.classifier, composed.pixels, composed.asked)
                values[name] = share(found, composed.own, composed.other, chance)
        some = slice(0, -(-len(self.pixels) // 6))
        again = [mapped(mapper, model, self.pixels[some], self.labels[some]) for model in self.shuffled]
        values["randomised"] = np.mean([np.abs(rank_correlation(maps[some], other)) for other in again], axis=0)
        scores = {name: scored(values[name], seed) for name in MEASURES}
        return Row(scores, curves, 1000 * seconds, seconds / self.forward)

    def dropped(self, maps: np.ndarray, seed: int) -> tuple[dict[str, np.ndarray | None], dict[str, list[float]]]:
        """The measures that leave patches out, and the two curves."""
        order = ranking(maps, seed)
        deletion, insertion, grey, groups = [], [], [], []
        size = min(PIECE, piece_size(maps.shape[1]))
        for at in range(0, len(maps), size):
            piece = slice(at, at + size)
            targets = [read_target(self.classifier.classes, label) for label in self.labels[piece]]
            scene = open_scene(self.classifier, self.pixels[piece], targets)
            deletion.append(curve(scene, order[piece], self.steps))
            insertion.append(curve(scene, order[piece, ::-1].copy(), self.steps))
            grey.append(curve(scene, order[piece], self.steps, painted=True))
            groups.append(saco(scene, maps[piece], order[piece]))
        found = {"deletion": np.concatenate(deletion), "insertion": np.concatenate(insertion)}
        values: dict[str, np.ndarray | None] = {name: area(curves) for name, curves in found.items()}
        values |= {"deletion_grey": area(np.concatenate(grey)), "saco": np.concatenate(groups)}
        return values, {name: curves.mean(axis=0).tolist() for name, curves in found.items()}


def mapped(mapper: Mapper, classifier: Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
    """The maps of many images, (n, P), in pieces."""
    pieces = range(0, len(pixels), PIECE)
    found = [mapper(classifier, pixels[at : at + PIECE], labels[at : at + PIECE]) for at in pieces]
    return np.concatenate(found).astype(np.float64)


def shuffled_models(classifier: Classifier, seed: int, draws: int = 3) -> list[Classifier]:
    """Copies of the classifier with the weights of its head, of its upper half, of everything shuffled, `draws` times.

    Adebayo et al. 2018 (arXiv 1810.03292), with each tensor's own values in another order: what made them is gone,
    while their spread stays. One draw says little: another shuffled head moves the score more than other images do.
    """
    blocks = list(range(len(classifier.vit.blocks)))
    upper = [f"blocks.{i}." for i in blocks[len(blocks) // 2 :]] + ["norm.", "pool.", "head."]
    found = []
    for number, names in enumerate([("head.",), tuple(upper), ("",)] * draws):
        vit = copy.deepcopy(classifier.vit)
        shuffle(vit, names, 1000 * seed + number)
        found.append(replace(classifier, vit=vit))
    return found


@torch.no_grad()
def shuffle(vit: nn.Module, names: tuple[str, ...], seed: int) -> None:
    """Puts the values of each parameter whose name begins so into another order, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in vit.named_parameters():
        if name.startswith(names):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def scored(values: np.ndarray | None, seed: int) -> Score | None:
    """Mean and bootstrap interval of one number per image; None where there is none."""
    if values is None or not np.isfinite(values).all():
        return None
    means = resampled(values, seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return Score(float(values.mean()), (float(low), float(high)), values)


def resampled(values: np.ndarray, seed: int, times: int = 1000) -> np.ndarray:
    """Means of `times` bootstrap samples; the same images are drawn for every method, so differences are paired."""
    draws = np.random.default_rng(seed).integers(len(values), size=(times, len(values)))
    means: np.ndarray = values[draws].mean(axis=1)
    return means


def with_best(rows: dict[str, Row], seed: int) -> dict[str, Row]:
    """The rows with each measure's best method marked, and those whose paired difference from it may be nothing."""
    marked = {name: dict(row.scores) for name, row in rows.items()}
    for measure, about in MEASURES.items():
        sign = 1 if about.better == "higher" else -1
        there = {n: s for n, row in rows.items() if not row.control and (s := row.scores[measure]) is not None}
        if not there:
            continue
        top = max(there.values(), key=lambda score: sign * score.mean)
        for name, score in there.items():
            behind = resampled(sign * (top.values - score.values), seed)
            marked[name][measure] = replace(score, best=bool(score is top or np.percentile(behind, 2.5) <= 0))
    return {name: replace(row, scores=marked[name]) for name, row in rows.items()}
