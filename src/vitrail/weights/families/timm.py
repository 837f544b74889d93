"""timm: VisionTransformer, VisionTransformerDistilled, and DINOv3 (its Eva).

The original files of DINO, DeiT and MAE use the same names (see `meta`).
"""

from dataclasses import asdict, dataclass

from vitrail.errors import UsageError
from vitrail.weights.conversion import Layout
from vitrail.weights.operators import (
    ZERO_WIDTH_BIAS,
    Concat,
    Copy,
    MeanOfHeads,
    PositionTable,
    Prefix,
    Rows,
    Token,
    make_layer_scale_rows,
    make_position_rows,
)

# Tensors

SAME_NAMES = (
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
CLASS_TOKEN = Token("cls_token")
REGISTERS = Token("reg_token", None)
ALL_POSITIONS = PositionTable("pos_embed")
PATCH_POSITIONS = PositionTable("pos_embed", rows=0)

# blocks, norms and head; tokens, positions and LayerScale differ between the layouts
TRUNK: Rows = {
    **{name: name for name in SAME_NAMES},
    "pre_norm.{wb}": "norm_pre.{wb}",
    "pool.norm.{wb}": "fc_norm.{wb}",
    "head.fc1.{wb}": "pre_logits.fc.{wb}",
    "head.fc2.{wb}": "head.{wb}",
}
SCALED_TRUNK = TRUNK | make_layer_scale_rows("blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma")
VIT = SCALED_TRUNK | make_position_rows(ALL_POSITIONS, CLASS_TOKEN)
NO_TOKEN = SCALED_TRUNK | make_position_rows(PATCH_POSITIONS)
DISTILLED = (
    SCALED_TRUNK
    | make_position_rows(ALL_POSITIONS, CLASS_TOKEN, Token("dist_token"))
    | {"head.{wb}": MeanOfHeads("head.{wb}", "head_dist.{wb}")}
)
ATTENTION_POOL: Rows = {
    "pool.query": Copy("attn_pool.latent", leading=1),
    "pool.q.{wb}": "attn_pool.q.{wb}",
    "pool.kv.{wb}": "attn_pool.kv.{wb}",
    "pool.proj.{wb}": "attn_pool.proj.{wb}",
    "pool.norm.{wb}": "attn_pool.norm.{wb}",
    "pool.mlp.fc1.{wb}": "attn_pool.mlp.fc1.{wb}",
    "pool.mlp.fc2.{wb}": "attn_pool.mlp.fc2.{wb}",
}
DINOV3 = (
    TRUNK
    | make_layer_scale_rows("blocks.{i}.gamma_1", "blocks.{i}.gamma_2")
    | {"prefix": Prefix(CLASS_TOKEN, REGISTERS)}
)
DINOV3_BIAS = DINOV3 | {
    "blocks.{i}.attn.qkv.bias": Concat("blocks.{i}.attn.q_bias", ZERO_WIDTH_BIAS, "blocks.{i}.attn.v_bias")
}
DINOV3_SWIGLU: Rows = {"blocks.{i}.mlp.fc1.{wb}": Concat("blocks.{i}.mlp.fc1_g.{wb}", "blocks.{i}.mlp.fc1_x.{wb}")}

# Layouts

MARKS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight")
DINOV3_MARKS = ("blocks.0.attn.qkv.weight", "blocks.0.gamma_1", "cls_token", "reg_token")
ROOTS = ("", "module.", "visual.trunk.")
LAYOUTS: dict[str, Layout] = {
    "timm": Layout("timm's ViT", "timm", VIT, marks=(*MARKS, "cls_token", "pos_embed"), roots=ROOTS),
    "timm-distilled": Layout("timm's DeiT with a distillation token", "timm", DISTILLED, marks=(*MARKS, "dist_token")),
    "timm-deit3": Layout(
        "timm's ViT whose class token has no position (DeiT-III)",
        "timm",
        SCALED_TRUNK | make_position_rows(PATCH_POSITIONS, CLASS_TOKEN),
        marks=(*MARKS, "cls_token", "pos_embed"),
    ),
    "timm-clip": Layout(
        "timm's image tower of CLIP",
        "timm",
        VIT | {"patch_embed.proj.bias": ZERO_WIDTH_BIAS},
        marks=(*MARKS, "norm_pre.weight", "cls_token", "pos_embed"),
        roots=ROOTS,
    ),
    "timm-siglip": Layout(
        "timm's ViT with attention pooling, as SigLIP's image tower",
        "timm",
        NO_TOKEN | ATTENTION_POOL,
        marks=(*MARKS, "pos_embed", "attn_pool.latent"),
        roots=ROOTS,
    ),
    "timm-mean": Layout(
        "timm's ViT without a class token, mean pooling", "timm", NO_TOKEN, marks=(*MARKS, "pos_embed")
    ),
    "timm-registers": Layout(
        "timm's ViT with a class token and registers",
        "timm",
        SCALED_TRUNK | make_position_rows(PATCH_POSITIONS, CLASS_TOKEN, REGISTERS),
        marks=(*MARKS, "cls_token", "reg_token", "pos_embed"),
    ),
    "timm-registers-alone": Layout(
        "timm's ViT with registers and no class token",
        "timm",
        SCALED_TRUNK | make_position_rows(PATCH_POSITIONS, REGISTERS),
        marks=(*MARKS, "reg_token", "pos_embed"),
    ),
    "timm-dinov3": Layout("timm's DINOv3", "timm", DINOV3, DINOV3_SWIGLU, marks=DINOV3_MARKS),
    "timm-dinov3-bias": Layout(
        "timm's DINOv3 with biases on queries and values",
        "timm",
        DINOV3_BIAS,
        DINOV3_SWIGLU,
        marks=(*DINOV3_MARKS, "blocks.0.attn.q_bias"),
    ),
}


# The layout that a VisionTransformer's arguments make


@dataclass(frozen=True)
class TimmTokens:
    """The arguments of timm's VisionTransformer that decide its layout."""

    class_token: bool = False
    class_position: bool = False  # pos_embed has a row for the class token (timm: not no_embed_class)
    registers: bool = False
    attention_pool: bool = False
    pre_norm: bool = False

    @property
    def no_embed_class(self) -> bool:
        """timm's argument of this name."""
        return self.registers or (self.class_token and not self.class_position)


TOKENS = {
    "timm": TimmTokens(class_token=True, class_position=True),
    "timm-deit3": TimmTokens(class_token=True),
    "timm-clip": TimmTokens(class_token=True, class_position=True, pre_norm=True),
    "timm-siglip": TimmTokens(attention_pool=True),
    "timm-mean": TimmTokens(),
    "timm-registers": TimmTokens(class_token=True, registers=True),
    "timm-registers-alone": TimmTokens(registers=True),
}


def find_timm_layout(tokens: TimmTokens) -> str:
    """Returns the layout of a VisionTransformer with these tokens; raises `UsageError` if there is none."""
    for layout, known in TOKENS.items():
        if known == tokens:
            return layout
    arguments = ", ".join(name for name, value in asdict(tokens).items() if value)
    raise UsageError(f"no ViT of timm's with this combination is known: {arguments}")
