"""Google's original `.npz` files (vit_jax, models_vit.py), including those of AugReg."""

from vitrail.model.config import Learned
from vitrail.weights.conversion import Layout
from vitrail.weights.operators import (
    Concat,
    JaxHeadInput,
    JaxHeadOutput,
    JaxKernel,
    PositionTable,
    Rows,
    Token,
    make_position_rows,
)

BLOCK = "Transformer/encoderblock_{i}/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_1/"
QKV = ("query", "key", "value")
VIT: Rows = make_position_rows(PositionTable("Transformer/posembed_input/pos_embedding"), Token("cls")) | {
    "patch_embed.proj.weight": JaxKernel("embedding/kernel"),
    "patch_embed.proj.bias": "embedding/bias",
    "blocks.{i}.norm1.weight": BLOCK + "LayerNorm_0/scale",
    "blocks.{i}.norm1.bias": BLOCK + "LayerNorm_0/bias",
    "blocks.{i}.attn.qkv.weight": Concat(*(JaxHeadInput(f"{ATTENTION}{name}/kernel") for name in QKV)),
    "blocks.{i}.attn.qkv.bias": Concat(*(JaxHeadInput(f"{ATTENTION}{name}/bias") for name in QKV)),
    "blocks.{i}.attn.proj.weight": JaxHeadOutput(ATTENTION + "out/kernel"),
    "blocks.{i}.attn.proj.bias": ATTENTION + "out/bias",
    "blocks.{i}.norm2.weight": BLOCK + "LayerNorm_2/scale",
    "blocks.{i}.norm2.bias": BLOCK + "LayerNorm_2/bias",
    "blocks.{i}.mlp.fc1.weight": JaxKernel(BLOCK + "MlpBlock_3/Dense_0/kernel"),
    "blocks.{i}.mlp.fc1.bias": BLOCK + "MlpBlock_3/Dense_0/bias",
    "blocks.{i}.mlp.fc2.weight": JaxKernel(BLOCK + "MlpBlock_3/Dense_1/kernel"),
    "blocks.{i}.mlp.fc2.bias": BLOCK + "MlpBlock_3/Dense_1/bias",
    "norm.weight": "Transformer/encoder_norm/scale",
    "norm.bias": "Transformer/encoder_norm/bias",
    "head.weight": JaxKernel("head/kernel"),
    "head.bias": "head/bias",
    "head.fc1.weight": JaxKernel("pre_logits/kernel"),
    "head.fc1.bias": "pre_logits/bias",
    "head.fc2.weight": JaxKernel("head/kernel"),
    "head.fc2.bias": "head/bias",
}

LAYOUTS: dict[str, Layout] = {
    "google": Layout(
        "Google's original ViT (.npz)",
        "google",
        VIT,
        marks=("embedding/kernel", "Transformer/encoder_norm/scale"),
        roots=("", "opt/target/", "params/"),
        position=Learned(interpolation="bilinear", antialias=False, align_corners=True),
    )
}
