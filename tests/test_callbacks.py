"""Callbacks: when each hook is called and with what, errors, early stopping, and exact resume of both."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vitrail
from conftest import fill
from vitrail import Callback, EarlyStopping
from vitrail.callbacks.base import HOOKS, CallbackError, CallbackState
from vitrail.cli.main import main
from vitrail.errors import UsageError, VitrailError
from vitrail.runs.folder import RunFolder
from vitrail.runs.training_run import TrainingRun
from vitrail.training.checkpoint import file_checksum, list_checkpoints

TINY = {
    "batch_size": 16,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_width": 16,
    "workers": 0,
    "report": False,
    "check": False,
}
NO_LEARNING = {"optimizer": "sgd", "lr": 1e-30}  # validation never gets better


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training images (two steps of an epoch), 8 of validation, 8 of test."""
    return fill(
        tmp_path_factory.mktemp("data") / "photos", {"train": 16, "val": 4, "test": 4}, ("red", "blue"), (16, 16)
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> vitrail.Run:
    """A run of two epochs without callbacks."""
    return vitrail.train(data, out=tmp_path_factory.mktemp("runs") / "whole", epochs=2, **TINY)


class Recorder(Callback):
    """Keeps every call and its state."""

    def __init__(self):
        self.calls = []

    def seen(self, hook):
        return [state for name, state in self.calls if name == hook]


def record(hook):
    return lambda self, state: self.calls.append((hook, state))


for each in HOOKS:
    setattr(Recorder, each, record(each))


def checkpoint_files(folder: Path) -> dict[str, object]:
    newest = list_checkpoints(RunFolder(folder).checkpoints)[0]
    return {name: file_checksum(newest / name) for name in ("model.safetensors", "optimizer.safetensors")}


def read_result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_hooks_are_called_in_this_order_with_this_state(data: Path, tmp_path: Path):
    recorder = Recorder()
    run = vitrail.train(data, out=tmp_path / "run", epochs=2, callbacks=[recorder], **TINY)
    epoch = ["on_epoch_start", "on_step_end", "on_step_end", "on_evaluation_end", "on_epoch_end"]
    assert [name for name, _ in recorder.calls] == ["on_run_start", *epoch, *epoch, "on_evaluation_end", "on_run_end"]
    states = [state for _, state in recorder.calls]
    assert [state.epoch for state in states] == [0, *[1] * 5, *[2] * 5, 2, 2]
    assert [state.step for state in states] == [0, 0, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4]
    assert {(state.epochs, state.steps, state.world_size, state.is_main) for state in states[1:]} == {(2, 4, 1, True)}
    first = states[0]
    assert (first.folder, first.data, first.classes) == (run.folder, "photos", ("blue", "red"))
    assert dict(first.images) == {"train": 32, "validation": 8, "test": 8}
    assert first.recipe.batch_size == 16 and first.device.type == "cpu" and not first.is_resumed
    rows = RunFolder(run.folder).load_metrics()
    assert [dict(state.metrics) for state in recorder.seen("on_epoch_end")] == rows
    first_step, second_step = recorder.seen("on_step_end")[:2]
    assert math.isclose(
        (first_step.metrics["train_loss"] + second_step.metrics["train_loss"]) / 2, rows[0]["train_loss"]
    )
    assert second_step.lr == second_step.metrics["lr"] == rows[0]["lr"]
    *of_epochs, final = recorder.seen("on_evaluation_end")
    assert [(e.evaluation.split, e.evaluation.is_final) for e in of_epochs] == [("validation", False)] * 2
    assert [e.evaluation.scores["loss"] for e in of_epochs] == [row["validation_loss"] for row in rows]
    assert final.evaluation.is_final and dict(final.evaluation.scores) == run.result["test"]
    end = recorder.seen("on_run_end")[0]
    assert end.result == run.result and end.error is None and end.best_epoch == run.result["best_epoch"]
    assert end.classifier is run.classifier and end.model is run.classifier.vit


def test_the_state_is_read_only(data: Path, tmp_path: Path):
    recorder = Recorder()
    vitrail.train(data, out=tmp_path / "run", epochs=1, callbacks=[recorder], **TINY)
    state = recorder.seen("on_epoch_end")[0]
    with pytest.raises(FrozenInstanceError):
        state.epoch = 7
    for mapping in (state.metrics, state.images, recorder.seen("on_evaluation_end")[0].evaluation.scores):
        assert isinstance(mapping, Mapping)
        with pytest.raises(TypeError):
            mapping["epoch"] = 7


def test_callbacks_change_no_bit_even_if_they_use_the_model(data: Path, tmp_path: Path):
    class Predictor(Callback):
        def __init__(self):
            self.accuracies = []

        def on_step_end(self, state):
            torch.manual_seed(state.step)
            assert state.classifier.predict(torch.rand(3, 16, 16))[0].label in state.classes

        def on_epoch_end(self, state):
            self.accuracies.append(vitrail.evaluate(state.classifier, data).accuracy)

    predictor, options = Predictor(), {"epochs": 2, "dropout": 0.1, "ema_decay": 0.9, **TINY}
    plain = vitrail.train(data, out=tmp_path / "plain", **options)
    run = vitrail.train(data, out=tmp_path / "run", callbacks=[predictor], **options)
    assert checkpoint_files(run.folder) == checkpoint_files(plain.folder)
    assert run.result["test"] == plain.result["test"]
    assert predictor.accuracies[run.result["best_epoch"] - 1] == run.result["test"]["accuracy"]


def test_an_object_with_one_hook_is_a_callback_and_a_step_costs_nothing_without_that_hook(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    called = []
    call_hook = TrainingRun.call_hook
    monkeypatch.setattr(
        TrainingRun,
        "call_hook",
        lambda run, hook, *rest, **more: called.append(hook) or call_hook(run, hook, *rest, **more),
    )
    epochs = []
    lister = SimpleNamespace(on_epoch_end=lambda state: epochs.append(state.epoch))
    vitrail.train(data, out=tmp_path / "run", epochs=2, callbacks=[lister], **TINY)
    assert epochs == [1, 2]
    assert "on_step_end" not in called and called.count("on_epoch_end") == 2


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (print, "builtin_function_or_method is not a callback"),
        (EarlyStopping, "EarlyStopping is a class"),
        (
            type("Typo", (Callback,), {"on_epoch_ends": print})(),
            r"Typo.on_epoch_ends is not a hook.*did you mean on_epoch_end",
        ),
        (SimpleNamespace(on_run_end=print, state_dict=dict), "only one of state_dict and load_state_dict"),
        (
            SimpleNamespace(on_run_end=print, state_dict=lambda: {"x": torch.zeros(1)}, load_state_dict=print),
            "is not JSON",
        ),
    ],
)
def test_what_is_no_callback_is_an_error_before_the_data_is_opened(callback, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        vitrail.train(tmp_path / "nowhere", out=tmp_path / "run", callbacks=[callback])


@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_that_fails_is_named_and_the_run_can_be_resumed(
    hook: str, data: Path, whole: vitrail.Run, tmp_path: Path
):
    class Faulty(Callback):
        failures = 0

    def fail(self, state):
        if state.epoch in (0, 2) or hook == "on_run_end":
            Faulty.failures += 1
            raise ZeroDivisionError("by zero")

    ends = Recorder()
    setattr(Faulty, hook, fail)
    with pytest.raises(
        CallbackError, match=f"the callback Faulty failed in {hook}: ZeroDivisionError: by zero"
    ) as caught:
        vitrail.train(data, out=tmp_path / "run", epochs=2, callbacks=[Faulty(), ends], **TINY)
    assert Faulty.failures == 1 and isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(ends.seen("on_run_end")) == 1
    again = vitrail.train(data, out=tmp_path / "run", resume=True, report=False)
    assert "is complete" in str(caught.value) if hook == "on_run_end" else "continue with: " in str(caught.value)
    assert again.result["test"] == whole.result["test"]
    assert checkpoint_files(again.folder) == checkpoint_files(whole.folder)


def test_patience_ends_a_run_that_is_scored_and_reported_as_usual(data: Path, tmp_path: Path, capsys):
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in {**TINY, **NO_LEARNING}.items()
        if name not in ("report", "check")
    ]
    command = ["train", str(data), "--out", str(tmp_path / "run"), "--epochs", "9", "--patience", "2", *options]
    assert main(command) == 0
    printed = capsys.readouterr()
    line = "Training stopped early, after epoch 3 of 9: no better validation score for 2 epochs"
    assert line in printed.err and line in printed.out
    result = read_result(tmp_path / "run")
    assert result["best_epoch"] == 1 and result["test"]["images"] == 8
    assert result["stopped_early"] == {
        "epoch": 3, "epochs": 9, "step": 6, "callback": "EarlyStopping",
        "reason": "no better validation score for 2 epochs",
    }  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert line in report["findings"][0]["text"] and report["stopped_early"] == result["stopped_early"]
    assert line in (tmp_path / "run" / "report.html").read_text()
    assert len(RunFolder(tmp_path / "run").load_metrics()) == 3


