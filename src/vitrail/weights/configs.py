"""Other libraries' `config.json` -> our config, preprocessing and classes."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.data.preprocess import Fit, Preprocess
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.model import Rotary, ViTConfig
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.classes import get_class_names
from vitrail.weights.config_json import config_from_json, config_to_json
from vitrail.weights.layouts import LAYOUTS

Document = dict[str, Any]
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}


@dataclass(frozen=True)
class ParsedConfig:
    """What a `config.json` says."""

    layout: str
    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess


def parse_config(document: Document, folder: Path) -> ParsedConfig:
    """What the `config.json` in a folder says, be it transformers' or timm's.

    Raises `VitrailError` for a model that is no ViT of ours, naming what stands in the way.
    """
    try:
        if "architecture" in document:
            return timm(document)
        return transformers(document, preprocessor(folder))
    except KeyError as error:
        raise VitrailError(f"{folder / 'config.json'} lacks {error}", "download it again") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise VitrailError(f"{folder / 'config.json'} says something impossible ({error})") from None


# transformers


def plain(document: Document, layout: str, **more: Any) -> ViTConfig:
    """The fields that all of transformers' ViTs share."""
    act = document.get("hidden_act", "gelu")
    if "mlp" not in more:
        if act not in ACTIVATIONS:
            raise UsageError(f"the activation {act!r} is not known", did_you_mean(act, ACTIVATIONS))
        more["mlp"] = ACTIVATIONS[act]
    size = document.get("image_size", 224)
    values: Document = {
        "width": document["hidden_size"],
        "depth": document["num_hidden_layers"],
        "heads": document["num_attention_heads"],
        "mlp_width": document.get("intermediate_size", 0),
        "patch": side(document["patch_size"]),
        "image_size": tuple(size) if isinstance(size, list) else size,
        "channels": document.get("num_channels", 3),
        "norm_eps": document.get("layer_norm_eps", 1e-12),
        "qkv_bias": document.get("qkv_bias", True),
        "position": LAYOUTS[layout].learned,
    }
    return ViTConfig(**{**values, **more})


def side(size: Any) -> Any:
    """The side of a square given as one number or two equal ones."""
    if isinstance(size, list):
        if len(set(size)) != 1:
            raise UsageError(f"patches of {size} are not square")
        return size[0]
    return size


Reader = Callable[[Document, str, int], tuple[str, ViTConfig]]  # config.json, architecture, classes -> layout, config


