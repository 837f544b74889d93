"""The features of many images, computed once and kept on disk.

$VITRAIL_CACHE/features/MODEL/IMAGES.safetensors holds the features of up to `CHUNK` images. MODEL is a digest of the
weights (without the head), the config and the preprocessing; IMAGES is one of the images' content. So features are
found again whatever the images are called, are computed again where anything changed, and a run that is stopped goes
on after the last whole file.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data import Images
from vitrail.data.encoded import EncodedImages
from vitrail.data.loader import EvaluationLoader, OnImageError, default_workers
from vitrail.errors import VitrailError
from vitrail.evaluation.outcome import NoReadableImages
from vitrail.files import cache_folder, write_atomically
from vitrail.weights.artifact import read_safetensors, weights_sha256
from vitrail.weights.config_json import config_to_json

CHUNK = 256  # images in a file of the cache
HEAD_FIELDS = ("classes", "head", "dropout", "attention_dropout", "embedding_dropout", "drop_path")  # change no feature


def extract_features(
    classifier: Classifier,
    images: Images,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    cache: bool = True,
    tick: Callable[[int], object] = lambda n: None,
    refuse: OnImageError | None = None,
) -> np.ndarray:
    """The pooled vectors of all images in their order, (n, D) float32.

    `tick` is called with the images done after each batch. An image that cannot be read raises `ImageError`, or where
    `refuse` is given has no row and `refuse` is told. Raises `NothingRead` where none is left.
    """
    batch_size = (
        1 << min(batch_size, CHUNK).bit_length() - 1
    )  # batches end where files end, so that a stop changes no bit
    places = [range(at, min(at + CHUNK, len(images))) for at in range(0, len(images), CHUNK)]
    found: dict[int, Tensor] = {}
    paths: list[Path] = []
    if cache:
        folder = cache_folder() / "features" / model_key(classifier)
        for number, chunk in enumerate(places):
            paths.append(folder / f"{content_key(images, chunk)}.safetensors")
            if (features_BD := read_cached(paths[-1], len(chunk))) is not None:
                found[number] = features_BD
                tick(len(chunk))
    if found:
        log(f"the features of {sum(map(len, found.values()))} of {len(images)} images were kept from before")
    missing = [number for number in range(len(places)) if number not in found]
    rest = images.subset([i for number in missing for i in places[number]]) if found else images
    workers = default_workers(rest) if workers is None else workers
    parts: list[Tensor] = []
    seen = 0  # images of the chunk under way, those that cannot be read too
    batches = EvaluationLoader(rest, classifier.preprocess, batch_size=batch_size, workers=workers, on_error=refuse)
    for pixels, _ in batches if missing else ():
        if len(pixels):
            parts.append(classifier.features(pixels).cpu())
        number = missing[0]
        listed = min(batch_size, len(places[number]) - seen)
        seen += listed
        if seen == len(places[number]):
            if parts:
                found[number] = torch.cat(parts)
                if paths and len(found[number]) == seen and not write_cached(paths[number], found[number]):
                    paths = []
            missing, parts, seen = missing[1:], [], 0
        tick(listed)
    if not found:
        raise NoReadableImages(f"not one of {len(images)} images can be read", "vitrail check says why")
    return torch.cat([found[number] for number in sorted(found)]).numpy()


def model_key(classifier: Classifier) -> str:
    """A digest of everything that decides an image's features."""
    weights = {name: t.cpu() for name, t in classifier.vit.state_dict().items() if not name.startswith("head.")}
    config = {name: value for name, value in config_to_json(classifier.vit.config).items() if name not in HEAD_FIELDS}
    described = json.dumps([weights_sha256(weights), config, classifier.preprocess.to_json()], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def content_key(images: Images, places: Sequence[int]) -> str:
    """A digest of the bytes of the files at these places; of the pixels where they are in memory."""
    sha = hashlib.sha256()
    if isinstance(images.pixels, EncodedImages):
        sha.update(images.pixels.sha256(np.asarray(places)).tobytes())
    else:
        for i in places:
            content = repr(tuple(images[i].shape)).encode() + images[i].numpy().tobytes()
            sha.update(hashlib.sha256(content).digest())
    return sha.hexdigest()[:32]


def read_cached(path: Path, n: int) -> Tensor | None:
    """The features in a file of the cache; None where it is not there or not whole."""
    try:
        document, tensors = read_safetensors(path)
        whole = document is not None and document.get("sha256") == weights_sha256(tensors)
        return tensors["features"] if whole and len(tensors["features"]) == n else None
    except (VitrailError, KeyError):
        return None


def write_cached(path: Path, features_BD: Tensor) -> bool:
    """Writes features into the cache; where it cannot be written that is said, and nothing else is lost."""
    tensors = {"features": features_BD.contiguous()}
    metadata = {"vitrail": json.dumps({"sha256": weights_sha256(tensors)})}
    try:
        write_atomically(path, lambda aside: save_file(tensors, aside, metadata=metadata))
    except VitrailError as error:
        log(f"features are not kept: {error.sentence}")
        return False
    return True
