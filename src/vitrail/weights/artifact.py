"""The artifact: one safetensors file that is a classifier.

Its tensors are the ViT's, and those of `weights/unlike.py` if that is fitted. Its metadata hold one JSON document under
the key `vitrail`: format, config, classes, preprocessing, temperature, task, thresholds, unlike, origin and the SHA-256
of the tensors; `parts` if the model has parts of plugins, `target_scale` if it predicts numbers. Nothing is ever
unpickled, and no module that a file names is imported.
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
from vitrail.errors import UsageError, VitrailError
from vitrail.files import refuse_lfs_pointer, write_atomically
from vitrail.model.config import ViTConfig
from vitrail.options import check_fields, option
from vitrail.parts import allow_described, require_parts
from vitrail.target_scale import TargetScale
from vitrail.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TaskName
from vitrail.weights.builders import NOT_A_VIT
from vitrail.weights.config_json import config_from_json, config_to_json, model_parts
from vitrail.weights.origin import check_origin
from vitrail.weights.unlike import UnlikeFacts
from vitrail.weights.upgrade import upgrade_artifact

FORMAT = 5  # 1 had other names for recipe fields, 2 no task, 4 no unlike (weights/upgrade.py)
MODULE_FORMAT = 3  # of a model that is not a ViT (module_classifier.py)
MAX_DOCUMENT_BYTES = 16 << 20
MAX_IMAGE_SIZE = (
    8192  # pixels; a larger size in a file is refused, because preparing an image would need too much memory
)


@dataclass(frozen=True)
class Artifact:
    """A classifier without its weights."""

    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = option(1.0, "divisor of the logits", gt=0)
    origin: dict[str, Any] = field(default_factory=dict)  # recipe, seed, versions, data, metrics
    task: TaskName = SINGLE_LABEL
    thresholds: tuple[float, ...] = ()  # of the probability of each label; empty: 0.5 for each
    unlike: UnlikeFacts | None = None  # None if it is not fitted
    target_scale: TargetScale | None = None  # of numbers; None: the outputs are in their units

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON document; with `parts` only if the model has parts of plugins."""
        parts = model_parts(self.config)
        return {
            "format": FORMAT,
            **({"parts": parts} if parts else {}),
            "config": config_to_json(self.config),
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_json(),
            "temperature": self.temperature,
            "task": self.task,
            "thresholds": list(self.thresholds),
            "unlike": None if self.unlike is None else self.unlike.to_json(),
            **({"target_scale": self.target_scale.to_json()} if self.target_scale else {}),
            "origin": self.origin,
        }


def write_artifact(path: Path, artifact: Artifact, weights: dict[str, Tensor]) -> None:
    """Writes the file atomically; raises `VitrailError` if it cannot be written, or could not be read again."""
    check_origin(artifact.origin)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    document = {**artifact.to_json(), "sha256": weights_sha256(weights)}
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise VitrailError(f"{path} cannot be written: its metadata contain NaN or infinity") from None
    metadata = {"vitrail": text}  # one key, since safetensors writes several keys in any order
    write_atomically(path, lambda temporary: save_file(weights, temporary, metadata=metadata))


def read_artifact(path: Path, *, needs_parts: bool = True) -> tuple[Artifact, dict[str, Tensor]]:
    """Returns the classifier and its tensors; `needs_parts` as in `parse_artifact`.

    Raises `VitrailError` if the file is missing, truncated, altered, or not an artifact.
    """
    document, weights = read_safetensors(path)
    if document is None:
        raise VitrailError(
            f"{path} has weights but is not a vitrail artifact", "vitrail inspect shows what a weight file contains"
        )
    artifact = parse_artifact(document, path, needs_parts=needs_parts)
    if document.get("sha256") != weights_sha256(weights):
        raise VitrailError(f"{path} is damaged: its weights do not match their checksum", "copy the file again")
    return artifact, weights