def vit(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """ViT, and the encoder of ViTMAE."""
    return "hf-vit", plain(document, "hf-vit", classes=classes)


def deit(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """DeiT, with one head or two."""
    if architecture.endswith("WithTeacher"):
        return "hf-deit-distilled", plain(document, "hf-deit", prefix_tokens=2, pool="cls+dist", classes=classes)
    return "hf-deit", plain(document, "hf-deit", prefix_tokens=2, classes=classes)


def dinov2(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """DINOv2, with registers or without."""
    registers = document.get("num_register_tokens", 4) if document["model_type"].endswith("registers") else 0
    layout = "hf-dinov2-registers" if registers else "hf-dinov2"
    hidden = int(document["hidden_size"] * document.get("mlp_ratio", 4))
    gated = document.get("use_swiglu_ffn", False)
    more: Document = {"mlp": "swiglu"} if gated else {}
    return layout, plain(
        document,
        layout,
        mlp_width=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        norm_eps=document.get("layer_norm_eps", 1e-6),
        layer_scale=document.get("layerscale_value", 1.0),
        prefix_tokens=1 + registers,
        pool="cls+mean" if classes else "cls",
        classes=classes,
        **more,
    )


def dinov3(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """DINOv3."""
    gated = document.get("use_gated_mlp", False)
    if gated and document.get("hidden_act") != "silu":
        raise UsageError(f"a gated MLP with {document.get('hidden_act')!r} is not known", "SwiGLU's gate is silu")
    biases = [document.get(f"{part}_bias", part != "key") for part in ("query", "key", "value")]
    if biases not in ([True, False, True], [False] * 3) or not document.get("mlp_bias", True):
        raise UsageError("DINOv3 with these biases is not known")
    more: Document = {"mlp": "swiglu"} if gated else {}
    return "hf-dinov3", plain(
        document,
        "hf-dinov3",
        position=Rotary(base=float(document.get("rope_theta", 100.0))),
        norm_eps=document.get("layer_norm_eps", 1e-5),
        layer_scale=document.get("layerscale_value", 1.0),
        prefix_tokens=1 + document.get("num_register_tokens", 0),
        qkv_bias=biases[0],
        classes=classes,
        **more,
    )


def tower(document: Document) -> Document:
    """The image tower's part of a two-tower config; what transformers leaves out has its own defaults."""
    return {**TOWER, **document.get("vision_config", document)}


TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


def clip(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """CLIP's image tower, by itself, beside its text tower, or with a classifier."""
    inner = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, **tower(document)}
    if architecture == "CLIPForImageClassification":
        layout, more = "hf-clip-classifier", {"classes": classes, "pool": "mean", "final_norm": False}
    else:
        projected = architecture in ("CLIPModel", "CLIPVisionModelWithProjection")
        layout = "hf-clip"
        more = {"classes": document.get("projection_dim", inner.get("projection_dim", 512)) if projected else 0}
    return layout, plain(inner, layout, pre_norm=True, **more)


def siglip(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """SigLIP's image tower, likewise."""
    inner = {
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "patch_size": 16,
        **document.get("vision_config", document),
    }
    inner = {**TOWER, **inner}
    # 384 pixels in patches of 14 leave 6 pixels over, which their convolution does not see
    inner["image_size"] = inner["image_size"] // inner["patch_size"] * inner["patch_size"]
    layout, pool = ("hf-siglip-classifier", "mean") if classes else ("hf-siglip", "map")
    return layout, plain(inner, layout, prefix_tokens=0, pool=pool, classes=classes)


READERS: dict[str, Reader] = {
    "vit": vit,
    "vit_mae": vit,
    "deit": deit,
    "dinov2": dinov2,
    "dinov2_with_registers": dinov2,
    "dinov3_vit": dinov3,
    "clip": clip,
    "clip_vision_model": clip,
    "siglip": siglip,
    "siglip_vision_model": siglip,
}


def transformers(document: Document, prepared: Document | None) -> ParsedConfig:
    """What transformers' `config.json` and `preprocessor_config.json` say."""
    kind = document.get("model_type")
    if kind not in READERS:
        raise VitrailError(
            f"transformers' model {kind!r} is not a ViT that vitrail knows", did_you_mean(str(kind), READERS)
        )
    architecture = (document.get("architectures") or [""])[0]
    names = document.get("id2label") if "ForImageClassification" in architecture else None
    if "ForImageClassification" in architecture and not names:
        names = {str(number): f"LABEL_{number}" for number in range(2)}  # transformers leaves its own default out
    classes = unique(tuple(str(names[key]) for key in sorted(names, key=int))) if names else ()
    layout, config = READERS[kind](document, architecture, len(classes))
    return ParsedConfig(layout, config, classes, preparation(prepared, config))


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, a repeated one with its number: ImageNet has two cranes and two maillots."""
    return tuple(f"{name} ({number})" if name in names[:number] else name for number, name in enumerate(names))


def preprocessor(folder: Path) -> Document | None:
    """The `preprocessor_config.json` of a folder, if it has one."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VitrailError(f"{path} cannot be read ({error})", "download it again") from None
    return document if isinstance(document, dict) else None


RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def preparation(document: Document | None, config: ViTConfig) -> Preprocess:
    """The preprocessing of transformers' image processors; the model's own size and 0.5 where there is none."""
    h, w = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    half = (0.5,) * config.channels
    if document is None:
        return Preprocess(image_size=(h, w), fit="stretch", engine="transformers", mean=half, std=half)
    resample = document.get("resample", 2)
    if resample not in RESAMPLE:
        raise UsageError(f"the resampling {resample!r} is not known", "bilinear (2) and bicubic (3) are")
    size = document.get("size", {})
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = document.get("crop_size")
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    cropped = crop if document.get("do_center_crop") and crop else None
    normed = document.get("do_normalize", True)
    values: Document = {
        "engine": "transformers",
        "interpolation": RESAMPLE[resample],
        "mean": tuple(document["image_mean"]) if normed else (0.0,) * config.channels,
        "std": tuple(document["image_std"]) if normed else (1.0,) * config.channels,
    }
    if "shortest_edge" in size:
        edge = size["shortest_edge"]
        final = (cropped["height"], cropped["width"]) if cropped else (edge, edge)
        return Preprocess(
            image_size=fitting_size(final, config), fit="crop", crop_fraction=min(1.0, min(final) / edge), **values
        )
    whole = (size.get("height", h), size.get("width", w))
    final = (cropped["height"], cropped["width"]) if cropped else whole
    fraction = final[0] / whole[0]
    return Preprocess(image_size=fitting_size(final, config), fit="stretch", crop_fraction=fraction, **values)


def fitting_size(size: tuple[int, int], config: ViTConfig) -> tuple[int, int]:
    """The size in whole patches: what a convolution without padding sees of it."""
    return size[0] // config.patch * config.patch, size[1] // config.patch * config.patch


# timm

ARGUMENTS = {  # timm's model_args -> our fields, where they mean the same
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "patch_size": "patch",
    "img_size": "image_size",
    "in_chans": "channels",
    "init_values": "layer_scale",
    "qk_norm": "qk_norm",
    "qkv_bias": "qkv_bias",
    "pre_norm": "pre_norm",
}
TOKENS = ("class_token", "reg_tokens", "num_reg_tokens", "no_embed_class", "global_pool", "fc_norm", "final_norm")
OTHERS = ("mlp_ratio", "act_layer", "rope_temperature", "swiglu_align_to", *TOKENS)
IGNORED = ("dynamic_img_size", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate")


def timm(document: Document) -> ParsedConfig:
    """What timm's `config.json` says: an architecture by name, and what differs from it."""
    name = document["architecture"]
    card = architecture(name)
    base = card.build_config()
    values = config_to_json(base)
    values["classes"] = document.get("num_classes", base.classes)
    given = dict(document.get("model_args") or {})
    known = (*ARGUMENTS, *OTHERS, *IGNORED)
    if strange := [each for each in given if each not in known]:
        raise UsageError(
            f"timm's argument {strange[0]}={given[strange[0]]!r} is not known", did_you_mean(strange[0], known)
        )
    prepared = document.get("pretrained_cfg", {})
    if "input_size" in prepared:
        values["image_size"] = prepared["input_size"][1:]
    values |= {ours: given[theirs] for theirs, ours in ARGUMENTS.items() if theirs in given}
    if "act_layer" in given:
        if given["act_layer"] not in ("gelu", "gelu_tanh", "quick_gelu"):
            raise UsageError(f"timm's activation {given['act_layer']!r} is not known")
        values["mlp"] = given["act_layer"]
    if "mlp_ratio" in given:
        doubled = base.mlp == "swiglu" and not card.layout.startswith("timm-dinov3")  # gate and value in one number
        values["mlp_width"] = int(values["width"] * given["mlp_ratio"]) // (2 if doubled else 1)
    if "rope_temperature" in given:
        values["position"] = {"kind": "rotary", "base": float(given["rope_temperature"])}
    layout = timm_tokens(card.layout, given, values)
    if values["image_size"][0] == values["image_size"][1] if isinstance(values["image_size"], list) else False:
        values["image_size"] = values["image_size"][0]
    config = config_from_json(values)
    names = prepared.get("label_names") or []
    classes = unique(tuple(map(str, names))) if len(names) == config.classes else ()
    if not classes and config.classes:
        classes = get_class_names(card.labels if config.classes == base.classes else "class", config.classes)
    return ParsedConfig(layout, config, classes, timm_preparation(prepared, card, config))


def timm_tokens(layout: str, given: Document, values: Document) -> str:
    """Writes the prefix tokens and the pool into `values`; returns the layout that they make of the card's."""
    if layout.startswith("timm-dinov3"):
        values["prefix_tokens"] = 1 + given.get("num_reg_tokens", values["prefix_tokens"] - 1)
        values["pool"] = {"token": "cls", "avg": "mean"}[given.get("global_pool", "avg")]
        return layout
    if layout == "timm-distilled":
        return layout
    has_class = given.get("class_token", layout not in ("timm-mean", "timm-siglip", "timm-registers-alone"))
    was = max(values["prefix_tokens"] - has_class, 0) if "registers" in layout else 0
    registers = given.get("reg_tokens", was)
    unplaced = given.get("no_embed_class", layout in ("timm-deit3", "timm-registers", "timm-registers-alone"))
    values["prefix_tokens"] = int(has_class) + registers
    if any(each in given for each in ("global_pool", "fc_norm", "final_norm")):
        pooled = given.get("global_pool", {"cls": "token", "map": "map"}.get(values["pool"], "avg"))
        final = given.get("final_norm", True)
        after = given.get("fc_norm")
        after = pooled == "avg" if after is None else after
        values["pool"] = {"token": "cls", "avg": "mean_norm" if after and final else "mean", "map": "map"}[pooled]
        values["final_norm"] = final and not after
    if registers:
        if not unplaced:
            raise UsageError("timm's registers with positions of their own are not known")
        return "timm-registers" if has_class else "timm-registers-alone"
    if has_class:
        return "timm-clip" if values["pre_norm"] else "timm-deit3" if unplaced else "timm"
    return "timm-siglip" if values["pool"] == "map" else "timm-mean"


def architecture(name: str) -> Card:
    """A card of this architecture of timm's; raises `VitrailError` where there is none."""
    known = {
        card.name.removeprefix("timm/").rpartition(".")[0]: card
        for card in load_cards().values()
        if card.name.startswith("timm/")
    }
    if name not in known:
        raise VitrailError(f"timm's architecture {name!r} is not a ViT that vitrail knows", did_you_mean(name, known))
    return known[name]


CROP_MODES: dict[Any, Fit] = {"squash": "stretch", "border": "pad"}  # every other is timm's default, which crops


def timm_preparation(document: Document, card: Card, config: ViTConfig) -> Preprocess:
    """The preprocessing in timm's `pretrained_cfg`."""
    base = card.build_preprocess()
    h, w = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    if document.get("interpolation", "bicubic") not in RESAMPLE.values():
        raise UsageError(f"the interpolation {document['interpolation']!r} is not known", "bilinear and bicubic are")
    fit = CROP_MODES.get(document.get("crop_mode"), "crop")
    fraction = document.get("crop_pct", base.crop_fraction)
    if fit == "pad" and fraction != 1:
        raise UsageError(f"timm's crop_mode 'border' with crop_pct {fraction!r} is not known", "with 1.0 it is")
    resize = math.floor(min(h, w) / fraction)
    mean, std = document.get("mean", base.mean), document.get("std", base.std)
    if len(mean) != config.channels:
        mean, std = (sum(mean) / len(mean),) * config.channels, (sum(std) / len(std),) * config.channels
    return replace(
        base,
        image_size=(h, w),
        crop_fraction=min(1.0, min(h, w) / resize),
        interpolation=document.get("interpolation", base.interpolation),
        fit=fit,
        mean=tuple(mean),
        std=tuple(std),
    )
