"""TorchScript archives (OpenAI's CLIP) -> names and tensors; the program in them is neither compiled nor run.

An archive is a zip: `data.pkl` describes the modules, `data/N` holds the storages. The description is read by an
unpickler that knows a few names and refuses every other.
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

LONGEST = 1000  # letters in the name of a tensor
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class Module:
    """A module of the program, of which only the attributes are kept."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class Description(pickle.Unpickler):
    """Reads `data.pkl`: modules, tensors, numbers; anything else is refused."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module == "torch.jit._pickle":
            return lambda *values: None  # lists of numbers, which no weight is
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a plain archive")

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, as a flat tensor."""
        _, dtype, key, _, count = pid
        data = bytearray(self.archive.read(f"{self.root}/data/{int(key)}"))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(flat) < count:
            raise pickle.UnpicklingError(f"storage {key} is cut short")
        return flat


def rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    """A tensor as a view of its storage; torch refuses one that reaches beyond it."""
    return torch.as_strided(storage, size, stride, offset)


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive rather than saved tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of an archive under their dotted names; raises `VitrailError` for damage or anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
            return named(Description(archive, root).load())
    except MemoryError:
        raise
    except Exception as error:  # pickle, zipfile and zlib raise whatever the damage brings up
        raise VitrailError(
            f"{path} holds more than plain tensors, or is damaged; nothing in it was run ({error})",
            "get the weights as safetensors",
        ) from None


def named(top: Any) -> dict[str, Tensor]:
    """The tensors of a module and those below it under their dotted names; a module that stands twice, by its first.

    Raises `ValueError` where modules lie too deep for any model, `TypeError` where a name is no text.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()  # else a module that holds itself would never end, and pairs of pairs would hardly
    waiting = deque([("", top)])
    while waiting:
        prefix, module = waiting.popleft()
        if not isinstance(module, Module) or id(module) in seen:
            continue
        if len(prefix) > LONGEST:
            raise ValueError("modules within modules, too deep for any model")
        seen.add(id(module))
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[prefix + name] = value
            else:
                waiting.append((f"{prefix}{name}.", value))
    return found
