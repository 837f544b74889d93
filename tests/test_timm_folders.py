"""Folders that timm writes with `save_for_hf`: each loads and has timm's outputs."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tests.parity_cases import randomize_parameters
from timm.models._hub import save_config_for_hf
from tools.timm_cards import read_timm_model
from torch import nn

import vitrail
from vitrail import VitrailError
from vitrail.weights.config_files import parse_config
from vitrail.weights.timm_config import load_architectures

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)
NAMES = ["ant", "bee", "cat", "dog", "elk"]
Change = Callable[[nn.Module], Any]


def keep(model: nn.Module) -> None:
    pass


FOLDERS: dict[str, tuple[str, dict[str, Any], Change]] = {  # architecture, arguments, a later change of the model
    "small": ("vit_tiny_patch16_224", TINY, keep),
    "not square": ("vit_tiny_patch16_224", TINY | {"img_size": (24, 40)}, keep),
    "any size": ("vit_tiny_patch16_224", TINY | {"dynamic_img_size": True}, keep),
    "gray": ("vit_tiny_patch16_224", TINY | {"in_chans": 1}, keep),
    "mean": ("vit_tiny_patch16_224", TINY | {"global_pool": "avg"}, keep),
    "mean of normalized": ("vit_tiny_patch16_224", TINY | {"global_pool": "avg", "fc_norm": False}, keep),
    "no class token": ("vit_tiny_patch16_224", TINY | {"global_pool": "avg", "class_token": False}, keep),
    "no last norm": ("vit_tiny_patch16_224", TINY | {"final_norm": False}, keep),
    "ratio": ("vit_tiny_patch16_224", TINY | {"mlp_ratio": 2.6}, keep),
    "registers": ("vit_tiny_patch16_224", TINY | {"reg_tokens": 2, "no_embed_class": True}, keep),
    "layer scale": ("vit_tiny_patch16_224", TINY | {"init_values": 0.1, "qk_norm": True, "qkv_bias": False}, keep),
    "training options": (
        "vit_tiny_patch16_224",
        TINY | {"drop_path_rate": 0.1, "weight_init": "moco", "patch_drop_rate": 0.2, "act_layer": "quick_gelu"},
        keep,
    ),
    "no classes": ("vit_tiny_patch16_224", TINY | {"num_classes": 0}, keep),
    "a new head": ("vit_tiny_patch16_224", TINY, lambda model: model.reset_classifier(3)),
    "class token, then mean": ("vit_tiny_patch16_224", TINY, lambda model: model.reset_classifier(3, "avg")),
    "mean, then class token": (
        "vit_tiny_patch16_224", TINY | {"global_pool": "avg"}, lambda model: model.reset_classifier(3, "token"),
    ),
    "another size": ("vit_tiny_patch16_224", TINY, lambda model: model.set_input_size((48, 48))),
    "pixels beyond the patches": ("vit_tiny_patch16_224", TINY | {"img_size": 36}, keep),
    "an architecture without weights": ("test_vit", {"num_classes": 5, "img_size": 32}, keep),
    "mean by architecture": ("vit_base_patch16_gap_224", TINY, keep),
    "SigLIP": ("vit_base_patch16_siglip_224", TINY, keep),
    "SigLIP, mean": ("vit_base_patch16_siglip_224", TINY | {"global_pool": "avg"}, keep),
    "SigLIP, no pool later": ("vit_base_patch16_siglip_224", TINY, lambda model: model.reset_classifier(5, "avg")),
    "CLIP": ("vit_base_patch16_clip_224", TINY, keep),
    "DeiT-III": ("deit3_base_patch16_224", TINY, keep),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", TINY, keep),
    "DINOv2": ("vit_small_patch14_dinov2", TINY, keep),
    "DINOv2, SwiGLU": ("vit_giant_patch14_dinov2", TINY, keep),
    "DINOv3": ("vit_small_patch16_dinov3", TINY, keep),
    "DINOv3, class token": ("vit_small_patch16_dinov3", TINY | {"global_pool": "token", "qkv_bias": True}, keep),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3", TINY | {"embed_dim": 48, "mlp_ratio": 2.1}, keep),
}  # fmt: skip


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(path)
    return path


def build_model(name: str) -> nn.Module:
    architecture, arguments, change = FOLDERS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = randomize_parameters(timm.create_model(architecture, **arguments))
        change(model)
    return randomize_parameters(model).eval()


@torch.inference_mode()
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_has_timms_outputs(name: str, tmp_path: Path, photo: Path):
    """Pixels are prepared as timm's own transform for the folder does."""
    model = build_model(name)
    data_config = {"mean": (0.4,), "std": (0.3,)} if model.in_chans == 1 else {}
    if name == "not square":
        data_config = {"crop_mode": "squash", "crop_pct": 1.0}
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, data_config=data_config)
    clf = vitrail.load(tmp_path)
    assert len(clf.classes) == model.num_classes
    reloaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(reloaded), is_training=False)
    x = transform(Image.open(photo).convert("L" if model.in_chans == 1 else "RGB"))[None]
    pixels = clf.read_image(photo)[None]
    expected = reloaded(x)
    difference = (clf.vit(clf.normalize(pixels)) - expected).abs().max()
    assert expected.std() > 1e-3
    assert difference < 1e-5, (name, float(difference))


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_folder_without_arguments_has_the_pool_that_it_names(pool: str, tmp_path: Path, photo: Path):
    """timm 1.0.20 records arguments only if the caller of `save_for_hf` repeats them."""
    model = randomize_parameters(timm.create_model("test_vit", num_classes=5, global_pool=pool)).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    document = json.loads((tmp_path / "config.json").read_text())
    del document["model_args"]
    assert document["global_pool"] == pool
    (tmp_path / "config.json").write_text(json.dumps(document))
    clf = vitrail.load(tmp_path)
    x = clf.normalize(clf.read_image(photo)[None])
    expected = model(x)
    assert expected.std() > 1e-3 and (clf.vit(x) - expected).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_architecture_has_the_config_that_timm_gives_it(tmp_path: Path):
    """With the arguments that timm records for every model, most of them with another width and size."""
    assert len(load_architectures()) > 150
    for index, name in enumerate(load_architectures()):
        others = {"embed_dim": 432, "num_heads": 6, "img_size": 448} if index % 3 else {}
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=7, depth=1, **others)
        layout, expected = read_timm_model(model)
        save_config_for_hf(model, tmp_path / "config.json")
        parsed = parse_config(json.loads((tmp_path / "config.json").read_text()), tmp_path)
        scale = parsed.config.layer_scale and expected.layer_scale  # only an initial value
        assert parsed.layout == layout, name
        assert replace(parsed.config, layer_scale=scale) == replace(expected, layer_scale=scale), name


