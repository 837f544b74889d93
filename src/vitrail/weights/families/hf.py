"""transformers' ViT, DeiT, DINOv2, DINOv3, CLIP and SigLIP: tensor names and `config.json`.

A reader takes a `config.json`, the name of its architecture and the number of classes, and returns a layout and a
config. A new family needs its rows, a layout, a reader and a row in `READERS`.
"""

from collections.abc import Callable
from typing import Any

from vitrail.errors import UsageError, did_you_mean
from vitrail.model.config import Learned, Rotary, ViTConfig, to_pair
from vitrail.weights.conversion import Layout
from vitrail.weights.operators import (
    ZERO_HEAD_BIAS,
    ZERO_WIDTH_BIAS,
    Concat,
    Copy,
    MeanOfHeads,
    PackedSlice,
    PositionTable,
    Prefix,
    Rows,
    Token,
    make_layer_scale_rows,
    make_position_rows,
)
from vitrail.weights.parsed_config import Document, parse_patch_size, split_image_size, to_image_size

Reader = Callable[[Document, str, int], tuple[str, ViTConfig]]
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}
BICUBIC = Learned(antialias=False)  # F.interpolate in bicubic mode


def build_config(document: Document, layout: str, **fields: Any) -> ViTConfig:
    """Returns the config from the fields that all families share; `fields` replace or add others."""
    if "mlp" not in fields:
        activation = document.get("hidden_act", "gelu")
        if activation not in ACTIVATIONS:
            raise UsageError(f"the activation {activation!r} is not known", did_you_mean(activation, ACTIVATIONS))
        fields["mlp"] = ACTIVATIONS[activation]
    patch = parse_patch_size(document["patch_size"])
    size, _ = split_image_size(to_pair(document.get("image_size", 224)), patch)
    shared: Document = {
        "width": document["hidden_size"],
        "depth": document["num_hidden_layers"],
        "heads": document["num_attention_heads"],
        "mlp_width": document.get("intermediate_size", 0),
        "patch": patch,
        "image_size": to_image_size(size),
        "channels": document.get("num_channels", 3),
        "norm_eps": document.get("layer_norm_eps", 1e-12),
        "qkv_bias": document.get("qkv_bias", True),
        "position": LAYOUTS[layout].position,
    }
    return ViTConfig(**{**shared, **fields})


# ViT and DeiT

LAYER = "encoder.layer.{i}."
POSITIONS = PositionTable("embeddings.position_embeddings")
CLASS_TOKEN = Token("embeddings.cls_token")
REGISTERS = Token("embeddings.register_tokens", None)
VIT: Rows = make_position_rows(POSITIONS, CLASS_TOKEN) | {
    "patch_embed.proj.{wb}": "embeddings.patch_embeddings.projection.{wb}",
    "blocks.{i}.norm1.{wb}": LAYER + "layernorm_before.{wb}",
    "blocks.{i}.attn.qkv.{wb}": Concat(
        *(LAYER + f"attention.attention.{name}.{{wb}}" for name in ("query", "key", "value"))
    ),
    "blocks.{i}.attn.proj.{wb}": LAYER + "attention.output.dense.{wb}",
    "blocks.{i}.norm2.{wb}": LAYER + "layernorm_after.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": LAYER + "intermediate.dense.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": LAYER + "output.dense.{wb}",
    "norm.{wb}": "layernorm.{wb}",
    "head.{wb}": "/classifier.{wb}",
}
DEIT = VIT | make_position_rows(POSITIONS, CLASS_TOKEN, Token("embeddings.distillation_token"))
DEIT_TWO_HEADS = DEIT | {"head.{wb}": MeanOfHeads("/cls_classifier.{wb}", "/distillation_classifier.{wb}")}


