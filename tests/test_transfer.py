"""Training from pretrained weights: what is transferred, what is trained, what is frozen, and resuming."""

import copy
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from vitrail.classifier import Classifier
from vitrail.cli import main
from vitrail.data.open import open_data
from vitrail.data.preprocess import Preprocess
from vitrail.data.split import Splits
from vitrail.errors import UsageError, VitrailError
from vitrail.installation import install_hint
from vitrail.interrupts import Interrupted
from vitrail.model.config import Learned, ViTConfig
from vitrail.model.vit import ViT
from vitrail.runs import epochs
from vitrail.runs.folder import RunFolder
from vitrail.runs.probes import compare_with_probes
from vitrail.training.data_defaults import complete_recipe
from vitrail.training.loop import train_steps
from vitrail.training.lora import merge_lora
from vitrail.training.optimizers import parameter_groups
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import RECIPES, find_recipe
from vitrail.training.schedules import count_warmup_steps
from vitrail.training.train_state import init_train_state
from vitrail.training.transfer import describe_head, resolve_transfer, transfer_weights
from vitrail.weights.artifact import read_artifact, weights_sha256
from vitrail.weights.resize import resize_patch_projection, resize_vit

TINY = ViTConfig(width=16, depth=3, heads=2, mlp_width=32, patch=4, image_size=16, classes=3)


def make_vit(config: ViTConfig = TINY, seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    vit = ViT(config)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit


def train_tiny(vit: ViT, recipe: Recipe, n: int = 3):
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator),
            torch.randint(0, vit.config.classes, (8,), generator=generator),
        )
        for _ in range(n)
    ]
    state = init_train_state(vit, recipe)
    list(train_steps(state, batches, recipe, Preprocess(image_size=(16, 16)), total_steps=n))
    return state


# Layer-wise decay, resizing


