"""Scores explanation methods on the images of a classifier: whether their maps show what its outputs depend on."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.errors import UsageError
from vitrail.explanation.api import explain_with_padding
from vitrail.explanation.controls import CONTROLS
from vitrail.explanation.evaluation_set import MAX_BATCH_IMAGES, EvaluationSet, draw_evaluation_set
from vitrail.explanation.inputs import embed_images, patch_grid
from vitrail.explanation.measures import (
    CURVES,
    MEASURES,
    area_under_curve,
    positive_share,
    rank_correlation,
    rank_patches,
    remaining_counts,
    saco,
)
from vitrail.explanation.methods import METHODS, find_method
from vitrail.explanation.randomization import DRAWS, SHUFFLED_MODELS, SHUFFLED_PARTS, shuffled_models
from vitrail.explanation.scores import Faithfulness, MethodScores, make_score, mark_best
from vitrail.explanation.targets import Target, parse_targets

Mapper = Callable[[Classifier, Tensor, list[str]], np.ndarray]  # pixels (B, C, H, W), classes -> maps (B, P)
WARM_UP_IMAGES = 8


@dataclass(frozen=True)
class Measurements:
    """The maps of one method (N, P), the seconds for one, the values by measure, and the mean curves."""

    maps: np.ndarray
    seconds: float
    values: dict[str, np.ndarray]
    curves: dict[str, list[float]]


def evaluate_faithfulness(
    classifier: Classifier,
    images: Images,
    *,
    methods: Iterable[str] | None = None,
    max_images: int = 200,
    steps: int = 12,
    seed: int = 0,
    extra_methods: Mapping[str, Mapper] | None = None,
    description: str = "",
    on_step: Callable[[str], object] = lambda name: None,
    skip_unreadable: bool = False,
) -> Faithfulness:
    """Scores `methods` (default: all), `extra_methods` and the controls on at most `max_images` images.

    The predicted class is explained. Curves and SaCo use all images, mosaics and pairs those that are classified
    correctly, and the randomization test a sixth of all. `steps` is the number of steps of a curve; `description` of
    the images goes into the result. `on_step` is called with the name of each of the `count_steps` steps before it
    starts. The model stays as it was.

    Raises `UsageError` for an unknown method, for no images and for a model whose images are a single patch. Raises
    `ImageError` for an image that cannot be read; with `skip_unreadable` such images are counted instead.
    """
    classifier.require_classes()
    names = [find_method(name).name for name in (METHODS if methods is None else methods)]
    mappers = {name: method_mapper(name) for name in names} | dict(extra_methods or {})
    mappers |= {name: control_mapper(name, seed) for name in CONTROLS}
    if not len(images) or max_images < 1:
        raise UsageError("there are no images to score explanations on")
    data = draw_evaluation_set(classifier, images, max_images, seed, skip_unreadable)
    if data.patch_count == 1:
        raise UsageError("this model sees an image as one patch, so a map of it has no content")
    measured: dict[str, Measurements] = {}
    for name, mapper in mappers.items():
        on_step(name)
        measured[name] = measure_method(mapper, data, steps, seed)
    maps = {name: measurements.maps for name, measurements in measured.items()}
    for name, values in measure_randomization(data, mappers, maps, seed, on_step).items():
        measured[name].values["randomization"] = values
    scores = {
        name: MethodScores(
            {name: make_score(measurements.values.get(name), measure) for name, measure in MEASURES.items()},
            measurements.curves,
            1000 * measurements.seconds,
            measurements.seconds / data.seconds_per_forward,
            is_control=name in CONTROLS,
        )
        for name, measurements in measured.items()
    }
    remaining = [count / data.patch_count for count in remaining_counts(data.patch_count, steps)]
    return Faithfulness(mark_best(scores), len(data.pixels), remaining, description, data.unreadable)


def count_steps(methods: int) -> int:
    """How often `evaluate_faithfulness` calls `on_step` for this number of methods."""
    return methods + len(CONTROLS) + SHUFFLED_MODELS


def method_mapper(method: str) -> Mapper:
    """Returns the function that computes the maps of a method of `METHODS`, with their values on padding.

    Zeros there would make the maps of shuffled models similar, and patches on padding would be removed in any order.
    """

    def compute(classifier: Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
        targets: list[Target] = list(labels)
        explanations = explain_with_padding(classifier, pixels, method=method, target=targets)
        return np.stack([explanation.map.ravel() for explanation in explanations])

    return compute


def control_mapper(name: str, seed: int) -> Mapper:
    """Returns the function that computes the control maps of this name."""

    def compute(classifier: Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
        return CONTROLS[name](pixels, *patch_grid(classifier, pixels), seed)

    return compute


def measure_method(mapper: Mapper, data: EvaluationSet, steps: int, seed: int) -> Measurements:
    """Everything about one method that needs only the classifier itself."""
    maps, seconds = compute_maps_timed(mapper, data)
    values, curves = measure_perturbations(data, maps, steps, seed)
    return Measurements(maps, seconds, values | measure_composites(data, mapper), curves)


def compute_maps(mapper: Mapper, classifier: Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
    """Returns the maps of many images, (N, P), in batches."""
    batches = [slice(start, start + MAX_BATCH_IMAGES) for start in range(0, len(pixels), MAX_BATCH_IMAGES)]
    return np.concatenate([mapper(classifier, pixels[batch], labels[batch]) for batch in batches]).astype(np.float64)


def compute_maps_timed(mapper: Mapper, data: EvaluationSet) -> tuple[np.ndarray, float]:
    """Returns the maps of all images, (N, P), and the seconds for one map."""
    compute_maps(mapper, data.classifier, data.pixels[:WARM_UP_IMAGES], data.labels[:WARM_UP_IMAGES])
    started = time.perf_counter()
    maps = compute_maps(mapper, data.classifier, data.pixels, data.labels)
    return maps, (time.perf_counter() - started) / len(maps)


def measure_perturbations(
    data: EvaluationSet, maps: np.ndarray, steps: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Returns the measures that remove patches, one value per image, and the mean deletion and insertion curve."""
    order = rank_patches(maps, seed)
    batches: dict[str, list[np.ndarray]] = {name: [] for name in (*CURVES, "saco")}
    for start in range(0, len(maps), data.batch_size):
        batch = slice(start, start + data.batch_size)
        labels: list[Target] = list(data.labels[batch])
        targets = parse_targets(data.classifier.classes, labels, len(labels))
        inputs = embed_images(data.classifier, data.pixels[batch], targets)
        for name, compute_curve in CURVES.items():
            batches[name].append(compute_curve(inputs, order[batch], steps))
        batches["saco"].append(saco(inputs, maps[batch], order[batch]))
    results = {name: np.concatenate(parts) for name, parts in batches.items()}
    remaining = remaining_counts(data.patch_count, steps)
    values = {name: area_under_curve(results[name], remaining) for name in CURVES} | {"saco": results["saco"]}
    return values, {name: results[name].mean(axis=0).tolist() for name in ("deletion", "insertion")}


