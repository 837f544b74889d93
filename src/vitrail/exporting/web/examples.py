"""The images that a page shows before anyone brings their own."""

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
from vitrail.explanation import explain_batch
from vitrail.exporting.sample_photos import read_sample_photos

MOST = 12  # examples of a page
WANTED = 8  # examples where none are named
ALWAYS_THERE = ("digits",)  # data that are found by their name alone


@dataclass(frozen=True)
class Example:
    """An image as the model sees it, uint8 (C, H, W), and its true class where that is known."""

    name: str
    pixels: Tensor = field(repr=False)
    truth: str | None = None


def load_examples(classifier: Classifier, images: Sequence[str | Path]) -> list[Example]:
    """The images of these files; raises `ImageError` for one that cannot be read."""
    return [Example(Path(image).name, classifier.read_image(image)) for image in images]


def held_out_examples(classifier: Classifier, data: str | Path) -> list[Example]:
    """Images that training kept back, spread over the classes; raises `VitrailError` where the data are not there."""
    trained_on = classifier.origin.get("data", {})
    images = open_images_to_score(data, classifier.classes, classifier.preprocess.channels, trained_on).images
    generator = np.random.Generator(np.random.Philox(0))
    order = generator.permutation(len(images))
    present = sorted(set(images.labels.tolist()))
    start = [present[i] for i in np.linspace(0, len(present) - 1, min(WANTED, len(present))).round().astype(int)]
    taken: list[int] = []
    for turn in range(WANTED):
        label = start[turn % len(start)]
        taken += [int(i) for i in order if images.labels[i] == label and int(i) not in taken][:1]
    found = []
    for i in taken:
        pixels = images.load_batch(classifier.preprocess, [i])[0]
        found.append(Example(Path(images.names[i]).name, pixels, images.classes[images.labels[i]]))
    return found


def choose_examples(
    classifier: Classifier, images: Sequence[str | Path] | None = None, data: str | Path | None = None
) -> list[Example]:
    """The named images; else some that training kept back, where its data are at hand; else photographs."""
    if images:
        return load_examples(classifier, images)[:MOST]
    known = classifier.origin.get("data", {}).get("name")
    address = data if data is not None else known if known in ALWAYS_THERE else None
    if address is not None:
        try:
            return held_out_examples(classifier, address)
        except (ImageError, VitrailError, OSError):  # moved, changed or gone since training: the page does without
            pass
    return [Example(name, pixels) for name, pixels in read_sample_photos(classifier).items()]


def precompute_examples(classifier: Classifier, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """What the page draws before its runtime is awake: each image, its logits, and the map of its likeliest class."""
    pixels_BCHW = torch.stack([example.pixels for example in examples])
    logits_BY = classifier.logits(pixels_BCHW) * classifier.temperature
    explanations = explain_batch(classifier, pixels_BCHW)
    return [
        {
            "name": example.name,
            "truth": example.truth,
            "image": png_data_url(example.pixels),
            "logits": [float(f"{value:.7g}") for value in logits_Y.tolist()],
            "map": [float(f"{value:.7g}") for value in explanation.map.ravel().tolist()],
        }
        for example, logits_Y, explanation in zip(examples, logits_BY, explanations, strict=True)
    ]


def png_data_url(pixels_CHW: Tensor) -> str:
    """The pixels as a PNG that lies in the page itself."""
    array = pixels_CHW.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
