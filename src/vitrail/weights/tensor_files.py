"""Files of tensors in any format -> names and tensors. Only plain tensors are ever unpickled."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.console import log
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.files import refuse_lfs_pointer
from vitrail.weights.artifact import read_safetensors
from vitrail.weights.torchscript import is_torchscript, read_torchscript

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pt.tar", ".pth.tar", ".ckpt.tar")
EMA_KEYS = ("state_dict_ema", "model_ema")  # the mean of the weights, which timm loads if a checkpoint has it
STATE_DICT_KEYS = ("model", "state_dict", "teacher", "target_encoder")  # keys under which trainers save weights
SHARD_INDEX = "model.safetensors.index.json"


def read_tensors(path: Path, *, torch_files: bool = False) -> dict[str, Tensor]:
    """Reads a safetensors file, an index of several, an `.npz` file, or with `torch_files` a file of torch's format.

    Raises `VitrailError` if the file is missing or damaged or holds anything but tensors.
    """
    if not path.is_file():
        raise VitrailError(f"there is no file {path}")
    refuse_lfs_pointer(path)
    if path.name.lower().endswith(TORCH_SUFFIXES):
        if not torch_files:
            raise UsageError(
                f"{path} is a file of torch's own format, which can carry code",
                "--torch-files reads the plain tensors in it and refuses anything else",
            )
        return read_torch_file(path)
    if path.name.endswith(".index.json"):
        return read_sharded_safetensors(path)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    return read_safetensors(path)[1]


def read_sharded_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads the safetensors files of an index; raises `VitrailError` if none of them has a listed tensor."""
    files = read_shard_index(path)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        tensors |= read_safetensors(path.parent / name)[1]
    if missing := sorted(set(files) - set(tensors)):
        raise VitrailError(f"{path} lists {missing[0]}, which is in none of its files", "download the files again")
    return tensors


def read_shard_index(path: Path) -> dict[str, str]:
    """Returns the file of each tensor; raises `VitrailError` for another file and for paths outside the folder."""
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = set(files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise VitrailError(f"{path} is not an index of safetensors files") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise VitrailError(f"{path} names a file outside its folder: {name!r}")
    return files


def read_npz(path: Path) -> dict[str, Tensor]:
    """Reads the arrays of an `.npz` file; raises `VitrailError` for arrays of Python objects."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files}
    except MemoryError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many types for damaged files
        raise VitrailError(f"{path} is cut short or not an .npz file of plain arrays ({error})") from None


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file of torch's format without running anything in it."""
    if is_torchscript(path):
        return read_torchscript(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training script: plain values
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise VitrailError(
            f"{path} holds more than plain tensors, or is damaged; nothing in it was run ({first_line(error)})",
            "get the weights as safetensors",
        ) from None
    return unwrap_state_dict(loaded, path)


def unwrap_state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of what a trainer saved: the object itself, or the value of one of the usual keys."""
    for key in (*EMA_KEYS, *STATE_DICT_KEYS):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            if key in EMA_KEYS:
                log(f"{path}: read {key}, the mean of the weights over the last steps")
    if not isinstance(loaded, dict):
        raise VitrailError(f"{path} holds {type(loaded).__name__} instead of a dictionary of tensors")
    tensors = {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
    if not tensors:
        keys = ", ".join((*STATE_DICT_KEYS, *EMA_KEYS))
        raise VitrailError(f"{path} holds no tensors under the keys that trainers use ({keys})")
    return tensors
