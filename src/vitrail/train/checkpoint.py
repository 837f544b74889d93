"""What a resumed run needs, in a folder that is whole or not there.

    checkpoint/step-00001960/   model.safetensors  optimizer.safetensors  state.json  manifest.json

A checkpoint is written aside, synced, listed with sizes and SHA-256 in its manifest, and renamed into place; the one
before is removed only when the new one verifies. No randomness is stored: every draw is keyed by seed and step.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail.errors import VitrailError
from vitrail.files import reason, sync
from vitrail.train.loop import Trainee


def save_checkpoint(folder: Path, trainee: Trainee, state: dict[str, Any]) -> Path:
    """Writes the trainee and `state` (plain JSON) as the newest checkpoint; raises `VitrailError` if it cannot."""
    final = folder / f"step-{trainee.step:08d}"
    aside = folder / f".step-{trainee.step:08d}-{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        model, optimizer = tensors_of(trainee)
        save_file(model, aside / "model.safetensors")
        save_file(optimizer, aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps({**state, "step": trainee.step}))
        names = ("model.safetensors", "optimizer.safetensors", "state.json")
        manifest = {name: checksum(aside / name) for name in names}
        (aside / "manifest.json").write_text(json.dumps(manifest))
        for name in (*names, "manifest.json"):
            sync(aside / name)
        sync(aside)
        if final.exists():  # a checkpoint of this very step: kept until the new one stands
            os.rename(final, folder / f".step-{trainee.step:08d}-old")
        os.rename(aside, final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise VitrailError(
            f"the checkpoint {final} cannot be written: {reason(error)}",
            "make room, then go on with --resume; the checkpoint before is untouched",
        ) from None
    if verified(final):
        for old in folder.iterdir():
            if old != final and old.name.lstrip(".").startswith("step-"):
                shutil.rmtree(old, ignore_errors=True)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose manifest holds, or None."""
    found = sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True) if folder.is_dir() else []
    return next((path for path in found if verified(path)), None)


def load_checkpoint(path: Path, trainee: Trainee) -> dict[str, Any]:
    """Puts the trainee where it was; returns the state saved with it."""
    try:
        return _load(path, trainee)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise VitrailError(f"the checkpoint {path} is of another model: {error}", "start a new run") from None


def _load(path: Path, trainee: Trainee) -> dict[str, Any]:
    model = load_file(path / "model.safetensors")
    optimizer = load_file(path / "optimizer.safetensors")
    trainee.vit.load_state_dict(_below("vit.", model))
    if trainee.average:
        trainee.average.load_state_dict(_below("average.", model))
    for i, each in enumerate(trainee.optimizers):
        document = each.state_dict()
        entries: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _below(f"{i}.", optimizer).items():
            number, name = key.split(".", 1)
            entries.setdefault(int(number), {})[name] = tensor
        each.load_state_dict({**document, "state": entries})
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    trainee.step = state.pop("step")
    return state


def tensors_of(trainee: Trainee) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Everything a trainee holds, as flat names: the weights and their average, the optimisers' state."""
    model = {f"vit.{name}": tensor for name, tensor in trainee.vit.state_dict().items()}
    if trainee.average:
        model |= {f"average.{name}": tensor for name, tensor in trainee.average.state_dict().items()}
    optimizer = {
        f"{i}.{number}.{name}": value
        for i, each in enumerate(trainee.optimizers)
        for number, entry in each.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    return _plain(model), _plain(optimizer)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def checksum(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verified(path: Path) -> bool:
    """Whether every file of the checkpoint is what its manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        return bool(manifest) and all(checksum(path / name) == entry for name, entry in manifest.items())
    except (OSError, json.JSONDecodeError, AttributeError):
        return False
