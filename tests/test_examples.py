"""The scripts of examples/, run as their readers run them, and wishes that vitrail refuses with what to do instead."""

import copy
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vitrail
from conftest import fill
from vitrail import plugins
from vitrail.cli import main
from vitrail.errors import VitrailError
from vitrail.model.pool import POOLS
from vitrail.model.position import PositionEmbedding
from vitrail.options import OTHER_NAMES
from vitrail.parts import PARTS
from vitrail.registry import RULES
from vitrail.training.field_hints import FIELD_HINTS
from vitrail.training.recipe import RECIPE_FIELDS

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
Play = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(autouse=True)
def forget_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The parts that a script registers are gone after its test, and when this is called."""
    monkeypatch.setattr(plugins, "_loaded", {})
    tables = [rule.table for kind, rule in RULES.items() if kind != "recipe"] + [PARTS]
    before = [dict(table) for table in tables]

    def forget() -> None:
        for table, rows in zip(tables, before, strict=True):
            table.clear()
            table.update(rows)

    yield forget
    forget()


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Play:
    """Runs a script with arguments in an empty folder; returns its globals and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        values = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return values, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def flat(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files such as red_3.png."""
    folder = tmp_path_factory.mktemp("flat")
    for path in colors.glob("train/*/*.png"):
        (folder / f"{path.parent.name}_{path.name}").symlink_to(path)
    return folder


def test_the_plain_loop_gives_the_weights_of_vitrail_train(play: Play, colors: Path):
    _, printed = play("plain_loop", colors, 3)
    last: dict[str, torch.Tensor] = {}
    keep = SimpleNamespace(on_epoch_end=lambda state: last.update(copy.deepcopy(state.model.state_dict())))
    options: dict[str, Any] = dict(epochs=3, ema_decay=None, precision="fp32", report=False, check=False, device="cpu")
    vitrail.train(colors, callbacks=[keep], **options)
    saved = vitrail.load("plain_loop.safetensors")
    assert saved.classes == ("blue", "green", "red") and saved.vit.config.depth == 5
    if not torch.cuda.is_available():
        assert all(torch.equal(tensor, last[name]) for name, tensor in saved.vit.state_dict().items())
    assert printed.count("epoch ") == 3
    assert f"test accuracy {vitrail.evaluate(saved, colors).accuracy:.3f}" in printed
    assert len((EXAMPLES / "plain_loop.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_an_own_pool_is_trained_and_found_as_a_plugin(
    play: Play, colors: Path, forget_parts: Callable[[], None], capsys: pytest.CaptureFixture[str]
):
    values, printed = play("own_pool", colors)
    run = values["run"]
    assert run.result["test"]["accuracy"] > 0.9
    assert run.classifier.vit.pool.p.item() != 4.0  # p has been trained
    assert f"p {run.classifier.vit.pool.p.item():.3f}" in printed
    forget_parts()
    command = ["predict", str(run.folder), str(next(colors.glob("test/red/*.png")))]
    assert main(command) != 0
    assert "needs the pool 'gem', which a script registers" in capsys.readouterr().err
    assert main([*command, "--plugin", str(EXAMPLES / "own_pool.py")]) == 0
    assert "red " in capsys.readouterr().out


def test_an_own_position_is_trained(play: Play, colors: Path):
    values, printed = play("own_position", colors)
    run = values["run"]
    assert run.result["test"]["accuracy"] > 0.9
    assert "position conditional" in printed
    assert run.classifier.vit.position.conv.weight.abs().sum() > 0
    assert vitrail.load(run.folder).vit.position.add(torch.ones(1, 2, 3, 48)).shape == (1, 2, 3, 48)  # type: ignore[operator]


def test_an_own_loss_is_trained(play: Play, colors: Path):
    values, printed = play("own_loss", colors)
    assert values["run"].result["test"]["accuracy"] > 0.9
    assert "loss __main__.poly_loss" in printed
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    p = logits.softmax(-1)[:, 0]
    assert values["poly_loss"](logits, targets).item() == pytest.approx((1 - p - p.log()).mean().item())


def test_class_weights_change_the_loss(play: Play, tmp_path: Path):
    rare = fill(tmp_path / "rare", {"train": 12, "test": 6}, ("red", "blue"), (16, 16))
    for path in sorted(rare.glob("train/blue/*.png"))[4:]:
        path.unlink()
    values, printed = play("class_weights", rare)
    assert values["weighted"].classifier.origin["recipe"]["balance"] == "weights"
    assert values["plain"].classifier.origin["recipe"]["loss"] == "cross_entropy"
    plain, weighted = (values[name].classifier.vit.state_dict() for name in ("plain", "weighted"))
    assert not torch.equal(plain["head.bias"], weighted["head.bias"])
    assert len(re.findall(r"blue [01]\.\d{3}, red [01]\.\d{3}", printed)) == 2


def test_an_own_data_set_is_trained_on(play: Play, flat: Path):
    values, printed = play("own_dataset", flat)
    assert values["run"].classifier.classes == ("blue", "green", "red")
    assert values["run"].classifier.origin["data"]["images"] == {"train": 42, "validation": 6, "test": 12}
    assert values["run"].result["test"]["accuracy"] > 0.9
    assert "for blue, green, red" in printed


def test_k_folds_score_each_image_once(play: Play, colors: Path):
    values, printed = play("k_folds", colors / "test", 2)
    for fold in (1, 2):
        assert vitrail.load(f"runs/folds/fold-{fold}").origin["data"]["images"]["test"] == 12
    scores = [row["accuracy"] for row in values["result"]["rows"]]
    assert f"2 folds: mean accuracy {np.mean(scores):.3f}" in printed and "all 24 out-of-fold predictions" in printed


def test_training_stops_early(play: Play, colors: Path):
    values, printed = play("early_stopping", colors)
    stopped = values["run"].result["stopped_early"]
    assert stopped["callback"] == "StopAtAccuracy" and stopped["epoch"] < 40
    assert stopped["reason"] == "the validation accuracy reached 90%"
    assert values["run"].result["test"]["accuracy"] > 0.9
    assert f"epoch {values['run'].result['best_epoch']} is kept" in printed


def test_metrics_are_logged(play: Play, colors: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values, printed = play("log_metrics", colors)
    folder = values["run"].folder
    rows = [line.split(",") for line in (folder / "steps.csv").read_text(encoding="utf-8").splitlines()]
    assert [int(step) for step, _ in rows] == list(range(1, 13)) and float(rows[-1][1]) < float(rows[0][1])
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("validation_accuracy")] == [4, 8, 12]
    assert "events.out.tfevents" in printed


def test_hidden_states_lead_to_the_logits(play: Play, colors: Path):
    values, printed = play("hidden_states", colors)
    assert "the logits: True" in printed and printed.count("tokens (8, 64, 96)") == 5
    attention = values["record"].attention(0)
    assert torch.allclose(attention.sum(-1), torch.ones(8, 3, 64), atol=1e-5)
    assert not any(block._forward_hooks for block in values["clf"].vit.blocks)


def test_frozen_parameters_keep_their_values(play: Play, colors: Path):
    values, printed = play("freeze_by_name", colors)
    before, after = vitrail.load("cifar10-small").vit.state_dict(), values["after"]
    frozen = {name for name in after if name.startswith(("patch_embed.", "position.")) or ".attn." in name}
    for name in after:
        if after[name].numel() and not name.startswith("head."):
            assert torch.equal(before[name], after[name]) == (name in frozen), name
    assert frozen <= set(values["unchanged"]) and after["head.weight"].shape == (3, 96)
    assert float(re.findall(r"test accuracy ([\d.]+)", printed)[0]) > 0.9


def test_a_model_that_is_not_a_vit_is_trained(play: Play, colors: Path):
    values, printed = play("own_model", colors)
    assert "ModuleClassifier(3 classes, shufflenet:stride=2, 16x16 px, 344,867 parameters on cpu): test" in printed
    assert f"accuracy {values['run'].result['test']['accuracy']:.3f}" in printed


def test_every_example_is_tested_and_linked():
    tests, usage = Path(__file__).read_text(encoding="utf-8"), (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    for name in SCRIPTS:
        assert f'play("{name}"' in tests and f"(../examples/{name}.py)" in usage, name


# What else researchers have tried. These are tested elsewhere:
#   any module from images to logits      test_modules, test_plugin_processes
#   augment=                              test_plugins: test_a_callable_augments_images_and_a_resume_needs_it_again
#   freezing by name                      test_transfer: test_a_pattern_freezes_parameters_of_every_block, and the rest
#   an interrupt in a callback            test_modules: test_a_resumed_run_has_the_same_bits
#   overwriting POOLS["mean"]             test_plugins: test_a_replaced_built_in_part_fails_before_training
#   train(model=ViT)                      test_models_in_memory: test_a_vit_and_its_config_are_trained
#   train(Dataset, DataLoader, Images)    test_python_data: test_every_kind_of_data_gives_the_batches_and_the_model_...
#   loss=                                 test_plugins: test_a_callable_is_a_loss_that_a_resume_needs_again
#   an optimizer of your own              test_plugins: test_every_other_kind_from_the_command_line
#   patience=                             test_callbacks: test_patience_ends_a_run_that_is_scored_and_reported_as_usual
#   a callback per epoch                  test_callbacks: test_hooks_are_called_in_this_order_with_this_state
#   TensorBoard, W&B, MLflow              test_loggers
#   k folds in a table                    test_sources; by scikit-learn: test_sklearn
#   vitrail.predict, evaluate, ...        test_public_api: test_the_document_lists_everything_public_with_its_module
#   names of options in an editor         test_public_api: test_nothing_public_takes_any_option
#   several labels per image, no class    test_python_data: test_data_that_cannot_be_used_is_refused_in_a_sentence

CONFIG = vitrail.ViTConfig(width=16, depth=1, heads=2, mlp_width=16, image_size=16, patch=4, classes=2)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
LABELS = ["cat", "dog"] * 10
TINY: dict[str, Any] = dict(width=16, depth=1, heads=2, mlp_width=16, epochs=1, report=False, check=False)


class Maximum(nn.Module):
    """A pool with a parameter."""

    def __init__(self, config: vitrail.ViTConfig):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(config.width))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.amax(dim=1) * self.scale


class Shifted(PositionEmbedding):
    """A position with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(CONFIG.width))

    def add(self, x_BhwD: torch.Tensor) -> torch.Tensor:
        return x_BhwD + self.shift


