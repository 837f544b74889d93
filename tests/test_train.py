"""Recipes, optimizers, schedules and the training loop."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError
from vitrail.machine import has_native_bf16, pick_device
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.runs.start import explain_precision
from vitrail.training.data_defaults import mean_and_std, pixel_histogram
from vitrail.training.loop import train_steps
from vitrail.training.lora import LORA_TARGETS
from vitrail.training.losses import LOSSES
from vitrail.training.muon import Muon, orthogonalize
from vitrail.training.optimizers import OPTIMIZERS, has_weight_decay
from vitrail.training.recipe import LoraTarget, LossName, OptimizerName, Recipe, ScheduleName, recipe_from_json
from vitrail.training.recipes import RECIPES, find_recipe
from vitrail.training.schedules import SCHEDULES, downscale, image_scale, lr_factor
from vitrail.training.train_state import autocast_dtype, init_train_state
from vitrail.weights.upgrade import RECIPE_KEYS

pytestmark = pytest.mark.newest

TINY = ViTConfig(width=16, depth=2, heads=2, mlp_width=32, patch=4, image_size=8, classes=3)
PREPROCESS = Preprocess(image_size=(8, 8))


def batches(n: int, size: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(0, 256, (size, 3, 8, 8), generator=generator, dtype=torch.uint8),
            torch.randint(0, 3, (size,), generator=generator),
        )
        for _ in range(n)
    ]


def train_tiny(n: int = 3, **changes: object) -> tuple[dict[str, torch.Tensor], list]:
    recipe = Recipe(epochs=1, precision="fp32", warmup_fraction=0.0, schedule="constant").with_changes(**changes)
    torch.manual_seed(0)
    vit = ViT(TINY)
    state = init_train_state(vit, recipe)
    steps = list(train_steps(state, batches(n), recipe, PREPROCESS, total_steps=n))
    return {k: v.clone() for k, v in state.eval_model.state_dict().items()}, steps


def test_gradient_accumulation_computes_the_same_gradient():
    whole, steps = train_tiny(optimizer="sgd", lr=0.1)
    parts, accumulated_steps = train_tiny(optimizer="sgd", lr=0.1, accumulation_steps=3)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-5)
    assert steps[-1].loss == pytest.approx(accumulated_steps[-1].loss, abs=1e-6)
    assert steps[-1].grad_norm == pytest.approx(accumulated_steps[-1].grad_norm, rel=1e-4)


def test_more_accumulation_steps_than_images_are_allowed():
    _, steps = train_tiny(accumulation_steps=100)
    assert [step.images for step in steps] == [12, 12, 12]


def test_gradient_checkpointing_changes_no_result():
    plain, _ = train_tiny()
    checkpointed, _ = train_tiny(gradient_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], atol=1e-6, rtol=1e-5)


def test_ema_weights_follow_their_formula():
    recipe = Recipe(epochs=1, precision="fp32", optimizer="sgd", lr=0.1, ema_decay=0.5, warmup_fraction=0.0)
    torch.manual_seed(0)
    state = init_train_state(ViT(TINY), recipe)
    weights = [
        state.vit.head.weight.detach().clone()
        for _ in train_steps(state, batches(4), recipe, PREPROCESS, total_steps=4)
    ]
    expected = weights[0]
    for n, weight in enumerate(weights[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(state.eval_model.head.weight, expected)


def test_clipping_shortens_the_step_and_reports_the_unclipped_norm():
    _, free = train_tiny(optimizer="sgd", max_grad_norm=None)
    _, clipped = train_tiny(optimizer="sgd", max_grad_norm=1e-3)
    assert free[0].grad_norm == pytest.approx(clipped[0].grad_norm)
    assert clipped[0].grad_norm > 1e-3
    weights, _ = train_tiny(1, optimizer="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, max_grad_norm=1e-3)
    torch.manual_seed(0)
    start = ViT(TINY).state_dict()
    moved = math.sqrt(sum(float(((weights[k] - start[k]) ** 2).sum()) for k in start))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_a_step_is_repeatable_whatever_ran_before():
    first, _ = train_tiny(mixup=0.5)
    torch.rand(100)
    again, _ = train_tiny(mixup=0.5)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_every_name_in_a_recipe_has_its_row_in_a_table():
    assert set(get_args(LossName)) == LOSSES.keys()
    assert set(get_args(OptimizerName)) == OPTIMIZERS.keys()
    assert set(get_args(ScheduleName)) == SCHEDULES.keys()
    assert set(get_args(LoraTarget)) == LORA_TARGETS.keys()


def test_a_loss_is_one_row_of_a_table(monkeypatch: pytest.MonkeyPatch):
    def binary_cross_entropy(logits_BY: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        one_hot = targets if targets.ndim == 2 else F.one_hot(targets, logits_BY.shape[1]).float()
        return F.binary_cross_entropy_with_logits(logits_BY, one_hot)

    plain, _ = train_tiny()
    monkeypatch.setitem(LOSSES, "cross_entropy", lambda context: binary_cross_entropy)
    for changes in ({}, {"mixup": 0.5}):
        weights, steps = train_tiny(30, lr=1e-2, **changes)
        assert steps[-1].loss < steps[0].loss
        assert not torch.equal(weights["head.weight"], plain["head.weight"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_and_updates_every_parameter(optimizer: str):
    recipe = Recipe(epochs=1, precision="fp32", optimizer=optimizer, lr=1e-2, warmup_fraction=0.0, schedule="constant")
    torch.manual_seed(0)
    state = init_train_state(ViT(TINY), recipe)
    before = {name: p.detach().clone() for name, p in state.vit.named_parameters()}
    steps = list(train_steps(state, batches(1) * 30, recipe, PREPROCESS, total_steps=30))
    assert steps[-1].loss < steps[0].loss - 0.1
    unchanged = [name for name, p in state.vit.named_parameters() if torch.equal(p, before[name])]
    assert not unchanged
    weights = sum(p.numel() for p in state.vit.parameters())
    entries = [value for o in state.optimizers for entry in o.state.values() for value in entry.values()]
    stored = sum(value.numel() for value in entries if isinstance(value, torch.Tensor) and value.ndim)
    assert stored <= OPTIMIZERS[optimizer].state_per_weight * weights


def test_vectors_tokens_and_positions_have_no_weight_decay():
    without_decay = {
        name for name, p in ViT(replace(TINY, pool="map")).named_parameters() if not has_weight_decay(name, p)
    }
    assert {
        "prefix",
        "position.grid",
        "pool.query",
        "norm.weight",
        "head.bias",
        "blocks.0.norm1.weight",
    } <= without_decay
    assert not {"head.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} & without_decay
    state = init_train_state(ViT(TINY), Recipe(weight_decay=0.3, weight_decay_on="all"))
    assert [g["weight_decay"] for o in state.optimizers for g in o.param_groups] == [0.3]


@pytest.mark.parametrize(
    ("schedule", "end"), [("constant", 1.0), ("linear", 1 / 90), ("cosine", 0.5 + 0.5 * math.cos(math.pi * 89 / 90))]
)
def test_the_learning_rate_has_a_warmup_then_follows_its_schedule(schedule: str, end: float):
    recipe = Recipe(schedule=schedule, warmup_fraction=0.1)
    parts = [lr_factor(step, 100, recipe) for step in range(100)]
    assert parts[:10] == sorted(parts[:10])
    assert 0 < parts[0] < 0.2
    assert parts[10] == 1
    assert parts[99] == pytest.approx(end)
    assert parts[10:] == sorted(parts[10:], reverse=True)
    assert all(p > 0 for p in (lr_factor(s, 1, replace(recipe, warmup_fraction=0.0)) for s in range(1)))


def test_auto_precision_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert autocast_dtype("auto", cpu) == dtype
    assert autocast_dtype("fp32", cpu) == torch.float32
    assert autocast_dtype("bf16", cpu) == torch.bfloat16


@pytest.mark.parametrize(("capability", "dtype"), [(7, torch.float32), (8, torch.bfloat16)])  # T4 and V100; A100
def test_gpus_that_emulate_bf16_train_in_float32_and_say_so(
    capability: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)  # by emulation
    assert has_native_bf16(gpu) == (dtype == torch.bfloat16)
    assert autocast_dtype("auto", gpu) == dtype
    notes = [explain_precision(Recipe(precision=precision), gpu) or "" for precision in ("auto", "bf16", "fp32")]
    if dtype == torch.bfloat16:
        assert notes == ["", "", ""]
    else:
        assert "runs in float32" in notes[0] and "--precision fp32 is faster" in notes[1] and not notes[2]
    assert explain_precision(Recipe(), torch.device("cpu")) is None


def test_choosing_a_device_allocates_nothing_on_it(monkeypatch: pytest.MonkeyPatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # without a GPU an allocation would fail
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(name) for name in ("cuda", "cuda:1", None)] == list(
        map(torch.device, ("cuda", "cuda:1", "cuda"))
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cpu:1", "meta", "abacus"):
        with pytest.raises(UsageError, match=f"there is no device '{name}' here"):
            pick_device(name)


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="there is no device 'cuda:2' here"):
        pick_device("cuda:2")


def test_field_names_are_unique_across_the_dataclasses_of_a_recipe():
    dataclasses = (ViTConfig, Recipe, type(Recipe().augment))
    names = [f.name for dataclass in dataclasses for f in fields(dataclass)]
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated == set()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_after_a_json_round_trip(name: str):
    assert recipe_from_json(json.loads(json.dumps(RECIPES[name].to_json()))) == RECIPES[name]


def test_a_recipe_of_an_earlier_version_loads():
    recipe = find_recipe("speedrun-75", batch_size=32, ema_decay=0.9, validation_fraction=0.2, image_cache_gib=1.0)
    old_names = {new: old for old, new in RECIPE_KEYS.items()}
    document = {old_names.get(name, name): value for name, value in recipe.to_json().items() if name != "loss"}
    assert {"batch", "ema", "clip", "grow_from", "zero_branches", "validation", "memory", "about"} <= document.keys()
    assert recipe_from_json(document) == recipe


@pytest.mark.parametrize(
    ("old", "new"), [("batch", "batch_size"), ("clip", "max_grad_norm"), ("test", "test_fraction")]
)
def test_an_old_field_name_is_answered_with_the_new_one(old: str, new: str):
    with pytest.raises(UsageError, match=f"no field '{old}'.*it is now called {new}"):
        find_recipe("small", **{old: 1})


def test_changes_go_to_the_dataclass_that_has_the_field():
    recipe = find_recipe("small", epochs=3, flip=0.0, width=48, size="Ti")
    assert recipe.epochs == 3
    assert recipe.augment.flip == 0
    assert recipe.model["width"] == 48  # an explicit field overrides the size
    assert recipe.model["depth"] == 12
    assert RECIPES["small"].epochs is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochz": 3}, "epochz.*did you mean epochs"),
        ({"optimizer": "moun"}, "moun.*did you mean muon"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5"),
        ({"size": "XXL"}, "size 'XXL'"),
        ({"crop_scale": 0.0}, "crop_scale is 0"),
    ],
)
def test_an_impossible_recipe_is_an_error_that_names_the_field(changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        find_recipe("small", **changes)


def test_a_recipe_from_a_file(tmp_path: Path):
    toml = tmp_path / "mine.toml"
    toml.write_text('base = "tutorial"\nepochs = 7\nmixup = 0.2\nwidth = 96\n')
    recipe = find_recipe(toml)
    assert (recipe.name, recipe.epochs, recipe.augment.mixup, recipe.model["width"]) == ("mine", 7, 0.2, 96)
    assert recipe.schedule == "constant"
    (tmp_path / "mine.json").write_text('{"lr": 0.5}')
    assert find_recipe(tmp_path / "mine.json").lr == 0.5
    for text, message in (
        ("epochs = ", "not a recipe"),
        ("epoks = 3", "did you mean epochs"),
        ("lr = 'fast'", "lr|type"),
    ):
        toml.write_text(text)
        with pytest.raises(UsageError, match=message):
            find_recipe(toml)
    with pytest.raises(UsageError, match="did you mean tutorial"):
        find_recipe("tutorail")


def test_defaults_depend_on_the_data():
    from vitrail.data.split import Splits
    from vitrail.training.data_defaults import complete_recipe, resolve_model

    def resolve(recipe: Recipe, splits: Splits) -> tuple[Recipe, ViTConfig, Preprocess]:
        config, preprocess = resolve_model(recipe, splits)
        recipe, preprocess = complete_recipe(recipe, config, preprocess, splits, transfers=False)
        return recipe, config, preprocess

    def splits(size: tuple[int, int], n: int, channels: int = 3, flippable: bool = True) -> Splits:
        pixels = torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8)
        images = Images(pixels, [str(i) for i in range(n)], np.arange(n) % 2, ("a", "b"))
        return Splits("x", ("a", "b"), images, None, None, channels, "", flippable)

    for size, image_size, patch in (
        ((8, 8), 8, 2), ((28, 28), 28, 4), ((32, 32), 32, 4), ((30, 30), 32, 4), ((64, 64), 64, 8),
        ((12, 20), (12, 20), 2), ((480, 640), 96, 8), ((60, 300), 64, 8), ((300, 40), 32, 4),
    ):  # fmt: skip
        resolved, config, preprocess = resolve(Recipe(), splits(size, 8))
        assert (config.image_size, config.patch, config.classes) == (image_size, patch, 2)
        assert preprocess.image_size == ((image_size, image_size) if isinstance(image_size, int) else image_size)
    resolved, config, preprocess = resolve(Recipe(), splits((8, 8), 600, channels=1, flippable=False))
    assert config.channels == 1
    assert resolved.augment.flip == 0
    assert preprocess.mean[0] == pytest.approx(0.5, abs=0.01)
    assert 16 <= resolved.batch_size <= 256
    assert resolve(Recipe(epochs=7, batch_size=5), splits((8, 8), 8))[0].epochs == 7
    resolved, config, _ = resolve(Recipe(model={"image_size": 16, "patch": 8, "position": "rotary"}), splits((8, 8), 8))
    assert config.grid == (2, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_from_histograms_are_those_of_the_pixels(channels: int):
    generator = torch.Generator().manual_seed(0)
    float_images = [torch.randn(channels, 9, 7, generator=generator) * 40 + 60 * i for i in range(5)]
    images = [image.clamp(0, 255).to(torch.uint8) for image in float_images]
    mean_C, std_C = mean_and_std(torch.stack([pixel_histogram(image) for image in images]).sum(0))
    pixels = torch.stack(images).double() / 255
    torch.testing.assert_close(mean_C, pixels.mean((0, 2, 3)), rtol=1e-14, atol=0)
    torch.testing.assert_close(std_C, pixels.std((0, 2, 3)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("momentum", [0.95, 0.6])
def test_muon_takes_the_steps_of_torch_optim_muon(momentum):
    def run_steps(make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(12, 8), (8, 12), (12, 8), (8, 8)]
        matrices = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        optimizer = make_optimizer(matrices)
        for _ in range(5):
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=generator)
            optimizer.step()
        return [matrix.detach() for matrix in matrices]

    ours = run_steps(lambda matrices: Muon(matrices, lr=0.02, weight_decay=0.1, momentum=momentum))
    theirs = run_steps(lambda matrices: torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=momentum))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # both compute directions of length 0.02 in bf16


@pytest.mark.parametrize("shape", [(3, 24, 8), (3, 8, 24)])
def test_muon_computes_in_float32_where_bf16_is_not_native(shape, monkeypatch: pytest.MonkeyPatch):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):  # the iteration acts on each singular value alone
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    exact = (u * values.unsqueeze(-2)) @ vh
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    torch.testing.assert_close(orthogonalize(matrices), exact.float(), atol=2e-5, rtol=0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    rounded = orthogonalize(matrices)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, atol=0.1, rtol=0)


def test_muon_orthogonalizes_queries_keys_and_values_separately():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(24, 8, generator=generator)
    gradient[:8] *= 100  # queries, which would dominate the others in one matrix
    whole = torch.nn.Parameter(torch.zeros(24, 8))
    parts = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    whole.grad = gradient
    for part, piece in zip(parts, gradient.chunk(3), strict=True):
        part.grad = piece.clone()
    Muon([whole], parts=3).step()
    Muon(parts).step()
    torch.testing.assert_close(whole.detach(), torch.cat(parts).detach(), atol=1e-6, rtol=0)
    singular_values = torch.linalg.svdvals(whole.detach()[8:16]) / 0.02
    assert ((singular_values > 0.5) & (singular_values < 1.5)).all()


def test_muon_updates_the_matrices_of_the_blocks_with_qkv_as_three():
    vit = ViT(TINY)
    muon = init_train_state(vit, Recipe(optimizer="muon", muon_momentum=0.7)).optimizers[0]
    assert all(group["momentum"] == 0.7 for group in muon.param_groups)
    of = {id(p): name for name, p in vit.named_parameters()}
    parts = {of[id(p)]: group["parts"] for group in muon.param_groups for p in group["params"]}
    assert parts == {
        name: 3 if "qkv" in name else 1
        for name, p in vit.named_parameters()
        if name.startswith("blocks") and p.ndim == 2
    }


def test_image_size_grows_linearly_in_whole_patches():
    recipe = Recipe(initial_image_scale=0.5, image_growth_fraction=0.8)
    images = torch.randn(2, 3, 32, 48)
    sizes = [tuple(downscale(images, image_scale(step, 100, recipe), 4).shape[-2:]) for step in range(100)]
    assert sizes[0] == (16, 24) and set(sizes[80:]) == {(32, 48)}
    assert sizes == sorted(sizes) and all(h % 4 == 0 and w % 4 == 0 for h, w in sizes)
    assert len({h for h, _ in sizes}) == 5
    assert image_scale(0, 100, Recipe()) == 1.0  # by default images always have their full size


def test_progressive_resizing_starts_with_fewer_tokens():
    token_counts = []

    def record_tokens(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        token_counts.append(inputs[0].shape[1])

    recipe = Recipe(epochs=1, precision="fp32", initial_image_scale=0.5, image_growth_fraction=0.5)
    torch.manual_seed(0)
    state = init_train_state(ViT(TINY), recipe)
    state.vit.blocks[0].register_forward_pre_hook(record_tokens)
    list(train_steps(state, batches(4), recipe, PREPROCESS, total_steps=4))
    assert token_counts == [1 + 1, 1 + 1, 1 + 4, 1 + 4]


def test_images_are_never_smaller_than_one_patch():
    assert downscale(torch.randn(1, 3, 8, 8), 0.01, 4).shape[-2:] == (4, 4)
