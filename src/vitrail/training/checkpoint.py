"""Checkpoints: everything that a resumed run needs, in a folder that is either complete or absent.

    checkpoint/step-00001960/   model.safetensors  optimizer.safetensors  state.json  manifest.json

A checkpoint is written to a temporary folder, synced to disk, listed with sizes and SHA-256 in its manifest, and
renamed into place. The newest two are kept: if the newest does not match its manifest, the one before is used, with a
warning. An older one is removed only after the new one is verified. No random state is stored: all draws are seeded by
seed and step.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vitrail import files
from vitrail.console import log
from vitrail.errors import UsageError, VitrailError
from vitrail.files import read_json_object
from vitrail.training.parallel import distribute_like, full_cpu_tensor
from vitrail.training.train_state import TrainState

CHECKPOINT_FILES = MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "manifest.json"

Tensors = dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    state: TrainState,
    document: dict[str, Any],
    label: str = "",
    tensors: tuple[Tensors, Tensors] | None = None,
) -> Path:
    """Writes the newest checkpoint, named by the state's step and `label`, into an existing folder; returns its path.

    `document` is plain JSON that is stored with it. `tensors` is the result of `collect_tensors`, if already collected.
    If the checkpoint exists already, or a later one of the same step (after validation), returns that one. Raises
    `VitrailError` if it cannot be written; existing checkpoints are then unchanged.
    """
    path = folder / f"step-{state.step:08d}{label}"
    for existing in list_checkpoints(folder):
        if existing.name > path.name and existing.name.startswith(path.name) and find_damage(existing) is None:
            return existing
    if find_damage(path) is None:  # a resumed run repeats its steps to the same bits
        prune_checkpoints(folder, path)
        return path
    temporary = folder / f".{path.name}-{os.getpid()}"
    try:
        files.remove_folder(temporary)
        files.make_folder(temporary)
        _write_files(temporary, tensors or collect_tensors(state), {**document, "step": state.step})
        if path.exists():  # it is damaged
            files.rename(path, folder / f".{path.name}-damaged-{os.getpid()}")
        files.rename(temporary, path)
        files.fsync(folder)
    except (OSError, SafetensorError) as error:
        files.remove_folder(temporary)
        raise _write_error(error, path) from None
    if damage := find_damage(path):
        raise VitrailError(
            f"the checkpoint {path} cannot be read back as it was written: {damage}",
            "the disk may be failing; the previous checkpoint is kept",
        )
    prune_checkpoints(folder, path)
    return path


def _write_files(folder: Path, tensors: tuple[Tensors, Tensors], document: dict[str, Any]) -> None:
    model, optimizer = tensors
    files.save_tensors(folder / MODEL_FILE, model)
    files.save_tensors(folder / OPTIMIZER_FILE, optimizer)
    files.save_json(folder / STATE_FILE, document)
    for name in CHECKPOINT_FILES:
        files.fsync(folder / name)
    files.save_json(folder / MANIFEST, {name: file_checksum(folder / name) for name in CHECKPOINT_FILES})
    files.fsync(folder / MANIFEST)
    files.fsync(folder)


def _write_error(error: OSError | SafetensorError, path: Path) -> VitrailError:
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        reason, hint = f"the folder {path.parent} has vanished", "start again with another --out"
    else:
        reason = files.describe_write_error(error)
        hint = "free some space, then use --resume; the previous checkpoint is kept"
    return VitrailError(f"the checkpoint {path} cannot be written: {reason}", hint)


def prune_checkpoints(folder: Path, newest: Path) -> None:
    """Removes all checkpoints, complete or not, except the newest and the one before it."""
    previous = max((path for path in list_checkpoints(folder) if path.name < newest.name), default=None)
    for path in folder.iterdir():
        if path not in (newest, previous) and path.name.lstrip(".").startswith("step-"):
            files.remove_folder(path)


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, damaged or not, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True) if folder.is_dir() else []


def find_newest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint that matches its manifest, or None; warns of newer ones that are damaged."""
    for path in list_checkpoints(folder):
        damage = find_damage(path)
        if damage is None:
            return path
        log(f"warning: the checkpoint {path} is damaged and not used: {damage}")
    return None


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Restores the state from a checkpoint; returns the JSON document that was stored with it.

    Raises `VitrailError` if the checkpoint cannot be read or belongs to another model.
    """
    try:
        return _load(path, state)
    except OSError as error:
        raise VitrailError(
            f"the checkpoint {path} cannot be read: {files.describe_write_error(error)}",
            "the run folder must be on a disk that all nodes share",
        ) from None
    except (RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError, SafetensorError) as error:
        raise VitrailError(f"the checkpoint {path} is of another model: {error}", "start a new run") from None


def _load(path: Path, state: TrainState) -> dict[str, Any]:
    model_tensors = load_file(path / MODEL_FILE)
    optimizer_tensors = load_file(path / OPTIMIZER_FILE)
    document = read_json_object(path / STATE_FILE)
    step = document.pop("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"step {step!r}")
    load_module_state(state.vit, _select("vit.", model_tensors))
    if state.ema:
        load_module_state(state.ema, _select("average.", model_tensors))
    for i, optimizer in enumerate(state.optimizers):
        entries = optimizer_entries(optimizer, _select(f"{i}.", optimizer_tensors))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    state.step = step
    return document


def optimizer_entries(optimizer: Optimizer, tensors: Tensors) -> dict[int, Tensors]:
    """Returns an optimizer's state by parameter index; raises `ValueError` if a shape does not fit its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, Tensors] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if tensor.shape not in ((), parameter.shape):
            raise ValueError(f"the optimizer's {key} is {tuple(tensor.shape)}")
        entries.setdefault(int(index), {})[name] = distribute_like(tensor, parameter)
    return entries


