"""Writes src/vitrail/weights/cards.jsonl from what timm, torchvision and open_clip say of their weights.

    python tools/make_cards.py

The reported accuracies are in reported.csv: the rows for plain ViTs of timm's results-imagenet.csv, measured by timm on
ImageNet-1k's validation set. Checkpoints whose tensors one of our layouts
does not account for, by name and shape, get no card.
"""

import csv
import json
import math
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision.models
from timm.models import get_pretrained_cfg
from torch import nn

from vitrail.errors import VitrailError
from vitrail.model import ViTConfig
from vitrail.model.config import Rotary
from vitrail.weights.config_json import config_from_json, config_to_json, position_to_json
from vitrail.weights.conversion import export_weights, meta_state_dict
from vitrail.weights.layouts import LAYOUTS

OUT = Path(__file__).parent.parent / "src/vitrail/weights/cards.jsonl"
REPORTED = Path(__file__).parent / "reported.csv"
PIL = {"bilinear": "bilinear", "bicubic": "bicubic"}
SETS = {
    1000: "imagenet-1k",
    21843: "imagenet-21k",
    21841: "imagenet-22k",
    11821: "imagenet-12k",
    11221: "imagenet-21k-p",
}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def preparation(
    size: int, resize: int, interpolation: str, norm: dict[str, Any], squash: bool = False, engine: str = "pillow"
) -> dict[str, Any]:
    """The preprocessing of a card: the short side to `resize`, the middle `size` of it."""
    return {
        "image_size": [size, size],
        "fit": "stretch" if squash else "crop",
        "crop_fraction": size / resize,
        "interpolation": PIL[interpolation],
        "engine": engine,
        **norm,
    }


def differences(config: ViTConfig, layout: str) -> dict[str, Any]:
    """The config without what the defaults and the layout say."""
    defaults = {f.name: f.default for f in fields(ViTConfig) if f.default is not MISSING}
    document = config_to_json(config)
    position = position_to_json(config.position)
    document.pop("position")
    kept = {name: value for name, value in document.items() if value != defaults[name]}
    if position != position_to_json(LAYOUTS[layout].position):
        kept["position"] = position
    return kept


