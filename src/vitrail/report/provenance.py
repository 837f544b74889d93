"""The classifier of a report, and how the report was made."""

from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from vitrail.report.subject import Described
from vitrail.version import __version__
from vitrail.weights.artifact import weights_sha256
from vitrail.weights.origin import describe_teacher, read_origin


def describe_report(subject: Described) -> dict[str, Any]:
    """Returns time, command, versions and device."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": subject.command,
        "vitrail": __version__,
        "torch": torch.__version__,
        "python": python_version(),
        "device": subject.classifier.device.type,
    }


def describe_model(subject: Described) -> dict[str, Any]:
    """Returns the architecture, a digest of the weights, and the training of the classifier."""
    vit = subject.classifier.vit
    origin = read_origin(subject.classifier.origin)
    recipe = origin.get("recipe") or {}
    trained_on = origin.get("data") or {}
    return {
        "path": subject.model_path,
        "name": Path(subject.model_path).name or subject.model_path,
        "sha256": weights_sha256({name: tensor.cpu() for name, tensor in vit.state_dict().items()}),
        "parameters": sum(p.numel() for p in vit.parameters()),
        "image_size": list(subject.classifier.preprocess.image_size),
        **{name: getattr(vit.config, name) for name in ("patch", "width", "depth", "heads", "pool")},
        "recipe": recipe.get("name"),
        "epochs": recipe.get("epochs"),
        "seed": origin.get("seed"),
        "trained_on": trained_on.get("name"),
        "training_images": (trained_on.get("images") or {}).get("train"),
        "teacher": describe_teacher(origin),
        "data_fingerprint": trained_on.get("fingerprint"),
    }
