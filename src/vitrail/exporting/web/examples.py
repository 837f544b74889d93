"""The example images of a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.decode import ImageError
from vitrail.data.scoring import open_images_to_score
from vitrail.errors import VitrailError
from vitrail.explanation.api import explain_batch, read_one_image
from vitrail.explanation.padding import ImageSize
from vitrail.exporting.sample_photos import read_sample_photos
from vitrail.weights.origin import read_origin

MAX_EXAMPLES = 12
DEFAULT_EXAMPLES = 8  # if the user names none
BUILT_IN_DATA = ("digits",)  # data that need no path


@dataclass(frozen=True)
class Example:
    """An image as the model sees it, uint8 (C, H, W), its true class, or its labels, and its own size, if known."""

    name: str
    pixels: Tensor = field(repr=False)
    truth: tuple[str, ...] | None = None
    size: ImageSize | None = None  # before it was fitted


def choose_examples(
    classifier: Classifier, images: Sequence[str | Path] | None = None, data: str | Path | None = None
) -> list[Example]:
    """Returns the named images, else held-out images of the training data if available, else photographs."""
    if images:
        return load_examples(classifier, images)[:MAX_EXAMPLES]
    trained_on = read_origin(classifier.origin).get("data", {}).get("name")
    source = data if data is not None else trained_on if trained_on in BUILT_IN_DATA else None
    if source is not None:
        try:
            return held_out_examples(classifier, source)
        except (ImageError, VitrailError, OSError):  # the data were moved or changed since training
            pass
    return [Example(name, pixels) for name, pixels in read_sample_photos(classifier).items()]


def load_examples(classifier: Classifier, images: Sequence[str | Path]) -> list[Example]:
    """Reads image files; raises `ImageError` for one that cannot be read."""
    examples = []
    for image in images:
        pixels_1CHW, size = read_one_image(classifier, image)
        examples.append(Example(Path(image).name, pixels_1CHW[0], size=size))
    return examples


def held_out_examples(classifier: Classifier, data: str | Path) -> list[Example]:
    """Returns images that were not trained on, spread over the classes; raises `VitrailError` if data are missing.

    Images with several labels are spread over the sets of labels.
    """
    trained_on = read_origin(classifier.origin).get("data", {})
    images = open_images_to_score(
        data, classifier.classes, classifier.preprocess.channels, trained_on, task=classifier.task
    ).images
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    answers = [tuple(np.flatnonzero(row)) if images.labels.ndim > 1 else (row,) for row in images.labels]
    present = sorted(set(answers))
    positions = np.linspace(0, len(present) - 1, min(DEFAULT_EXAMPLES, len(present))).round().astype(int)
    spread = [present[i] for i in positions]
    chosen: list[int] = []
    for turn in range(DEFAULT_EXAMPLES):
        label = spread[turn % len(spread)]
        chosen += [int(i) for i in order if answers[i] == label and int(i) not in chosen][:1]
    pixels_BCHW, sizes = images.load_sized_batch(classifier.preprocess, chosen)
    return [
        Example(Path(images.names[i]).name, pixels_CHW, tuple(images.classes[label] for label in answers[i]), size)
        for i, pixels_CHW, size in zip(chosen, pixels_BCHW, sizes, strict=True)
    ]


def precompute_examples(classifier: Classifier, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Returns what the page shows before its model runs: each image, its logits, the map of its most probable class."""
    pixels_BCHW = torch.stack([example.pixels for example in examples])
    logits_BY = classifier.logits(pixels_BCHW) * classifier.temperature
    explanations = [
        explain_batch(classifier, example.pixels[None], sizes=None if example.size is None else [example.size])[0]
        for example in examples
    ]
    return [
        {
            "name": example.name,
            "truth": example.truth,
            "size": example.size,
            "image": png_data_url(example.pixels),
            "logits": [float(f"{value:.7g}") for value in logits_Y.tolist()],
            "map": [float(f"{value:.7g}") for value in explanation.map.ravel().tolist()],
        }
        for example, logits_Y, explanation in zip(examples, logits_BY, explanations, strict=True)
    ]


def png_data_url(pixels_CHW: Tensor) -> str:
    """Returns the pixels as a PNG in a data URL."""
    array = pixels_CHW.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
