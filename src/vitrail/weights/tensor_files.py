"""Files of tensors, whoever wrote them -> names and tensors. Nothing is ever unpickled but plain tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import UsageError, VitrailError
from vitrail.weights.artifact import read_safetensors
from vitrail.weights.torchscript import is_archive, read_archive

TORCH = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
WRAPPERS = ("model", "state_dict", "teacher", "target_encoder")  # keys under which trainers put their weights
SHARD_INDEX = "model.safetensors.index.json"


def read_tensors(path: Path, *, torch_files: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, the index of several, an `.npz`, or with `torch_files` a file of torch's own.

    Raises `VitrailError` where the file is missing, damaged or holds anything else.
    """
    if not path.is_file():
        raise VitrailError(f"there is no file {path}")
    if path.suffix.lower() in TORCH:
        if not torch_files:
            raise UsageError(
                f"{path} is a file of torch's own, a format that can carry code",
                "--torch-files reads the plain tensors in it and refuses anything else",
            )
        return read_torch(path)
    if path.name.endswith(".index.json"):
        return read_sharded_safetensors(path)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    return read_safetensors(path)[1]


def read_sharded_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of several safetensors files, by their index."""
    listed = read_shard_index(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        tensors |= read_safetensors(path.parent / name)[1]
    if missing := sorted(set(listed) - set(tensors)):
        raise VitrailError(f"{path} lists {missing[0]}, which is in none of its files", "download the files again")
    return tensors


def read_shard_index(path: Path) -> dict[str, str]:
    """The file of each tensor, as an index says; raises `VitrailError` where it is none or leads out of its folder."""
    try:
        listed: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(listed.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise VitrailError(f"{path} is not an index of safetensors files") from None
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise VitrailError(f"{path} names a file outside its folder: {name!r}")
    return listed


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an `.npz` file; arrays of Python objects are refused."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
    except MemoryError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise whatever the damage brings up
        raise VitrailError(f"{path} is cut short or not an .npz file of plain arrays ({error})") from None


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of torch's own file, without running anything in it; trainers' wrappers are taken off."""
    if is_archive(path):
        return read_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage brings up
        said = str(error).split("\n")[0]
        raise VitrailError(
            f"{path} holds more than plain tensors, or is damaged; nothing in it was run ({said})",
            "get the weights as safetensors",
        ) from None
    return unwrapped(found, path)


def unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in what a trainer saved: itself, or under one of the usual keys."""
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise VitrailError(f"{path} holds no dictionary of tensors but {type(found).__name__}")
    tensors = {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise VitrailError(f"{path} holds no tensors under the names that trainers use ({', '.join(WRAPPERS)})")
    return tensors
