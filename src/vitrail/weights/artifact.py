"""Our own file: one safetensors file that is a classifier.

The tensors are the ViT's; the metadata holds one JSON document under `vitrail` with everything else: config, classes,
preprocessing, temperature, and where it all came from. Nothing is ever unpickled.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import VitrailError
from vitrail.files import write_atomically
from vitrail.model import ViTConfig
from vitrail.options import check_fields, option
from vitrail.weights.config_json import config_from_json, config_to_json
from vitrail.weights.origin import check_origin

FORMAT = 1
MAX_DOCUMENT_BYTES = 16 << 20  # bytes of a description that are read
MAX_IMAGE_SIZE = 8192  # side of an image that a file may make us prepare


@dataclass(frozen=True)
class Artifact:
    """What the file says: enough to predict, and where the weights came from."""

    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = option(1.0, "what logits are divided by", gt=0)
    origin: dict[str, Any] = field(default_factory=dict)  # recipe, seed, versions, data, metrics

    def to_json(self) -> dict[str, Any]:
        """The document that stands in a file's metadata."""
        return {
            "format": FORMAT,
            "config": config_to_json(self.config),
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_json(),
            "temperature": self.temperature,
            "origin": self.origin,
        }


def write_artifact(path: Path, artifact: Artifact, weights: dict[str, Tensor]) -> None:
    """Writes the file, whole or not at all; raises `VitrailError` where it cannot be written, or not read again."""
    check_origin(artifact.origin)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    document = {**artifact.to_json(), "sha256": weights_sha256(weights)}
    try:
        said = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise VitrailError(f"{path} cannot be written: its description has a number that is not finite") from None
    metadata = {"vitrail": said}  # safetensors writes several keys in any order
    write_atomically(path, lambda aside: save_file(weights, aside, metadata=metadata))


def read_artifact(path: Path) -> tuple[Artifact, dict[str, Tensor]]:
    """The classifier's description and its tensors.

    Raises `VitrailError` where the file is missing, cut short, altered, or not an artefact.
    """
    document, weights = read_safetensors(path)
    if document is None:
        raise VitrailError(
            f"{path} holds weights but is not a vitrail artefact", "vitrail inspect says what is in a weight file"
        )
    artefact = parse_artifact(document, path)
    if document.get("sha256") != weights_sha256(weights):
        raise VitrailError(f"{path} is damaged: its weights do not match their checksum", "copy the file again")
    return artefact, weights


def parse_artifact(document: dict[str, Any], path: Path) -> Artifact:
    """The classifier that a file's document describes; raises `VitrailError` where it is none that we can read."""
    if document.get("format") != FORMAT:
        raise VitrailError(
            f"{path} has format {document.get('format')!r}, this vitrail reads {FORMAT}", "update vitrail"
        )
    try:
        config = config_from_json(document["config"])
        preprocess = Preprocess.from_json(document["preprocess"])
        classes = tuple(require_list(document["classes"]))
        artefact = Artifact(config, classes, preprocess, document["temperature"], document["origin"])
        check_fields(artefact)
        check_origin(artefact.origin)
        check_consistency(artefact)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, VitrailError) as error:
        said = str(error) if isinstance(error, VitrailError) else repr(error)
        raise VitrailError(f"{path} is not a whole artefact: {said}", "write it again with vitrail") from None
    return artefact


def is_artifact(path: Path) -> bool:
    """Whether a file is to be read as our own: it says so, or is a safetensors file that cannot be opened."""
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "vitrail" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return True  # reading it will say what is wrong with it


def require_list(value: Any) -> list[Any]:
    """The value, if it is a list; a string would fall into letters."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def check_consistency(artefact: Artifact) -> None:
    """Raises `VitrailError` where the parts, each fine by itself, do not belong to one another."""
    config, preprocess = artefact.config, artefact.preprocess
    named = len(artefact.classes)  # none where the outputs are an embedding, as CLIP's projection
    if (named and named != config.classes) or len(set(artefact.classes)) != named:
        raise VitrailError(f"it names {len(set(artefact.classes))} classes for {config.classes} outputs")
    if preprocess.channels != config.channels:
        raise VitrailError(f"it prepares {preprocess.channels} channels for a model of {config.channels}")
    if any(side % config.patch or side > MAX_IMAGE_SIZE for side in preprocess.image_size):
        raise VitrailError(f"images of {preprocess.image_size} do not divide into patches of {config.patch}")


def read_safetensors(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The `vitrail` document of a safetensors file (None if it has none) and its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if len(metadata.get("vitrail", "")) > MAX_DOCUMENT_BYTES:
                raise VitrailError(
                    f"{path} is not a whole artefact: its description is longer than {MAX_DOCUMENT_BYTES:,} bytes"
                )
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        document = parse_strict_json(metadata["vitrail"]) if "vitrail" in metadata else None
    except FileNotFoundError:
        raise VitrailError(f"there is no file {path}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise VitrailError(f"{path} is cut short or not a safetensors file ({error})", "copy the file again") from None
    except OSError as error:
        raise VitrailError(f"{path} cannot be read: {error.strerror or error}") from None
    if document is not None and not isinstance(document, dict):
        raise VitrailError(f"{path} is not a whole artefact: its description is not a JSON object")
    return document, weights


def parse_strict_json(text: str) -> Any:
    """JSON as the standard has it; raises `ValueError` for what Python reads beyond it and could not print again."""

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is no finite number")
        return value

    return json.loads(text, parse_float=finite, parse_constant=finite)


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes, in the order of names: safetensors itself sees no flipped bit."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
