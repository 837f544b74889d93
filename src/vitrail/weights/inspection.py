"""Describes a weight file without building its model."""

from pathlib import Path
from typing import Any

from vitrail.weights.artifact import MODULE_FORMAT, is_artifact, read_artifact, read_safetensors
from vitrail.weights.config_json import config_to_json
from vitrail.weights.layouts import LAYOUTS, find_layouts
from vitrail.weights.sizes import get_size_name
from vitrail.weights.tensor_files import read_tensors
from vitrail.weights.unlike import PREFIX, describe_unlike
from vitrail.weights.weight_files import match_cards
from vitrail.weights.wrappers import strip_wrappers


def inspect_file(path: Path, *, torch_files: bool = False) -> dict[str, Any]:
    """Returns the kind of a file and its tensors; of an artifact its metadata, of other weights what they match.

    Raises `VitrailError` for a missing or damaged file; a file of torch's format is read only with `torch_files`.
    """
    if is_artifact(path):
        document, weights = read_safetensors(path)
    else:
        document, weights = None, read_tensors(path, torch_files=torch_files)
    facts: dict[str, Any] = {
        "file": str(path),
        "kind": "vitrail artifact" if document else "weights",
        "bytes": path.stat().st_size,
        "parameters": sum(tensor.numel() for name, tensor in weights.items() if not name.startswith(PREFIX)),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in weights.items()
        },
    }
    if document and document.get("format") == MODULE_FORMAT:
        keys = ("parts", "architecture", "classes", "preprocess", "temperature", "origin")
        return facts | {"kind": "vitrail artifact, not a ViT"} | {key: document[key] for key in keys if key in document}
    if document:
        artifact, _ = read_artifact(path, needs_parts=False)
        return facts | {
            **({"parts": document["parts"]} if "parts" in document else {}),
            "config": config_to_json(artifact.config),
            "classes": list(artifact.classes),
            "preprocess": artifact.preprocess.to_json(),
            "temperature": artifact.temperature,
            "task": artifact.task,
            "thresholds": list(artifact.thresholds),
            "unlike": describe_unlike(artifact.unlike),
            **({"target_scale": artifact.target_scale.to_json()} if artifact.target_scale else {}),
            "origin": artifact.origin,
        }
    weights = strip_wrappers(weights, path)
    cards = [card for card, _ in match_cards(weights)]
    return facts | {
        "layouts": [LAYOUTS[key].description for key, _ in find_layouts(weights)],
        "sizes": sorted({get_size_name(config_to_json(card.build_config())) for card in cards}),
        "cards": sorted(card.name for card in cards),
    }