def read_vit(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """ViT, and the encoder of ViTMAE."""
    return "hf-vit", build_config(document, "hf-vit", classes=classes)


def read_deit(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """DeiT with one head or two."""
    if architecture == "DeiTForImageClassificationWithTeacher":
        layout = "hf-deit-distilled"
        return layout, build_config(document, layout, prefix_tokens=2, pool="cls+dist", classes=classes)
    return "hf-deit", build_config(document, "hf-deit", prefix_tokens=2, classes=classes)


# DINOv2

DINOV2: Rows = (
    VIT
    | make_layer_scale_rows(LAYER + "layer_scale1.lambda1", LAYER + "layer_scale2.lambda1")
    | {
        "blocks.{i}.norm1.{wb}": LAYER + "norm1.{wb}",
        "blocks.{i}.norm2.{wb}": LAYER + "norm2.{wb}",
        "blocks.{i}.mlp.fc1.{wb}": LAYER + "mlp.fc1.{wb}",
        "blocks.{i}.mlp.fc2.{wb}": LAYER + "mlp.fc2.{wb}",
    }
)
DINOV2_SWIGLU: Rows = {
    "blocks.{i}.mlp.fc1.{wb}": LAYER + "mlp.weights_in.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": LAYER + "mlp.weights_out.{wb}",
}
DINOV2_REGISTERS = DINOV2 | make_position_rows(
    PositionTable("embeddings.position_embeddings", rows=1), CLASS_TOKEN, REGISTERS
)


def compute_swiglu_width(hidden: int) -> int:
    """Returns the width of DINOv2's SwiGLU MLP for the width that its config states."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def read_dinov2(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """DINOv2, with registers or without."""
    has_registers = document["model_type"] == "dinov2_with_registers"
    registers = document.get("num_register_tokens", 4) if has_registers else 0
    layout = "hf-dinov2-registers" if registers else "hf-dinov2"
    hidden = int(document["hidden_size"] * document.get("mlp_ratio", 4))
    is_swiglu = document.get("use_swiglu_ffn", False)
    mlp: Document = {"mlp": "swiglu"} if is_swiglu else {}
    return layout, build_config(
        document,
        layout,
        mlp_width=compute_swiglu_width(hidden) if is_swiglu else hidden,
        norm_eps=document.get("layer_norm_eps", 1e-6),
        layer_scale=document.get("layerscale_value", 1.0),
        prefix_tokens=1 + registers,
        pool="cls+mean" if classes else "cls",
        classes=classes,
        **mlp,
    )


# DINOv3

QKV_PROJECTIONS = [f"layer.{{i}}.attention.{name}_proj." for name in "qkv"]
DINOV3: Rows = make_layer_scale_rows("layer.{i}.layer_scale1.lambda1", "layer.{i}.layer_scale2.lambda1") | {
    "patch_embed.proj.{wb}": "embeddings.patch_embeddings.{wb}",
    "prefix": Prefix(CLASS_TOKEN, REGISTERS),
    "blocks.{i}.norm1.{wb}": "layer.{i}.norm1.{wb}",
    "blocks.{i}.attn.qkv.weight": Concat(*(name + "weight" for name in QKV_PROJECTIONS)),
    "blocks.{i}.attn.qkv.bias": Concat(QKV_PROJECTIONS[0] + "bias", ZERO_WIDTH_BIAS, QKV_PROJECTIONS[2] + "bias"),
    "blocks.{i}.attn.proj.{wb}": "layer.{i}.attention.o_proj.{wb}",
    "blocks.{i}.norm2.{wb}": "layer.{i}.norm2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": "layer.{i}.mlp.up_proj.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": "layer.{i}.mlp.down_proj.{wb}",
    "norm.{wb}": "norm.{wb}",
    "head.{wb}": "/classifier.{wb}",
}
DINOV3_SWIGLU: Rows = {"blocks.{i}.mlp.fc1.{wb}": Concat("layer.{i}.mlp.gate_proj.{wb}", "layer.{i}.mlp.up_proj.{wb}")}


def read_dinov3(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """DINOv3; raises `UsageError` for a gate other than SiLU and for biases that no published model has."""
    is_gated = document.get("use_gated_mlp", False)
    if is_gated and document.get("hidden_act") != "silu":
        raise UsageError(f"a gated MLP with {document.get('hidden_act')!r} is not known", "SwiGLU's gate is silu")
    biases = [document.get(f"{name}_bias", name != "key") for name in ("query", "key", "value")]
    if biases not in ([True, False, True], [False] * 3) or not document.get("mlp_bias", True):
        raise UsageError("DINOv3 with these biases is not known")
    mlp: Document = {"mlp": "swiglu"} if is_gated else {}
    return "hf-dinov3", build_config(
        document,
        "hf-dinov3",
        position=Rotary(base=float(document.get("rope_theta", 100.0))),
        norm_eps=document.get("layer_norm_eps", 1e-5),
        layer_scale=document.get("layerscale_value", 1.0),
        prefix_tokens=1 + document.get("num_register_tokens", 0),
        qkv_bias=biases[0],
        classes=classes,
        **mlp,
    )


# CLIP and SigLIP: image towers

TOWER_LAYER = "encoder.layers.{i}."
TOWER: Rows = {
    "patch_embed.proj.{wb}": "embeddings.patch_embedding.{wb}",
    "blocks.{i}.norm1.{wb}": TOWER_LAYER + "layer_norm1.{wb}",
    "blocks.{i}.attn.qkv.{wb}": Concat(*(TOWER_LAYER + f"self_attn.{name}_proj.{{wb}}" for name in "qkv")),
    "blocks.{i}.attn.proj.{wb}": TOWER_LAYER + "self_attn.out_proj.{wb}",
    "blocks.{i}.norm2.{wb}": TOWER_LAYER + "layer_norm2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": TOWER_LAYER + "mlp.fc1.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": TOWER_LAYER + "mlp.fc2.{wb}",
    "norm.{wb}": "post_layernorm.{wb}",
}
TOWER_POSITIONS = PositionTable("embeddings.position_embedding.weight", axes=1)
CLIP = (
    TOWER
    | make_position_rows(TOWER_POSITIONS, Token("embeddings.class_embedding", axes=1))
    | {
        "patch_embed.proj.bias": ZERO_WIDTH_BIAS,
        "pre_norm.{wb}": "pre_layrnorm.{wb}",  # spelled like this in transformers
        "head.weight": "/visual_projection.weight",
        "head.bias": ZERO_HEAD_BIAS,
    }
)
CLIP_CLASSIFIER = CLIP | {"head.weight": "/classifier.weight", "head.bias": "/classifier.bias"}
SIGLIP = (
    TOWER
    | make_position_rows(TOWER_POSITIONS)
    | {
        "pool.query": Copy("head.probe", leading=1),
        "pool.q.{wb}": PackedSlice("head.attention.in_proj_{wb}", 0, 1),
        "pool.kv.{wb}": PackedSlice("head.attention.in_proj_{wb}", 1, 3),
        "pool.proj.{wb}": "head.attention.out_proj.{wb}",
        "pool.norm.{wb}": "head.layernorm.{wb}",
        "pool.mlp.fc1.{wb}": "head.mlp.fc1.{wb}",
        "pool.mlp.fc2.{wb}": "head.mlp.fc2.{wb}",
    }
)
SIGLIP_CLASSIFIER = TOWER | make_position_rows(TOWER_POSITIONS) | {"head.{wb}": "/classifier.{wb}"}
TOWER_DEFAULTS = {  # a two-tower config leaves out what equals these
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


def read_clip(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """CLIP's image tower: alone, beside the text tower, or with a classifier."""
    vision = document.get("vision_config", document)
    tower = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, **TOWER_DEFAULTS, **vision}
    if architecture == "CLIPForImageClassification":
        layout = "hf-clip-classifier"
        return layout, build_config(tower, layout, pre_norm=True, classes=classes, pool="mean", final_norm=False)
    outputs = 0
    if architecture in ("CLIPModel", "CLIPVisionModelWithProjection"):
        outputs = document.get("projection_dim", tower.get("projection_dim", 512))
    return "hf-clip", build_config(tower, "hf-clip", pre_norm=True, classes=outputs)


def read_siglip(document: Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
    """SigLIP's image tower: with attention pooling, or with a classifier on the mean."""
    vision = document.get("vision_config", document)
    defaults = {**TOWER_DEFAULTS, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "patch_size": 16}
    tower = {**defaults, **vision}
    layout, pool = ("hf-siglip-classifier", "mean") if classes else ("hf-siglip", "map")
    return layout, build_config(tower, layout, prefix_tokens=0, pool=pool, classes=classes)


# Tables

READERS: dict[str, Reader] = {  # by model_type
    "vit": read_vit,
    "vit_mae": read_vit,
    "deit": read_deit,
    "dinov2": read_dinov2,
    "dinov2_with_registers": read_dinov2,
    "dinov3_vit": read_dinov3,
    "clip": read_clip,
    "clip_vision_model": read_clip,
    "siglip": read_siglip,
    "siglip_vision_model": read_siglip,
}
PATCH_MARK = "embeddings.patch_embeddings.projection.weight"
VIT_MARKS = (PATCH_MARK, "encoder.layer.0.layernorm_before.weight")
DINOV2_MARKS = (PATCH_MARK, "encoder.layer.0.layer_scale1.lambda1")
CLIP_MARKS = ("embeddings.class_embedding", "pre_layrnorm.weight")
SIGLIP_MARKS = ("embeddings.patch_embedding.bias", "embeddings.position_embedding.weight")
UNUSED = ("pooler.*", "embeddings.mask_token")
TEXT_TOWER = ("/text_model.*", "/text_projection.*", "/logit_scale", "/logit_bias", "embeddings.position_ids")
LAYOUTS: dict[str, Layout] = {
    "hf-vit": Layout(
        "transformers' ViT, and the encoder of its ViTMAE", "transformers", VIT, marks=VIT_MARKS, roots=("vit.", ""),
        ignored=(*UNUSED, "/decoder.*"), position=BICUBIC,
    ),
    "hf-deit": Layout(
        "transformers' DeiT", "transformers", DEIT, marks=(*VIT_MARKS, "embeddings.distillation_token"),
        roots=("deit.", ""), ignored=(*UNUSED, "/decoder.*"), position=BICUBIC,
    ),
    "hf-deit-distilled": Layout(
        "transformers' DeiT with two heads", "transformers", DEIT_TWO_HEADS,
        marks=(*VIT_MARKS, "/cls_classifier.weight"), roots=("deit.",), ignored=UNUSED, position=BICUBIC,
    ),
    "hf-dinov2": Layout(
        "transformers' DINOv2", "transformers", DINOV2, DINOV2_SWIGLU, marks=DINOV2_MARKS, roots=("dinov2.", ""),
        ignored=("embeddings.mask_token",), position=BICUBIC,
    ),
    "hf-dinov2-registers": Layout(
        "transformers' DINOv2 with registers", "transformers", DINOV2_REGISTERS, DINOV2_SWIGLU,
        marks=(*DINOV2_MARKS, "embeddings.register_tokens"), roots=("dinov2_with_registers.", ""),
        ignored=("embeddings.mask_token",),
    ),
    "hf-dinov3": Layout(
        "transformers' DINOv3", "transformers", DINOV3, DINOV3_SWIGLU,
        marks=("embeddings.patch_embeddings.weight", "layer.0.attention.q_proj.weight", "norm.weight"),
        roots=("dinov3_vit.", "model.", ""), ignored=("embeddings.mask_token",),
    ),
    "hf-clip": Layout(
        "transformers' image tower of CLIP", "transformers", CLIP, marks=CLIP_MARKS, roots=("vision_model.", ""),
        ignored=TEXT_TOWER, position=BICUBIC,
    ),
    "hf-clip-classifier": Layout(
        "transformers' CLIP with a classification head", "transformers", CLIP_CLASSIFIER,
        marks=(*CLIP_MARKS, "/classifier.weight"), roots=("vision_model.",),
        ignored=("embeddings.position_ids", "post_layernorm.*"), position=BICUBIC,
    ),
    "hf-siglip": Layout(
        "transformers' image tower of SigLIP", "transformers", SIGLIP, marks=(*SIGLIP_MARKS, "head.probe"),
        roots=("vision_model.", ""), ignored=TEXT_TOWER, position=BICUBIC,
    ),
    "hf-siglip-classifier": Layout(
        "transformers' SigLIP with a classification head", "transformers", SIGLIP_CLASSIFIER,
        marks=(*SIGLIP_MARKS, "/classifier.weight"), roots=("vision_model.",),
        ignored=("embeddings.position_ids", "head.*"), position=BICUBIC,
    ),
}  # fmt: skip
