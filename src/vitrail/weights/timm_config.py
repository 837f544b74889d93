"""timm's `config.json` -> layout, config, classes and preprocessing.

The document names an architecture and the arguments in which the model differs from it. The architecture itself is
known from a card.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from vitrail.data.options import Fit
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.model.config import PoolKind, Position, Rotary, ViTConfig, to_pair
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.classes import get_class_names
from vitrail.weights.families.timm import TOKENS, TimmTokens, find_timm_layout
from vitrail.weights.parsed_config import RESAMPLING, Document, ParsedConfig, make_unique

SAME_FIELDS = {  # timm's model_args -> our fields with the same meaning
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "patch_size": "patch",
    "in_chans": "channels",
    "init_values": "layer_scale",
    "qk_norm": "qk_norm",
    "qkv_bias": "qkv_bias",
    "pre_norm": "pre_norm",
}
CONVERTED = (
    "img_size", "mlp_ratio", "act_layer", "rope_temperature", "swiglu_align_to", "class_token", "reg_tokens",
    "num_reg_tokens", "no_embed_class", "global_pool", "fc_norm", "final_norm",
)  # fmt: skip
IGNORED = ("dynamic_img_size", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate")
KNOWN = (*SAME_FIELDS, *CONVERTED, *IGNORED)
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
CROP_MODES: dict[Any, Fit] = {"squash": "stretch", "border": "pad"}  # all others crop, which is timm's default


@dataclass(frozen=True)
class TokensAndPool:
    """The layout of a model, and the fields of its config that depend on tokens and pooling."""

    layout: str
    prefix_tokens: int
    pool: PoolKind
    final_norm: bool


def parse_timm_config(document: Document) -> ParsedConfig:
    """Parses the document; raises `VitrailError` for an architecture or an argument that is not known."""
    card = find_architecture(document["architecture"])
    base = card.build_config()
    arguments = document.get("model_args") or {}
    if unknown := [name for name in arguments if name not in KNOWN]:
        name = unknown[0]
        raise UsageError(f"timm's argument {name}={arguments[name]!r} is not known", did_you_mean(name, KNOWN))
    pretrained = document.get("pretrained_cfg", {})
    fields: Document = {ours: arguments[theirs] for theirs, ours in SAME_FIELDS.items() if theirs in arguments}
    tokens = parse_tokens(arguments, card.layout, replace(base, pre_norm=fields.get("pre_norm", base.pre_norm)))
    config = replace(
        base,
        **fields,
        image_size=parse_image_size(arguments, pretrained, base),
        mlp=parse_activation(arguments, base),
        mlp_width=parse_mlp_width(arguments, fields.get("width", base.width), base),
        position=parse_position(arguments, base),
        classes=document.get("num_classes", base.classes),
        prefix_tokens=tokens.prefix_tokens,
        pool=tokens.pool,
        final_norm=tokens.final_norm,
    )
    classes = parse_classes(pretrained.get("label_names") or [], card, base, config)
    return ParsedConfig(tokens.layout, config, classes, parse_pretrained_cfg(pretrained, card, config))


def find_architecture(name: str) -> Card:
    """Returns a card of this architecture of timm's; raises `VitrailError` if there is none."""
    known = {
        card.name.partition("/")[2].rpartition(".")[0]: card
        for card in load_cards().values()
        if card.get_layout().library == "timm"
    }
    if name not in known:
        raise VitrailError(f"timm's architecture {name!r} is not a ViT that vitrail knows", did_you_mean(name, known))
    return known[name]


# Fields of the config


def parse_image_size(arguments: Document, pretrained: Document, base: ViTConfig) -> int | tuple[int, int]:
    """Returns the image size, (height, width) if it is not square."""
    size = arguments.get("img_size", pretrained["input_size"][1:] if "input_size" in pretrained else base.image_size)
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else (height, width)


def parse_activation(arguments: Document, base: ViTConfig) -> Any:
    """Returns the kind of the MLP."""
    activation = arguments.get("act_layer", base.mlp)
    if "act_layer" in arguments and activation not in ACTIVATIONS:
        raise UsageError(f"timm's activation {activation!r} is not known")
    return activation


def parse_mlp_width(arguments: Document, width: int, base: ViTConfig) -> int:
    """Returns the hidden width of the MLP."""
    if "mlp_ratio" not in arguments:
        return base.mlp_width
    is_packed = base.mlp == "swiglu" and not isinstance(base.position, Rotary)  # the ratio counts gate and value
    return int(width * arguments["mlp_ratio"]) // (2 if is_packed else 1)