def test_resuming_a_run_that_stopped_early_returns_it_and_more_patience_is_refused(data: Path, tmp_path: Path):
    run = vitrail.train(data, out=tmp_path / "run", epochs=9, patience=2, **TINY, **NO_LEARNING)
    again = vitrail.train(data, out=tmp_path / "run", resume=True, report=False)
    assert again.result == run.result and again.result["stopped_early"]["epoch"] == 3
    with pytest.raises(UsageError, match="started with another recipe: patience is 5, before 2"):
        vitrail.train(data, out=tmp_path / "run", resume=True, patience=5)
    with pytest.raises(UsageError, match="epochs is 20, before 9.*train its weights further in a new run"):
        vitrail.train(data, out=tmp_path / "run", resume=True, epochs=20)
    (tmp_path / "run" / "result.json").unlink()  # as if killed before the scores
    rescored = vitrail.train(data, out=tmp_path / "run", resume=True, report=False)
    assert rescored.result["stopped_early"] == run.result["stopped_early"]
    assert rescored.result["test"] == run.result["test"]


def test_an_early_stop_is_exact_under_resume(data: Path, tmp_path: Path):
    """A run that an error ends in its second epoch, and then resumes, stops at the same epoch to the same bits."""
    options = {"epochs": 9, **TINY, **NO_LEARNING}
    whole = vitrail.train(data, out=tmp_path / "whole", callbacks=[EarlyStopping(patience=3)], **options)
    fail = SimpleNamespace(on_step_end=lambda state: 1 / (3 - state.step))
    with pytest.raises(CallbackError):
        vitrail.train(data, out=tmp_path / "run", callbacks=[EarlyStopping(patience=3), fail], **options)
    again = vitrail.train(data, out=tmp_path / "run", resume=True, callbacks=[EarlyStopping(patience=3)], report=False)
    assert (
        again.result["stopped_early"] == whole.result["stopped_early"] and whole.result["stopped_early"]["epoch"] == 4
    )
    assert checkpoint_files(again.folder) == checkpoint_files(whole.folder)


