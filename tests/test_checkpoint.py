"""A checkpoint is whole or not there: whatever file operation fails, whatever the moment of a kill."""

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
from vitrail.errors import VitrailError
from vitrail.model import ViT, ViTConfig
from vitrail.training import Recipe
from vitrail.training.checkpoint import (
    CHECKPOINT_FILES,
    find_damage,
    find_newest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from vitrail.training.train_state import TrainState, init_train_state

OPERATIONS = ("make_folder", "save_tensors", "save_json", "fsync", "rename", "remove_folder")
CONFIG = ViTConfig(width=8, depth=1, heads=2, mlp_width=16, image_size=8, patch=4, classes=2)


def learner(step: int, **changes: Any) -> TrainState:
    """A trainee as if after so many steps, every number of it set by the step."""
    torch.manual_seed(step)
    made = init_train_state(ViT(CONFIG), Recipe(**{"optimizer": "adamw", "ema_decay": 0.9, **changes}))
    for parameter in made.vit.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in made.optimizers:
        optimizer.step()
    made.ema.update_parameters(made.vit)
    made.step = step
    return made


def same(path: Path, expected: TrainState) -> bool:
    other = learner(0)
    state = load_checkpoint(path, other)
    pairs = zip(other.vit.parameters(), expected.vit.parameters(), strict=True)
    return state["epoch"] == expected.step and all(torch.equal(a, b) for a, b in pairs)


class Fault:
    """Lets the n-th file operation fail, before it is done or half-way through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, fail: Callable[[], None], half: bool):
        self.done: list[str] = []
        for name in OPERATIONS:
            monkeypatch.setattr(files, name, self.wrapped(name, getattr(files, name), at, fail, half))

    def wrapped(self, name: str, operation: Callable[..., None], at: int, fail: Callable[[], None], half: bool):
        def run(path: Path, *rest: Any) -> None:
            self.done.append(f"{name} {path.name}")
            if len(self.done) == at:
                if half:
                    operation(path, *rest)
                    if name.startswith("save"):
                        os.truncate(path, path.stat().st_size // 2)
                fail()
            operation(path, *rest)

        return run


def raising(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "crash"])
def test_after_a_fault_at_any_file_operation_the_newest_sound_checkpoint_loads(tmp_path: Path, fault: str, half: bool):
    first, second, third = learner(10), learner(20), learner(30)
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
                    made = Fault(patch, n, lambda: os._exit(9), half)
                    save_checkpoint(folder, third, {"epoch": 30})
                    os._exit(len(made.done) < n)
                failed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
                passed = not failed
            else:
                made = Fault(patch, n, raising(getattr(errno, fault)), half)
                try:
                    save_checkpoint(folder, third, {"epoch": 30})
                except VitrailError as error:
                    failed = True
                    assert os.strerror(getattr(errno, fault)) in str(error)
                except OSError:  # from the removal of old ones, which never raises by itself
                    failed = True
                    assert made.done[-1].startswith("remove_folder")
                passed = len(made.done) < n
        newest = find_newest_checkpoint(folder)
        assert newest is not None
        assert same(newest, third if newest.name == "step-00000030" else second), n
        assert find_damage(folder / "step-00000020") is None  # untouched
        if not failed:
            assert newest.name == "step-00000030"
        save_checkpoint(folder, third, {"epoch": 30})  # the next attempt succeeds and clears up
        assert [path.name for path in list_checkpoints(folder)] == ["step-00000030", "step-00000020"]
        assert same(folder / "step-00000030", third)
        if passed:
            break
    assert n >= 14  # as many operations as a checkpoint has


def test_everything_is_on_the_disk_before_the_name_and_the_name_before_old_ones_go(tmp_path: Path):
    """A kill keeps what the kernel has, so that only the order can prove this."""
    save_checkpoint(tmp_path, learner(1), {})
    save_checkpoint(tmp_path, learner(2), {})
    with pytest.MonkeyPatch.context() as patch:
        made = Fault(patch, -1, lambda: None, False)
        save_checkpoint(tmp_path, learner(3), {})
    aside = f".step-00000003-{os.getpid()}"
    order = [made.done.index(f"fsync {name}") for name in (*CHECKPOINT_FILES, "manifest.json", aside)]
    assert made.done.index("save_json manifest.json") < made.done.index("fsync manifest.json")
    assert max(order) < made.done.index(f"rename {aside}")
    assert made.done.index(f"rename {aside}") < made.done.index(f"fsync {tmp_path.name}")
    assert made.done.index(f"fsync {tmp_path.name}") < made.done.index("remove_folder step-00000001")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda path: flip(path / CHECKPOINT_FILES[0]),
    "cut short": lambda path: os.truncate(path / CHECKPOINT_FILES[1], 100),
    "a file gone": lambda path: (path / CHECKPOINT_FILES[2]).unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "an empty manifest": lambda path: (path / "manifest.json").write_text("{}"),
    "a manifest that is no object": lambda path: (path / "manifest.json").write_text("[1]"),
    "a manifest that is no JSON": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe{"),
    "a manifest that leads elsewhere": lambda path: elsewhere(path),
    "a manifest nested too deeply": lambda path: (path / "manifest.json").write_text("[" * 100_000),
    "an enormous manifest": lambda path: (path / "manifest.json").write_text(" " * (2 << 20)),
    "a folder for a file": lambda path: ((path / CHECKPOINT_FILES[2]).unlink(), (path / CHECKPOINT_FILES[2]).mkdir()),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def elsewhere(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["../../secret"] = manifest.pop(CHECKPOINT_FILES[2])
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, kind: str, capsys):
    first, second = learner(1), learner(2)
    save_checkpoint(tmp_path, first, {"epoch": 1})
    path = save_checkpoint(tmp_path, second, {"epoch": 2})
    DAMAGE[kind](path)
    assert find_damage(path)
    newest = find_newest_checkpoint(tmp_path)
    assert newest is not None and same(newest, first)
    assert f"{path} is damaged and not used" in capsys.readouterr().err
    assert save_checkpoint(tmp_path, second, {"epoch": 2}) == path  # written again in its place
    assert find_damage(path) is None and same(path, second)


def test_a_newer_checkpoint_that_is_whole_outlives_one_of_less_progress(tmp_path: Path):
    save_checkpoint(tmp_path, learner(10), {"epoch": 10})
    measured = save_checkpoint(tmp_path, learner(10), {"epoch": 10}, "-measured")
    (tmp_path / "step-00000010").rename(tmp_path / "aside")
    for there in (False, True):  # whether the older one has been saved before
        if there:
            (tmp_path / "aside").rename(tmp_path / "step-00000010")
        assert save_checkpoint(tmp_path, learner(10), {"epoch": 9}) == measured
        assert find_newest_checkpoint(tmp_path) == measured and same(measured, learner(10))
    flip(measured / CHECKPOINT_FILES[0])
    older = save_checkpoint(tmp_path, learner(10), {"epoch": 10})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010"] and same(older, learner(10))


HOSTILE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no step": lambda state: {},
    "a step that is no number": lambda state: {**state, "step": "1"},
    "a step below zero": lambda state: {**state, "step": -1},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_state_that_verifies_and_makes_no_sense_is_refused(tmp_path: Path, kind: str):
    path = save_checkpoint(tmp_path, learner(1), {"epoch": 1})
    reseal(path, HOSTILE[kind](json.loads((path / CHECKPOINT_FILES[2]).read_text())))
    with pytest.raises(VitrailError, match="another model"):
        load_checkpoint(path, learner(0))


def reseal(path: Path, state: dict[str, Any]) -> None:
    from vitrail.training.checkpoint import file_checksum

    (path / CHECKPOINT_FILES[2]).write_text(json.dumps(state))
    (path / "manifest.json").write_text(json.dumps({name: file_checksum(path / name) for name in CHECKPOINT_FILES}))


@pytest.mark.parametrize(
    "changes",
    [{"best": "nothing"}, {"loss": "0"}, {"stranger": 1}, {"epoch": -1}, {"epoch": 10**9}, {"best": {"epoch": "x"}}],
    ids=str,
)
def test_a_hostile_state_ends_a_resume_in_a_sentence(make_folder, changes: dict[str, Any]):
    import vitrail

    folder = make_folder("strange", 8)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=1, width=16, depth=1, heads=2, mlp_width=16)
    path = find_newest_checkpoint(run.folder / "checkpoint")
    assert path is not None
    reseal(path, {**json.loads((path / CHECKPOINT_FILES[2]).read_text()), **changes})
    with pytest.raises(VitrailError, match=r"not of this vitrail|another run"):
        vitrail.train(folder, out=run.folder, resume=True)


def test_tensors_of_another_model_and_misshapen_optimiser_state_are_refused(tmp_path: Path):
    path = save_checkpoint(tmp_path, learner(1), {"epoch": 1})
    with pytest.raises(VitrailError, match="another model"):
        load_checkpoint(path, init_train_state(ViT(CONFIG), Recipe(optimizer="muon")))
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / CHECKPOINT_FILES[1])
    tensors["0.0.exp_avg"] = torch.zeros(1, 2, 3)
    save_file(tensors, path / CHECKPOINT_FILES[1])
    reseal(path, json.loads((path / CHECKPOINT_FILES[2]).read_text()))
    with pytest.raises(VitrailError, match=r"the optimizer's 0\.exp_avg is \(1, 2, 3\)"):
        load_checkpoint(path, learner(0))


def test_a_checkpoint_that_this_node_does_not_see_is_said(tmp_path: Path):
    path = save_checkpoint(tmp_path, learner(1), {})
    shutil.rmtree(path)
    with pytest.raises(VitrailError, match=f"{path} cannot be read: No such file.*a disk that all nodes share"):
        load_checkpoint(path, learner(0))


def test_a_folder_that_vanished_is_not_made_again(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(folder, learner(1), {})
    shutil.rmtree(folder)
    with pytest.raises(VitrailError, match=f"{folder} has vanished"):
        save_checkpoint(folder, learner(2), {})
    assert not folder.exists()


def test_twenty_kills_leave_nothing_unreadable_and_change_no_bit(tmp_path: Path):
    """The whole loop of 200 and more is `python tests/kills.py 200`."""
    counts = kill_runs(20, tmp_path, seed=3, own=0)
    assert counts["kills"] >= 20
