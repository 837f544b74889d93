"""Cards of timm's checkpoints, and of the original files that they were converted from."""

import math
import re
import sys
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from tools.card_rows import INTERPOLATIONS, Row, find_differences, list_shapes, make_preprocess
from vitrail.errors import VitrailError
from vitrail.model.config import Rotary, ViTConfig
from vitrail.weights.config_json import config_from_json, config_to_json, position_to_json
from vitrail.weights.families.timm import TimmTokens, find_timm_layout
from vitrail.weights.layouts import LAYOUTS

CLASSES = {
    1000: "imagenet-1k",
    21843: "imagenet-21k",
    21841: "imagenet-22k",
    11821: "imagenet-12k",
    11221: "imagenet-21k-p",
}
CLIP_CLASSES = (1000, 11821, 21841)  # CLIP towers with these numbers of outputs are fine-tuned classifiers
ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GeluTanh": "gelu_tanh"}
POOLS = {"token": "cls", "avg": "mean", "map": "map", "": "cls"}
ORIGINALS = {  # URL of an original file -> its owner, and its layout by timm's
    "dl.fbaipublicfiles.com/dino/": ("facebookresearch", {"timm": "dino"}),
    "dl.fbaipublicfiles.com/dinov2/": ("facebookresearch", {"timm": "dinov2", "timm-registers": "dinov2-registers"}),
    "dl.fbaipublicfiles.com/deit/": (
        "facebookresearch",
        {"timm": "deit", "timm-distilled": "deit-distilled", "timm-deit3": "deit3"},
    ),
    "dl.fbaipublicfiles.com/mae/": ("facebookresearch", {"timm": "mae"}),
    "storage.googleapis.com/vit_models/": ("google", {"timm": "google"}),
}


# Models


def read_timm_model(model: nn.Module) -> tuple[str, ViTConfig]:
    """Returns the layout and config of a timm model; raises `VitrailError` if vitrail does not have it."""
    if type(model).__name__ not in ("VisionTransformer", "VisionTransformerDistilled", "Eva"):
        raise VitrailError(type(model).__name__)
    block = model.blocks[0]
    is_eva = type(model).__name__ == "Eva"
    is_distilled = getattr(model, "dist_token", None) is not None
    layout = read_layout(model)
    size = model.patch_embed.img_size
    config = ViTConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_width=block.mlp.fc2.in_features,
        patch=model.patch_embed.patch_size[0],
        image_size=size[0] if size[0] == size[1] else tuple(size),
        prefix_tokens=count_prefix_tokens(model),
        position=Rotary(base=100.0) if is_eva else LAYOUTS[layout].position,
        mlp=read_mlp(block),
        qkv_bias=(layout == "timm-dinov3-bias") if is_eva else block.attn.qkv.bias is not None,
        qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
        layer_scale=1e-5 if has_layer_scale(block, is_eva) else None,
        pre_norm=has_pre_norm(model),
        final_norm=not isinstance(model.norm, nn.Identity),
        norm_eps=block.norm1.eps,
        pool="cls+dist" if is_distilled else read_pool(model),
        classes=model.num_classes,
    )
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = list_shapes(layout, config)
    if theirs != ours:
        differences = sorted(set(theirs.items()) ^ set(ours.items()))
        raise VitrailError(f"{layout}: {differences[:4]}")
    return layout, config


def read_layout(model: nn.Module) -> str:
    """Returns the layout of a timm model."""
    has_class = model.cls_token is not None
    if getattr(model, "dist_token", None) is not None:
        return "timm-distilled"
    if type(model).__name__ == "Eva":
        if getattr(model, "pos_embed", None) is not None or not has_class:
            raise VitrailError("an EVA that is not DINOv3")
        return "timm-dinov3-bias" if getattr(model.blocks[0].attn, "q_bias", None) is not None else "timm-dinov3"
    tokens = TimmTokens(
        class_token=has_class,
        class_position=has_class and not model.no_embed_class,
        registers=model.reg_token is not None,
        attention_pool=model.global_pool == "map",
        pre_norm=has_pre_norm(model),
    )
    return find_timm_layout(tokens)


def count_prefix_tokens(model: nn.Module) -> int:
    registers = getattr(model, "reg_token", None)
    has_distillation = getattr(model, "dist_token", None) is not None
    return int(model.cls_token is not None) + int(has_distillation) + (0 if registers is None else registers.shape[1])


def has_pre_norm(model: nn.Module) -> bool:
    return not isinstance(getattr(model, "norm_pre", nn.Identity()), nn.Identity)


def has_layer_scale(block: nn.Module, is_eva: bool) -> bool:
    return block.gamma_1 is not None if is_eva else not isinstance(getattr(block, "ls1", None), nn.Identity)


