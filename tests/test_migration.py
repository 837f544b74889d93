"""Settings of timm, torchvision and ultralytics as recipes, and tables of fastai."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm.data.auto_augment
import torch
import yaml
from torchvision.transforms import v2

import vitrail
from conftest import COLORS, picture
from vitrail.cli import main
from vitrail.data.open import open_source
from vitrail.errors import UsageError, VitrailError
from vitrail.migration.files import import_recipe, read_settings
from vitrail.migration.recipe_file import to_toml
from vitrail.training.recipes import RECIPES, find_recipe

TIMM: dict[str, Any] = {  # as train.py of timm 1.0 writes args.yaml
    "aa": "rand-m9-n3-mstd0.5-inc1", "amp": True, "amp_dtype": "float16", "aug_repeats": 0, "aug_splits": 0,
    "batch_size": 128, "bce_loss": False, "checkpoint_hist": 10, "class_map": "", "clip_grad": None,
    "clip_mode": "norm", "color_jitter": 0.4, "cooldown_epochs": 0, "crop_pct": 0.9, "cutmix": 1.0,
    "cutmix_minmax": None, "data_dir": "/data/photos", "decay_epochs": 90, "decay_milestones": [90, 180, 270],
    "decay_rate": 0.1, "drop": 0.0, "drop_path": 0.1, "epochs": 50, "grad_accum_steps": 2,
    "grad_checkpointing": False, "hflip": 0.4, "img_size": None, "input_size": None, "interpolation": "bicubic",
    "jsd_loss": False, "layer_decay": None, "lr": None, "lr_base": 0.001, "lr_base_scale": "", "lr_base_size": 256,
    "mean": [0.485, 0.456, 0.406], "min_lr": 1e-5, "mixup": 0.8, "mixup_mode": "batch", "mixup_off_epoch": 0,
    "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "model": "vit_small_patch16_224", "model_ema": True,
    "model_ema_decay": 0.9998, "momentum": 0.9, "no_aug": False, "num_classes": 3, "opt": "adamw", "opt_betas": None,
    "opt_eps": None, "output": "out", "pretrained": False, "ratio": [0.75, 1.3333333333333333], "recount": 1,
    "remode": "const", "reprob": 0.25, "scale": [0.2, 1.0], "sched": "cosine", "seed": 42, "smoothing": 0.1,
    "std": [0.229, 0.224, 0.225], "train_interpolation": "bicubic", "vflip": 0.1, "warmup_epochs": 5,
    "warmup_lr": 0.0, "weight_decay": 0.04, "workers": 8,
}  # fmt: skip
ULTRALYTICS: dict[str, Any] = {  # as a run of `yolo classify train` documents itself
    "task": "classify", "mode": "train", "model": "yolo11n-cls.pt", "data": "photos", "epochs": 40, "time": None,
    "patience": 10, "batch": 16, "imgsz": 224, "pretrained": True, "optimizer": "AdamW", "seed": 3, "cos_lr": False,
    "dropout": 0.0, "lr0": 0.002, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005, "warmup_epochs": 4.0,
    "warmup_momentum": 0.8, "warmup_bias_lr": 0.0, "nbs": 64, "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4,
    "degrees": 0.0, "scale": 0.5, "flipud": 0.2, "fliplr": 0.5, "mosaic": 1.0, "auto_augment": "randaugment",
    "erasing": 0.4, "fraction": 1.0, "freeze": None, "amp": True, "save_dir": "runs/classify/train",
}  # fmt: skip
TORCHVISION = """#!/bin/sh
# python train.py of torchvision's references
torchrun --nproc_per_node=8 train.py --data-path /data/photos \\
  --model vit_b_16 --epochs 300 --batch-size 64 --opt adamw --lr 0.003 --wd 0.3 --lr-scheduler cosineannealinglr \\
  --lr-warmup-method linear --lr-warmup-epochs 30 --lr-warmup-decay 0.033 --amp --label-smoothing 0.11 \\
  --mixup-alpha 0.2 --auto-augment ra --clip-grad-norm=0.5 --ra-sampler --cutmix-alpha 1.0 --model-ema
