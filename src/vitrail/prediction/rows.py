"""Images -> predicted rows, a batch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitrail.batching import BatchHalver
from vitrail.classifier import BaseClassifier, Classifier, NonFiniteOutput
from vitrail.data.decode import GRAY_16_BIT, ImageError, ImageUnreachable, decode_with_header
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.errors import VitrailError, is_out_of_memory
from vitrail.image_predictions import Prediction, top_probabilities
from vitrail.prediction.entry import Entry
from vitrail.prediction.spreadsheets import portable_path
from vitrail.tasks import MULTI_LABEL, REGRESSION, has_one_class

MEMORY_HINT = "use fewer --processes or a smaller --batch-size, then --resume"
NON_FINITE = "the model's output is not a finite number"


@dataclass(frozen=True)
class Rows:
    """Predictions for n images. The values of a row with an error mean nothing."""

    paths: list[str]
    errors: list[str | None]
    labels: np.ndarray  # (n, k) int64, indices of the k most probable classes; k is 0 for a model without classes
    probabilities: np.ndarray  # (n, k) float32
    features: np.ndarray | None  # (n, D) float32, if embeddings are wanted and any image could be read
    over_8_bits: list[str] = field(default_factory=list)  # paths of the images in 16 bits or floats
    found: list[list[Prediction]] | None = None  # of a classifier for several labels; then k is 0
    unlike: np.ndarray | None = None  # (n,), quantiles of distances from the validation images, if that is fitted
    numbers: np.ndarray | None = None  # (n, Y) float32 of a model that predicts numbers; then k is 0

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class ImageBatch:
    """The images of some entries that could be read, and the errors of the others."""

    pixels_BCHW: Tensor  # empty if no image could be read
    errors: list[str | None]  # one per entry
    over_8_bits: list[str] = field(default_factory=list)  # paths of the images in 16 bits or floats

    @property
    def readable(self) -> list[int]:
        """The entries that `pixels_BCHW` holds."""
        return [i for i, error in enumerate(self.errors) if error is None]


def read_batch(entries: Sequence[Entry], preprocess: Preprocess) -> ImageBatch:
    """Decodes images and fits them to the model's size.

    Raises `VitrailError` for a failure that is not of an image, such as a disk's: it must not become a row.
    """
    pixels: list[Tensor] = []
    errors: list[str | None] = []
    over_8_bits: list[str] = []
    for entry in entries:
        try:
            with explain_out_of_memory(entry.path):
                channels = preprocess.source_channels
                image_CHW, header = decode_with_header(entry.open(channels), channels)
                pixels.append(preprocess.fit_image(image_CHW))
            errors.append(None)
            if header.color_type == GRAY_16_BIT:
                over_8_bits.append(portable_path(entry.path))
        except ImageUnreachable as error:
            raise VitrailError(error.sentence, "continue with --resume once it can be read") from None
        except (ImageError, ImageSizeError) as error:
            errors.append(error.reason if isinstance(error, ImageError) else str(error))
    return ImageBatch(torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8), errors, over_8_bits)


def predict_rows(
    classifier: BaseClassifier,
    entries: Sequence[Entry],
    batch: ImageBatch,
    top: int,
    embedding: bool,
    halve: BatchHalver | None = None,
) -> Rows:
    """Predicts a batch. Only an image with a non-finite output gets an error; the others keep their rows.

    `halve` remembers from batch to batch how many images fit into memory. Raises `VitrailError` if memory runs out.
    """
    has_several = classifier.task == MULTI_LABEL
    k = min(top, len(classifier.classes)) if has_one_class(classifier.task) else 0
    numbers = np.zeros((len(entries), len(classifier.classes)), np.float32) if classifier.task == REGRESSION else None
    found: list[list[Prediction]] | None = [[] for _ in entries] if has_several else None
    labels = np.zeros((len(entries), k), np.int64)
    probabilities = np.zeros((len(entries), k), np.float32)
    features: np.ndarray | None = None
    errors: list[str | None] = [NON_FINITE if error is None else error for error in batch.errors]
    facts = classifier.unlike_facts
    unlike = None if facts is None else np.zeros(len(entries))
    for indices, logits_BY, distances_B, features_BD in compute_outputs(
        classifier, batch, embedding, halve or BatchHalver()
    ):
        if k:
            probabilities_BK, labels_BK = top_probabilities(logits_BY, k)
            labels[indices], probabilities[indices] = labels_BK.cpu().numpy(), probabilities_BK.cpu().numpy()
        if found is not None:
            for i, logits_Y in zip(indices, logits_BY, strict=True):
                found[i] = classifier.answers.predict(logits_Y)
        if facts is not None and unlike is not None and distances_B is not None:
            unlike[indices] = facts.find_quantiles(distances_B.cpu().double().numpy())
        if numbers is not None:
            numbers[indices] = logits_BY.cpu().numpy()
        if features_BD is not None:
            if features is None:
                features = np.zeros((len(entries), features_BD.shape[1]), np.float32)
            features[indices] = features_BD.cpu().numpy()
        for i in indices:
            errors[i] = None
    paths = [portable_path(entry.path) for entry in entries]
    return Rows(paths, errors, labels, probabilities, features, batch.over_8_bits, found, unlike, numbers)


# Indices of entries, and their logits, distances and features
Outputs = tuple[list[int], Tensor, Tensor | None, Tensor | None]


def compute_outputs(
    classifier: BaseClassifier, batch: ImageBatch, embedding: bool, halve: BatchHalver
) -> list[Outputs]:
    """Returns the outputs of all readable images in one batch, or image by image if one output is not finite."""
    readable = batch.readable
    if not readable:
        return []
    try:
        return [(readable, *forward(classifier, batch.pixels_BCHW, embedding, halve))]
    except NonFiniteOutput:
        outputs: list[Outputs] = []
        for i, pixels_CHW in zip(readable, batch.pixels_BCHW, strict=True):
            try:
                outputs.append(([i], *forward(classifier, pixels_CHW.unsqueeze(0), embedding, halve)))
            except NonFiniteOutput:
                continue
        return outputs


def forward(
    classifier: BaseClassifier, pixels_BCHW: Tensor, embedding: bool, halve: BatchHalver
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns logits, distances if they are fitted, and features for an embedding.

    A batch that does not fit into memory is halved.
    """
    with explain_out_of_memory("a batch of 1"):
        if embedding:
            assert isinstance(classifier, Classifier)
            logits, features = map(torch.cat, zip(*halve(classifier.logits_and_features, pixels_BCHW), strict=True))
            return logits, None if classifier.unlike is None else classifier.unlike(features), features
        outputs = halve(classifier.logits_and_distances, pixels_BCHW)
        distances = [each for _, each in outputs if each is not None]
        return torch.cat([logits for logits, _ in outputs]), torch.cat(distances) if distances else None, None


