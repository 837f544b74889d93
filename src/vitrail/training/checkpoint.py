"""What a resumed run needs, in a folder that is whole or not there.

    checkpoint/step-00001960/   model.safetensors  optimizer.safetensors  state.json  manifest.json

A checkpoint is written aside, synced, listed with sizes and SHA-256 in its manifest, and renamed into place. Two are
kept, the newest and the one before: should the newest not be what its manifest says, the other is used, and it is said.
An older one is removed only when the new one verifies. No randomness is stored: every draw is keyed by seed and step.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vitrail import files
from vitrail.console import log
from vitrail.errors import VitrailError
from vitrail.training.distributed import distribute_like, full_cpu_tensor
from vitrail.training.loop import TrainState

CHECKPOINT_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 1 << 20  # bytes of JSON that are read


Tensors = dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    trainee: TrainState,
    state: dict[str, Any],
    label: str = "",
    tensors: tuple[Tensors, Tensors] | None = None,
) -> Path:
    """Writes the trainee and `state` (plain JSON) as the newest checkpoint, named by its step and `label`.

    Where one of the same step is there and whole that is newer (it was measured too), nothing is done but to return it.
    `tensors` are what the trainee holds, where it had to be asked for before (`tensors_of`). `folder` must be there.
    Raises `VitrailError` if it cannot be written; checkpoints that are there are untouched.
    """
    final = folder / f"step-{trainee.step:08d}{label}"
    for newer in list_checkpoints(folder):
        if newer.name > final.name and newer.name.startswith(final.name) and find_damage(newer) is None:
            return newer
    if find_damage(final) is None:  # this very step has been saved: a run that went on repeats itself to the bit
        prune_checkpoints(folder, final)
        return final
    aside = folder / f".{final.name}-{os.getpid()}"
    try:
        files.remove_folder(aside)
        files.make_folder(aside)
        model, optimizer = tensors or collect_tensors(trainee)
        files.save_tensors(aside / CHECKPOINT_FILES[0], model)
        files.save_tensors(aside / CHECKPOINT_FILES[1], optimizer)
        files.save_json(aside / CHECKPOINT_FILES[2], {**state, "step": trainee.step})
        for name in CHECKPOINT_FILES:
            files.fsync(aside / name)
        files.save_json(aside / MANIFEST, {name: file_checksum(aside / name) for name in CHECKPOINT_FILES})
        files.fsync(aside / MANIFEST)
        files.fsync(aside)
        if final.exists():  # damaged, else it would have been returned
            files.rename(final, folder / f".{final.name}-damaged-{os.getpid()}")
        files.rename(aside, final)
        files.fsync(folder)
    except (OSError, SafetensorError) as error:
        files.remove_folder(aside)
        gone = isinstance(error, FileNotFoundError) and not folder.is_dir()
        reason = f"the folder {folder} has vanished" if gone else files.describe_write_error(error)
        raise VitrailError(
            f"the checkpoint {final} cannot be written: {reason}",
            "start again with another --out" if gone else "make room, then go on with --resume; the one before is kept",
        ) from None
    if wrong := find_damage(final):
        raise VitrailError(
            f"the checkpoint {final} does not read back as it was written: {wrong}",
            "the disk may be failing; the checkpoint before is kept",
        )
    prune_checkpoints(folder, final)
    return final


def prune_checkpoints(folder: Path, newest: Path) -> None:
    """Removes every checkpoint, whole or not, but the newest and the one before it."""
    before = max((path for path in list_checkpoints(folder) if path.name < newest.name), default=None)
    for path in folder.iterdir():
        if path not in (newest, before) and path.name.lstrip(".").startswith("step-"):
            files.remove_folder(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, sound or not, the newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True) if folder.is_dir() else []


def find_newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose manifest holds, or None; says aloud which newer ones it passes over."""
    for path in list_checkpoints(folder):
        wrong = find_damage(path)
        if wrong is None:
            return path
        log(f"warning: the checkpoint {path} is damaged and not used: {wrong}")
    return None


def load_checkpoint(path: Path, trainee: TrainState) -> dict[str, Any]:
    """Puts the trainee where it was; returns the state saved with it.

    Raises `VitrailError` where the checkpoint cannot be read, is of another model or holds what no checkpoint of ours
    holds.
    """
    try:
        return _load(path, trainee)
    except OSError as error:
        raise VitrailError(
            f"the checkpoint {path} cannot be read: {files.describe_write_error(error)}",
            "the run folder must be on a disk that all nodes see",
        ) from None
    except (RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError, SafetensorError) as error:
        raise VitrailError(f"the checkpoint {path} is of another model: {error}", "start a new run") from None


def _load(path: Path, trainee: TrainState) -> dict[str, Any]:
    model = load_file(path / CHECKPOINT_FILES[0])
    optimizer = load_file(path / CHECKPOINT_FILES[1])
    state = read_json_object(path / CHECKPOINT_FILES[2])
    step = state.pop("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step {step!r}")
    load_module_state(trainee.vit, _below("vit.", model))
    if trainee.ema:
        load_module_state(trainee.ema, _below("average.", model))
    for i, each in enumerate(trainee.optimizers):
        each.load_state_dict({**each.state_dict(), "state": optimizer_entries(each, _below(f"{i}.", optimizer))})
    trainee.step = step
    return state


def optimizer_entries(optimizer: Optimizer, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """An optimiser's state by the number of the parameter; raises `ValueError` where the shapes do not fit."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        if tensor.shape not in ((), parameters[int(number)].shape):
            raise ValueError(f"the optimiser's {key} is {tuple(tensor.shape)}")
        entries.setdefault(int(number), {})[name] = distribute_like(tensor, parameters[int(number)])
    return entries


def load_module_state(module: nn.Module, tensors: Tensors) -> None:
    """Loads whole tensors into a module, each process its part where the module is sharded."""
    there = module.state_dict()
    module.load_state_dict(
        {name: distribute_like(t, there[name]) if name in there else t for name, t in tensors.items()}
    )


def collect_tensors(trainee: TrainState) -> tuple[Tensors, Tensors]:
    """Everything a trainee holds, as flat names: the weights and their average, the optimisers' state.

    Of a sharded one every process must ask, and the main one gets it; the others get empty tensors.
    """

    def plain(tensors: Tensors) -> Tensors:
        return {name: full_cpu_tensor(tensor, keep=trainee.world.is_main) for name, tensor in tensors.items()}

    model = {f"vit.{name}": tensor for name, tensor in trainee.vit.state_dict().items()}
    if trainee.ema:
        model |= {f"average.{name}": tensor for name, tensor in trainee.ema.state_dict().items()}
    optimizer = {
        f"{i}.{number}.{name}": value
        for i, each in enumerate(trainee.optimizers)
        for number, entry in each.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    return plain(model), plain(optimizer)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def file_checksum(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def find_damage(path: Path) -> str | None:
    """What makes a checkpoint differ from its manifest; None if it is whole.

    The manifest lists exactly the files of a checkpoint, so no name in it leads elsewhere.
    """
    try:
        manifest = read_json_object(path / MANIFEST)
        if set(manifest) != set(CHECKPOINT_FILES):
            return f"{MANIFEST} does not list the files of a checkpoint"
        return next(
            (
                f"{name} is not what was written"
                for name in CHECKPOINT_FILES
                if file_checksum(path / name) != manifest[name]
            ),
            None,
        )
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return files.describe_write_error(error)


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of a reasonable size, in bytes; raises `ValueError` for anything else."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path.name} is longer than {max_bytes:,} bytes")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return document