"""


def write(path: Path, values: dict[str, Any], **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**values, **changes}, default_flow_style=False))
    return path


def missing(imported: Any) -> set[str]:
    return {each.name for each in imported.missing}


def test_timm(tmp_path: Path):
    imported = import_recipe(write(tmp_path / "args.yaml", TIMM), processes=4)
    recipe, augment = imported.recipe, imported.recipe.augment
    assert imported.library == "timm" and imported.model is None
    assert {name: recipe.model[name] for name in ("width", "depth", "heads", "mlp_width", "patch", "image_size")} == {
        "width": 384, "depth": 12, "heads": 6, "mlp_width": 1536, "patch": 16, "image_size": 224,
    }  # fmt: skip
    assert recipe.model["drop_path"] == 0.1
    assert (recipe.batch_size, recipe.accumulation_steps) == (1024, 2)  # of 4 processes, each with 2 micro-batches
    assert recipe.lr == pytest.approx(0.001 * 2)  # AdamW: the square root of 1024 / 256
    assert (recipe.epochs, recipe.warmup_fraction, recipe.schedule) == (50, 0.1, "cosine")
    assert (recipe.optimizer, recipe.weight_decay, recipe.max_grad_norm) == ("adamw", 0.04, None)
    assert (recipe.label_smoothing, recipe.ema_decay, recipe.seed) == (0.1, 0.9998, 42)
    assert (recipe.normalize, recipe.interpolation, recipe.fit, recipe.crop_fraction) == (
        "imagenet", "bicubic", "crop", 0.9,
    )  # fmt: skip
    assert (augment.crop, augment.crop_scale, augment.flip) == ("resized", 0.2, 0.4)
    assert (augment.policy, augment.policy_ops, augment.policy_magnitude) == ("randaugment", 3, 27)
    assert (augment.random_erasing, augment.mixup, augment.cutmix) == (0.25, 0.8, 1.0)
    assert missing(imported) == {"aa", "min_lr", "vflip"}  # of aa, the part mstd0.5
    assert "mstd" in next(each.reason for each in imported.missing if each.name == "aa")
    assert set(imported.ignored) == {
        "amp", "amp_dtype", "checkpoint_hist", "data_dir", "num_classes", "output", "workers",
    }  # fmt: skip
    assert {"decay_epochs", "mixup_prob", "jsd_loss"} <= set(imported.off)


def test_the_magnitude_of_randaugment_is_that_of_timm():
    """Magnitude 9 of 10 in timm is 27 of 30 in torchvision, for each operation with a comparable range."""
    ours = v2.RandAugment(magnitude=27)._AUGMENTATION_SPACE
    auto_augment = timm.data.auto_augment
    for operation, theirs, tolerance in (
        ("Rotate", auto_augment._rotate_level_to_arg, 1e-6),
        ("ShearX", auto_augment._shear_level_to_arg, 1e-6),
    ):
        magnitudes = ours[operation][0](31, 224, 224)
        (argument,) = theirs(9, {})
        assert abs(argument) == pytest.approx(float(magnitudes[27]), abs=tolerance)


@pytest.mark.parametrize(
    ("changes", "model", "lost"),
    [
        ({"model": "vit_base_patch16_384.augreg_in1k"}, "timm/vit_base_patch16_384.augreg_in1k", set()),
        ({"model": "hf_hub:timm/vit_large_patch14_dinov2.lvd142m"}, "timm/vit_large_patch14_dinov2.lvd142m", set()),
        ({"model": "vit_small_patch16_224"}, None, {"pretrained"}),  # several checkpoints
        ({"model": "resnet50"}, None, {"model"}),
    ],
)
def test_weights_that_timm_started_from(changes: dict[str, Any], model: str | None, lost: set[str], tmp_path: Path):
    imported = import_recipe(write(tmp_path / "args.yaml", TIMM, pretrained=True, **changes))
    assert imported.model == model
    assert missing(imported) == {"aa", "min_lr", "vflip", *lost}
    assert ("width" in imported.recipe.model) == (changes["model"] == "resnet50")


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"opt": "lamb"}, {"opt"}),
        ({"sched": "step"}, {"sched"}),
        ({"clip_grad": 0.1, "clip_mode": "agc"}, {"clip_mode"}),
        ({"bce_loss": True, "jsd_loss": True}, {"bce_loss", "jsd_loss"}),
        ({"aa": "original"}, {"aa"}),
        ({"aa": None}, {"color_jitter"}),
        ({"aa": "rand-m6"}, set()),
        ({"drop": 0.1, "class_map": "map.txt"}, {"drop", "class_map"}),
        ({"mean": [0.1, 0.2, 0.3]}, {"mean", "std"}),
        ({"remode": "pixel", "mixup_prob": 0.5}, {"remode", "mixup_prob"}),
        ({"a_setting_of_tomorrow": 3}, {"a_setting_of_tomorrow"}),
        ({"warmup_epochs": 60}, {"warmup_epochs"}),
    ],
)
def test_what_a_recipe_cannot_have_is_named(changes: dict[str, Any], lost: set[str], tmp_path: Path):
    imported = import_recipe(write(tmp_path / "args.yaml", TIMM, **changes))
    usual = {"min_lr", "vflip"} | ({"aa"} if "aa" not in changes else set())
    assert missing(imported) == usual | lost


def test_sgd_of_timm_has_a_linear_learning_rate(tmp_path: Path):
    recipe = import_recipe(write(tmp_path / "args.yaml", TIMM, opt="sgd", no_aug=True)).recipe
    assert (recipe.optimizer, recipe.momentum, recipe.lr) == ("sgd", 0.9, 0.001)
    assert (recipe.augment.crop, recipe.augment.flip, recipe.augment.policy) == ("none", 0.0, "none")
    recipe = import_recipe(write(tmp_path / "args.yaml", TIMM, lr=0.07, warmup_prefix=True)).recipe
    assert (recipe.lr, recipe.epochs, recipe.warmup_fraction) == (0.07, 55, 5 / 55)


def test_torchvision_from_a_command_and_from_a_checkpoint(tmp_path: Path):
    command = tmp_path / "train.sh"
    command.write_text(TORCHVISION)
    imported = import_recipe(command)
    recipe, augment = imported.recipe, imported.recipe.augment
    assert (recipe.model["width"], recipe.model["patch"], recipe.model["image_size"]) == (768, 16, 224)
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.warmup_fraction) == (300, 512, 0.003, 0.1)
    assert (recipe.optimizer, recipe.weight_decay, recipe.weight_decay_on) == ("adamw", 0.3, "all")
    assert (recipe.max_grad_norm, recipe.label_smoothing, recipe.normalize) == (0.5, 0.11, "imagenet")
    assert (recipe.fit, recipe.crop_fraction) == ("crop", 224 / 256)
    assert (augment.crop_scale, augment.policy, augment.policy_magnitude) == (0.08, "randaugment", 9)
    assert (augment.mixup, augment.cutmix, augment.flip) == (0.2, 1.0, 0.5)
    # the script averages every 32 steps, with a decay that it scales: after 320 steps the same is left of the start
    left = (1 - (1 - 0.99998) * 512 * 32 / 300) ** 10
    assert recipe.ema_decay is not None and recipe.ema_decay**320 == pytest.approx(left)
    assert missing(imported) == {"lr_warmup_decay", "ra_sampler"}
    values, _ = read_settings(command)
    arguments = argparse.Namespace(**values, gpu=0, distributed=True, device="cuda", weights=None)
    torch.save({"model": {"x": torch.zeros(2)}, "epoch": 3, "args": arguments}, tmp_path / "checkpoint.pth")
    same = import_recipe(tmp_path / "checkpoint.pth")
    assert same.recipe.to_json() == {**recipe.to_json(), "name": "checkpoint"}
    assert missing(same) == missing(imported)
    command.write_text(TORCHVISION.replace("--model-ema", "--weights ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"))
    assert import_recipe(command).model == "torchvision/vit_b_16.swag_e2e_v1"


def test_ultralytics(tmp_path: Path):
    imported = import_recipe(write(tmp_path / "args.yaml", ULTRALYTICS))
    recipe, augment = imported.recipe, imported.recipe.augment
    assert imported.library == "ultralytics"
    assert (recipe.epochs, recipe.patience, recipe.seed, recipe.warmup_fraction) == (40, 10, 3, 0.1)
    assert (recipe.batch_size, recipe.accumulation_steps, recipe.weight_decay) == (64, 4, 0.0005)
    assert (recipe.optimizer, recipe.lr, recipe.schedule, recipe.max_grad_norm) == ("adamw", 0.002, "linear", 10.0)
    assert (augment.crop, augment.crop_scale, augment.policy) == ("resized", 0.5, "randaugment")
    assert (augment.random_erasing, recipe.model["image_size"]) == (0.4, 224)
    assert missing(imported) == {"model", "warmup_momentum", "lrf", "flipud"}
    automatic = import_recipe(write(tmp_path / "args.yaml", ULTRALYTICS, optimizer="auto", batch=-1))
    assert missing(automatic) == missing(imported) | {"optimizer", "batch"}
    with pytest.raises(UsageError, match="settings for the task detect"):
        import_recipe(write(tmp_path / "args.yaml", ULTRALYTICS, task="detect"))


def test_every_setting_is_in_the_recipe_or_in_a_list(tmp_path: Path):
    """A changed value changes the recipe, or the setting is listed: none vanishes."""
    file = tmp_path / "args.yaml"
    for values in (TIMM, ULTRALYTICS):
        before = import_recipe(write(file, values))
        listed = {*missing(before), *before.ignored, *before.off}
        for name in values.keys() - listed - {"task", "pretrained", "color_jitter", "hsv_h", "hsv_s", "hsv_v"}:
            if name in ("momentum", "clip_mode", "lr_base_scale", "warmup_lr", "remode"):
                continue  # without effect beside the other settings
            after = import_recipe(write(file, values, **{name: other_value(name, values[name])}))
            assert after.recipe != before.recipe or missing(after) != missing(before), name


def other_value(name: str, value: Any) -> Any:
    known = {
        "model": "vit_tiny_patch16_224", "opt": "sgd", "optimizer": "SGD", "img_size": 384, "input_size": [3, 384, 384],
        "lr": 0.5, "interpolation": "bilinear", "sched": "step", "layer_decay": 0.7, "auto_augment": "augmix",
        "train_interpolation": "random", "clip_grad": 2.0, "crop_pct": 0.5,
    }  # fmt: skip
    if name in known:
        return known[name]
    if isinstance(value, list):
        return [each / 2 for each in value]
    if isinstance(value, str) or value is None:
        return f"other {value}"
    return not value if isinstance(value, bool) else (value / 2 or 0.3) if isinstance(value, float) else value + 1


def test_the_file_is_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for i, (values, changes) in enumerate(((TIMM, {}), (ULTRALYTICS, {"batch": -1}), (TIMM, {"model": "resnet50"}))):
        file, out = write(tmp_path / f"args{i}.yaml", values, **changes), tmp_path / f"recipe{i}.toml"
        assert main(["recipe", "--import", str(file), "--out", str(out), "--processes", "2", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        imported, loaded = import_recipe(file, 2), find_recipe(out)
        assert loaded.to_json() == {
            **imported.recipe.to_json(),
            "name": f"recipe{i}",
            "description": f"from {out.name}",
        }
        assert {each["name"] for each in document["missing"]} == missing(imported)
        assert all(f"# {name} " in out.read_text() for name in missing(imported))
        assert main(["recipe", "--import", str(file), "--out", str(out)]) == 2
        assert "already exists" in capsys.readouterr().err
    assert main(["recipe", "--import", str(file), "--processes", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == to_toml(imported, file.name)
    assert "not in this recipe: model resnet50" in captured.err
    assert "paths, logs, speed): amp," in captured.err


def test_an_imported_recipe_trains(colors: Path, tmp_path: Path):
    values = {**ULTRALYTICS, "epochs": 1, "imgsz": 16, "warmup_epochs": 0}
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(import_recipe(write(tmp_path / "args.yaml", values)), "args.yaml"))
    run = vitrail.train(colors, recipe=recipe, out=tmp_path / "run", width=16, heads=1, depth=1, report=False)
    assert run.classifier.vit.config.pool == RECIPES["small"].model["pool"]


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    torch.save({"args": Unsafe()}, "model.pth")
    with pytest.raises(VitrailError, match="holds more than tensors and plain values"):
        import_recipe(Path("model.pth"))
    assert not Path("executed").exists()
    torch.save({"model": {}}, "weights.pth")
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("other.yaml").write_text("names: {0: cat}\npath: data\n")
    Path("broken.yaml").write_text("a: [1\n")
    Path("notes.txt").write_text("the results were good\n")
    Path("binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (
        ("weights.pth", "does not say how it was trained"),
        ("list.yaml", "has no settings"),
        ("other.yaml", "has no settings of timm, torchvision or ultralytics"),
        ("broken.yaml", "is not YAML"),
        ("notes.txt", "has no command with train.py"),
        ("binary", "is not a text file"),
        ("nowhere.yaml", "there is no file nowhere.yaml"),
    ):
        assert main(["recipe", "--import", name]) == 2
        assert message in capsys.readouterr().err
    write(Path("args.yaml"), TIMM, epochs="many")
    assert main(["recipe", "--import", "args.yaml"]) == 2
    assert "the setting epochs is 'many', and must be a number" in capsys.readouterr().err
    write(Path("args.yaml"), TIMM, scale=0.08)
    assert main(["recipe", "--import", "args.yaml"]) == 2
    assert "settings of timm have a value of another kind" in capsys.readouterr().err
    assert main(["recipe", "small", "--out", "x.toml"]) == 2
    assert main(["recipe", "small", "--import", "args.yaml"]) == 2
    assert not Path("x.toml").exists()


def test_none_in_a_toml_file(tmp_path: Path):
    file = tmp_path / "own.toml"
    file.write_text(
        'max_grad_norm = "none"\nema_decay = "none"\npolicy = "none"\nposition = "none"\nlayer_scale = "none"\n'
    )
    recipe = find_recipe(file)
    assert (recipe.max_grad_norm, recipe.ema_decay, recipe.augment.policy) == (None, None, "none")
    assert type(vitrail.ViTConfig(**recipe.model).position).__name__ == "NoPosition"
    file.write_text('epochs = 3\nweight_decay = "none"\n')
    with pytest.raises(UsageError, match="weight_decay is 'none'; it must be a number"):
        find_recipe(file)


def test_a_table_of_fastai(tmp_path: Path):
    """`ImageDataLoaders.from_csv(path, valid_col="is_valid")` reads such a table."""
    rows = ["name,label,is_valid"]
    for i, (name, color) in enumerate(COLORS.items()):
        (tmp_path / name).mkdir()
        for k in range(3):
            picture(color, 10 * i + k).save(tmp_path / name / f"{k}.png")
            rows.append(f"{name}/{k}.png,{name},{k == 2}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows))
    splits = open_source(table, 3).splits
    assert {split: len(listing.labels) for split, listing in splits.items()} == {
        "train": 2 * len(COLORS), "validation": len(COLORS),
    }  # fmt: skip
    assert splits["validation"].names == [f"{name}/2.png" for name in COLORS]
    table.write_text("\n".join([*rows, f"{name}/0.png,{name},maybe"]))
    with pytest.raises(VitrailError, match="is_valid is 'maybe'"):
        open_source(table, 3)
    table.write_text("name,path,label\n" + f"a name,{name}/0.png,{name}\n")
    assert open_source(table, 3).splits["all"].names == [f"{name}/0.png"]


def test_a_checkpoint_of_timm_with_own_classes(tmp_path: Path):
    """`model_best.pth.tar` of train.py has the architecture of a card and another head; EMA weights come first."""
    torch.manual_seed(0)
    model, ema = (timm.create_model("vit_tiny_patch16_224", num_classes=3).eval() for _ in range(2))
    file = tmp_path / "model_best.pth.tar"
    arguments = argparse.Namespace(**TIMM)
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": ema.state_dict(), "args": arguments}, file)
    card = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    clf = vitrail.load(f"{card}@{file}", torch_files=True)
    assert clf.classes == ("class 0", "class 1", "class 2")
    pixels_BCHW = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(clf.vit(pixels_BCHW), ema(pixels_BCHW), rtol=1e-4, atol=1e-5)
    assert import_recipe(file).recipe.model["width"] == 384
    named = replace(clf, classes=("cat", "dog", "fox"))
    named.save(tmp_path / "named.safetensors")
    assert vitrail.load(tmp_path / "named.safetensors").classes == ("cat", "dog", "fox")
    ema.head = torch.nn.Linear(64, 3)
    torch.save({"state_dict": ema.state_dict()}, file)
    with pytest.raises(VitrailError, match=r"head.weight would be \(3, 64\), expected \(3, 192\)"):
        vitrail.load(f"{card}@{file}", torch_files=True)
