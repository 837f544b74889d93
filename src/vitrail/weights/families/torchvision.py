"""torchvision's VisionTransformer."""

from vitrail.model.config import Learned
from vitrail.weights.conversion import Layout
from vitrail.weights.operators import PositionTable, Rows, Token, make_position_rows

BLOCK = "encoder.layers.encoder_layer_{i}."
VIT: Rows = make_position_rows(PositionTable("encoder.pos_embedding"), Token("class_token")) | {
    "patch_embed.proj.{wb}": "conv_proj.{wb}",
    "blocks.{i}.norm1.{wb}": BLOCK + "ln_1.{wb}",
    "blocks.{i}.attn.qkv.{wb}": BLOCK + "self_attention.in_proj_{wb}",
    "blocks.{i}.attn.proj.{wb}": BLOCK + "self_attention.out_proj.{wb}",
    "blocks.{i}.norm2.{wb}": BLOCK + "ln_2.{wb}",
    "blocks.{i}.mlp.fc1.{wb}": BLOCK + "mlp.0.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": BLOCK + "mlp.3.{wb}",
    "norm.{wb}": "encoder.ln.{wb}",
    "head.{wb}": "heads.head.{wb}",
    "head.fc1.{wb}": "heads.pre_logits.{wb}",
    "head.fc2.{wb}": "heads.head.{wb}",
}
# the published files are older than the names above; torchvision renames linear_1 and linear_2 when it loads them
PUBLISHED = VIT | {
    "blocks.{i}.mlp.fc1.{wb}": BLOCK + "mlp.linear_1.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": BLOCK + "mlp.linear_2.{wb}",
}

MARKS = ("conv_proj.weight", "encoder.pos_embedding")
POSITION = Learned(antialias=False, align_corners=True)
LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout(
        "torchvision's ViT",
        "torchvision",
        VIT,
        marks=(*MARKS, "encoder.layers.encoder_layer_0.mlp.0.weight"),
        position=POSITION,
    ),
    "torchvision-published": Layout(
        "torchvision's ViT, as its weights are published",
        "torchvision",
        PUBLISHED,
        marks=(*MARKS, "encoder.layers.encoder_layer_0.mlp.linear_1.weight"),
        position=POSITION,
        alias_of="torchvision",
    ),
}
