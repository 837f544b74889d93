"""Meta's original files of DINO, DeiT, DeiT-III, MAE and DINOv2. Most names are timm's."""

from vitrail.model.config import Learned
from vitrail.weights.conversion import Layout
from vitrail.weights.families import timm
from vitrail.weights.operators import PositionTable, Rows, Token, make_layer_scale_rows, make_position_rows

VIT = timm.TRUNK | make_position_rows(timm.ALL_POSITIONS, timm.CLASS_TOKEN)  # without LayerScale
DEIT3 = (
    timm.TRUNK
    | make_position_rows(timm.PATCH_POSITIONS, timm.CLASS_TOKEN)
    | make_layer_scale_rows("blocks.{i}.gamma_1", "blocks.{i}.gamma_2")
)
DINOV2_REGISTERS = timm.VIT | make_position_rows(
    PositionTable("pos_embed", rows=1), timm.CLASS_TOKEN, Token("register_tokens", None)
)
DINOV2_SWIGLU: Rows = {
    "blocks.{i}.mlp.fc1.{wb}": "blocks.{i}.mlp.w12.{wb}",
    "blocks.{i}.mlp.fc2.{wb}": "blocks.{i}.mlp.w3.{wb}",
}

ROOTS = ("", "module.", "backbone.", "module.backbone.", "encoder.")
BICUBIC = Learned(antialias=False)
DINO_POSITION = Learned(antialias=False, offset=0.1)  # DINO and DINOv2 add 0.1 to the grid for the scale factor
LAYOUTS: dict[str, Layout] = {
    "dino": Layout(
        "Meta's DINO",
        "meta",
        VIT,
        marks=(*timm.MARKS, "cls_token", "pos_embed"),
        roots=ROOTS,
        ignored=("head.*", "/head.*"),
        position=DINO_POSITION,
    ),
    "deit": Layout("Meta's DeiT", "meta", VIT, marks=(*timm.MARKS, "cls_token", "pos_embed"), position=BICUBIC),
    "deit-distilled": Layout(
        "Meta's DeiT with a distillation token",
        "meta",
        timm.DISTILLED,
        marks=(*timm.MARKS, "dist_token"),
        position=BICUBIC,
    ),
    "deit3": Layout(
        "Meta's DeiT-III",
        "meta",
        DEIT3,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.gamma_1", "pos_embed"),
        position=BICUBIC,
    ),
    "mae": Layout(
        "Meta's MAE, the encoder or the complete model",
        "meta",
        VIT,
        marks=(*timm.MARKS, "cls_token", "pos_embed"),
        ignored=("mask_token", "decoder_*"),
        position=BICUBIC,
    ),
    "dinov2": Layout(
        "Meta's DINOv2",
        "meta",
        timm.VIT,
        DINOV2_SWIGLU,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma", "mask_token"),
        roots=ROOTS,
        ignored=("mask_token", "dino_head.*", "ibot_head.*"),
        position=DINO_POSITION,
    ),
    "dinov2-registers": Layout(
        "Meta's DINOv2 with registers",
        "meta",
        DINOV2_REGISTERS,
        DINOV2_SWIGLU,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "register_tokens", "pos_embed"),
        roots=ROOTS,
        ignored=("mask_token", "dino_head.*", "ibot_head.*"),
    ),
}
