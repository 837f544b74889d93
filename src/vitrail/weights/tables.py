"""Which of our tensors comes from which of theirs: a table for every way of writing a ViT into a file.

The left side is a name of ours, `{i}` a block, `{wb}` weight or bias. The right side is a name of theirs or an
operator. A row applies if our model has the tensor.
Names stand below the file's root (`vit.`, `visual.`); one that begins with `/` stands outside it. They are those of
files: transformers 5 has others in memory.
"""

from collections.abc import Callable

from vitrail.model import ViTConfig
from vitrail.weights.operators import (
    Averaged,
    Cat,
    Copy,
    IntoHeads,
    Kernel,
    OutOfHeads,
    Prefix,
    Source,
    Table,
    Thirds,
    Token,
    Transposed,
    Zero,
)

Rows = dict[str, Source | str]


def zero(shape: Callable[[ViTConfig], int]) -> Zero:
    """A vector of zeros as long as this says."""
    return Zero(lambda config: (shape(config),))


def layer_scale(first: str, second: str) -> Rows:
    """LayerScale under these names."""
    return {"blocks.{i}.ls1.gamma": first, "blocks.{i}.ls2.gamma": second}


NO_WIDTH_BIAS = zero(lambda config: config.width)
NO_HEAD_BIAS = zero(lambda config: config.classes)

# timm (vision_transformer.py). The original files of DINO, DeiT and MAE have the same names.

SAME = (
    "patch_embed.proj.{wb}",
    "blocks.{i}.norm1.{wb}",
    "blocks.{i}.attn.qkv.{wb}",
    "blocks.{i}.attn.q_norm.{wb}",
    "blocks.{i}.attn.k_norm.{wb}",
    "blocks.{i}.attn.proj.{wb}",
    "blocks.{i}.norm2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}",
    "blocks.{i}.mlp.fc2.{wb}",
    "norm.{wb}",
    "head.{wb}",
)


def places(table: Table, *tokens: Token) -> Rows:
    """The prefix tokens and the positions."""
    return {"prefix": Prefix(*tokens, positions=table), "position.grid": table}


TIMM: Rows = (
    {name: name for name in SAME}
    | layer_scale("blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma")
    | places(Table("pos_embed"), Token("cls_token"))
    | {
        "pre_norm.{wb}": "norm_pre.{wb}",
        "pool.norm.{wb}": "fc_norm.{wb}",
        "head.fc1.{wb}": "pre_logits.fc.{wb}",
        "head.fc2.{wb}": "head.{wb}",
    }
)
TIMM_NO_TOKEN = TIMM | places(Table("pos_embed", rows=0))
TIMM_UNPLACED_TOKEN = TIMM | places(Table("pos_embed", rows=0), Token("cls_token"))
TIMM_REGISTERS = TIMM | places(Table("pos_embed", rows=0), Token("cls_token"), Token("reg_token", None))
TIMM_REGISTERS_ALONE = TIMM | places(Table("pos_embed", rows=0), Token("reg_token", None))
TIMM_DISTILLED = (
    TIMM
    | places(Table("pos_embed"), Token("cls_token"), Token("dist_token"))
    | {"head.{wb}": Averaged("head.{wb}", "head_dist.{wb}")}
)
TIMM_CLIP = TIMM | {"patch_embed.proj.bias": NO_WIDTH_BIAS}
TIMM_SIGLIP = TIMM_NO_TOKEN | {
    "pool.query": Copy("attn_pool.latent", lead=1),
    "pool.q.{wb}": "attn_pool.q.{wb}",
    "pool.kv.{wb}": "attn_pool.kv.{wb}",
    "pool.proj.{wb}": "attn_pool.proj.{wb}",
    "pool.norm.{wb}": "attn_pool.norm.{wb}",
    "pool.mlp.fc1.{wb}": "attn_pool.mlp.fc1.{wb}",
    "pool.mlp.fc2.{wb}": "attn_pool.mlp.fc2.{wb}",
}
TIMM_DINOV3 = (
    TIMM
    | layer_scale("blocks.{i}.gamma_1", "blocks.{i}.gamma_2")
    | {"prefix": Prefix(Token("cls_token"), Token("reg_token", None))}
)
TIMM_DINOV3_BIAS = TIMM_DINOV3 | {
    "blocks.{i}.attn.qkv.bias": Cat("blocks.{i}.attn.q_bias", NO_WIDTH_BIAS, "blocks.{i}.attn.v_bias")
}
GATED: Rows = {"blocks.{i}.mlp.fc1.{wb}": Cat("blocks.{i}.mlp.fc1_g.{wb}", "blocks.{i}.mlp.fc1_x.{wb}")}

