"""A checkpoint is complete or absent, whatever file operation fails and whenever the process is killed."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kills import kill_runs
from vitrail import files
from vitrail.errors import UsageError, VitrailError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.training.checkpoint import (
    CHECKPOINT_FILES,
    find_damage,
    find_newest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import RECIPES
from vitrail.training.train_state import TrainState, init_train_state

OPERATIONS = ("make_folder", "save_tensors", "save_json", "fsync", "rename", "remove_folder")
CONFIG = ViTConfig(width=8, depth=1, heads=2, mlp_width=16, image_size=8, patch=4, classes=2)


def make_state(step: int, **changes: Any) -> TrainState:
    """Returns a state after `step` steps; all its numbers are seeded by the step."""
    torch.manual_seed(step)
    state = init_train_state(ViT(CONFIG), Recipe(**{"optimizer": "adamw", "ema_decay": 0.9, **changes}))
    for parameter in state.vit.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    state.ema.update(state.vit)
    state.step = step
    return state


def loads_as(path: Path, expected: TrainState) -> bool:
    other = make_state(0)
    document = load_checkpoint(path, other)
    pairs = zip(other.vit.parameters(), expected.vit.parameters(), strict=True)
    return document["epoch"] == expected.step and all(torch.equal(a, b) for a, b in pairs)


class FaultInjector:
    """Makes the n-th file operation fail, before it is done or half-way through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, fail: Callable[[], None], half: bool):
        self.operations: list[str] = []
        for name in OPERATIONS:
            monkeypatch.setattr(files, name, self.wrap(name, getattr(files, name), at, fail, half))

    def wrap(self, name: str, operation: Callable[..., None], at: int, fail: Callable[[], None], half: bool):
        def run(path: Path, *rest: Any) -> None:
            self.operations.append(f"{name} {path.name}")
            if len(self.operations) == at:
                if half:
                    operation(path, *rest)
                    if name.startswith("save"):
                        os.truncate(path, path.stat().st_size // 2)
                fail()
            operation(path, *rest)

        return run


def raise_os_error(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.newest
@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "crash"])
def test_after_a_fault_in_any_file_operation_the_newest_complete_checkpoint_loads(
    tmp_path: Path, fault: str, half: bool
):
    first, second, third = make_state(10), make_state(20), make_state(30)
    n = 0
    while True:
        n += 1
        folder = tmp_path / str(n)
        folder.mkdir()
        save_checkpoint(folder, first, {"epoch": 10})
        save_checkpoint(folder, second, {"epoch": 20})
        failed = False
        with pytest.MonkeyPatch.context() as patch:
            if fault == "crash":
                process = os.fork()
                if not process:
                    try:
                        injector = FaultInjector(patch, n, lambda: os._exit(9), half)
                        save_checkpoint(folder, third, {"epoch": 30})
                        os._exit(len(injector.operations) < n)
                    finally:  # an exception must not return to pytest in this copy of it
                        os._exit(2)
                failed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
                passed = not failed
            else:
                injector = FaultInjector(patch, n, raise_os_error(getattr(errno, fault)), half)
                try:
                    save_checkpoint(folder, third, {"epoch": 30})
                except VitrailError as error:
                    failed = True
                    assert os.strerror(getattr(errno, fault)) in str(error)
                except OSError:  # from the removal of old checkpoints, which never raises by itself
                    failed = True
                    assert injector.operations[-1].startswith("remove_folder")
                passed = len(injector.operations) < n
        newest = find_newest_checkpoint(folder)
        assert newest is not None
        assert loads_as(newest, third if newest.name == "step-00000030" else second), n
        assert find_damage(folder / "step-00000020") is None  # untouched
        if not failed:
            assert newest.name == "step-00000030"
        save_checkpoint(folder, third, {"epoch": 30})  # the next attempt succeeds and removes old files
        assert [path.name for path in list_checkpoints(folder)] == ["step-00000030", "step-00000020"]
        assert loads_as(folder / "step-00000030", third)
        if passed:
            break
    assert n >= 14  # a checkpoint has more operations than this


