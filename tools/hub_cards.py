"""Cards of torchvision's weights, of repositories in transformers' layout, and of OpenAI's files of CLIP."""

import re
from typing import Any

import torch
import torchvision.models

from tools.card_rows import HALF, IMAGENET, OPENAI, SIZES, Row, find_differences, list_shapes, make_preprocess
from vitrail.model.config import Rotary, ViTConfig
from vitrail.weights.layouts import LAYOUTS

APACHE = "apache-2.0"
IMAGENET_1K = "imagenet-1k"


# torchvision


def make_torchvision_cards() -> list[Row]:
    """Returns a card for each of torchvision's weights; the default ones have no tag in their names."""
    return [
        make_torchvision_card(builder, weights)
        for builder in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
        for weights in torchvision.models.get_model_weights(builder)
    ]


def make_torchvision_card(builder: str, weights: Any) -> Row:
    """Returns the card of one checkpoint."""
    transforms, meta = weights.transforms(), weights.meta
    size = transforms.crop_size[0]
    config = read_torchvision_model(builder, size, len(meta["categories"]))
    tag = weights.name.removeprefix("IMAGENET1K_").lower()
    norm = {"mean": list(transforms.mean), "std": list(transforms.std)}
    scores = meta["_metrics"]["ImageNet-1K"]
    layout = "torchvision-published"
    return {
        "name": f"torchvision/{builder}" + ("" if tag == "v1" else f".{tag}"),
        "layout": layout,
        "config": find_differences(config, layout),
        "preprocess": make_preprocess(size, transforms.resize_size[0], transforms.interpolation.value, norm),
        "labels": IMAGENET_1K,
        "license": "CC-BY-NC-4.0 (SWAG)" if "swag" in tag else "BSD-3-Clause",
        "source": weights.url,
        "sha256": re.search(r"-([0-9a-f]{8})\.pth", weights.url)[1],
        "accuracy": {"top1": scores["acc@1"], "top5": scores["acc@5"]},
    }


def read_torchvision_model(builder: str, size: int, classes: int) -> ViTConfig:
    """Returns the config of torchvision's model, whose names and shapes are checked."""
    with torch.device("meta"):
        model = torchvision.models.get_model(builder, image_size=size)
    block = model.encoder.layers[0]
    config = ViTConfig(
        width=model.hidden_dim,
        depth=len(model.encoder.layers),
        heads=block.num_heads,
        mlp_width=model.mlp_dim,
        patch=model.patch_size,
        image_size=size,
        position=LAYOUTS["torchvision"].position,
        norm_eps=block.ln_1.eps,
        classes=classes,
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list_shapes("torchvision", config) == shapes, builder
    return config


# transformers: the repositories of the publishers


def make_hub_card(
    name: str,
    layout: str,
    size: str,
    preprocess: dict[str, Any],
    labels: str = "",
    license: str = APACHE,
    **fields: Any,
) -> Row:
    """Returns the card of a repository in transformers' layout; loading it reads the repository's config.json."""
    config = ViTConfig(**{"position": LAYOUTS[layout].position, **SIZES[size], **fields})
    return {
        "name": name,
        "layout": layout,
        "config": find_differences(config, layout),
        "preprocess": preprocess,
        "labels": labels,
        "license": license,
        "source": name,
    }


def make_hub_cards() -> list[Row]:
    """Returns the cards of all families."""
    return [*make_vit_cards(), *make_dinov2_cards(), *make_dinov3_cards(), *make_clip_cards(), *make_siglip_cards()]


def make_vit_card(
    name: str,
    size: str,
    patch: int,
    pixels: int,
    labels: str = "",
    *,
    norm: dict[str, Any] = HALF,
    layout: str = "hf-vit",
    resize: int | None = None,
    interpolation: str = "bilinear",
    **fields: Any,
) -> Row:
    """Returns the card of a model of ViT's or DeiT's code."""
    engine = "transformers"
    preprocess = make_preprocess(pixels, resize or pixels, interpolation, norm, stretch=True, engine=engine)
    fields = {"norm_eps": 1e-12, "patch": patch, "image_size": pixels, "classes": 1000 if labels else 0, **fields}
    return make_hub_card(name, layout, size, preprocess, labels, **fields)


def make_vit_cards() -> list[Row]:
    """Google's ViT, Meta's DeiT, DINO and MAE."""
    rows = [
        make_vit_card(f"google/vit-{size}-patch{patch}-{pixels}", size, patch, pixels, IMAGENET_1K)
        for patch, pixels in ((16, 224), (16, 384), (32, 384))
        for size in ("base", "large")
    ]
    for size, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14)):
        rows.append(make_vit_card(f"google/vit-{size}-patch{patch}-224-in21k", size, patch, 224))
    two_heads = dict(layout="hf-deit-distilled", prefix_tokens=2, pool="cls+dist")
    for size, pixels, resize in (("tiny", 224, 256), ("small", 224, 256), ("base", 224, 256), ("base", 384, 438)):
        deit = dict(norm=IMAGENET, resize=resize, interpolation="bicubic")
        stem, tail = f"facebook/deit-{size}", f"patch16-{pixels}"
        rows.append(make_vit_card(f"{stem}-{tail}", size, 16, pixels, IMAGENET_1K, **deit))
        rows.append(make_vit_card(f"{stem}-distilled-{tail}", size, 16, pixels, IMAGENET_1K, **deit, **two_heads))
    for letter, size in (("s", "small"), ("b", "base")):
        for patch in (16, 8):
            rows.append(make_vit_card(f"facebook/dino-vit{letter}{patch}", size, patch, 224, norm=IMAGENET))
    for size, patch in (("base", 16), ("large", 16), ("huge", 14)):
        rows.append(make_vit_card(f"facebook/vit-mae-{size}", size, patch, 224, norm=IMAGENET))
    return rows


