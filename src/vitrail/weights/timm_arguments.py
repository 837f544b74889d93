"""The arguments of timm's ViTs (`model_args`) -> layout and config.

An architecture of timm's is known from a card; the arguments are those in which a model differs from it. Current
versions of timm also record `num_classes`, `in_chans`, `img_size` and `global_pool` of every model.
"""

from dataclasses import dataclass, replace
from typing import Any

from vitrail.errors import UsageError, did_you_mean
from vitrail.model.config import Position, Rotary, ViTConfig
from vitrail.weights.cards import Card
from vitrail.weights.families.timm import TOKENS, TimmTokens, find_timm_layout
from vitrail.weights.parsed_config import Document, parse_patch_size

SAME_FIELDS = {  # timm's arguments -> our fields with the same meaning
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "in_chans": "channels",
    "init_values": "layer_scale",
    "qk_norm": "qk_norm",
    "qkv_bias": "qkv_bias",
    "pre_norm": "pre_norm",
}
CONVERTED = (
    "num_classes", "patch_size", "img_size", "mlp_ratio", "act_layer", "norm_layer", "rope_temperature",
    "swiglu_align_to", "swiglu_mlp", "class_token", "reg_tokens", "num_reg_tokens", "no_embed_class", "global_pool",
    "fc_norm", "final_norm",
)  # fmt: skip
IGNORED = (  # they change the initialization, the training, or which image sizes are accepted
    "weight_init", "fix_init", "head_init_scale", "drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate",
    "pos_drop_rate", "patch_drop_rate", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "pretrained_strict",
    "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords",
)  # fmt: skip
REQUIRED: dict[str, tuple[Any, ...]] = {  # arguments of which vitrail has only these values
    "pos_embed": ("learn",),
    "proj_bias": (True,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "pool_include_prefix": (False,),
    "embed_norm_layer": (None, ""),
    "use_naflex": (None, False),
    # of timm's Eva, which DINOv3 is
    "num_kv_heads": (None,),
    "qkv_fused": (True,),
    "attn_type": ("eva",),
    "scale_mlp": (False,),
    "scale_attn_inner": (False,),
    "attn_only_layer_scale": (False,),
    "use_abs_pos_emb": (False,),
    "use_rot_pos_emb": (True,),
    "rope_type": ("dinov3",),
    "rope_grid_offset": (0,),
    "rope_grid_indexing": ("ij",),
    "rope_rotate_half": (True,),
    "use_post_norm": (False,),
    "use_pre_transformer_norm": (False,),
    "use_post_transformer_norm": (None, True),
    "use_fc_norm": (False,),
}
KNOWN = (*SAME_FIELDS, *CONVERTED, *IGNORED, *REQUIRED)
ACTIVATIONS: dict[str | None, str] = {
    None: "gelu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
NORM_EPS = 1e-6  # of timm's LayerNorm, which an argument can name
POOLS = ("token", "avg", "map")
SO400M_MLP_RATIO = 3.7362  # of timm's SigLIP So400m; the ratio of its widths is a little smaller
SWIGLU_ALIGNMENT = {"vit_7b_patch16_dinov3": 64}  # the hidden width of DINOv3's SwiGLU is a multiple of it; else 8


@dataclass(frozen=True)
class TokensAndPool:
    """The layout of a model, and the fields of its config that depend on tokens and pooling."""

    layout: str
    prefix_tokens: int
    pool: str
    final_norm: bool
    is_normed_after: bool = False  # the norm of the class token is named as the norm of a mean


def check_arguments(arguments: Document) -> None:
    """Raises `UsageError` for an argument that is not known, or a value that vitrail's ViT does not have."""
    for name, value in arguments.items():
        if name not in KNOWN:
            raise UsageError(f"timm's argument {name}={value!r} is not known", did_you_mean(name, KNOWN))
        if name in REQUIRED and value not in REQUIRED[name]:
            raise UsageError(f"timm's {name}={value!r} makes a model that vitrail does not have")


def parse_arguments(arguments: Document, card: Card, architecture: str) -> tuple[TokensAndPool, ViTConfig]:
    """Returns tokens and config of a model; its image size and number of classes are still the card's.

    Raises `UsageError` for an argument that is not known.
    """
    check_arguments(arguments)
    base = card.build_config()
    fields: Document = {ours: arguments[theirs] for theirs, ours in SAME_FIELDS.items() if theirs in arguments}
    if "norm_layer" in arguments:
        fields["norm_eps"] = parse_norm_eps(arguments["norm_layer"])
    mlp = parse_mlp(arguments, base)
    tokens = parse_tokens(arguments, card.layout, replace(base, pre_norm=fields.get("pre_norm", base.pre_norm)))
    patch = parse_patch_size(arguments.get("patch_size", base.patch))
    return tokens, replace(
        base,
        **fields,
        patch=patch,
        image_size=patch,  # the caller knows it; a multiple of the patch until then
        mlp=mlp,
        mlp_width=parse_mlp_width(arguments, fields.get("width", base.width), replace(base, mlp=mlp), architecture),
        position=parse_position(arguments, base),
        prefix_tokens=tokens.prefix_tokens,
        pool=tokens.pool,
        final_norm=tokens.final_norm,
    )


def parse_norm_eps(norm_layer: Any) -> float:
    """Returns the epsilon of the norms that an argument names."""
    if norm_layer not in (None, "", "layernorm"):
        raise UsageError(f"timm's norm_layer {norm_layer!r} is not known", "layernorm is")
    return NORM_EPS


def parse_mlp(arguments: Document, base: ViTConfig) -> str:
    """Returns the kind of the MLP."""
    if "swiglu_mlp" in arguments:  # DINOv3
        return "swiglu" if arguments["swiglu_mlp"] else "gelu"
    if "act_layer" not in arguments:
        return base.mlp
    activation = arguments["act_layer"]
    if base.mlp == "swiglu" and activation in ("silu", "swish"):
        return base.mlp
    if base.mlp == "swiglu" or activation not in ACTIVATIONS:
        raise UsageError(f"timm's activation {activation!r} is not known for this architecture")
    return ACTIVATIONS[activation]


def parse_mlp_width(arguments: Document, width: int, base: ViTConfig, architecture: str) -> int:
    """Returns the hidden width of the MLP; it follows the width of the model unless the architecture keeps both."""
    is_dinov3 = isinstance(base.position, Rotary)
    is_packed = base.mlp == "swiglu" and not is_dinov3  # the ratio counts gate and value
    names = ("mlp_ratio", "swiglu_align_to", "swiglu_mlp")
    if width == base.width and not any(name in arguments for name in names):
        return base.mlp_width
    if "mlp_ratio" in arguments:
        hidden = int(width * arguments["mlp_ratio"])
    elif "so400m" in architecture and "siglip" in architecture:
        hidden = int(width * SO400M_MLP_RATIO)
    else:
        hidden = width * base.mlp_width * (2 if is_packed else 1) // base.width
    if base.mlp == "swiglu" and is_dinov3:
        alignment = arguments.get("swiglu_align_to", SWIGLU_ALIGNMENT.get(architecture, 8)) or 1
        hidden += -hidden % alignment
    return hidden // (2 if is_packed else 1)


def parse_position(arguments: Document, base: ViTConfig) -> Position | str:
    """Returns the positions."""
    if "rope_temperature" in arguments:
        return Rotary(base=float(arguments["rope_temperature"]))
    return base.position


# Tokens and pooling


def parse_tokens(arguments: Document, layout: str, base: ViTConfig) -> TokensAndPool:
    """Returns the layout, tokens and pool of a model from its architecture's layout and config, and its arguments."""
    if isinstance(base.position, Rotary):
        return parse_dinov3_tokens(arguments, layout, base)
    if layout not in TOKENS:  # DeiT with a distillation token, whose tokens are fixed
        if arguments.get("global_pool", "token") != "token":
            raise UsageError(f"timm's global_pool {arguments['global_pool']!r} is not known here", "token is")
        return TokensAndPool(layout, base.prefix_tokens, base.pool, base.final_norm)
    default = TOKENS[layout]
    class_token = arguments.get("class_token", default.class_token)
    registers = max(base.prefix_tokens - class_token, 0) if default.registers else 0
    registers = arguments.get("reg_tokens", registers)
    no_embed_class = arguments.get("no_embed_class", default.no_embed_class)
    if registers and not no_embed_class:
        raise UsageError("timm's registers with positions of their own are not known")
    pool, final_norm, is_normed_after = parse_pool(arguments, base)
    tokens = TimmTokens(
        class_token=class_token,
        class_position=class_token and not no_embed_class,
        registers=registers > 0,
        attention_pool=pool == "map",
        pre_norm=base.pre_norm,
    )
    return TokensAndPool(find_timm_layout(tokens), int(class_token) + registers, pool, final_norm, is_normed_after)


def parse_dinov3_tokens(arguments: Document, layout: str, base: ViTConfig) -> TokensAndPool:
    """Returns the same for timm's DINOv3, which has a class token and registers."""
    pools: dict[str, str] = {"token": "cls", "avg": "mean"}
    global_pool = arguments.get("global_pool", "avg")
    if global_pool not in pools:
        raise UsageError(f"timm's global_pool {global_pool!r} is not known here", f"{' and '.join(pools)} are")
    if not arguments.get("class_token", True):
        raise UsageError("timm's DINOv3 without a class token is not known")
    if "qkv_bias" in arguments:
        layout = "timm-dinov3-bias" if arguments["qkv_bias"] else "timm-dinov3"
    prefix_tokens = 1 + arguments.get("num_reg_tokens", base.prefix_tokens - 1)
    return TokensAndPool(layout, prefix_tokens, pools[global_pool], base.final_norm)


def parse_pool(arguments: Document, base: ViTConfig) -> tuple[str, bool, bool]:
    """Returns the pool, whether a norm follows the last block, and whether timm names it as a norm after the pool.

    timm normalizes before the pool (`norm`) or after it (`fc_norm`). For the class token both are the same.
    """
    if not any(name in arguments for name in ("global_pool", "fc_norm", "final_norm")):
        return base.pool, base.final_norm, False
    global_pool = arguments.get("global_pool", {"cls": "token", "map": "map"}.get(base.pool, "avg"))
    if global_pool not in POOLS:
        raise UsageError(f"timm's global_pool {global_pool!r} is not known", f"{', '.join(POOLS)} are")
    final_norm = arguments.get("final_norm", base.final_norm or base.pool == "mean_norm")
    fc_norm = arguments.get("fc_norm", False if base.pool == "mean" else None)  # some architectures set it
    if fc_norm is None:
        fc_norm = global_pool == "avg"
    if global_pool == "avg":
        return ("mean_norm" if fc_norm and final_norm else "mean"), final_norm and not fc_norm, False
    if global_pool == "map" and fc_norm and final_norm:
        raise UsageError("timm's attention pooling with a norm after it is not known")
    return ("map" if global_pool == "map" else "cls"), final_norm, fc_norm and final_norm