def measure_composites(data: EvaluationSet, mapper: Mapper) -> dict[str, np.ndarray]:
    """Returns the measures on composites, (clusters, members); a measure without composites is left out."""
    values = {}
    for name, composites in data.composites.items():
        if composites is not None:
            maps = compute_maps(mapper, data.classifier, composites.pixels, composites.labels)
            share_M = positive_share(maps, composites.object_MP, composites.other_MP, composites.chance)
            values[name] = share_M.reshape(-1, composites.cluster_size)
    return values


def measure_randomization(
    data: EvaluationSet,
    mappers: Mapping[str, Mapper],
    maps: Mapping[str, np.ndarray],
    seed: int,
    on_step: Callable[[str], object],
) -> dict[str, np.ndarray]:
    """For each method, the absolute rank correlations with the maps of the shuffled models, (kinds, draws, images).

    One copy of the model is in memory beside it.
    """
    subset = data.randomization_subset
    correlations: dict[str, list[np.ndarray]] = {name: [] for name in mappers}
    for number, model in enumerate(shuffled_models(data.classifier, seed), start=1):
        on_step(f"shuffled weights {number} of {SHUFFLED_MODELS}")
        for name, mapper in mappers.items():
            shuffled_maps = compute_maps(mapper, model, data.pixels[subset], data.labels[subset])
            correlations[name].append(np.abs(rank_correlation(maps[name][subset], shuffled_maps)))
    return {
        name: np.stack(values).reshape(DRAWS, len(SHUFFLED_PARTS), -1).swapaxes(0, 1)
        for name, values in correlations.items()
    }
