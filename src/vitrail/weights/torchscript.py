"""TorchScript archives (OpenAI's CLIP) -> names and tensors, without compiling or running their program.

An archive is a zip file: `data.pkl` describes the modules, `data/N` holds the storages. A restricted unpickler reads
`data.pkl`: it knows a few names and refuses all others.
"""

import io
import pickle
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import VitrailError

MAX_NAME_LENGTH = 1000  # of a tensor
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class ScriptModule:
    """A module of the archive, reduced to its attributes."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class ArchiveUnpickler(pickle.Unpickler):
    """Reads `data.pkl`: modules, tensors and numbers; raises `UnpicklingError` for anything else."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return ScriptModule
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle":
            return lambda *values: None  # lists of numbers, which are never weights
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a plain archive")

    def persistent_load(self, pid: Any) -> Tensor:
        """Returns a storage as a flat tensor."""
        _, dtype, key, _, count = pid
        data = bytearray(self.archive.read(f"{self.root}/data/{int(key)}"))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(flat) < count:
            raise pickle.UnpicklingError(f"storage {key} is cut short")
        return flat


def rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """Returns a tensor as a view of its storage; torch raises `RuntimeError` for one beyond the storage's end."""
    return torch.as_strided(storage, size, stride, offset)


def is_torchscript(path: Path) -> bool:
    """Returns whether a file is a TorchScript archive rather than saved tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of an archive by dotted name; raises `VitrailError` for damage and anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
            return collect_tensors(ArchiveUnpickler(archive, root).load())
    except MemoryError:
        raise
    except Exception as error:  # pickle, zipfile and zlib raise many types for damaged files
        raise VitrailError(
            f"{path} holds more than plain tensors, or is damaged; nothing in it was run ({error})",
            "get the weights as safetensors",
        ) from None


def collect_tensors(top: Any) -> dict[str, Tensor]:
    """Returns the tensors of a module and its submodules by dotted name; a shared module under its first name.

    Raises `ValueError` for modules nested deeper than in any model, `TypeError` for a name that is not a string.
    """
    tensors: dict[str, Tensor] = {}
    visited: set[int] = set()  # a module may contain itself, and shared modules may nest exponentially
    queue = deque([("", top)])
    while queue:
        prefix, module = queue.popleft()
        if not isinstance(module, ScriptModule) or id(module) in visited:
            continue
        if len(prefix) > MAX_NAME_LENGTH:
            raise ValueError("modules are nested deeper than in any model")
        visited.add(id(module))
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            else:
                queue.append((f"{prefix}{name}.", value))
    return tensors