# Meta's own files where they differ from timm's

META_DEIT3 = TIMM_UNPLACED_TOKEN | layer_scale("blocks.{i}.gamma_1", "blocks.{i}.gamma_2")
META_DINOV2 = TIMM
META_DINOV2_REGISTERS = META_DINOV2 | places(
    Table("pos_embed", rows=1), Token("cls_token"), Token("register_tokens", None)
)
META_GATED: Rows = {
    "blocks.{i}.mlp.fc1.{wb}": "blocks.{i}.mlp.w12.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": "blocks.{i}.mlp.w3.{wb}",
}

# torchvision (models/vision_transformer.py)

LAYER = "encoder.layers.encoder_layer_{i}."
TORCHVISION: Rows = places(Table("encoder.pos_embedding"), Token("class_token")) | {
    "patch_embed.proj.{wb}": "conv_proj.{wb}",
    "blocks.{i}.norm1.{wb}": LAYER + "ln_1.{wb}",
    "blocks.{i}.attn.qkv.{wb}": LAYER + "self_attention.in_proj_{wb}",
    "blocks.{i}.attn.proj.{wb}": LAYER + "self_attention.out_proj.{wb}",
    "blocks.{i}.norm2.{wb}": LAYER + "ln_2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": LAYER + "mlp.0.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": LAYER + "mlp.3.{wb}",
    "norm.{wb}": "encoder.ln.{wb}",
    "head.{wb}": "heads.head.{wb}",
    "head.fc1.{wb}": "heads.pre_logits.{wb}",
    "head.fc2.{wb}": "heads.head.{wb}",
}
# its published files are older than its names: they say linear_1 and linear_2, which torchvision renames on reading
TORCHVISION_OLD = TORCHVISION | {
    "blocks.{i}.mlp.fc1.{wb}": LAYER + "mlp.linear_1.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": LAYER + "mlp.linear_2.{wb}",
}

# Google's originals (vit_jax, models_vit.py), also those of AugReg

JAX_LAYER = "Transformer/encoderblock_{i}/"
ATTENTION = JAX_LAYER + "MultiHeadDotProductAttention_1/"
GOOGLE: Rows = places(Table("Transformer/posembed_input/pos_embedding"), Token("cls")) | {
    "patch_embed.proj.weight": Kernel("embedding/kernel"),
    "patch_embed.proj.bias": "embedding/bias",
    "blocks.{i}.norm1.weight": JAX_LAYER + "LayerNorm_0/scale",
    "blocks.{i}.norm1.bias": JAX_LAYER + "LayerNorm_0/bias",
    "blocks.{i}.attn.qkv.weight": Cat(*(IntoHeads(f"{ATTENTION}{part}/kernel") for part in ("query", "key", "value"))),
    "blocks.{i}.attn.qkv.bias": Cat(*(IntoHeads(f"{ATTENTION}{part}/bias") for part in ("query", "key", "value"))),
    "blocks.{i}.attn.proj.weight": OutOfHeads(ATTENTION + "out/kernel"),
    "blocks.{i}.attn.proj.bias": ATTENTION + "out/bias",
    "blocks.{i}.norm2.weight": JAX_LAYER + "LayerNorm_2/scale",
    "blocks.{i}.norm2.bias": JAX_LAYER + "LayerNorm_2/bias",
    "blocks.{i}.mlp.fc1.weight": Kernel(JAX_LAYER + "MlpBlock_3/Dense_0/kernel"),
    "blocks.{i}.mlp.fc1.bias": JAX_LAYER + "MlpBlock_3/Dense_0/bias",
    "blocks.{i}.mlp.fc2.weight": Kernel(JAX_LAYER + "MlpBlock_3/Dense_1/kernel"),
    "blocks.{i}.mlp.fc2.bias": JAX_LAYER + "MlpBlock_3/Dense_1/bias",
    "norm.weight": "Transformer/encoder_norm/scale",
    "norm.bias": "Transformer/encoder_norm/bias",
    "head.weight": Kernel("head/kernel"),
    "head.bias": "head/bias",
    "head.fc1.weight": Kernel("pre_logits/kernel"),
    "head.fc1.bias": "pre_logits/bias",
    "head.fc2.weight": Kernel("head/kernel"),
    "head.fc2.bias": "head/bias",
}