@pytest.mark.parametrize(
    ("hook", "step", "epoch"),
    [
        ("on_run_start", 0, 0),
        ("on_epoch_start", 2, 1),
        ("on_step_end", 3, 2),
        ("on_evaluation_end", 4, 2),
        ("on_epoch_end", 4, 2),
    ],
)
def test_any_hook_may_ask_for_a_stop(hook: str, step: int, epoch: int, data: Path, tmp_path: Path):
    def stop(state):
        if hook == "on_run_start" or (state.epoch == 2 and (hook != "on_step_end" or state.step == 3)):
            state.stop("enough")

    stopper = SimpleNamespace(**{hook: stop})
    run = vitrail.train(data, out=tmp_path / "run", epochs=5, callbacks=[stopper], **TINY)
    expected = {"epoch": epoch, "epochs": 5, "step": step, "callback": "SimpleNamespace", "reason": "enough"}
    assert run.result["stopped_early"] == expected
    assert run.result["test"]["images"] == 8 and (run.folder / "classifier.safetensors").exists()
    rows = RunFolder(run.folder).load_metrics()
    assert [row["step"] for row in rows] == {0: [], 2: [2], 3: [2, 3], 4: [2, 4]}[step]
    (run.folder / "result.json").unlink()
    again = vitrail.train(data, out=tmp_path / "run", resume=True, report=False)  # as if killed before the scores
    assert again.result["stopped_early"] == expected and again.result["test"] == run.result["test"]


