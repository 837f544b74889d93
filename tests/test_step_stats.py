"""A training step reads nothing from the device; its statistics are read when the next step is under way."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vitrail
from vitrail.callbacks.base import Callback
from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.runs import epochs
from vitrail.training import loop
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import find_recipe
from vitrail.training.step_stats import DeviceNumbers, StepStats, TrainingDiverged
from vitrail.training.train_state import TrainState, init_train_state

CONFIG = ViTConfig(width=24, depth=2, heads=2, mlp_width=48, patch=4, image_size=8, classes=3)
PREPROCESS = Preprocess(image_size=(8, 8))
READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique", "equal")
SMALL = dict(width=16, depth=1, heads=2, mlp_width=16, batch_size=8, precision="fp32", report=False)


class HostReads(TorchDispatchMode):
    """Collects the operators that make the host wait for a number of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        self.operators += 1
        if name in READS or (name.startswith("index") and any(is_mask(index) for index in arguments[1])):
            self.reads.append(name)
        return function(*arguments, **(options or {}))


def is_mask(index: object) -> bool:
    """Whether an index selects by truth values, so that the host must know how many are true."""
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def make_state(recipe: Recipe, task: str = "single_label") -> TrainState:
    torch.manual_seed(0)
    state = init_train_state(ViT(CONFIG), recipe, task=task)
    state.set_train_mode()
    return state


def make_batch(task: str = "single_label") -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    return pixels, torch.randint(0, 2, (6, 3)).float() if task == "multi_label" else torch.randint(0, 3, (6,))


def take_step(state: TrainState, recipe: Recipe, task: str = "single_label") -> StepStats:
    return loop.train_step(state, make_batch(task), recipe, PREPROCESS, total_steps=10)


@pytest.mark.parametrize(
    ("name", "changes", "task"),
    [
        ("small", {}, "single_label"),
        ("small", {"accumulation_steps": 2, "balance": "weights"}, "single_label"),
        ("small", {"initial_image_scale": 0.5, "drop_path": 0.1, "dropout": 0.1, "precision": "bf16"}, "single_label"),
        ("small", {"gradient_checkpointing": True, "loss": "focal"}, "multi_label"),
        ("tutorial", {"precision": "fp32"}, "single_label"),
        ("finetune", {"lr": 1e-3}, "single_label"),
    ],
)
def test_a_training_step_reads_nothing_from_the_device(name: str, changes: dict, task: str):
    recipe = find_recipe(name, epochs=1, batch_size=6, **changes)
    state = make_state(recipe, task)
    take_step(state, recipe, task)
    with HostReads() as trace:
        stats = take_step(state, recipe, task)
    assert trace.operators > 100
    assert trace.reads == []
    assert math.isfinite(stats.loss) and stats.grad_norm > 0


def test_the_trace_sees_a_number_that_is_read():
    with HostReads() as trace:
        torch.ones(3).sum().item()
        torch.ones(3)[torch.ones(3) > 0].sum()
    assert trace.reads == ["_local_scalar_dense", "index"]


def record_order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Returns the list to which taken steps and first readings of their statistics are added, in their order."""
    order: list[tuple[str, int]] = []
    real_step, real_read, steps = loop.train_step, DeviceNumbers.read, {}

    def step_and_record(state, *rest, **options):
        stats = real_step(state, *rest, **options)
        steps[id(stats.sums)] = stats
        order.append(("step", stats.step))
        return stats

    def read_and_record(numbers):
        order.append(("read", steps[id(numbers)].step))
        return real_read(numbers)

    monkeypatch.setattr(loop, "train_step", step_and_record)
    monkeypatch.setattr(DeviceNumbers, "read", read_and_record)
    return order


def test_a_run_reads_the_statistics_of_a_step_once_and_one_step_late(make_folder, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder("late", {"train": 12, "test": 2})
    order = record_order(monkeypatch)
    vitrail.train(folder, out=folder.parent / "run", epochs=1, **SMALL)
    assert order == [("step", 1), ("step", 2), ("read", 1), ("step", 3), ("read", 2), ("read", 3)]


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, state) -> None:
        self.losses.append(state.metrics["train_loss"])


def test_a_callback_gets_the_statistics_of_its_step_and_changes_no_metric(make_folder, monkeypatch: pytest.MonkeyPatch):
    folder, losses = make_folder("callback", {"train": 12, "test": 2}), Losses()
    plain = vitrail.train(folder, out=folder.parent / "plain", epochs=2, **SMALL)
    order = record_order(monkeypatch)
    watched = vitrail.train(folder, out=folder.parent / "watched", epochs=2, callbacks=[losses], **SMALL)
    assert order[:4] == [("step", 1), ("read", 1), ("step", 2), ("read", 2)]
    assert len(losses.losses) == 6
    rows = [[(row["train_loss"], row["grad_norm"]) for row in read_rows(run.folder)] for run in (plain, watched)]
    assert rows[0] == rows[1]


def read_rows(folder: Path) -> list[dict]:
    from vitrail.runs.folder import RunFolder

    return RunFolder(folder).load_metrics()


@pytest.mark.parametrize("broken", [2, 3, 6])  # within an epoch, its last step, and the last step of the run
def test_a_step_that_is_not_finite_is_never_saved(broken: int, make_folder, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint after the step reads its statistics first, and finds that training has diverged."""
    folder = make_folder("nan", {"train": 12, "test": 2})
    real = loop.train_step

    def break_step(state, batch, *rest, **options):
        if state.step == broken - 1:
            with torch.no_grad():
                state.vit.head.weight.fill_(math.nan)
        return real(state, batch, *rest, **options)

    monkeypatch.setattr(loop, "train_step", break_step)
    monkeypatch.setattr(epochs, "CHECKPOINT_INTERVAL_S", -1)  # a checkpoint after each step
    with pytest.raises(TrainingDiverged, match=f"at step {broken}: loss nan") as caught:
        vitrail.train(folder, out=folder.parent / "run", epochs=2, **SMALL)
    assert caught.value.step == broken
    assert max(path.name[5:13] for path in (folder.parent / "run" / "checkpoint").iterdir()) == f"{broken - 1:08}"
    assert json.loads((folder.parent / "run" / "diverged.json").read_text())["step"] == broken


def test_the_average_counts_its_updates_after_loading():
    recipe = find_recipe("small", epochs=1, batch_size=6)
    state, copy = make_state(recipe), make_state(recipe)
    for _ in range(3):
        take_step(state, recipe)
    assert state.ema is not None and copy.ema is not None
    copy.ema.load_state_dict(state.ema.state_dict())
    assert (state.ema.updates, copy.ema.updates) == (3, 3)
    other = ViT(CONFIG)
    state.ema.update(other)
    copy.ema.update(other)
    theirs = dict(copy.ema.module.named_parameters())
    assert all(torch.equal(own, theirs[name]) for name, own in state.ema.module.named_parameters())