# transformers

HF_LAYER = "encoder.layer.{i}."
HF_ATTENTION = Cat(*(HF_LAYER + f"attention.attention.{part}.{{wb}}" for part in ("query", "key", "value")))
HF_TABLE = Table("embeddings.position_embeddings")
HF_CLASS = Token("embeddings.cls_token")
HF_VIT: Rows = places(HF_TABLE, HF_CLASS) | {
    "patch_embed.proj.{wb}": "embeddings.patch_embeddings.projection.{wb}",
    "blocks.{i}.norm1.{wb}": HF_LAYER + "layernorm_before.{wb}",
    "blocks.{i}.attn.qkv.{wb}": HF_ATTENTION,
    "blocks.{i}.attn.proj.{wb}": HF_LAYER + "attention.output.dense.{wb}",
    "blocks.{i}.norm2.{wb}": HF_LAYER + "layernorm_after.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": HF_LAYER + "intermediate.dense.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": HF_LAYER + "output.dense.{wb}",
    "norm.{wb}": "layernorm.{wb}",
    "head.{wb}": "/classifier.{wb}",
}
HF_DEIT = HF_VIT | places(HF_TABLE, HF_CLASS, Token("embeddings.distillation_token"))
HF_DEIT_TWO_HEADS = HF_DEIT | {"head.{wb}": Averaged("/cls_classifier.{wb}", "/distillation_classifier.{wb}")}
HF_DINOV2: Rows = (
    HF_VIT
    | layer_scale(HF_LAYER + "layer_scale1.lambda1", HF_LAYER + "layer_scale2.lambda1")
    | {
        "blocks.{i}.norm1.{wb}": HF_LAYER + "norm1.{wb}",
        "blocks.{i}.norm2.{wb}": HF_LAYER + "norm2.{wb}",
        "blocks.{i}.mlp.fc1.{wb}": HF_LAYER + "mlp.fc1.{wb}",
        "blocks.{i}.mlp.fc2.{wb}": HF_LAYER + "mlp.fc2.{wb}",
    }
)
HF_DINOV2_GATED: Rows = {
    "blocks.{i}.mlp.fc1.{wb}": HF_LAYER + "mlp.weights_in.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": HF_LAYER + "mlp.weights_out.{wb}",
}
HF_DINOV2_REGISTERS = HF_DINOV2 | places(
    Table("embeddings.position_embeddings", rows=1), HF_CLASS, Token("embeddings.register_tokens", None)
)
PROJECTIONS = [f"layer.{{i}}.attention.{part}_proj." for part in "qkv"]
HF_DINOV3: Rows = layer_scale("layer.{i}.layer_scale1.lambda1", "layer.{i}.layer_scale2.lambda1") | {
    "patch_embed.proj.{wb}": "embeddings.patch_embeddings.{wb}",
    "prefix": Prefix(HF_CLASS, Token("embeddings.register_tokens", None)),
    "blocks.{i}.norm1.{wb}": "layer.{i}.norm1.{wb}",
    "blocks.{i}.attn.qkv.weight": Cat(*(name + "weight" for name in PROJECTIONS)),
    "blocks.{i}.attn.qkv.bias": Cat(PROJECTIONS[0] + "bias", NO_WIDTH_BIAS, PROJECTIONS[2] + "bias"),
    "blocks.{i}.attn.proj.{wb}": "layer.{i}.attention.o_proj.{wb}",
    "blocks.{i}.norm2.{wb}": "layer.{i}.norm2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": "layer.{i}.mlp.up_proj.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": "layer.{i}.mlp.down_proj.{wb}",
    "norm.{wb}": "norm.{wb}",
    "head.{wb}": "/classifier.{wb}",
}
HF_DINOV3_GATED: Rows = {"blocks.{i}.mlp.fc1.{wb}": Cat("layer.{i}.mlp.gate_proj.{wb}", "layer.{i}.mlp.up_proj.{wb}")}
HF_TOWER_LAYER = "encoder.layers.{i}."
HF_TOWER: Rows = {
    "patch_embed.proj.{wb}": "embeddings.patch_embedding.{wb}",
    "blocks.{i}.norm1.{wb}": HF_TOWER_LAYER + "layer_norm1.{wb}",
    "blocks.{i}.attn.qkv.{wb}": Cat(*(HF_TOWER_LAYER + f"self_attn.{part}_proj.{{wb}}" for part in "qkv")),
    "blocks.{i}.attn.proj.{wb}": HF_TOWER_LAYER + "self_attn.out_proj.{wb}",
    "blocks.{i}.norm2.{wb}": HF_TOWER_LAYER + "layer_norm2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": HF_TOWER_LAYER + "mlp.fc1.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": HF_TOWER_LAYER + "mlp.fc2.{wb}",
    "norm.{wb}": "post_layernorm.{wb}",
}
HF_CLIP = (
    HF_TOWER
    | places(Table("embeddings.position_embedding.weight", axes=1), Token("embeddings.class_embedding", axes=1))
    | {
        "patch_embed.proj.bias": NO_WIDTH_BIAS,
        "pre_norm.{wb}": "pre_layrnorm.{wb}",
        "head.weight": "/visual_projection.weight",
        "head.bias": NO_HEAD_BIAS,
    }
)
HF_CLIP_CLASSIFIER = HF_CLIP | {"head.weight": "/classifier.weight", "head.bias": "/classifier.bias"}
HF_SIGLIP = (
    HF_TOWER
    | places(Table("embeddings.position_embedding.weight", axes=1))
    | {
        "pool.query": Copy("head.probe", lead=1),
        "pool.q.{wb}": Thirds("head.attention.in_proj_{wb}", 0, 1),
        "pool.kv.{wb}": Thirds("head.attention.in_proj_{wb}", 1, 3),
        "pool.proj.{wb}": "head.attention.out_proj.{wb}",
        "pool.norm.{wb}": "head.layernorm.{wb}",
        "pool.mlp.fc1.{wb}": "head.mlp.fc1.{wb}",
        "pool.mlp.fc2.{wb}": "head.mlp.fc2.{wb}",
        "head.{wb}": "/classifier.{wb}",
    }
)

# OpenAI's CLIP and open_clip's files of the same make

BLOCK = "transformer.resblocks.{i}."
OPENAI_CLIP: Rows = places(Table("positional_embedding", axes=1), Token("class_embedding", axes=1)) | {
    "patch_embed.proj.weight": "conv1.weight",
    "patch_embed.proj.bias": NO_WIDTH_BIAS,
    "pre_norm.{wb}": "ln_pre.{wb}",
    "blocks.{i}.norm1.{wb}": BLOCK + "ln_1.{wb}",
    "blocks.{i}.attn.qkv.{wb}": BLOCK + "attn.in_proj_{wb}",
    "blocks.{i}.attn.proj.{wb}": BLOCK + "attn.out_proj.{wb}",
    "blocks.{i}.norm2.{wb}": BLOCK + "ln_2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": BLOCK + "mlp.c_fc.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": BLOCK + "mlp.c_proj.{wb}",
    "norm.{wb}": "ln_post.{wb}",
    "head.weight": Transposed("proj"),
    "head.bias": NO_HEAD_BIAS,
}
