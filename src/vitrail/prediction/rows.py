"""Image files -> what the model says of them, a batch at a time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier, NonFiniteOutput, top_probabilities
from vitrail.data.decode import ImageError, Unreachable, decode
from vitrail.data.preprocess import Preprocess
from vitrail.errors import VitrailError, is_out_of_memory
from vitrail.prediction.arrow import FORMULA
from vitrail.prediction.listing import Entry
from vitrail.prediction.shard_members import read_shard_member

SMALLER = "take fewer --workers or a smaller --batch, then --resume"
NOT_A_NUMBER = "the model's answer is not a finite number"


@dataclass(frozen=True)
class Rows:
    """Results: n images, the k likeliest classes of each. Where `errors` says why not, the rest means nothing."""

    paths: list[str]
    errors: list[str | None]
    labels: np.ndarray  # (n, k) int64, numbers of classes; k is 0 for a model that knows none
    probabilities: np.ndarray  # (n, k) float32
    features: np.ndarray | None  # (n, D) float32, where they were asked for

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images as pixels, and why some of them are missing."""

    pixels: list[Tensor | None]
    errors: list[str | None]


def read_batch(entries: Sequence[Entry], preprocess: Preprocess) -> ImageBatch:
    """The images fitted to the model's size; what cannot be read is None beside the reason.

    Raises `VitrailError` where it is not an image that is at fault: a row would say so for ever.
    """
    pixels: list[Tensor | None] = []
    errors: list[str | None] = []
    for entry in entries:
        try:
            file = read_shard_member(entry.path, entry.member) if entry.member else entry.path
            pixels.append(preprocess.fitted(decode(file, preprocess.channels)))
            errors.append(None)
        except Unreachable as error:
            raise VitrailError(error.sentence, "once it can be read, --resume goes on") from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise VitrailError(f"the memory does not suffice for {entry.path}", SMALLER) from None
        except (ImageError, ValueError) as error:
            pixels.append(None)
            errors.append(error.reason if isinstance(error, ImageError) else str(error))
    return ImageBatch(pixels, errors)


def predict_rows(
    classifier: BaseClassifier, entries: Sequence[Entry], reading: ImageBatch, top: int, embedding: bool
) -> Rows:
    """What the model says of a batch; an image for which that is no finite number has an error, and no other.

    Raises `VitrailError` where the memory does not suffice for it.
    """
    errors = list(reading.errors)
    width = min(top, len(classifier.classes))
    labels = np.zeros((len(entries), width), np.int64)
    probabilities = np.zeros((len(entries), width), np.float32)
    features: np.ndarray | None = None
    there = [i for i, pixels in enumerate(reading.pixels) if pixels is not None]
    for some in answerable(classifier, reading, there, errors, embedding):
        indices, logits_BY, features_BD = some
        if width:
            probability, number = top_probabilities(logits_BY, width)
            labels[indices], probabilities[indices] = number.cpu().numpy(), probability.cpu().numpy()
        if features_BD is not None:
            if features is None:
                features = np.zeros((len(entries), features_BD.shape[1]), np.float32)
            features[indices] = features_BD.cpu().numpy()
    return Rows([written(entry.path) for entry in entries], errors, labels, probabilities, features)


def answerable(
    classifier: BaseClassifier, reading: ImageBatch, there: list[int], errors: list[str | None], embedding: bool
) -> list[tuple[list[int], Tensor, Tensor | None]]:
    """Indices with their logits and features: all at once, or one by one where an answer is no finite number."""
    if not there:
        return []
    pixels_BCHW = torch.stack([pixels for i in there if (pixels := reading.pixels[i]) is not None])
    try:
        if embedding:
            assert isinstance(classifier, Classifier)
            return [(there, *classifier.logits_and_features(pixels_BCHW))]
        return [(there, classifier.logits(pixels_BCHW), None)]
    except NonFiniteOutput:
        if len(there) > 1:
            return [found for i in there for found in answerable(classifier, reading, [i], errors, embedding)]
        errors[there[0]] = NOT_A_NUMBER
        return []
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise VitrailError(f"the memory does not suffice for {len(there)} images at a time", SMALLER) from None


def concatenate_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of several batches."""
    widths = {rows.features.shape[1] for rows in parts if rows.features is not None}
    features = None
    if widths:  # a batch in which nothing could be read has none
        (width,) = widths
        empty = [np.zeros((len(rows), width), np.float32) if rows.features is None else rows.features for rows in parts]
        features = np.concatenate(empty)
    return Rows(
        [path for rows in parts for path in rows.paths],
        [error for rows in parts for error in rows.errors],
        np.concatenate([rows.labels for rows in parts]),
        np.concatenate([rows.probabilities for rows in parts]),
        features,
    )


def written(path: str) -> str:
    """A path as it stands in the results.

    A name that is not UTF-8 becomes a file: address, which keeps every byte; one that a spreadsheet would compute gets
    `./` before it, which leads to the same file.
    """
    path = f"./{path}" if path.startswith(FORMULA) else path
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return Path(os.path.abspath(path)).as_uri()