def test_layer_wise_learning_rates_and_weight_decay_are_those_of_timm():
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2, num_classes=3
    )
    ours = {"cls_token": "prefix", "pos_embed": "position.grid"}
    names = {id(p): ours.get(name, name) for name, p in theirs.named_parameters()}
    expected = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(
            theirs, weight_decay=0.05, no_weight_decay_list=theirs.no_weight_decay(), layer_decay=0.75
        )
        for p in group["params"]
    }
    vit = ViT(TINY)
    names = {id(p): name for name, p in vit.named_parameters()}
    recipe = Recipe(layer_decay=0.75, weight_decay=0.05, lr=2.0)
    actual = {
        names[id(p)]: (group["lr"] / 2, group["weight_decay"])
        for group in parameter_groups(vit, recipe, recipe.lr)
        for p in group["params"]
    }
    assert actual.keys() == expected.keys()
    for name, (scale, decay) in expected.items():
        assert actual[name] == (pytest.approx(scale), decay), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_every_optimizer_takes_layer_wise_decay_and_schedules_it(optimizer: str):
    recipe = Recipe(optimizer=optimizer, layer_decay=0.5, warmup_fraction=0.0, schedule="linear", precision="fp32")
    state = train_tiny(make_vit(), recipe, 4)
    rates = {group["lr"] for each in state.optimizers for group in each.param_groups}
    highest = {recipe.lr * 0.5**depth for depth in range(5)}  # head, three blocks, embedding
    if optimizer == "muon":
        highest |= {recipe.muon_lr * 0.5**depth for depth in (1, 2, 3)}  # the blocks' matrices
    assert sorted(rates) == pytest.approx(sorted(rate / 4 for rate in highest))  # the last of four steps


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (14, 16), (6, 6)])
def test_the_patch_projection_is_resized_as_in_timm(old: int, new: int):
    timm_layers = pytest.importorskip("timm.layers")
    weight = torch.randn(5, 3, old, old)
    theirs = timm_layers.resample_patch_embed(weight, [new, new])
    torch.testing.assert_close(resize_patch_projection(weight, new), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", [Learned(), Learned(antialias=False, offset=0.1)])
def test_resized_position_embeddings_equal_those_of_the_forward(position: Learned):
    vit = make_vit(replace(TINY, position=position)).eval()
    images = torch.randn(2, 3, 24, 32)
    resized = resize_vit(vit, replace(vit.config, image_size=(24, 32)))
    assert resized.position.grid.shape == (6, 8, 16)
    torch.testing.assert_close(resized(images), vit(images))


# Transferred weights


def test_the_same_classes_keep_the_head_in_any_order():
    vit, images = make_vit().eval(), torch.randn(4, 3, 16, 16)
    for head in ("linear", "mlp"):
        vit = make_vit(replace(TINY, head=head)).eval()
        same, transfer = transfer_weights(vit, ("a", "b", "c"), vit.config, ("a", "b", "c"))
        assert transfer == "kept"
        torch.testing.assert_close(same.eval()(images), vit(images), rtol=0, atol=0)
        reordered, transfer = transfer_weights(vit, ("a", "b", "c"), vit.config, ("c", "a", "b"))
        assert transfer == "reordered"
        torch.testing.assert_close(reordered.eval()(images), vit(images)[:, [2, 0, 1]])


@pytest.mark.parametrize("theirs", [("a", "b", "x"), ("a", "b"), ()])
def test_other_classes_get_a_new_head_on_the_same_backbone(theirs: tuple[str, ...]):
    vit = make_vit(replace(TINY, classes=len(theirs))).eval()
    config = replace(TINY, classes=3, drop_path=0.2)
    new, transfer = transfer_weights(vit, theirs, config, ("a", "b", "c"))
    assert transfer == "new"
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(new.eval().features(images), vit.features(images), rtol=0, atol=0)
    assert new(images).shape == (2, 3)
    message = describe_head(transfer, theirs, ("a", "b", "c"))
    assert "new head of 3" in message
    assert (", ".join(theirs) or "the model has no classes") in message


def resolve_recipe(recipe: Recipe, splits: Splits, own: Preprocess) -> tuple[Recipe, ViTConfig, Preprocess]:
    """Resolves a recipe for weights of the tiny model with this preprocessing."""
    config, preprocess = resolve_transfer(recipe, len(splits.classes), TINY, own)
    recipe, preprocess = complete_recipe(recipe, config, preprocess, splits, transfers=True)
    return recipe, config, preprocess


def test_the_preprocessing_is_that_of_the_model_unless_the_recipe_changes_it(colors: Path):
    splits = open_data(colors)
    own = Preprocess(image_size=(16, 16), fit="crop", crop_fraction=0.9, interpolation="bicubic", mean=(0.1, 0.2, 0.3))
    _, config, same = resolve_recipe(find_recipe("finetune"), splits, own)
    assert same == own
    assert config == TINY
    changes = {"image_size": 32, "fit": "pad", "normalize": "imagenet", "crop_fraction": 1.0, "patch": 8}
    recipe, config, changed = resolve_recipe(find_recipe("finetune", **changes), splits, own)
    assert (config.image_size, config.patch, config.grid) == (32, 8, (4, 4))
    assert changed == replace(
        own, image_size=(32, 32), fit="pad", crop_fraction=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        min_size=8,
    )  # fmt: skip
    assert recipe.model["image_size"] == 32


def test_fields_that_contradict_the_weights_are_named_with_both_values(colors: Path):
    splits = open_data(colors)
    for changes, message in (
        ({"width": 32}, "has width 32, but the weights to start from have width 16"),
        ({"pool": "mean", "depth": 9}, "depth 9, pool mean|pool mean, depth 9"),
        ({"layer_scale": 0.1}, "layer_scale 0.1.*layer_scale none"),
        ({"position": "rotary"}, "position Rotary.*position Learned"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve_recipe(find_recipe("finetune", **changes), splits, Preprocess(image_size=(16, 16)))
    with pytest.raises(UsageError, match=r"recipe small has .*width 96"):
        resolve_recipe(find_recipe("small"), splits, Preprocess(image_size=(16, 16)))
    with pytest.raises(UsageError, match="does not divide into patches"):
        resolve_recipe(find_recipe("finetune", image_size=18), splits, Preprocess(image_size=(16, 16)))


# Trainable and frozen parameters


@pytest.mark.parametrize(
    ("freeze", "moving"),
    [(0, ("",)), (2, ("blocks.2.", "norm.", "head.")), (3, ("norm.", "head.")), ("backbone", ("head.",))],
)
def test_frozen_parameters_keep_every_bit(freeze, moving: tuple[str, ...]):
    vit = make_vit(replace(TINY, dropout=0.5, drop_path=0.5, embedding_dropout=0.5))
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    state = train_tiny(
        vit, Recipe(freeze=freeze, lr=0.1, weight_decay=0.5, weight_decay_on="all", ema_decay=0.9, precision="fp32")
    )
    for weights in (vit.state_dict(), state.eval_model.state_dict()):
        moved = {name for name in before if not torch.equal(before[name], weights[name])}
        assert moved == {name for name in before if name.startswith(moving)}


def test_parameters_are_frozen_by_name_as_by_number():
    recipe = dict(lr=0.1, weight_decay=0.5, ema_decay=0.9, precision="fp32")
    start = make_vit(replace(TINY, dropout=0.5))
    weights = []
    for freeze in (1, "patch_embed position prefix blocks.0", ("patch_embed.*, pos*", "prefix", "blocks.0.*")):
        vit = copy.deepcopy(start)
        train_tiny(vit, Recipe(freeze=freeze, **recipe))
        weights.append(vit.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())


def test_a_pattern_freezes_parameters_of_every_block():
    vit = make_vit()
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    state = train_tiny(vit, Recipe(freeze=("blocks.*.attn", "*.norm2.bias"), lr=0.1, precision="fp32"))
    kept = {name for name, tensor in vit.state_dict().items() if torch.equal(tensor, before[name])}
    assert kept == {name for name in before if ".attn." in name or name.endswith("norm2.bias")}
    state.set_train_mode()
    assert [(block.attn.training, block.mlp.training) for block in vit.blocks] == [(False, True)] * 3


@pytest.mark.parametrize(
    ("freeze", "message", "hint"),
    [
        ("blocks.7", "freeze 'blocks.7' matches no parameter", "did you mean blocks.2"),
        ("patch_embd", "freeze 'patch_embd' matches no parameter", "did you mean patch_embed"),
        ("*", "freeze matches every parameter", "freeze fewer"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(freeze: str, message: str, hint: str):
    with pytest.raises(UsageError, match=message.replace("*", r"\*")) as refused:
        init_train_state(make_vit(), Recipe(freeze=freeze))
    assert hint in refused.value.hint


def test_requires_grad_of_a_given_model_is_respected_also_after_a_resume(colors: Path, tmp_path: Path):
    vit = make_vit(replace(TINY, classes=3))
    vit.patch_embed.requires_grad_(False)
    vit.blocks[1].requires_grad_(False)
    options: dict[str, Any] = dict(epochs=2, lr=1e-2, validation_fraction=0, report=False, check=False, workers=0)
    run = vitrail.train(colors, model=vit, out=tmp_path / "whole", **options)
    weights, frozen = run.classifier.vit.state_dict(), ("patch_embed.", "blocks.1.")
    kept = {name for name, tensor in vit.state_dict().items() if torch.equal(tensor, weights[name])}
    assert kept == {name for name in weights if name.startswith(frozen)}
    assert RunFolder(run.folder).load_recipe().freeze.startswith("patch_embed.proj.weight patch_embed.proj.bias ")

    class Stop:
        def on_epoch_end(self, state):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        vitrail.train(colors, model=vit, out=tmp_path / "cut", callbacks=[Stop()], **options)
    resumed = vitrail.train(colors, model=vit, out=tmp_path / "cut", resume=True, **options)
    again = resumed.classifier.vit.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    with pytest.raises(UsageError, match="parameters are frozen twice"):
        vitrail.train(colors, model=vit, freeze=1, out=tmp_path / "twice", **options)
    assert not (tmp_path / "twice").exists()


def test_frozen_modules_have_no_dropout():
    vit = make_vit(replace(TINY, dropout=0.5, drop_path=0.5, embedding_dropout=0.5))
    state = init_train_state(vit, Recipe(freeze=2))
    state.set_train_mode()
    assert not vit.embedding_drop.training
    assert [block.drop_path.training for block in vit.blocks] == [False, False, True]
    assert [block.attn.proj_drop.training for block in vit.blocks] == [False, False, True]
    state = init_train_state(make_vit(vit.config), Recipe(freeze="backbone"))
    state.set_train_mode()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(state.vit(images), state.vit(images))


def test_an_impossible_number_of_frozen_blocks_is_an_error():
    with pytest.raises(UsageError, match="freeze is 4, but the model has 3 blocks"):
        init_train_state(make_vit(), Recipe(freeze=4))
    with pytest.raises(UsageError, match="cannot be frozen by name besides"):
        Recipe(freeze="head", lora_rank=2)
    with pytest.raises(UsageError, match="LoRA trains the backbone"):
        Recipe(freeze="backbone", lora_rank=2)


@pytest.mark.parametrize("on", ["qkv", "attention", "blocks"])
def test_merged_lora_has_the_logits_of_unmerged_peft(on: str):
    pytest.importorskip("peft")
    vit = make_vit(replace(TINY, qk_norm=True))
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    state = train_tiny(
        vit, Recipe(lora_rank=2, lora_target=on, lora_dropout=0.1, lr=0.05, freeze=1, precision="fp32"), 6
    )
    images = torch.randn(4, 3, 16, 16)
    state.vit.eval()
    with torch.no_grad():
        unmerged = state.vit(images)
        plain = merge_lora(state.vit)
        torch.testing.assert_close(plain(images), unmerged, atol=1e-4, rtol=1e-4)
    assert plain.state_dict().keys() == before.keys()
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, before[name])}
    ends = {"qkv": ("qkv",), "attention": ("qkv", "proj"), "blocks": ("qkv", "proj", "fc1", "fc2")}[on]
    targets = {n for n in before if n.split(".")[0] == "blocks" and n.split(".")[1] != "0"}
    targets = {n for n in targets if n.endswith(tuple(f"{end}.weight" for end in ends))}
    assert changed == targets | {"head.weight", "head.bias"}
    fresh = init_train_state(make_vit(), Recipe(lora_rank=2)).vit.eval()  # an initial LoRA update changes nothing
    torch.testing.assert_close(fresh(images), make_vit().eval()(images))


def test_lora_without_peft_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=re.escape(install_hint("lora"))):
        init_train_state(make_vit(), Recipe(lora_rank=2))


# Whole runs


@pytest.fixture(scope="module")
def pretrained(run: vitrail.Run) -> Path:
    """The run on three colors, as weights to start from."""
    return run.folder


QUICK = {
    "finetune": {"epochs": 3, "batch_size": 16},
    "linear": {},
    "lora": {"epochs": 3, "batch_size": 16, "lora_dropout": 0.1},
}


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("recipe", QUICK)
def test_a_run_from_pretrained_weights(recipe: str, pretrained: Path, make_folder, capsys):
    pytest.importorskip("peft")
    folder = make_folder("warm and cold", 15, ("warm", "cold"))
    out = folder.parent / "run"
    before = (pretrained / "classifier.safetensors").read_bytes()
    options = QUICK[recipe] if recipe == "linear" else {**QUICK[recipe], "validation_fraction": 0.0}  # keeps the last
    run = vitrail.train(folder, model=pretrained, recipe=recipe, out=out, **options)
    message = capsys.readouterr().err
    assert "a new head of 2 classes (cold, warm) replaces that of 3 classes (blue, green, red)" in message
    assert run.classifier.classes == ("cold", "warm")
    assert run.result["test"]["accuracy"] == 1.0
    probes = run.result["probe"]
    assert probes["linear"]["images"] == probes["knn"]["images"] == run.result["test"]["images"] == 6
    assert json.loads((out / "result.json").read_text()) == run.result
    artefact, weights = read_artifact(out / "classifier.safetensors")
    theirs, their_weights = read_artifact(pretrained / "classifier.safetensors")
    origin = artefact.origin["from"]
    assert (origin["model"], origin["head"], origin["classes"]) == (pretrained.name, "new", 3)
    assert origin["sha256"] == weights_sha256(their_weights)
    assert origin["origin"]["data"]["name"] == "colors"
    assert artefact.preprocess == theirs.preprocess
    assert weights.keys() == their_weights.keys()  # the tensors of an ordinary ViT
    assert {p.name for p in out.iterdir()} >= {
        "classifier.safetensors", "metrics.jsonl", "recipe.json", "result.json",
        "curves.png", "confusion.png", "attention.png",
    }  # fmt: skip
    moved = {
        name for name in weights if not name.startswith("head") and not torch.equal(weights[name], their_weights[name])
    }
    if recipe == "linear":
        assert not moved
        assert run.result["test"]["accuracy"] == probes["linear"]["accuracy"]
        assert all("penalty" in json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
        scores = vitrail.evaluate(run.classifier, folder)
        assert scores.outcome.loss == pytest.approx(run.result["test"]["loss"], abs=1e-6)
    elif recipe == "lora":
        assert moved == {n for n in weights if n.endswith(("attn.qkv.weight", "attn.proj.weight"))}
    else:
        assert {"prefix", "position.grid", "patch_embed.proj.weight", "norm.weight"} & moved
    assert (pretrained / "classifier.safetensors").read_bytes() == before


def test_a_new_head_is_initialized_from_the_probe_or_at_random(pretrained: Path, make_folder):
    folder = make_folder("two", 15, ("warm", "cold"))
    losses = {}
    for start in ("probe", "random"):
        options = {
            "epochs": 1,
            "batch_size": 64,
            "lr": 1e-9,
            "label_smoothing": 0.0,
            "head_init": start,
            "crop": "none",
        }
        run = vitrail.train(folder, model=pretrained, out=folder.parent / start, **options)
        losses[start] = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])["validation_loss"]
        assert run.result["probe"]["knn"]["accuracy"] == 1.0
        if run.result["best_epoch"]:
            message = "gained nothing over k-NN" if run.result["test"]["accuracy"] == 1.0 else "loses to k-NN"
        else:
            message = "training gained nothing: no epoch was better"
        assert message in run.result["verdict"]
    assert losses["probe"] < 0.2 < losses["random"]


def test_the_same_classes_and_another_image_size(pretrained: Path, colors: Path, tmp_path: Path, capsys):
    run = vitrail.train(colors, model=pretrained, out=tmp_path / "run", epochs=1, image_size=(24, 20), freeze=1)
    message = capsys.readouterr().err
    assert "the same 3 classes as the model; the head is kept" in message
    assert "12,864 frozen" in message
    assert run.classifier.vit.config.image_size == (24, 20)
    assert run.classifier.preprocess.image_size == (24, 20)
    assert run.result["test"]["accuracy"] > 0.9
    weights, theirs = run.classifier.vit.state_dict(), vitrail.load(pretrained).vit.state_dict()
    assert weights["position.grid"].shape[:2] == (12, 10)
    assert torch.equal(weights["blocks.0.mlp.fc1.weight"], theirs["blocks.0.mlp.fc1.weight"])
    assert not torch.equal(weights["blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])


def test_weights_trained_on_another_split_of_the_same_data_cause_a_warning(make_folder, tmp_path: Path, capsys):
    folder = make_folder("one", 15)
    small = {"epochs": 1, "width": 16, "depth": 1, "heads": 2, "mlp_width": 32}
    first = vitrail.train(folder, out=tmp_path / "first", **small)
    capsys.readouterr()
    vitrail.train(folder, model=first.classifier, recipe="linear", out=tmp_path / "same")
    assert "with another split" not in capsys.readouterr().err
    vitrail.train(folder, model=first.classifier, recipe="linear", out=tmp_path / "other", split_seed=4)
    assert "with another split" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["finetune", "lora"])
def test_a_resumed_run_ends_with_the_same_bits(recipe: str, pretrained: Path, make_folder):
    pytest.importorskip("peft")
    folder = make_folder("warm and cold", 20, ("warm", "cold"))
    options = {
        **QUICK[recipe],
        "recipe": recipe,
        "model": pretrained,
        "dropout": 0.1,
        "drop_path": 0.1,
        "freeze": 1,
        "ema_decay": 0.9,
        "validation_fraction": 0.0,  # keeps the last weights
    }
    whole = vitrail.train(folder, out=folder.parent / "whole", **options)
    with stop_at(4):
        vitrail.train(folder, out=folder.parent / "broken", **options)
    again = vitrail.train(folder, out=folder.parent / "broken", resume=True)
    first, second = ((r.folder / "classifier.safetensors").read_bytes() for r in (whole, again))
    assert first == second
    assert again.result["test"] == whole.result["test"]
    assert again.result["probe"]["linear"] == whole.result["probe"]["linear"]


def load_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_that_makes_the_weights_worse_keeps_the_start(pretrained: Path, make_folder, capsys):
    folder = make_folder("warm and cold", 15, ("warm", "cold"))
    run = vitrail.train(folder, model=pretrained, out=folder.parent / "run", epochs=2, batch_size=8, lr=0.3)
    start, *rest = load_rows(run.folder)
    assert start.keys() == {"epoch", "step", "validation_loss", "validation_accuracy", "validation_balanced_accuracy"}
    assert (start["epoch"], start["step"], run.result["best_epoch"]) == (0, 0, 0)
    assert [row["epoch"] for row in rest] == [1, 2]
    assert all(row["validation_loss"] > start["validation_loss"] for row in rest)
    assert run.result["test"]["accuracy"] == run.result["probe"]["linear"]["accuracy"] == 1.0
    weights, theirs = run.classifier.vit.state_dict(), vitrail.load(pretrained).vit.state_dict()
    assert all(torch.equal(weights[name], theirs[name]) for name in weights if not name.startswith("head"))
    assert "training gained nothing: no epoch was better" in run.result["verdict"]
    message = capsys.readouterr().err
    assert "epoch 0/2  validation loss" in message
    assert "the weights at the start, so these are kept" in message


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_scores_the_start_once(step: int, pretrained: Path, make_folder):
    folder = make_folder("warm and cold", 15, ("warm", "cold"))
    options = {"model": pretrained, "epochs": 2, "batch_size": 8, "lr": 0.3}
    whole = vitrail.train(folder, out=folder.parent / "whole", **options)
    broken = folder.parent / "broken"
    with stop_at(step):
        vitrail.train(folder, out=broken, **options)
    assert [row["epoch"] for row in load_rows(broken)] == [0, *([1] if step == 4 else [])]
    if step == 1:  # as if the machine had stopped before the first checkpoint
        shutil.rmtree(broken / "checkpoint")
    again = vitrail.train(folder, out=broken, resume=True)
    scores = [[{k: v for k, v in row.items() if not k.endswith(("seconds", "second"))} for row in load_rows(run.folder)]
              for run in (whole, again)]  # fmt: skip
    assert scores[0] == scores[1]
    assert again.result["best_epoch"] == whole.result["best_epoch"] == 0
    first, second = ((r.folder / "classifier.safetensors").read_bytes() for r in (whole, again))
    assert first == second


def test_a_run_that_has_not_scored_its_start_resumes_without_it(
    pretrained: Path, make_folder, monkeypatch: pytest.MonkeyPatch
):
    folder = make_folder("warm and cold", 15, ("warm", "cold"))
    out = folder.parent / "old"
    with stop_at(1), monkeypatch.context() as patch:
        patch.setattr(epochs, "score_start", lambda run, stop: None)  # as before the start was scored
        vitrail.train(folder, model=pretrained, out=out, epochs=2, batch_size=8)
    run = vitrail.train(folder, out=out, resume=True)
    assert [row["epoch"] for row in load_rows(out)] == [1, 2]
    assert run.result["best_epoch"] in (1, 2)


@contextmanager
def stop_at(number: int) -> Iterator[None]:
    """Inside, a run receives SIGINT at this step and must stop there."""
    real = epochs.train_steps

    def steps(state, *rest, **others):
        for step in real(state, *rest, **others):
            if step.step == number:
                signal.raise_signal(signal.SIGINT)
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "train_steps", steps)
        with pytest.raises(Interrupted, match=f"stopped at step {number}"):
            yield


def test_recipe_linear_stopped_while_computing_features_ends_with_the_same_bits(
    pretrained: Path, make_folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder = make_folder("many", {"train": 160, "test": 4}, ("warm", "cold"))
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "one"))
    whole = vitrail.train(folder, model=pretrained, recipe="linear", out=tmp_path / "whole")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "two"))
    real, calls = Classifier.features, []

    def stop_at_the_fifth(self, images):
        calls.append(len(images))
        if len(calls) == 5:  # the first batch of the cache's second file
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, images)

    monkeypatch.setattr(Classifier, "features", stop_at_the_fifth)
    with pytest.raises(Interrupted, match="continue with --resume"):
        vitrail.train(folder, model=pretrained, recipe="linear", out=tmp_path / "broken")
    assert not (tmp_path / "broken" / "classifier.safetensors").exists()
    before = len(calls)
    again = vitrail.train(folder, out=tmp_path / "broken", resume=True)
    assert 0 < len(calls) - before < before + 3  # the features of 256 images were cached
    first, second = ((r.folder / "classifier.safetensors").read_bytes() for r in (whole, again))
    assert first == second