def shapes(layout: str, config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a file of this layout and config."""
    root = LAYOUTS[layout].roots[0]
    return {
        name: tuple(tensor.shape)
        for name, tensor in export_weights(LAYOUTS[layout], root, config, meta_state_dict(config)).items()
    }


ACTS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GeluTanh": "gelu_tanh"}


def timm_config(model: nn.Module) -> tuple[str, ViTConfig]:
    """The layout and config of a timm model; raises `VitrailError` where ours cannot be it."""
    eva = type(model).__name__ == "Eva"
    if type(model).__name__ not in ("VisionTransformer", "VisionTransformerDistilled", "Eva"):
        raise VitrailError(type(model).__name__)
    block = model.blocks[0]
    mlp = type(block.mlp).__name__
    fc2 = block.mlp.fc2
    pool = {"token": "cls", "avg": "mean", "map": "map", "": "cls"}[model.global_pool]
    normed_after = not isinstance(getattr(model, "fc_norm", nn.Identity()), nn.Identity)
    if pool == "mean" and normed_after:
        pool = "mean_norm"
    act = getattr(block.mlp, "act", None)
    act_name = ACTS.get(type(act).__name__)
    if isinstance(act, nn.GELU) and act.approximate == "tanh":
        act_name = "gelu_tanh"
    gated = mlp in ("SwiGLU", "GluMlp", "SwiGLUPacked")
    if not gated and act_name is None:
        raise VitrailError(f"activation {act}")
    scale = getattr(block, "ls1", None)
    scaled = not isinstance(scale, nn.Identity) if not eva else block.gamma_1 is not None
    has_class = model.cls_token is not None
    distilled = getattr(model, "dist_token", None) is not None
    registers = getattr(model, "reg_token", None)
    count = int(has_class) + int(distilled) + (0 if registers is None else registers.shape[1])
    pre = not isinstance(getattr(model, "norm_pre", nn.Identity()), nn.Identity)
    size = model.patch_embed.img_size
    if distilled:
        layout = "timm-distilled"
    elif eva:
        if getattr(model, "pos_embed", None) is not None or not has_class:
            raise VitrailError("an EVA that is no DINOv3")
        bias = hasattr(block.attn, "q_bias") and block.attn.q_bias is not None
        layout = "timm-dinov3-bias" if bias else "timm-dinov3"
    elif registers is not None:
        layout = "timm-registers" if has_class else "timm-registers-alone"
    elif pre:
        layout = "timm-clip"
    elif not has_class:
        layout = "timm-siglip" if pool == "map" else "timm-mean"
    else:
        layout = "timm-deit3" if model.no_embed_class else "timm"
    config = ViTConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_width=fc2.in_features,
        patch=model.patch_embed.patch_size[0],
        image_size=size[0] if size[0] == size[1] else tuple(size),
        prefix_tokens=count,
        position=Rotary(base=100.0) if eva else LAYOUTS[layout].position,
        mlp="swiglu" if gated else act_name,
        qkv_bias=(layout == "timm-dinov3-bias") if eva else block.attn.qkv.bias is not None,
        qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
        layer_scale=1e-5 if scaled else None,
        pre_norm=pre,
        final_norm=not isinstance(model.norm, nn.Identity),
        norm_eps=block.norm1.eps,
        pool="cls+dist" if distilled else pool,
        classes=model.num_classes,
    )
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = shapes(layout, config)
    if theirs != ours:
        odd = sorted(set(theirs.items()) ^ set(ours.items()))
        raise VitrailError(f"{layout}: {odd[:4]}")
    return layout, config


def timm_cards(results: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A card for every checkpoint of timm's that is our ViT, and for the original file it was made from."""
    rows, models, refused = [], {}, {}
    for name in timm.list_models(pretrained=True):
        if not re.match(r"(vit|deit|flexivit)", name) or re.search(r"relpos|_r26_|_r50_|_r_s16", name):
            continue
        cfg = get_pretrained_cfg(name)
        key = (name.partition(".")[0], cfg.num_classes)
        try:
            if key not in models:
                with torch.device("meta"):
                    models[key] = timm_config(timm.create_model(key[0], num_classes=cfg.num_classes))
            layout, config = models[key]
        except (VitrailError, RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
            refused[name] = str(error)[:150]
            continue
        if isinstance(models[key], str) or cfg.crop_mode not in ("center", "squash") or cfg.interpolation not in PIL:
            refused[name] = f"{cfg.crop_mode} {cfg.interpolation}"
            continue
        size = cfg.input_size[1]
        if size != config.image_size:
            config = config_from_json({**config_to_json(config), "image_size": size})
        labels = SETS.get(cfg.num_classes, "")
        if "clip" in name and cfg.num_classes not in (1000, 11821, 21841):
            labels = ""
        resize = math.floor(size / cfg.crop_pct)
        norm = {"mean": list(cfg.mean), "std": list(cfg.std)}
        row = {
            "name": f"timm/{name}",
            "layout": layout,
            "config": differences(config, layout),
            "preprocess": preparation(size, resize, cfg.interpolation, norm, cfg.crop_mode == "squash"),
            "labels": labels,
            "license": cfg.license or "unknown",
            "source": cfg.hf_hub_id or cfg.url,
            "accuracy": results.get(name, {}),
        }
        rows.append(row)
        rows += original(row, cfg, config)
    for name, why in refused.items():
        print(f"no card: {name}: {why}", file=sys.stderr)
    return rows


ORIGINALS = {  # where a file of timm's was made from -> the original's owner, its layout by timm's
    "dl.fbaipublicfiles.com/dino/": ("facebookresearch", {"timm": "dino"}),
    "dl.fbaipublicfiles.com/dinov2/": ("facebookresearch", {"timm": "dinov2", "timm-registers": "dinov2-registers"}),
    "dl.fbaipublicfiles.com/deit/": (
        "facebookresearch",
        {"timm": "deit", "timm-distilled": "deit-distilled", "timm-deit3": "deit3"},
    ),
    "dl.fbaipublicfiles.com/mae/": ("facebookresearch", {"timm": "mae"}),
    "storage.googleapis.com/vit_models/": ("google", {"timm": "google"}),
}


def original(row: dict[str, Any], cfg: Any, config: ViTConfig) -> list[dict[str, Any]]:
    """The card of the file that a checkpoint of timm's was made from."""
    for place, (owner, layouts) in ORIGINALS.items():
        if place in (cfg.url or "") and row["layout"] in layouts:
            layout = layouts[row["layout"]]
            document = config_to_json(config) | {"position": position_to_json(LAYOUTS[layout].position)}
            stem = cfg.url.rsplit("/", 1)[-1].rsplit(".", 1)[0]
            hashed = re.search(r"-([0-9a-f]{8})$", stem)
            their = config_from_json(document)
            if place.endswith("/mae/"):
                their = config_from_json(document | {"classes": 0})
            return [
                row
                | {
                    "name": f"{owner}/{stem}",
                    "layout": layout,
                    "config": differences(their, layout),
                    "source": cfg.url,
                    "sha256": hashed[1] if hashed else "",
                    "accuracy": {},  # timm's figure is for timm's file
                }
            ]
    return []


def torchvision_cards() -> list[dict[str, Any]]:
    """A card for each of torchvision's weights; the default one bears the plain name."""
    rows = []
    for builder in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"):
        for weights in torchvision.models.get_model_weights(builder):
            transforms, meta = weights.transforms(), weights.meta
            size = transforms.crop_size[0]
            with torch.device("meta"):
                theirs = torchvision.models.get_model(builder, image_size=size)
            block = theirs.encoder.layers[0]
            config = ViTConfig(
                width=theirs.hidden_dim,
                depth=len(theirs.encoder.layers),
                heads=block.num_heads,
                mlp_width=theirs.mlp_dim,
                patch=theirs.patch_size,
                image_size=size,
                position=LAYOUTS["torchvision"].position,
                norm_eps=block.ln_1.eps,
                classes=len(meta["categories"]),
            )
            expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
            assert shapes("torchvision", config) == expected, builder
            tag = weights.name.removeprefix("IMAGENET1K_").lower()
            norm = {"mean": list(transforms.mean), "std": list(transforms.std)}
            scores = meta["_metrics"]["ImageNet-1K"]
            rows.append(
                {
                    "name": f"torchvision/{builder}" + ("" if tag == "v1" else f".{tag}"),
                    "layout": "torchvision-published",
                    "config": differences(config, "torchvision-published"),
                    "preprocess": preparation(size, transforms.resize_size[0], transforms.interpolation.value, norm),
                    "labels": "imagenet-1k",
                    "license": "CC-BY-NC-4.0 (SWAG)" if "swag" in tag else "BSD-3-Clause",
                    "source": weights.url,
                    "sha256": re.search(r"-([0-9a-f]{8})\.pth", weights.url)[1],
                    "accuracy": {"top1": scores["acc@1"], "top5": scores["acc@5"]},
                }
            )
    return rows


SIZES = {
    "tiny": dict(width=192, depth=12, heads=3, mlp_width=768),
    "small": dict(width=384, depth=12, heads=6, mlp_width=1536),
    "base": dict(width=768, depth=12, heads=12, mlp_width=3072),
    "large": dict(width=1024, depth=24, heads=16, mlp_width=4096),
    "huge": dict(width=1280, depth=32, heads=16, mlp_width=5120),
    "giant": dict(width=1536, depth=40, heads=24, mlp_width=4096),
    "so400m": dict(width=1152, depth=27, heads=16, mlp_width=4304),
    "splus": dict(width=384, depth=12, heads=6, mlp_width=1536),
    "hplus": dict(width=1280, depth=32, heads=20, mlp_width=5120),
}
APACHE = "apache-2.0"


def hub_card(
    name: str, layout: str, size: str, prepared: dict[str, Any], labels: str = "", license: str = APACHE, **config: Any
) -> dict[str, Any]:
    """A card for a repository in transformers' layout; its own config.json is read when it is loaded."""
    fields_of_layout = {"position": LAYOUTS[layout].position} if "position" not in config else {}
    made = ViTConfig(**{**SIZES[size], **fields_of_layout, **config})
    return {
        "name": name,
        "layout": layout,
        "config": differences(made, layout),
        "preprocess": prepared,
        "labels": labels,
        "license": license,
        "source": name,
    }


def hub_cards() -> list[dict[str, Any]]:
    """The families as transformers saves them, by their publishers' repositories."""
    rows = []
    hf = dict(norm_eps=1e-12)

    def vit(
        name: str,
        size: str,
        patch: int,
        px: int,
        labels: str,
        norm: dict[str, Any] = HALF,
        layout: str = "hf-vit",
        resize: int | None = None,
        license: str = APACHE,
        interpolation: str = "bilinear",
        **more: Any,
    ) -> None:
        prepared = preparation(px, resize or px, interpolation, norm, True, "transformers")
        classes = 1000 if labels else 0
        rows.append(
            hub_card(
                name,
                layout,
                size,
                prepared,
                labels,
                license,
                patch=patch,
                image_size=px,
                classes=classes,
                **{**hf, **more},
            )
        )

    one_k = "imagenet-1k"
    vit("google/vit-base-patch16-224", "base", 16, 224, one_k)
    vit("google/vit-large-patch16-224", "large", 16, 224, one_k)
    vit("google/vit-base-patch16-384", "base", 16, 384, one_k)
    vit("google/vit-large-patch16-384", "large", 16, 384, one_k)
    vit("google/vit-base-patch32-384", "base", 32, 384, one_k)
    vit("google/vit-large-patch32-384", "large", 32, 384, one_k)
    for size, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14)):
        vit(f"google/vit-{size}-patch{patch}-224-in21k", size, patch, 224, "")
    for size in ("tiny", "small", "base"):
        vit(f"facebook/deit-{size}-patch16-224", size, 16, 224, one_k, IMAGENET, resize=256, interpolation="bicubic")
        vit(f"facebook/deit-{size}-distilled-patch16-224", size, 16, 224, one_k, IMAGENET, "hf-deit-distilled", 256,
            interpolation="bicubic", prefix_tokens=2, pool="cls+dist")  # fmt: skip
    vit("facebook/deit-base-patch16-384", "base", 16, 384, one_k, IMAGENET, resize=438, interpolation="bicubic")
    vit("facebook/deit-base-distilled-patch16-384", "base", 16, 384, one_k, IMAGENET, "hf-deit-distilled", 438,
        interpolation="bicubic", prefix_tokens=2, pool="cls+dist")  # fmt: skip
    for letter, size in (("s", "small"), ("b", "base")):
        for patch in (16, 8):
            vit(f"facebook/dino-vit{letter}{patch}", size, patch, 224, "", IMAGENET)
    for size, patch in (("base", 16), ("large", 16), ("huge", 14)):
        vit(f"facebook/vit-mae-{size}", size, patch, 224, "", IMAGENET)
    middle = preparation(224, 256, "bicubic", IMAGENET, engine="transformers")
    for size in ("small", "base", "large", "giant"):
        for kind, layout, tokens in (("dinov2", "hf-dinov2", 1), ("dinov2-with-registers", "hf-dinov2-registers", 5)):
            for tail, classes in (("", 0), ("-imagenet1k-1-layer", 1000)):
                rows.append(hub_card(
                    f"facebook/{kind}-{size}{tail}", layout, size, middle, one_k if classes else "", patch=14,
                    image_size=518,
                    layer_scale=1.0, prefix_tokens=tokens, mlp="swiglu" if size == "giant" else "gelu",
                    pool="cls+mean" if classes else "cls", classes=classes,
                ))  # fmt: skip
    whole = preparation(224, 224, "bilinear", IMAGENET, True, "transformers")
    for stem, size, gated in (
        ("s16", "small", False),
        ("s16plus", "splus", True),
        ("b16", "base", False),
        ("l16", "large", False),
        ("h16plus", "hplus", True),
    ):
        rows.append(hub_card(
            f"facebook/dinov3-vit{stem}-pretrain-lvd1689m", "hf-dinov3", size, whole, "", "dinov3-license",
            position=Rotary(), prefix_tokens=5, layer_scale=1.0, norm_eps=1e-5, mlp="swiglu" if gated else "gelu",
        ))  # fmt: skip
    clip = dict(layout="hf-clip", license="mit", pre_norm=True, mlp="quick_gelu", norm_eps=1e-5)
    for name, size, patch, px, out in (
        ("base-patch32", "base", 32, 224, 512),
        ("base-patch16", "base", 16, 224, 512),
        ("large-patch14", "large", 14, 224, 768),
        ("large-patch14-336", "large", 14, 336, 768),
    ):
        prepared = preparation(px, px, "bicubic", OPENAI, engine="transformers")
        rows.append(
            hub_card(
                f"openai/clip-vit-{name}", size=size, prepared=prepared, patch=patch, image_size=px, classes=out, **clip
            )
        )
    for generation in ("siglip", "siglip2"):
        for size, patch, pixels in (
            ("base", 16, (224, 256, 384, 512)),
            ("large", 16, (256, 384)),
            ("so400m", 14, (224, 384)),
        ):
            for px in pixels:
                interpolation = "bicubic" if generation == "siglip" else "bilinear"
                prepared = preparation(px, px, interpolation, HALF, True, "transformers")
                side = px - px % patch
                rows.append(hub_card(
                    f"google/{generation}-{size}-patch{patch}-{px}", "hf-siglip", size, prepared, patch=patch,
                    image_size=side, prefix_tokens=0, pool="map", mlp="gelu_tanh",
                ))  # fmt: skip
                prepared["image_size"] = [side, side]
    return rows