def test_files_are_synced_before_the_rename_and_the_rename_before_old_checkpoints_are_removed(tmp_path: Path):
    """A killed process loses no data that the kernel has, so only the order of operations can prove this."""
    save_checkpoint(tmp_path, make_state(1), {})
    save_checkpoint(tmp_path, make_state(2), {})
    with pytest.MonkeyPatch.context() as patch:
        injector = FaultInjector(patch, -1, lambda: None, False)
        save_checkpoint(tmp_path, make_state(3), {})
    temporary = f".step-00000003-{os.getpid()}"
    order = [injector.operations.index(f"fsync {name}") for name in (*CHECKPOINT_FILES, "manifest.json", temporary)]
    assert injector.operations.index("save_json manifest.json") < injector.operations.index("fsync manifest.json")
    assert max(order) < injector.operations.index(f"rename {temporary}")
    assert injector.operations.index(f"rename {temporary}") < injector.operations.index(f"fsync {tmp_path.name}")
    assert injector.operations.index(f"fsync {tmp_path.name}") < injector.operations.index(
        "remove_folder step-00000001"
    )


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda path: flip(path / CHECKPOINT_FILES[0]),
    "cut short": lambda path: os.truncate(path / CHECKPOINT_FILES[1], 100),
    "a missing file": lambda path: (path / CHECKPOINT_FILES[2]).unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "an empty manifest": lambda path: (path / "manifest.json").write_text("{}"),
    "a manifest that is not an object": lambda path: (path / "manifest.json").write_text("[1]"),
    "a manifest that is not JSON": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe{"),
    "a manifest that names a file elsewhere": lambda path: point_manifest_elsewhere(path),
    "a manifest nested too deeply": lambda path: (path / "manifest.json").write_text("[" * 100_000),
    "an enormous manifest": lambda path: (path / "manifest.json").write_text(" " * (2 << 20)),
    "a folder for a file": lambda path: ((path / CHECKPOINT_FILES[2]).unlink(), (path / CHECKPOINT_FILES[2]).mkdir()),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def point_manifest_elsewhere(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["../../secret"] = manifest.pop(CHECKPOINT_FILES[2])
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.newest
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported_and_the_previous_checkpoint_is_used(tmp_path: Path, kind: str, capsys):
    first, second = make_state(1), make_state(2)
    save_checkpoint(tmp_path, first, {"epoch": 1})
    path = save_checkpoint(tmp_path, second, {"epoch": 2})
    DAMAGE[kind](path)
    assert find_damage(path)
    newest = find_newest_checkpoint(tmp_path)
    assert newest is not None and loads_as(newest, first)
    assert f"{path} is damaged and not used" in capsys.readouterr().err
    assert save_checkpoint(tmp_path, second, {"epoch": 2}) == path  # replaced
    assert find_damage(path) is None and loads_as(path, second)


def test_a_later_checkpoint_of_the_same_step_is_kept(tmp_path: Path):
    save_checkpoint(tmp_path, make_state(10), {"epoch": 10})
    validated = save_checkpoint(tmp_path, make_state(10), {"epoch": 10}, "-measured")
    (tmp_path / "step-00000010").rename(tmp_path / "moved")
    for older_exists in (False, True):
        if older_exists:
            (tmp_path / "moved").rename(tmp_path / "step-00000010")
        assert save_checkpoint(tmp_path, make_state(10), {"epoch": 9}) == validated
        assert find_newest_checkpoint(tmp_path) == validated and loads_as(validated, make_state(10))
    flip(validated / CHECKPOINT_FILES[0])
    older = save_checkpoint(tmp_path, make_state(10), {"epoch": 10})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010"] and loads_as(older, make_state(10))


HOSTILE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no step": lambda state: {},
    "a step that is not a number": lambda state: {**state, "step": "1"},
    "a negative step": lambda state: {**state, "step": -1},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_state_that_matches_its_checksum_and_makes_no_sense_is_an_error(tmp_path: Path, kind: str):
    path = save_checkpoint(tmp_path, make_state(1), {"epoch": 1})
    rewrite_state(path, HOSTILE[kind](json.loads((path / CHECKPOINT_FILES[2]).read_text())))
    with pytest.raises(VitrailError, match="another model"):
        load_checkpoint(path, make_state(0))


def rewrite_state(path: Path, state: dict[str, Any]) -> None:
    from vitrail.training.checkpoint import file_checksum

    (path / CHECKPOINT_FILES[2]).write_text(json.dumps(state))
    (path / "manifest.json").write_text(json.dumps({name: file_checksum(path / name) for name in CHECKPOINT_FILES}))


@pytest.mark.parametrize(
    "changes",
    [{"best": "nothing"}, {"loss": "0"}, {"stranger": 1}, {"epoch": -1}, {"epoch": 10**9}, {"best": {"epoch": "x"}}],
    ids=str,
)
def test_a_hostile_state_ends_a_resume_with_an_error(make_folder, changes: dict[str, Any]):
    import vitrail

    folder = make_folder("colors", 8)
    run = vitrail.train(
        folder, out=folder.parent / "run", epochs=1, width=16, depth=1, heads=2, mlp_width=16, report=False
    )
    path = find_newest_checkpoint(run.folder / "checkpoint")
    assert path is not None
    (run.folder / "result.json").unlink()  # else the run is finished, and its checkpoint is not read
    rewrite_state(path, {**json.loads((path / CHECKPOINT_FILES[2]).read_text()), **changes})
    with pytest.raises(VitrailError, match=r"not of this vitrail|another run"):
        vitrail.train(folder, out=run.folder, resume=True)


def test_tensors_of_another_model_and_optimizer_state_of_another_shape_are_errors(tmp_path: Path):
    path = save_checkpoint(tmp_path, make_state(1), {"epoch": 1})
    with pytest.raises(VitrailError, match="another model"):
        load_checkpoint(path, init_train_state(ViT(CONFIG), Recipe(optimizer="muon")))
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / CHECKPOINT_FILES[1])
    tensors["0.0.exp_avg"] = torch.zeros(1, 2, 3)
    save_file(tensors, path / CHECKPOINT_FILES[1])
    rewrite_state(path, json.loads((path / CHECKPOINT_FILES[2]).read_text()))
    with pytest.raises(VitrailError, match=r"the optimizer's 0\.exp_avg is \(1, 2, 3\)"):
        load_checkpoint(path, make_state(0))


@pytest.mark.parametrize("kind", ["Adafactor", "a list"])
def test_optimizer_state_that_could_not_be_loaded_is_refused_when_it_is_saved(tmp_path: Path, kind: str):
    """With a sentence, before any progress depends on it; such an optimizer is not among the recipes'."""
    state = make_state(1)
    if kind == "Adafactor":
        parameters = [parameter for parameter in state.vit.parameters() if parameter.numel()]
        state.optimizers = [torch.optim.Adafactor(parameters)]
        state.optimizers[0].step()
    else:
        next(iter(state.optimizers[0].state.values()))["history"] = [1.0]
    with pytest.raises(UsageError, match=r"cannot be saved: (row_var of .* is a tensor|history of .* is a list)"):
        save_checkpoint(tmp_path, state, {"epoch": 1})
    assert list_checkpoints(tmp_path) == []


def test_a_checkpoint_that_this_node_does_not_see_is_an_error(tmp_path: Path):
    path = save_checkpoint(tmp_path, make_state(1), {})
    shutil.rmtree(path)
    with pytest.raises(VitrailError, match=f"{path} cannot be read: No such file.*a disk that all nodes share"):
        load_checkpoint(path, make_state(0))


def test_a_folder_that_vanished_is_not_created_again(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(folder, make_state(1), {})
    shutil.rmtree(folder)
    with pytest.raises(VitrailError, match=f"{folder} has vanished"):
        save_checkpoint(folder, make_state(2), {})
    assert not folder.exists()


@pytest.mark.newest
@pytest.mark.timeout(600)
def test_twenty_kills_leave_every_checkpoint_readable_and_change_no_bit(tmp_path: Path):
    """`python tests/kills.py 200` runs the long version."""
    counts = kill_runs(20, tmp_path, seed=3, new_process_every=0)
    assert counts["kills"] >= 20


def test_built_in_recipes_cannot_be_changed():
    before = RECIPES["small"].model
    RECIPES["small"].model["width"] = 7
    assert RECIPES["small"].model == before
    with pytest.raises(TypeError):
        RECIPES["small"] = RECIPES["tutorial"]  # type: ignore[index]
