"""What a weight file is, without building a model of it."""

from pathlib import Path
from typing import Any

from vitrail.weights.artifact import is_artifact, read_artifact, read_safetensors
from vitrail.weights.config_json import config_to_json
from vitrail.weights.layouts import LAYOUTS, find_layouts
from vitrail.weights.sizes import get_size_name
from vitrail.weights.tensor_files import read_tensors
from vitrail.weights.weight_files import match_cards


def inspect_file(path: Path, *, torch_files: bool = False) -> dict[str, Any]:
    """The kind of file, its tensors; for an artefact everything it says of itself, else the family and size it fits.

    Raises `VitrailError` for a missing or damaged file; one of torch's own is opened only with `torch_files`.
    """
    if is_artifact(path):
        document, weights = read_safetensors(path)
    else:
        document, weights = None, read_tensors(path, torch_files=torch_files)
    facts: dict[str, Any] = {
        "file": str(path),
        "kind": "vitrail artefact" if document else "weights",
        "bytes": path.stat().st_size,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in weights.items()
        },
    }
    if document:
        artefact, _ = read_artifact(path)
        facts |= {
            "config": config_to_json(artefact.config),
            "classes": list(artefact.classes),
            "preprocess": artefact.preprocess.to_json(),
            "temperature": artefact.temperature,
            "origin": artefact.origin,
        }
    else:
        fits = [card for card, _ in match_cards(weights)]
        facts |= {
            "layouts": [LAYOUTS[key].about for key, _ in find_layouts(weights)],
            "sizes": sorted({get_size_name(config_to_json(card.build_config())) for card in fits}),
            "cards": sorted(card.name for card in fits),
        }
    return facts
