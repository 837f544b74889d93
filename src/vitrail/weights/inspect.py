"""What a weight file is, without building a model of it."""

from pathlib import Path
from typing import Any

from vitrail.errors import VitrailError
from vitrail.weights.artefact import read_artefact, read_safetensors

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def inspect_file(path: Path) -> dict[str, Any]:
    """The kind of file, its tensors, and for an artefact everything it says of itself.

    Raises `VitrailError` for a missing, damaged or foreign file; a pickled one is never opened.
    """
    if path.suffix.lower() in PICKLED:
        raise VitrailError(f"{path} is a pickled file, which can run code when opened", "use a safetensors file")
    document, weights = read_safetensors(path)
    facts: dict[str, Any] = {
        "file": str(path),
        "kind": "vitrail artefact" if document else "safetensors weights",
        "bytes": path.stat().st_size,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in weights.items()
        },
    }
    if document:
        artefact, _ = read_artefact(path)
        facts |= {
            "config": artefact.config.to_json(),
            "classes": list(artefact.classes),
            "preprocess": artefact.preprocess.to_json(),
            "temperature": artefact.temperature,
            "origin": artefact.origin,
        }
    return facts