def read_pool(model: nn.Module) -> str:
    """Returns the pool of a timm model."""
    pool = POOLS[model.global_pool]
    is_normed_after = not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity)
    return "mean_norm" if pool == "mean" and is_normed_after else pool


def read_mlp(block: nn.Module) -> str:
    """Returns the kind of a block's MLP; raises `VitrailError` for an activation that vitrail does not have."""
    if type(block.mlp).__name__ in ("SwiGLU", "GluMlp", "SwiGLUPacked"):
        return "swiglu"
    activation = getattr(block.mlp, "act", None)
    if isinstance(activation, nn.GELU) and activation.approximate == "tanh":
        return "gelu_tanh"
    if (name := type(activation).__name__) not in ACTIVATIONS:
        raise VitrailError(f"activation {activation}")
    return ACTIVATIONS[name]


# Cards


def make_timm_cards(results: dict[str, dict[str, float]]) -> list[Row]:
    """Returns a card for each of timm's checkpoints that vitrail has, and for the original file of each.

    Prints the others to stderr. `results` are accuracies by checkpoint.
    """
    rows: list[Row] = []
    models: dict[tuple[str, int], tuple[str, ViTConfig]] = {}
    for name in timm.list_models(pretrained=True):
        if not re.match(r"(vit|deit|flexivit)", name) or re.search(r"relpos|_r26_|_r50_|_r_s16", name):
            continue
        cfg = get_pretrained_cfg(name)
        key = (name.partition(".")[0], cfg.num_classes)
        try:
            if key not in models:
                with torch.device("meta"):
                    models[key] = read_timm_model(timm.create_model(key[0], num_classes=cfg.num_classes))
        except (VitrailError, RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
            print(f"no card: {name}: {str(error)[:150]}", file=sys.stderr)
            continue
        if cfg.crop_mode not in ("center", "squash") or cfg.interpolation not in INTERPOLATIONS:
            print(f"no card: {name}: {cfg.crop_mode} {cfg.interpolation}", file=sys.stderr)
            continue
        rows += make_checkpoint_cards(name, cfg, *models[key], results.get(name, {}))
    return rows


def make_timm_architectures(published: set[str]) -> list[Row]:
    """Returns a row for each of timm's architectures that vitrail has and of which no checkpoint has a card.

    People train such models themselves; loading them needs the architecture's config.
    """
    rows: list[Row] = []
    for module in ("vision_transformer", "deit", "eva"):
        for name in timm.list_models(module=module):
            if name in published:
                continue
            try:
                with torch.device("meta"):
                    layout, config = read_timm_model(timm.create_model(name))
            except (VitrailError, RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
                print(f"no architecture: {name}: {str(error)[:150]}", file=sys.stderr)
                continue
            rows.append(make_checkpoint_cards(name, get_pretrained_cfg(name), layout, config, {})[0])
    return rows


def make_checkpoint_cards(name: str, cfg: Any, layout: str, config: ViTConfig, accuracy: dict[str, float]) -> list[Row]:
    """Returns the cards of one checkpoint and of the original file."""
    size = cfg.input_size[1]
    if size != config.image_size:
        config = config_from_json({**config_to_json(config), "image_size": size})
    is_embedding = "clip" in name and cfg.num_classes not in CLIP_CLASSES
    resize = math.floor(size / cfg.crop_pct)
    norm = {"mean": list(cfg.mean), "std": list(cfg.std)}
    row = {
        "name": f"timm/{name}",
        "layout": layout,
        "config": find_differences(config, layout),
        "preprocess": make_preprocess(size, resize, cfg.interpolation, norm, stretch=cfg.crop_mode == "squash"),
        "labels": "" if is_embedding else CLASSES.get(cfg.num_classes, ""),
        "license": cfg.license or "unknown",
        "source": cfg.hf_hub_id or cfg.url,
        "accuracy": accuracy,
    }
    return [row, *make_original_cards(row, cfg.url or "", config)]


def make_original_cards(row: Row, url: str, config: ViTConfig) -> list[Row]:
    """Returns the card of the file that a checkpoint of timm's was converted from, if it is known."""
    for folder, (owner, layouts) in ORIGINALS.items():
        if folder not in url or row["layout"] not in layouts:
            continue
        layout = layouts[row["layout"]]
        document = config_to_json(config) | {"position": position_to_json(LAYOUTS[layout].position)}
        if layout == "mae":
            document["classes"] = 0
        stem = url.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        digest = re.search(r"-([0-9a-f]{8})$", stem)
        original = {
            "name": f"{owner}/{stem}",
            "layout": layout,
            "config": find_differences(config_from_json(document), layout),
            "source": url,
            "sha256": digest[1] if digest else "",
            "accuracy": {},  # timm measured its own file
        }
        return [row | original]
    return []