def test_a_stop_asked_for_in_the_last_epoch_is_no_early_stop(data: Path, tmp_path: Path):
    stopper = SimpleNamespace(on_epoch_end=lambda state: state.stop("enough"))
    assert (
        "stopped_early" not in vitrail.train(data, out=tmp_path / "run", epochs=1, callbacks=[stopper], **TINY).result
    )


def test_early_stopping_without_validation_or_epochs_is_an_error_that_writes_nothing(data: Path, tmp_path: Path):
    folder = fill(tmp_path / "few", {"train": 8, "test": 4}, ("red", "blue"), (16, 16))
    with pytest.raises(UsageError, match="early stopping needs validation images"):
        vitrail.train(folder, out=tmp_path / "run", patience=2, validation_fraction=0.0, **TINY)
    with pytest.raises(UsageError, match="patience is set twice"):
        vitrail.train(folder, out=tmp_path / "run", patience=2, callbacks=[EarlyStopping(3)], **TINY)
    with pytest.raises(UsageError, match="patience is 0; it must be"):
        EarlyStopping(0)
    assert not (tmp_path / "run").exists()


class Counter(Callback):
    """Counts steps; its state is in the checkpoint."""

    def __init__(self):
        self.steps = 0

    def on_step_end(self, state):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_the_state_of_a_callback_is_in_the_checkpoint(data: Path, tmp_path: Path, capsys):
    fail = SimpleNamespace(on_epoch_start=lambda state: 1 / (3 - state.epoch))
    with pytest.raises(CallbackError):
        vitrail.train(data, out=tmp_path / "run", epochs=4, callbacks=[Counter(), Counter(), fail], **TINY)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    first, second = Counter(), Counter()
    vitrail.train(data, out=tmp_path / "run", resume=True, callbacks=[first, second], report=False)
    assert (first.steps, second.steps) == (8, 8)
    vitrail.train(data, out=tmp_path / "copy", resume=True, callbacks=[Counter()], report=False)
    assert "was started with the callback Counter#2, which is not among the callbacks now" in capsys.readouterr().err
    assert list_checkpoints(RunFolder(tmp_path / "copy").checkpoints)


def test_the_examples_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (Path(__file__).parent.parent / "docs" / "callbacks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, {"__name__": "example"})
    assert "accuracy reached 0.2" in read_result(tmp_path / "runs" / "own")["stopped_early"]["reason"]
    assert read_result(tmp_path / "runs" / "patient")["best_epoch"] > 0
    assert list((tmp_path / "runs" / "logged" / "tensorboard").glob("events*"))
    fields = {each.name for each in dataclasses.fields(CallbackState)} | {"classifier", "model"}
    table = "".join(re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", table)) >= fields - {"get_classifier", "request_stop"}


def test_a_callback_may_end_in_an_error_of_vitrail_with_its_hint(data: Path, tmp_path: Path):
    def refuse(state):
        raise VitrailError("the server is full", "make room")

    with pytest.raises(
        CallbackError, match="the callback SimpleNamespace failed in on_run_start: the server is full"
    ) as caught:
        vitrail.train(data, out=tmp_path / "run", epochs=1, callbacks=[SimpleNamespace(on_run_start=refuse)], **TINY)
    assert str(caught.value.hint).startswith("make room; saved at step 0")