def make_dinov2_cards() -> list[Row]:
    """Meta's DINOv2, with registers or without, backbones and linear classifiers."""
    preprocess = make_preprocess(224, 256, "bicubic", IMAGENET, engine="transformers")
    families = (("dinov2", "hf-dinov2", 1), ("dinov2-with-registers", "hf-dinov2-registers", 5))
    return [
        make_hub_card(
            f"facebook/{family}-{size}{tail}",
            layout,
            size,
            preprocess,
            IMAGENET_1K if classes else "",
            patch=14,
            image_size=518,
            layer_scale=1.0,
            prefix_tokens=tokens,
            mlp="swiglu" if size == "giant" else "gelu",
            pool="cls+mean" if classes else "cls",
            classes=classes,
        )
        for size in ("small", "base", "large", "giant")
        for family, layout, tokens in families
        for tail, classes in (("", 0), ("-imagenet1k-1-layer", 1000))
    ]


def make_dinov3_cards() -> list[Row]:
    """Meta's DINOv3."""
    preprocess = make_preprocess(224, 224, "bilinear", IMAGENET, stretch=True, engine="transformers")
    sizes = {"s16": "small", "s16plus": "splus", "b16": "base", "l16": "large", "h16plus": "hplus"}
    return [
        make_hub_card(
            f"facebook/dinov3-vit{stem}-pretrain-lvd1689m",
            "hf-dinov3",
            size,
            preprocess,
            license="dinov3-license",
            position=Rotary(),
            prefix_tokens=5,
            layer_scale=1.0,
            norm_eps=1e-5,
            mlp="swiglu" if size in ("splus", "hplus") else "gelu",
        )
        for stem, size in sizes.items()
    ]


CLIP_MODELS = {  # OpenAI's name -> name on the hub, size, patch, pixels, outputs
    "ViT-B-32": ("base-patch32", "base", 32, 224, 512),
    "ViT-B-16": ("base-patch16", "base", 16, 224, 512),
    "ViT-L-14": ("large-patch14", "large", 14, 224, 768),
    "ViT-L-14-336": ("large-patch14-336", "large", 14, 336, 768),
}
CLIP_FIELDS = dict(pre_norm=True, mlp="quick_gelu", norm_eps=1e-5)


def make_clip_cards() -> list[Row]:
    """OpenAI's CLIP as transformers stores it."""
    return [
        make_hub_card(
            f"openai/clip-vit-{name}",
            "hf-clip",
            size,
            make_preprocess(pixels, pixels, "bicubic", OPENAI, engine="transformers"),
            license="mit",
            patch=patch,
            image_size=pixels,
            classes=outputs,
            **CLIP_FIELDS,
        )
        for name, size, patch, pixels, outputs in CLIP_MODELS.values()
    ]


def make_siglip_cards() -> list[Row]:
    """Google's SigLIP and SigLIP 2."""
    sizes = (("base", 16, (224, 256, 384, 512)), ("large", 16, (256, 384)), ("so400m", 14, (224, 384)))
    return [
        make_siglip_card(generation, interpolation, size, patch, pixels)
        for generation, interpolation in (("siglip", "bicubic"), ("siglip2", "bilinear"))
        for size, patch, resolutions in sizes
        for pixels in resolutions
    ]


def make_siglip_card(generation: str, interpolation: str, size: str, patch: int, pixels: int) -> Row:
    """Returns the card of one model, which ignores the pixels beyond the last whole patch."""
    preprocess = make_preprocess(pixels, pixels, interpolation, HALF, stretch=True, engine="transformers")
    rest = pixels % patch
    rounded = pixels - rest
    if rest:
        preprocess |= {"image_size": [rounded, rounded], "trim": [rest, rest]}
    return make_hub_card(
        f"google/{generation}-{size}-patch{patch}-{pixels}",
        "hf-siglip",
        size,
        preprocess,
        patch=patch,
        image_size=rounded,
        prefix_tokens=0,
        pool="map",
        mlp="gelu_tanh",
    )


# OpenAI's own files


def make_openai_cards() -> list[Row]:
    """Returns the cards of OpenAI's files of CLIP."""
    from open_clip.pretrained import _PRETRAINED

    rows = []
    for name, (_, size, patch, pixels, outputs) in CLIP_MODELS.items():
        url = _PRETRAINED[name]["openai"]["url"]
        config = ViTConfig(**SIZES[size], patch=patch, image_size=pixels, classes=outputs, **CLIP_FIELDS)
        row = {
            "name": f"openai/{name}",
            "layout": "openai-clip",
            "config": find_differences(config, "openai-clip"),
            "preprocess": make_preprocess(pixels, pixels, "bicubic", OPENAI),
            "license": "mit",
            "source": url,
            "sha256": url.split("/")[-2],
        }
        rows.append(row)
    return rows