def test_own_parts_work_in_a_plain_loop():
    vit = vitrail.ViT(CONFIG)
    vit.pool, vit.position = Maximum(CONFIG), Shifted()
    vit(torch.randn(2, 3, 16, 24)).square().sum().backward()
    assert vit.pool.scale.grad.abs().sum() > 0 and vit.position.shift.grad.abs().sum() > 0


def test_a_model_of_your_own_is_a_classifier(tmp_path: Path):
    clf = vitrail.Classifier(vitrail.ViT(CONFIG), ("cat", "dog"), vitrail.Preprocess(image_size=(16, 16)))
    clf.save(tmp_path / "own.safetensors")
    loaded = vitrail.load(tmp_path / "own.safetensors")
    assert torch.equal(loaded.predict(PIXELS[0]).logits, clf.predict(PIXELS[0]).logits)
    assert vitrail.explain(loaded, PIXELS[0]).map.shape == (4, 4)


def test_a_model_that_cannot_be_loaded_again_is_refused_when_it_is_saved(tmp_path: Path):
    clf = vitrail.Classifier(vitrail.ViT(CONFIG), ("cat", "dog"), vitrail.Preprocess(image_size=(16, 16)))
    clf.vit.pool = Maximum(CONFIG)
    for refused in (
        lambda: clf.save(tmp_path / "own.safetensors"),
        lambda: vitrail.train((PIXELS, LABELS), model=clf.vit, out=tmp_path / "run", epochs=1),
    ):
        with pytest.raises(VitrailError, match=r"does not describe the tensor pool.scale \(register your part"):
            refused()
    assert not list(tmp_path.iterdir())