def parse_artifact(document: dict[str, Any], path: Path, *, needs_parts: bool = True) -> Artifact:
    """Returns the classifier of a file's JSON document, of this format or an older one; else raises `VitrailError`.

    Without `needs_parts` the parts of plugins that the document names need not be registered.
    """
    if document.get("format") == MODULE_FORMAT:
        raise UsageError(
            f"{path} holds the model {document.get('architecture')!r}, which is not a ViT: {NOT_A_VIT}",
            "vitrail.load_any, predict and evaluate take it; for the rest use a ViT",
        )
    if document.get("format") not in (1, 2, 4, FORMAT):
        raise VitrailError(
            f"{path} has format {document.get('format')!r}; this version of vitrail reads {FORMAT}", "update vitrail"
        )
    if needs_parts:
        require_parts(document.get("parts"), str(path))
    try:
        document = upgrade_artifact(document)
        with allow_described(None if needs_parts else document.get("parts")):
            config = config_from_json(document["config"])
        preprocess = Preprocess.from_json(document["preprocess"])
        classes = tuple(require_list(document["classes"]))
        thresholds = tuple(require_list(document["thresholds"]))
        unlike = None if document["unlike"] is None else UnlikeFacts.from_json(document["unlike"])
        artifact = Artifact(
            config,
            classes,
            preprocess,
            document["temperature"],
            document["origin"],
            document["task"],
            thresholds,
            unlike,
            parse_target_scale(document.get("target_scale")),
        )
        check_fields(artifact)
        check_origin(artifact.origin)
        check_consistency(artifact)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, VitrailError) as error:
        reason = str(error) if isinstance(error, VitrailError) else repr(error)
        raise VitrailError(f"{path} is not a complete artifact: {reason}", "write it again with vitrail") from None
    return artifact


def parse_target_scale(document: Any) -> TargetScale | None:
    """Returns the scale of numbers that an artifact describes; raises `TypeError` or `ValueError` for anything else."""
    if document is None:
        return None
    mean, std = (tuple(map(float, require_list(document[name]))) for name in ("mean", "std"))
    return TargetScale(mean, std)


def is_artifact(path: Path) -> bool:
    """Returns whether to read a file as an artifact.

    This includes safetensors files that cannot be opened: reading them raises the error that explains why.
    """
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "vitrail" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return True


def require_list(value: Any) -> list[Any]:
    """Raises `TypeError` for anything else: a string would become a list of letters."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def check_consistency(artifact: Artifact) -> None:
    """Raises `VitrailError` if config, classes and preprocessing do not fit together."""
    config, preprocess = artifact.config, artifact.preprocess
    count = len(artifact.classes)  # 0 if the outputs are an embedding, as in CLIP
    if (count and count != config.classes) or len(set(artifact.classes)) != count:
        raise VitrailError(f"it names {len(set(artifact.classes))} classes for {config.classes} outputs")
    if artifact.thresholds and (artifact.task != MULTI_LABEL or len(artifact.thresholds) != count):
        raise VitrailError(f"it has {len(artifact.thresholds)} thresholds for {count} classes ({artifact.task})")
    if any(not 0 <= threshold <= 1 for threshold in artifact.thresholds):
        raise VitrailError("a threshold is not a probability")
    if artifact.target_scale and (artifact.task != REGRESSION or len(artifact.target_scale.mean) != count):
        raise VitrailError(f"it has a scale of {len(artifact.target_scale.mean)} numbers for {count} ({artifact.task})")
    if preprocess.channels != config.channels:
        raise VitrailError(f"it prepares {preprocess.channels} channels for a model of {config.channels}")
    if any(size % config.patch or size > MAX_IMAGE_SIZE for size in preprocess.image_size):
        raise VitrailError(f"images of {preprocess.image_size} do not divide into patches of {config.patch}")


def read_safetensors(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Returns the `vitrail` document of a safetensors file (None if it has none) and its tensors."""
    refuse_lfs_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if len(metadata.get("vitrail", "")) > MAX_DOCUMENT_BYTES:
                limit = f"{MAX_DOCUMENT_BYTES:,} bytes"
                raise VitrailError(f"{path} is not a complete artifact: its metadata are longer than {limit}")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        document = parse_strict_json(metadata["vitrail"]) if "vitrail" in metadata else None
    except FileNotFoundError:
        raise VitrailError(f"there is no file {path}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise VitrailError(f"{path} is truncated or not a safetensors file ({error})", "copy the file again") from None
    except OSError as error:
        raise VitrailError(f"{path} cannot be read: {error.strerror or error}") from None
    if document is not None and not isinstance(document, dict):
        raise VitrailError(f"{path} is not a complete artifact: its metadata are not a JSON object")
    return document, weights


def parse_strict_json(text: str) -> Any:
    """Parses standard JSON; raises `ValueError` for NaN and infinity, which Python accepts and cannot write again."""

    def parse_finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is not a finite number")
        return value

    return json.loads(text, parse_float=parse_finite, parse_constant=parse_finite)


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of names, shapes, dtypes and bytes, sorted by name: safetensors has no checksum."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