# Errors


def test_a_recipe_for_pretrained_weights_needs_a_model(colors: Path, tmp_path: Path):
    for changes in ({"recipe": "finetune"}, {"recipe": "linear"}, {"recipe": "lora"}, {"freeze": 1}, {"lora_rank": 4}):
        with pytest.raises(UsageError, match="needs weights to start from.*--from MODEL"):
            vitrail.train(colors, out=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_data_check_uses_the_fit_of_the_pretrained_model(make_folder, tmp_path: Path):
    preprocess = Preprocess(image_size=(16, 16), fit="crop")
    model = Classifier(make_vit(), ("a", "b", "c"), preprocess)
    folder = make_folder("wide", 6, ("warm", "cold"), size=(16, 60))
    run = vitrail.train(folder, model=model, recipe="linear", out=tmp_path / "run", report=False)
    findings = json.loads((run.folder / "check.json").read_text())["findings"]
    elongated = [each for each in findings if each["code"] == "elongated-images"]
    assert {each["consequence"] for each in elongated} == {"only their center is used"}


def test_resume_requires_the_same_pretrained_weights(pretrained: Path, run: vitrail.Run, make_folder, tmp_path: Path):
    folder = make_folder("few", 8, ("warm", "cold"))
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((pretrained / "classifier.safetensors").read_bytes())
    vitrail.train(folder, model=copy, recipe="linear", out=tmp_path / "run")
    vitrail.train(folder, model=pretrained, out=tmp_path / "run", resume=True)  # the same weights in another file
    other = Classifier(make_vit(run.classifier.vit.config), run.classifier.classes, run.classifier.preprocess)
    other.save(copy)
    with pytest.raises(VitrailError, match="does not hold the weights"):
        vitrail.train(folder, out=tmp_path / "run", resume=True)
    copy.unlink()
    with pytest.raises(UsageError, match="no run folder or artifact"):
        vitrail.train(folder, out=tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="started from random weights"):
        vitrail.train(folder, model=pretrained, out=run.folder, resume=True)
    vitrail.train(folder, model=other, recipe="linear", out=tmp_path / "in memory")
    with pytest.raises(UsageError, match="pass it again as model="):
        vitrail.train(folder, out=tmp_path / "in memory", resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "./nowhere"], "nowhere"),
        (["--from", "WARM", "--width", "64"], "width 64, but the weights to start from have width 32"),
        (["--from", "WARM", "--image-size", "15"], "does not divide into patches of 2"),
        (["--from", "WARM", "--freeze", "9"], "freeze is 9, but the model has 2 blocks"),
        (["--from", "WARM", "--freeze", "tail"], "freeze 'tail' matches no parameter of the model"),
        (["--from", "WARM", "--freeze", "*"], "freeze matches every parameter"),
        (["--from", "WARM", "--recipe", "linear", "--epochs", "3"], "fits its head on features, where epochs"),
        (["--from", "WARM", "--recipe", "linear", "--flip", "0"], "where flip has no effect"),
        (["--from", "WARM", "--recipe", "linear", "--patience", "2"], "fits its head on features, where patience"),
        (["--from", "WARM", "--recipe", "linear", "--head", "mlp"], "only a linear head"),
        (["--from", "WARM", "--lora-rank", "0"], "lora_rank is 0"),
    ],
)
def test_wrong_use_is_one_error_and_creates_no_folder(
    arguments, message, pretrained: Path, colors: Path, tmp_path: Path, capsys
):
    arguments = [str(pretrained) if argument == "WARM" else argument for argument in arguments]
    assert main(["train", str(colors), "--out", str(tmp_path / "run"), "--quiet", *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_data_of_other_classes_with_a_hint(pretrained: Path, make_folder, capsys):
    folder = make_folder("two", 4, ("warm", "cold"))
    assert main(["evaluate", str(pretrained), str(folder)]) == 1
    error = capsys.readouterr().err
    assert "the classes 'cold', 'warm' are not among" in error
    assert "vitrail train DATA --from MODEL" in error


def test_the_command_line_tells_when_a_model_is_worse_than_a_probe(
    pretrained: Path, make_folder, tmp_path: Path, capsys
):
    folder = make_folder("two", 15, ("warm", "cold"))
    arguments = [
        "--from",
        pretrained,
        "--lr",
        "0.5",
        "--epochs",
        "1",
        "--warmup-fraction",
        "0",
        "--head-init",
        "random",
        "--max-grad-norm",
        "none",
    ]
    assert main(["train", *map(str, (folder, "--out", tmp_path / "run", *arguments))]) == 0
    shown = capsys.readouterr().out
    assert "6 images" in shown
    assert "a linear probe on the pretrained features: test accuracy" in shown
    assert "loses to" in shown or "gained nothing" in shown


def test_the_verdict():
    def figures(accuracy: float, low: float, high: float) -> dict:
        return {"accuracy": accuracy, "accuracy_interval": [low, high]}

    classifier = Classifier(
        make_vit(), ("a", "b", "c"), Preprocess(image_size=(16, 16)), origin={"recipe": {"train_on": "images"}}
    )
    probes = {"knn": figures(0.7, 0.6, 0.8), "linear": figures(0.9, 0.85, 0.95)}
    assert compare_with_probes(classifier, figures(0.92, 0.9, 0.94), probes) is None
    assert "gained nothing over the linear probe" in compare_with_probes(classifier, figures(0.9, 0.85, 0.95), probes)
    assert "loses to the linear probe by 0.0200 (their intervals overlap" in compare_with_probes(
        classifier, figures(0.88, 0.8, 0.9), probes
    )
    assert "chance" not in compare_with_probes(classifier, figures(0.5, 0.4, 0.6), probes)
    classifier.origin["recipe"]["train_on"] = "features"
    assert compare_with_probes(classifier, figures(0.5, 0.4, 0.6), probes) is None


def test_few_steps_have_a_small_learning_rate_and_a_warmup(make_folder):
    folder = make_folder("two", {"train": 60, "validation": 2, "test": 2}, ("warm", "cold"))
    splits = open_data(folder, channels=3, validation=0.1, test=0.1)
    own = Preprocess(image_size=(16, 16))

    def resolve(**changes) -> Recipe:
        return resolve_recipe(find_recipe("finetune", **changes), splits, own)[0]

    recipe = resolve()
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (
        10,
        16,
        pytest.approx(4.2e-5 * (80 / 100) ** 0.5, rel=0.02),
    )
    assert count_warmup_steps(80, recipe) == 20
    assert count_warmup_steps(8, recipe) == 4
    assert count_warmup_steps(1000, recipe) == 100
    assert resolve(epochs=1).lr < recipe.lr < resolve(epochs=100).lr < resolve(epochs=100_000).lr == 3e-4
    assert (resolve(lr=1e-3).lr, resolve(batch_size=4).batch_size) == (1e-3, 4)


def test_the_recipes_for_pretrained_weights_are_marked():
    assert {name for name, recipe in RECIPES.items() if recipe.needs_pretrained_weights} == {
        "finetune",
        "linear",
        "lora",
    }