REGISTER = 'name it first: vitrail.register("{0}", "mine", ...), then {1}="mine"'


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"pool": Maximum}, REGISTER.format("pool", "pool")),
        ({"position": Shifted}, REGISTER.format("position", "position")),
        ({"position": Shifted()}, REGISTER.format("position", "position")),
        ({"optimizer": torch.optim.NAdam}, REGISTER.format("optimizer", "optimizer")),
        ({"schedule": lambda progress: 1.0}, REGISTER.format("schedule", "schedule")),
        ({"policy": nn.Identity()}, REGISTER.format("augmentation", "policy")),
        ({"class_weights": "balanced"}, 'use balance="weights"'),
        ({"sample_weight": [1.0] * 20}, "images have no weights of their own"),
        ({"transform": nn.Identity()}, "use vitrail.train(augment=FUNCTION)"),
        ({"early_stop": 3}, "callbacks=[vitrail.EarlyStopping(patience=N)]"),
        ({"watchers": [print]}, "use callbacks=[...], a list of objects with hooks"),
        ({"callbacks": [print]}, "the hooks are on_run_start, "),
        ({"multi_label": True}, 'use task="multi_label"'),
        ({"hidden_size": 64}, "use width"),
        ({"loss": "dice"}, 'register your own: vitrail.register("loss", "dice", ...), which --plugin MODULE imports'),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, REGISTER.format("optimizer", "optimizer")),
        ({"model": nn.Linear}, "the model is the class Linear (give a ViT, or a Vision Transformer of timm"),
        ({"model": lambda: nn.Linear(3, 3)}, 'vitrail.register("model", "mine", build)'),
        ({"architecture": "resnet18"}, 'known: vit; or register your own: vitrail.register("model", "resnet18", ...)'),
        ({"freeze": {"blocks": 1}}, "freeze is {'blocks': 1}; it must be a whole number or text or several texts"),
        ({"lr_scheduler": "cosine"}, "did you mean schedule"),
    ],
)
def test_a_wish_is_refused_at_once_with_what_to_do_instead(options: dict[str, Any], instead: str, tmp_path: Path):
    with pytest.raises(VitrailError) as caught:
        vitrail.train(tmp_path / "nowhere", out=tmp_path / "run", **options)
    assert instead in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"callbacks": []}, "vitrail.train takes it; trials of a sweep run in processes of their own"),
        ({"logger": "tensorboard"}, "read OUT/trials/*/metrics.jsonl"),
        ({"augment": print}, "register it, and set policy to its name"),
        ({"loss": print}, 'name it first: vitrail.register("loss", "mine", ...), then loss="mine"'),
        ({"model": nn.Linear(3, 3)}, "trials run in other processes, and a Linear is only in this one"),
        ({"vary": {"pool": ["gem"]}}, 'vitrail.register("pool", "gem", ...), which --plugin MODULE imports'),
        ({"vary": {"optimizer": "adanw"}}, "did you mean adamw"),
    ],
)
def test_a_sweep_refuses_at_once_what_its_trials_cannot_do(options: dict[str, Any], instead: str, tmp_path: Path):
    with pytest.raises(VitrailError) as caught:
        vitrail.sweep("digits", out=tmp_path / "sweep", **{"vary": {"lr": [1e-3]}, **options})
    assert instead in str(caught.value)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("field", ["pool", "mlp", "head", "position", "loss", "optimizer", "schedule", "policy"])
