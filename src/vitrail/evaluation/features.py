"""Pooled features of many images, cached on disk.

A file $VITRAIL_CACHE/features/MODEL/IMAGES.safetensors holds the features of up to `CHUNK` images. MODEL is a digest of
the weights (without the head), the config and the preprocessing; IMAGES is a digest of the images' content. Renamed
images therefore have the same features, changed images have new ones, and a stopped run resumes after the last file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data.encoded import EncodedImages
from vitrail.data.images import Images
from vitrail.data.loader import EvaluationLoader, OnImageError, default_workers
from vitrail.errors import VitrailError
from vitrail.evaluation.outcome import NoReadableImages
from vitrail.files import cache_folder, make_room, mark_used, write_atomically
from vitrail.parts import hash_code
from vitrail.weights.artifact import read_safetensors, weights_sha256
from vitrail.weights.config_json import config_to_json, model_parts

CHUNK = 256  # images per file of the cache
# config fields that do not change features
HEAD_FIELDS = ("classes", "head", "dropout", "attention_dropout", "embedding_dropout", "drop_path")


def extract_features(
    classifier: Classifier,
    images: Images,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    cache: bool = True,
    on_batch: Callable[[int], object] = lambda images: None,
    on_error: OnImageError | None = None,
) -> np.ndarray:
    """Returns the pooled features of all images, in order: (n, D) float32.

    `on_batch` receives the number of images of each batch. An unreadable image raises `ImageError`; with `on_error` it
    is passed to that function and has no row. Raises `NoReadableImages` if no image is left.
    """
    batch_size = 1 << min(batch_size, CHUNK).bit_length() - 1  # a power of two: batches end where files end
    chunks = [range(start, min(start + CHUNK, len(images))) for start in range(0, len(images), CHUNK)]
    files = _cache_files(classifier, images, chunks) if cache else []
    features: dict[int, Tensor] = {}  # by number of the chunk
    for number, file in enumerate(files):
        if (cached := read_cached(file, len(chunks[number]))) is not None:
            features[number] = cached
            on_batch(len(chunks[number]))
    if features:
        log(f"the features of {sum(map(len, features.values()))} of {len(images)} images are in the cache")
    missing = [number for number in range(len(chunks)) if number not in features]
    if missing:
        rest = images.subset([i for number in missing for i in chunks[number]]) if features else images
        workers = default_workers(rest) if workers is None else workers
        batches = EvaluationLoader(
            rest, classifier.preprocess, batch_size=batch_size, workers=workers, on_error=on_error
        )
        sizes = {number: len(chunks[number]) for number in missing}
        features |= _compute_chunks(classifier, batches, sizes, batch_size, files, on_batch)
    if not features:
        raise NoReadableImages(f"none of {len(images)} images can be read", "vitrail check lists the errors")
    return torch.cat([features[number] for number in sorted(features)]).numpy()


def _compute_chunks(
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    sizes: dict[int, int],
    batch_size: int,
    files: list[Path],
    on_batch: Callable[[int], object],
) -> dict[int, Tensor]:
    """Returns the features of chunks, given the batches of all of them in order, and writes each chunk to its file.

    `sizes` are the images of each chunk. A batch lacks the images that were skipped as unreadable; a chunk with such
    images is not written. Nothing more is written after the first write that fails.
    """
    features: dict[int, Tensor] = {}
    parts: list[Tensor] = []  # of the current chunk
    schedule = [(number, start) for number, size in sizes.items() for start in range(0, size, batch_size)]
    for (number, start), (pixels, _) in zip(schedule, batches, strict=True):
        if len(pixels):
            parts.append(classifier.features(pixels).cpu())
        if start + batch_size >= sizes[number] and parts:
            features[number] = torch.cat(parts)
            is_complete = len(features[number]) == sizes[number]
            if files and is_complete and not write_cached(files[number], features[number]):
                files = []
            parts = []
        on_batch(min(batch_size, sizes[number] - start))
    return features


def _cache_files(classifier: Classifier, images: Images, chunks: list[range]) -> list[Path]:
    folder = cache_folder() / "features" / model_key(classifier)
    return [folder / f"{content_key(images, chunk)}.safetensors" for chunk in chunks]


def model_key(classifier: Classifier) -> str:
    """Returns a digest of everything that determines the features of an image."""
    weights = {name: t.cpu() for name, t in classifier.vit.state_dict().items() if not name.startswith("head.")}
    config = {name: value for name, value in config_to_json(classifier.vit.config).items() if name not in HEAD_FIELDS}
    code = hash_code(model_parts(classifier.vit.config))
    document = json.dumps([weights_sha256(weights), config, classifier.preprocess.to_json(), *code], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:32]


def content_key(images: Images, indices: Sequence[int]) -> str:
    """Returns a digest of the bytes of these files, or of the pixels of images in memory."""
    sha = hashlib.sha256()
    if isinstance(images.pixels, EncodedImages):
        sha.update(images.pixels.sha256(np.asarray(indices)).tobytes())
    else:
        for i in indices:
            content = repr(tuple(images[i].shape)).encode() + images[i].numpy().tobytes()
            sha.update(hashlib.sha256(content).digest())
    return sha.hexdigest()[:32]


def read_cached(path: Path, n: int) -> Tensor | None:
    """Returns the features of `n` images from a file of the cache; None if it is missing, damaged or incomplete."""
    try:
        document, tensors = read_safetensors(path)
        is_intact = document is not None and document.get("sha256") == weights_sha256(tensors)
        mark_used(path)
        return tensors["features"] if is_intact and len(tensors["features"]) == n else None
    except (VitrailError, KeyError):
        return None


def write_cached(path: Path, features_BD: Tensor) -> bool:
    """Writes features to the cache; logs a failure and returns whether it succeeded."""
    tensors = {"features": features_BD.contiguous()}
    metadata = {"vitrail": json.dumps({"sha256": weights_sha256(tensors)})}
    try:
        make_room(cache_folder() / "features", "*/*.safetensors", features_BD.nbytes)
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    except VitrailError as error:
        log(f"features are not cached: {error.sentence}")
        return False
    return True
