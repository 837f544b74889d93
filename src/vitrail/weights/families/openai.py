"""OpenAI's CLIP, and files of open_clip with the same names."""

from vitrail.weights.conversion import Layout
from vitrail.weights.operators import (
    ZERO_HEAD_BIAS,
    ZERO_WIDTH_BIAS,
    PositionTable,
    Rows,
    Token,
    Transpose,
    make_position_rows,
)

BLOCK = "transformer.resblocks.{i}."
CLIP: Rows = make_position_rows(PositionTable("positional_embedding", axes=1), Token("class_embedding", axes=1)) | {
    "patch_embed.proj.weight": "conv1.weight",
    "patch_embed.proj.bias": ZERO_WIDTH_BIAS,
    "pre_norm.{wb}": "ln_pre.{wb}",
    "blocks.{i}.norm1.{wb}": BLOCK + "ln_1.{wb}",
    "blocks.{i}.attn.qkv.{wb}": BLOCK + "attn.in_proj_{wb}",
    "blocks.{i}.attn.proj.{wb}": BLOCK + "attn.out_proj.{wb}",
    "blocks.{i}.norm2.{wb}": BLOCK + "ln_2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": BLOCK + "mlp.c_fc.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": BLOCK + "mlp.c_proj.{wb}",
    "norm.{wb}": "ln_post.{wb}",
    "head.weight": Transpose("proj"),
    "head.bias": ZERO_HEAD_BIAS,
}
TEXT_TOWER = (
    "/transformer.*",
    "/token_embedding.*",
    "/positional_embedding",
    "/ln_final.*",
    "/text_projection",
    "/logit_scale",
    "/input_resolution",
    "/context_length",
    "/vocab_size",
    "/attn_mask",
)

LAYOUTS: dict[str, Layout] = {
    "openai-clip": Layout(
        "OpenAI's CLIP, and open_clip's",
        "open_clip",
        CLIP,
        marks=("conv1.weight", "ln_pre.weight", "class_embedding", "transformer.resblocks.0.attn.in_proj_weight"),
        roots=("visual.", "module.visual."),
        ignored=TEXT_TOWER,
    )
}