@contextmanager
def explain_out_of_memory(work: str) -> Iterator[None]:
    """Turns an out-of-memory error into a `VitrailError` with a hint."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise VitrailError(f"not enough memory for {work}", MEMORY_HINT) from None


def concatenate_rows(batches: Sequence[Rows]) -> Rows:
    """Joins the rows of several batches."""
    widths = {rows.features.shape[1] for rows in batches if rows.features is not None}
    features = None
    if widths:  # a batch without a readable image has no features
        (width,) = widths
        filled = [
            np.zeros((len(rows), width), np.float32) if rows.features is None else rows.features for rows in batches
        ]
        features = np.concatenate(filled)
    return Rows(
        [path for rows in batches for path in rows.paths],
        [error for rows in batches for error in rows.errors],
        np.concatenate([rows.labels for rows in batches]),
        np.concatenate([rows.probabilities for rows in batches]),
        features,
        [path for rows in batches for path in rows.over_8_bits],
        None
        if any(rows.found is None for rows in batches)
        else [each for rows in batches for each in rows.found or ()],
        None
        if any(rows.unlike is None for rows in batches)
        else np.concatenate([rows.unlike for rows in batches if rows.unlike is not None]),
        None
        if any(rows.numbers is None for rows in batches)
        else np.concatenate([rows.numbers for rows in batches if rows.numbers is not None]),
    )