LABELS = {
    "names": ({"label_names": NAMES}, tuple(NAMES)),
    "names by index, with a gap": (
        {"label_names": {0: "ant", 1: "bee", 2: "cat", 4: "elk"}}, ("ant", "bee", "cat", "class 3", "elk"),
    ),
    "codes and descriptions": (
        {"label_names": ["n1", "n2", "n3", "n4", "n5"],
         "label_descriptions": dict(zip(["n1", "n2", "n3", "n4", "n5"], NAMES, strict=True))}, tuple(NAMES),
    ),
    "the old field": ({"labels": NAMES}, tuple(NAMES)),
    "none": ({}, tuple(f"class {index}" for index in range(5))),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_class_names_are_read(case: str, tmp_path: Path):
    model_config, expected = LABELS[case]
    model = build_model("small")
    timm.models.save_for_hf(model, tmp_path, model_config=model_config, safe_serialization=True)
    assert vitrail.load(tmp_path).classes == expected


REFUSED = {
    "avgmax": ({"global_pool": "avgmax"}, "global_pool 'avgmax' is not known"),
    "no pool": ({"global_pool": ""}, "global_pool '' is not known"),
    "no bias": ({"proj_bias": False}, "proj_bias=False makes a model that vitrail does not have"),
    "no positions": ({"pos_embed": "none", "class_token": False, "global_pool": "avg"}, "pos_embed='none' makes"),
    "rectangles": ({"patch_size": (8, 4)}, "are not square"),
    "activation": ({"act_layer": "relu"}, "activation 'relu' is not known"),
    "padding": ({"img_size": 36, "dynamic_img_size": True, "dynamic_img_pad": True}, "dynamic_img_pad pads images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused_by_name(case: str, tmp_path: Path):
    arguments, sentence = REFUSED[case]
    model = timm.create_model("vit_tiny_patch16_224", **TINY | arguments)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(VitrailError, match=sentence):
        vitrail.load(tmp_path)