def openai_cards() -> list[dict[str, Any]]:
    """OpenAI's own files of CLIP."""
    from open_clip.pretrained import _PRETRAINED

    sizes = {
        "ViT-B-32": ("base", 32, 224, 512),
        "ViT-B-16": ("base", 16, 224, 512),
        "ViT-L-14": ("large", 14, 224, 768),
        "ViT-L-14-336": ("large", 14, 336, 768),
    }
    rows = []
    for name, (size, patch, px, out) in sizes.items():
        url = _PRETRAINED[name]["openai"]["url"]
        config = ViTConfig(
            **SIZES[size], patch=patch, image_size=px, classes=out, pre_norm=True, mlp="quick_gelu", norm_eps=1e-5
        )
        rows.append({
            "name": f"openai/{name}", "layout": "openai-clip", "config": differences(config, "openai-clip"),
            "preprocess": preparation(px, px, "bicubic", OPENAI), "license": "mit", "source": url,
            "sha256": url.split("/")[-2],
        })  # fmt: skip
    return rows


def main() -> None:
    """Writes the file."""
    with REPORTED.open(newline="") as file:
        results = {
            row["model"]: {"top1": float(row["top1"]), "top5": float(row["top5"])} for row in csv.DictReader(file)
        }
    rows = torchvision_cards() + timm_cards(results) + hub_cards() + openai_cards()
    named: dict[str, dict[str, Any]] = {}
    for row in rows:
        named.setdefault(
            row["name"], {key: value for key, value in row.items() if value or key in ("config", "preprocess")}
        )
    OUT.write_text("".join(json.dumps(row) + "\n" for row in named.values()), encoding="utf-8")
    print(f"{len(named)} cards")


if __name__ == "__main__":
    main()