def test_an_unknown_name_of_a_part_says_how_to_add_one(field: str):
    kind = "augmentation" if field == "policy" else field
    for make in (
        lambda: vitrail.Recipe().with_changes(**{field: "gem2000"}),
        lambda: vitrail.ViTConfig(**{field: "gem2000"}) if kind in ("pool", "mlp", "head", "position") else None,
    ):
        with pytest.raises(VitrailError, match="gem2000' is not known") as caught:
            make() or vitrail.Recipe().with_changes(**{field: "gem2000"})
        assert f'vitrail.register("{kind}", "gem2000", ...), which --plugin MODULE imports' in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("hidden_size", "use width"), ("num_heads", "use heads"), ("img_size", "use image_size"), ("widht", "mean width")],
)
def test_a_config_says_which_of_its_names_to_use(name: str, hint: str):
    with pytest.raises(VitrailError, match=f"ViTConfig has no field '{name}'.*{hint}"):
        vitrail.ViTConfig(**{name: 64})


def test_names_of_other_libraries_are_no_fields_and_lead_to_fields():
    known = {each.name for each in fields(vitrail.ViTConfig)}
    assert not OTHER_NAMES.keys() & (known | RECIPE_FIELDS.keys())
    assert set(OTHER_NAMES.values()) <= known
    for name in OTHER_NAMES:  # a recipe has no classes and channels: the data have them
        with pytest.raises(VitrailError, match=f"no field '{name}'"):
            vitrail.Recipe().with_changes(**{name: 1})


def test_a_hint_is_for_no_field_of_a_recipe():
    assert not FIELD_HINTS.keys() & RECIPE_FIELDS.keys()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(20, 2), "have other values than 0 and 1 .give a multi-hot array"),
        (np.arange(20.0), "the numbers value are whole, so they may be classes"),
    ],
    ids=["soft", "whole"],
)
def test_targets_other_than_a_class_are_refused(labels: Any, message: str, tmp_path: Path):
    with pytest.raises(VitrailError, match=message):
        vitrail.train((PIXELS, labels), out=tmp_path / "run", **TINY)


def test_a_pool_that_is_only_in_the_table_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(POOLS, "maximum", Maximum)
    with pytest.raises(VitrailError, match=r"pool 'maximum' is not known \(known: cls, "):
        vitrail.ViTConfig(pool="maximum")


def test_ctrl_c_in_a_callback_keeps_a_run_that_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def interrupt(state: object) -> None:
        raise KeyboardInterrupt

    stop = SimpleNamespace(on_epoch_start=interrupt)
    with pytest.raises(VitrailError, match=r"stopped; .*vitrail.train\(data, resume=True, out='runs/arrays'\)"):
        vitrail.train((PIXELS, LABELS), callbacks=[stop], **TINY)
    run = vitrail.train((PIXELS, LABELS), resume=True, out="runs/arrays", **TINY)
    assert run.result["test"]["images"] == 4


def test_the_training_loop_is_a_module_that_can_be_imported():
    import vitrail.training.loop as loop

    assert callable(loop.train_steps) and callable(vitrail.train)