def check_optimizer_state(optimizer: Optimizer) -> None:
    """Raises `UsageError` for state that a checkpoint cannot hold: no tensor, or a tensor of another shape.

    Loading refuses these too; without this check a run would lose its progress at the first resume.
    """
    for parameter, entry in optimizer.state.items():
        for name, value in entry.items():
            if (isinstance(value, Tensor) and value.shape in ((), parameter.shape)) or value is None:
                continue
            kind = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UsageError(
                f"the state of the optimizer {type(optimizer).__name__} cannot be saved: {name} of a parameter "
                f"{tuple(parameter.shape)} is {kind}",
                "use an optimizer with state of the parameter's shape (adamw, sgd, muon)",
            )


def load_module_state(module: nn.Module, tensors: Tensors) -> None:
    """Loads full tensors into a module, which may be sharded."""
    current = module.state_dict()
    distributed = {name: distribute_like(tensor, current[name]) for name, tensor in tensors.items() if name in current}
    module.load_state_dict({**tensors, **distributed})


def collect_tensors(state: TrainState) -> tuple[Tensors, Tensors]:
    """Returns CPU copies of the weights and EMA weights, and of the optimizer state, by name.

    For a sharded state this is a collective; processes other than the main one get empty tensors. Raises `UsageError`
    for an optimizer whose state could not be loaded again.
    """

    for each in state.optimizers:
        check_optimizer_state(each)

    def copy_to_cpu(tensors: Tensors) -> Tensors:
        return {name: full_cpu_tensor(tensor, keep=state.world.is_main) for name, tensor in tensors.items()}

    model = {f"vit.{name}": tensor for name, tensor in state.vit.state_dict().items()}
    if state.ema:
        model |= {f"average.{name}": tensor for name, tensor in state.ema.state_dict().items()}
    optimizer = {
        f"{i}.{index}.{name}": value
        for i, each in enumerate(state.optimizers)
        for index, entry in each.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    return copy_to_cpu(model), copy_to_cpu(optimizer)


def _select(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def file_checksum(path: Path) -> dict[str, Any]:
    """Returns size and SHA-256 of a file, as in a manifest."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def find_damage(path: Path) -> str | None:
    """Returns how a checkpoint differs from its manifest, or None if it does not.

    The manifest must list exactly the files of a checkpoint, so it cannot name files elsewhere.
    """
    try:
        manifest = read_json_object(path / MANIFEST)
        if set(manifest) != set(CHECKPOINT_FILES):
            return f"{MANIFEST} does not list the files of a checkpoint"
        for name in CHECKPOINT_FILES:
            if file_checksum(path / name) != manifest[name]:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return files.describe_write_error(error)
    return None