def parse_position(arguments: Document, base: ViTConfig) -> Position:
    """Returns the positions."""
    if "rope_temperature" in arguments:
        return Rotary(base=float(arguments["rope_temperature"]))
    return base.position


def parse_classes(names: list[Any], card: Card, base: ViTConfig, config: ViTConfig) -> tuple[str, ...]:
    """Returns the class names of the document; else the card's if the number is the same, else numbered names."""
    if config.classes == 0:
        return ()
    if len(names) == config.classes:
        return make_unique(tuple(map(str, names)))
    return get_class_names(card.labels if config.classes == base.classes else "class", config.classes)


# Tokens and pooling


def parse_tokens(arguments: Document, layout: str, base: ViTConfig) -> TokensAndPool:
    """Returns the layout, tokens and pool of a model from its architecture's layout and config, and its arguments."""
    if isinstance(base.position, Rotary):
        prefix_tokens = 1 + arguments.get("num_reg_tokens", base.prefix_tokens - 1)
        pools: dict[str, PoolKind] = {"token": "cls", "avg": "mean"}
        return TokensAndPool(layout, prefix_tokens, pools[arguments.get("global_pool", "avg")], base.final_norm)
    if layout not in TOKENS:  # DeiT with a distillation token, whose tokens are fixed
        return TokensAndPool(layout, base.prefix_tokens, base.pool, base.final_norm)
    default = TOKENS[layout]
    class_token = arguments.get("class_token", default.class_token)
    registers = max(base.prefix_tokens - class_token, 0) if default.registers else 0
    registers = arguments.get("reg_tokens", registers)
    no_embed_class = arguments.get("no_embed_class", default.no_embed_class)
    if registers and not no_embed_class:
        raise UsageError("timm's registers with positions of their own are not known")
    pool, final_norm = parse_pool(arguments, base)
    tokens = TimmTokens(
        class_token=class_token,
        class_position=class_token and not no_embed_class,
        registers=registers > 0,
        attention_pool=pool == "map",
        pre_norm=base.pre_norm,
    )
    return TokensAndPool(find_timm_layout(tokens), int(class_token) + registers, pool, final_norm)


def parse_pool(arguments: Document, base: ViTConfig) -> tuple[PoolKind, bool]:
    """Returns the pool and whether a norm follows the last block; timm normalizes before or after the mean."""
    if not any(name in arguments for name in ("global_pool", "fc_norm", "final_norm")):
        return base.pool, base.final_norm
    global_pool = arguments.get("global_pool", {"cls": "token", "map": "map"}.get(base.pool, "avg"))
    final_norm = arguments.get("final_norm", True)
    fc_norm = arguments.get("fc_norm")
    if fc_norm is None:
        fc_norm = global_pool == "avg"
    pools: dict[str, PoolKind] = {
        "token": "cls",
        "avg": "mean_norm" if fc_norm and final_norm else "mean",
        "map": "map",
    }
    return pools[global_pool], final_norm and not fc_norm


# Preprocessing


def parse_pretrained_cfg(document: Document, card: Card, config: ViTConfig) -> Preprocess:
    """Returns the preprocessing of `pretrained_cfg`, the card's where it says nothing."""
    base = card.build_preprocess()
    height, width = to_pair(config.image_size)
    if document.get("interpolation", "bicubic") not in RESAMPLING.values():
        raise UsageError(f"the interpolation {document['interpolation']!r} is not known", "bilinear and bicubic are")
    fit = CROP_MODES.get(document.get("crop_mode"), "crop")
    fraction = document.get("crop_pct", base.crop_fraction)
    if fit == "pad" and fraction != 1:
        raise UsageError(f"timm's crop_mode 'border' with crop_pct {fraction!r} is not known", "with 1.0 it is")
    resized = math.floor(min(height, width) / fraction)
    mean, std = document.get("mean", base.mean), document.get("std", base.std)
    if len(mean) != config.channels:  # timm averages over the channels of a gray model
        mean, std = (sum(mean) / len(mean),) * config.channels, (sum(std) / len(std),) * config.channels
    return replace(
        base,
        image_size=(height, width),
        crop_fraction=min(1.0, min(height, width) / resized),
        interpolation=document.get("interpolation", base.interpolation),
        fit=fit,
        mean=tuple(mean),
        std=tuple(std),
    )
