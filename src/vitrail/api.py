"""Functions of the public API that combine several packages."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.data.image_batches import OnError
from vitrail.data.image_input import ImageInput
from vitrail.data.python_data import Data
from vitrail.errors import UsageError, did_you_mean
from vitrail.evaluation import open_scored_images
from vitrail.evaluation.knn import DEFAULT_K, DEFAULT_TEMPERATURE
from vitrail.evaluation.outcomes import AnyEvaluation, evaluate_any
from vitrail.evaluation.probe import Probe, open_probe_data
from vitrail.evaluation.probe import probe as probe_splits
from vitrail.exporting.formats import PROGRAM_FORMATS, check_request, export_program
from vitrail.exporting.libraries import LIBRARIES, ExportedLibrary, export_library
from vitrail.exporting.probes import load_probes
from vitrail.exporting.program import ProgramOptions
from vitrail.exporting.result import ExportResult
from vitrail.image_predictions import ImagePrediction, Predictions
from vitrail.loading import load, load_any

Model = str | Path | BaseClassifier | nn.Module
ProgramFormatName = Literal["onnx", "openvino", "torch", "triton"]
LibraryName = Literal["timm", "hf", "torchvision"]


@overload
def predict(  # type: ignore[overload-overlap]
    model: Model, images: str | Path | bytes | Image.Image, *,
    top: int = 5, batch_size: int = 64, on_error: OnError = "raise", progress: bool = True,
) -> ImagePrediction: ...  # fmt: skip
@overload
def predict(  # type: ignore[overload-overlap]
    model: Model, images: np.ndarray | Tensor, *,
    top: int = 5, batch_size: int = 64, on_error: OnError = "raise", progress: bool = True,
) -> ImagePrediction | Predictions: ...  # fmt: skip
@overload
def predict(
    model: Model, images: Iterable[ImageInput], *,
    top: int = 5, batch_size: int = 64, on_error: OnError = "raise", progress: bool = True,
) -> Predictions: ...  # fmt: skip
def predict(
    model: Model,
    images: ImageInput | Iterable[ImageInput],
    *,
    top: int = 5,
    batch_size: int = 64,
    on_error: OnError = "raise",
    progress: bool = True,
) -> ImagePrediction | Predictions:
    """Returns the most probable classes of an image, or of each of several images, as `Classifier.predict` does.

    `model` is a classifier, or anything that `load_any` accepts. `predict_all` writes files instead, for any number of
    images.
    """
    classifier = open_model(model)
    return classifier.predict(images, top, batch_size=batch_size, on_error=on_error, progress=progress)


@overload
def export(
    model: str | Path | Classifier, out: str | Path, *, format: ProgramFormatName,
    attention: bool = False, map: bool = False, int8: bool = False, unlike: bool = False,
    verify_data: str | Path | None = None, skip_unreadable: bool = False,
) -> ExportResult: ...  # fmt: skip
@overload
def export(model: str | Path | Classifier, out: str | Path, *, format: LibraryName) -> ExportedLibrary: ...
def export(
    model: str | Path | Classifier,
    out: str | Path,
    *,
    format: ProgramFormatName | LibraryName,
    attention: bool = False,
    map: bool = False,
    int8: bool = False,
    unlike: bool = False,
    verify_data: str | Path | None = None,
    skip_unreadable: bool = False,
) -> ExportResult | ExportedLibrary:
    """Writes a classifier for another runtime or library, after a comparison of its outputs; returns what was written.

    `onnx`, `openvino`, `torch` and `triton` are programs: `attention`, `map` and `unlike` add outputs, `int8` makes
    their weights 8 bits, and they are compared on the images of `verify_data` (default: parts of photographs), from
    whose source OpenVINO's int8 is calibrated, too. `timm`, `hf` and
    `torchvision` are folders that the library loads. Raises `UsageError` if `out` exists, `VitrailError` if the outputs
    differ.
    """
    extras = ProgramOptions(attention=attention, map=map, int8=int8, unlike=unlike)
    if format in PROGRAM_FORMATS:
        check_request(format, out, int8=int8)
        classifier = open_torch_model(model)
        return export_program(classifier, format, out, extras, load_probes(classifier, verify_data, skip_unreadable))
    if format not in LIBRARIES:
        raise UsageError(f"there is no format {format!r}", did_you_mean(format, [*PROGRAM_FORMATS, *LIBRARIES]))
    if extras != ProgramOptions() or verify_data is not None or skip_unreadable:
        raise UsageError(f"the format {format} takes no options", f"they are for {', '.join(PROGRAM_FORMATS)}")
    return export_library(open_torch_model(model), format, out)


def open_model(model: Model) -> BaseClassifier:
    """Returns a classifier as it is, and loads anything else."""
    return model if isinstance(model, BaseClassifier) else load_any(model)


def open_torch_model(model: str | Path | Classifier) -> Classifier:
    """Returns a classifier as it is, and loads anything else; raises `UsageError` for an exported file."""
    return model if isinstance(model, Classifier) else load(model)


def evaluate(
    model: Model,
    data: Data,
    *,
    skip_unreadable: bool = False,
    metrics: Sequence[str] = (),
    group_pattern: str | None = None,
) -> AnyEvaluation:
    """Returns the scores of a classifier on labeled images: the test split, else validation, else all images.

    They are an `Evaluation`, a `MultiLabelEvaluation` of several labels, or a `NumberEvaluation` of numbers.

    `model` is a classifier, or anything that `load_any` accepts. `ModuleClassifier(module, classes, preprocess)` makes
    a classifier of any module from images to logits.
    Raises `ImageError` for an unreadable image; with `skip_unreadable` such images are counted and skipped.
    `metrics` names metrics to compute besides: `balanced_accuracy`, `macro_f1`, and those that plugins register.
    `group_pattern` is a regular expression with one capture group, which finds the group of an image in its name:
    intervals and scores by group are then over groups.
    """
    classifier = open_model(model)
    scored = open_scored_images(classifier, data, skip_unreadable, group_pattern)
    return evaluate_any(
        classifier,
        scored.images,
        description=scored.description,
        optimistic=scored.optimistic,
        skip_unreadable=skip_unreadable,
        metrics=metrics,
    )


def probe(
    model: str | Path | Classifier,
    data: Data,
    *,
    k: int = DEFAULT_K,
    temperature: float = DEFAULT_TEMPERATURE,
    task: str | None = None,
    skip_unreadable: bool = False,
) -> Probe:
    """Returns the scores of k-NN and of a linear head on a classifier's features, without training the model.

    `task` says what the labels of the data are; by default the data decide. It need not be the classifier's.
    Raises as `evaluate` does.
    """
    classifier = open_torch_model(model)
    splits = open_probe_data(classifier, data, skip_unreadable, task)
    return probe_splits(classifier, splits, k=k, temperature=temperature, skip_unreadable=skip_unreadable)
