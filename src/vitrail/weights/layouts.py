"""The ways in which ViTs are written into files, each with its table and its own rules."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

import torch
from torch import Tensor

from vitrail.errors import VitrailError
from vitrail.model import Learned, ViT, ViTConfig
from vitrail.weights import tables
from vitrail.weights.operators import Copy, Pieces, Source
from vitrail.weights.tables import Rows


@dataclass(frozen=True)
class Layout:
    """One way of writing a ViT.

    `marks` are names below the root that every such file has; `roots` are where the ViT may stand in a larger model;
    `drop` are tensors that are no part of a classifier (a decoder, a text tower). In `drop` and in the tables a name
    with `/` before it stands outside the root.
    """

    about: str
    rows: Rows
    gated: Rows = field(default_factory=dict)  # rows that differ where the MLP is SwiGLU
    marks: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # names that only other layouts have
    roots: tuple[str, ...] = ("",)
    drop: tuple[str, ...] = ()
    learned: Learned = Learned()  # how the family resizes positions


TIMM_MARKS = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight")
TIMM_ROOTS = ("", "module.", "visual.trunk.")
META_ROOTS = ("", "module.", "backbone.", "module.backbone.", "encoder.")
HF_MARKS = ("embeddings.patch_embeddings.projection.weight",)
PIXELS = Learned(antialias=False)  # transformers: F.interpolate in bicubic mode and nothing else
META = Learned(antialias=False, offset=0.1)  # DINO and DINOv2: a scale factor for one tenth more than the grid
TEXT = ("/text_model.*", "/text_projection.*", "/logit_scale", "/logit_bias")
CLIP_TEXT = (
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
    "torchvision": Layout(
        about="torchvision's ViT",
        rows=tables.TORCHVISION,
        marks=("conv_proj.weight", "encoder.pos_embedding", "encoder.layers.encoder_layer_0.mlp.0.weight"),
        learned=Learned(antialias=False, align_corners=True),
    ),
    "torchvision-published": Layout(
        about="torchvision's ViT, as its weights are published",
        rows=tables.TORCHVISION_OLD,
        marks=("conv_proj.weight", "encoder.pos_embedding", "encoder.layers.encoder_layer_0.mlp.linear_1.weight"),
        learned=Learned(antialias=False, align_corners=True),
    ),
    "google": Layout(
        about="Google's original ViT (.npz)",
        rows=tables.GOOGLE,
        marks=("embedding/kernel", "Transformer/encoder_norm/scale"),
        roots=("", "opt/target/", "params/"),
        learned=Learned(interpolation="bilinear", antialias=False, align_corners=True),
    ),
    "timm": Layout(
        about="timm's ViT",
        rows=tables.TIMM,
        marks=(*TIMM_MARKS, "cls_token", "pos_embed"),
        without=("dist_token", "reg_token", "register_tokens", "mask_token", "norm_pre.weight", "blocks.0.gamma_1"),
        roots=TIMM_ROOTS,
    ),
    "timm-distilled": Layout(
        about="timm's DeiT with a distillation token",
        rows=tables.TIMM_DISTILLED,
        marks=(*TIMM_MARKS, "dist_token"),
    ),
    "timm-deit3": Layout(
        about="timm's ViT whose class token has no position (DeiT-III)",
        rows=tables.TIMM_UNPLACED_TOKEN,
        marks=(*TIMM_MARKS, "cls_token", "pos_embed"),
        without=("dist_token", "reg_token", "register_tokens", "mask_token", "norm_pre.weight", "blocks.0.gamma_1"),
    ),
    "timm-clip": Layout(
        about="timm's image tower of CLIP",
        rows=tables.TIMM_CLIP,
        marks=(*TIMM_MARKS, "norm_pre.weight", "cls_token", "pos_embed"),
        without=("patch_embed.proj.bias", "reg_token"),
        roots=TIMM_ROOTS,
    ),
    "timm-siglip": Layout(
        about="timm's ViT with attention pooling, as SigLIP's image tower",
        rows=tables.TIMM_SIGLIP,
        marks=(*TIMM_MARKS, "pos_embed", "attn_pool.latent"),
        without=("cls_token", "reg_token", "mask_token"),
        roots=TIMM_ROOTS,
    ),
    "timm-mean": Layout(
        about="timm's ViT without a class token, mean pooling",
        rows=tables.TIMM_NO_TOKEN,
        marks=(*TIMM_MARKS, "pos_embed"),
        without=("cls_token", "reg_token", "mask_token", "attn_pool.latent"),
    ),
    "timm-registers": Layout(
        about="timm's ViT with a class token and registers",
        rows=tables.TIMM_REGISTERS,
        marks=(*TIMM_MARKS, "cls_token", "reg_token", "pos_embed"),
    ),
    "timm-registers-alone": Layout(
        about="timm's ViT with registers and no class token",
        rows=tables.TIMM_REGISTERS_ALONE,
        marks=(*TIMM_MARKS, "reg_token", "pos_embed"),
        without=("cls_token",),
    ),
    "timm-dinov3": Layout(
        about="timm's DINOv3",
        rows=tables.TIMM_DINOV3,
        gated=tables.GATED,
        marks=("blocks.0.attn.qkv.weight", "blocks.0.gamma_1", "cls_token", "reg_token"),
        without=("pos_embed", "blocks.0.attn.q_bias"),
    ),
    "timm-dinov3-bias": Layout(
        about="timm's DINOv3 with biases on queries and values",
        rows=tables.TIMM_DINOV3_BIAS,
        gated=tables.GATED,
        marks=("blocks.0.attn.qkv.weight", "blocks.0.gamma_1", "cls_token", "reg_token", "blocks.0.attn.q_bias"),
        without=("pos_embed",),
    ),
    "dino": Layout(
        about="Meta's DINO",
        rows=tables.TIMM,
        marks=(*TIMM_MARKS, "cls_token", "pos_embed"),
        without=("dist_token", "reg_token", "register_tokens", "mask_token", "norm_pre.weight", "blocks.0.ls1.gamma"),
        roots=META_ROOTS,
        drop=("head.*", "/head.*"),
        learned=META,
    ),
    "deit": Layout(
        about="Meta's DeiT",
        rows=tables.TIMM,
        marks=(*TIMM_MARKS, "cls_token", "pos_embed"),
        without=("dist_token", "reg_token", "register_tokens", "mask_token", "norm_pre.weight", "blocks.0.ls1.gamma"),
        learned=PIXELS,
    ),
    "deit-distilled": Layout(
        about="Meta's DeiT with a distillation token",
        rows=tables.TIMM_DISTILLED,
        marks=(*TIMM_MARKS, "dist_token"),
        learned=PIXELS,
    ),
    "deit3": Layout(
        about="Meta's DeiT-III",
        rows=tables.META_DEIT3,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.gamma_1", "pos_embed"),
        without=("reg_token",),
        learned=PIXELS,
    ),
    "mae": Layout(
        about="Meta's MAE, the encoder or the whole",
        rows=tables.TIMM,
        marks=(*TIMM_MARKS, "cls_token", "pos_embed"),
        without=("dist_token", "reg_token", "register_tokens", "norm_pre.weight", "blocks.0.ls1.gamma"),
        drop=("mask_token", "decoder_*"),
        learned=PIXELS,
    ),
    "dinov2": Layout(
        about="Meta's DINOv2",
        rows=tables.META_DINOV2,
        gated=tables.META_GATED,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma", "mask_token"),
        without=("register_tokens", "reg_token"),
        roots=META_ROOTS,
        drop=("mask_token", "dino_head.*", "ibot_head.*"),
        learned=META,
    ),
    "dinov2-registers": Layout(
        about="Meta's DINOv2 with registers",
        rows=tables.META_DINOV2_REGISTERS,
        gated=tables.META_GATED,
        marks=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "register_tokens", "pos_embed"),
        roots=META_ROOTS,
        drop=("mask_token", "dino_head.*", "ibot_head.*"),
    ),
    "openai-clip": Layout(
        about="OpenAI's CLIP, and open_clip's",
        rows=tables.OPENAI_CLIP,
        marks=("conv1.weight", "ln_pre.weight", "class_embedding", "transformer.resblocks.0.attn.in_proj_weight"),
        roots=("visual.", "module.visual."),
        drop=CLIP_TEXT,
    ),
    "hf-vit": Layout(
        about="transformers' ViT, and the encoder of its ViTMAE",
        rows=tables.HF_VIT,
        marks=(*HF_MARKS, "encoder.layer.0.layernorm_before.weight"),
        without=("embeddings.distillation_token",),
        roots=("vit.", ""),
        drop=("pooler.*", "embeddings.mask_token", "/decoder.*"),
        learned=PIXELS,
    ),
    "hf-deit": Layout(
        about="transformers' DeiT",
        rows=tables.HF_DEIT,
        marks=(*HF_MARKS, "encoder.layer.0.layernorm_before.weight", "embeddings.distillation_token"),
        without=("/cls_classifier.weight",),
        roots=("deit.", ""),
        drop=("pooler.*", "embeddings.mask_token", "/decoder.*"),
        learned=PIXELS,
    ),
    "hf-deit-distilled": Layout(
        about="transformers' DeiT with two heads",
        rows=tables.HF_DEIT_TWO_HEADS,
        marks=(*HF_MARKS, "encoder.layer.0.layernorm_before.weight", "/cls_classifier.weight"),
        roots=("deit.",),
        drop=("pooler.*", "embeddings.mask_token"),
        learned=PIXELS,
    ),
    "hf-dinov2": Layout(
        about="transformers' DINOv2",
        rows=tables.HF_DINOV2,
        gated=tables.HF_DINOV2_GATED,
        marks=(*HF_MARKS, "encoder.layer.0.layer_scale1.lambda1"),
        without=("embeddings.register_tokens",),
        roots=("dinov2.", ""),
        drop=("embeddings.mask_token",),
        learned=PIXELS,
    ),
    "hf-dinov2-registers": Layout(
        about="transformers' DINOv2 with registers",
        rows=tables.HF_DINOV2_REGISTERS,
        gated=tables.HF_DINOV2_GATED,
        marks=(*HF_MARKS, "encoder.layer.0.layer_scale1.lambda1", "embeddings.register_tokens"),
        roots=("dinov2_with_registers.", ""),
        drop=("embeddings.mask_token",),
    ),
    "hf-dinov3": Layout(
        about="transformers' DINOv3",
        rows=tables.HF_DINOV3,
        gated=tables.HF_DINOV3_GATED,
        marks=("embeddings.patch_embeddings.weight", "layer.0.attention.q_proj.weight", "norm.weight"),
        roots=("dinov3_vit.", "model.", ""),
        drop=("embeddings.mask_token",),
    ),
    "hf-clip": Layout(
        about="transformers' image tower of CLIP",
        rows=tables.HF_CLIP,
        marks=("embeddings.class_embedding", "pre_layrnorm.weight"),
        without=("/classifier.weight",),
        roots=("vision_model.", ""),
        drop=(*TEXT, "embeddings.position_ids"),
        learned=PIXELS,
    ),
    "hf-clip-classifier": Layout(
        about="transformers' CLIP with a classification head",
        rows=tables.HF_CLIP_CLASSIFIER,
        marks=("embeddings.class_embedding", "pre_layrnorm.weight", "/classifier.weight"),
        roots=("vision_model.",),
        drop=("embeddings.position_ids", "post_layernorm.*"),
        learned=PIXELS,
    ),
    "hf-siglip": Layout(
        about="transformers' image tower of SigLIP",
        rows=tables.HF_SIGLIP,
        marks=("embeddings.patch_embedding.bias", "embeddings.position_embedding.weight", "head.probe"),
        without=("/classifier.weight",),
        roots=("vision_model.", ""),
        drop=(*TEXT, "embeddings.position_ids"),
        learned=PIXELS,
    ),
    "hf-siglip-classifier": Layout(
        about="transformers' SigLIP with a classification head",
        rows=tables.HF_SIGLIP,
        marks=("embeddings.patch_embedding.bias", "embeddings.position_embedding.weight", "/classifier.weight"),
        without=("embeddings.class_embedding",),
        roots=("vision_model.",),
        drop=("embeddings.position_ids", "head.*"),
        learned=PIXELS,
    ),
}


def full_name(name: str, root: str) -> str:
    """A table's name as it stands in the file."""
    return name[1:] if name.startswith("/") else root + name


def find_layouts(names: Iterable[str]) -> list[tuple[str, str]]:
    """The layouts that tensors of these names may have, each with the root it would have."""
    names = set(names)
    found = []
    for key, layout in LAYOUTS.items():
        for root in layout.roots:
            if all(full_name(mark, root) in names for mark in layout.marks) and not any(
                full_name(name, root) in names for name in layout.without
            ):
                found.append((key, root))
                break
    return found


def find_source(name: str, layout: Layout, config: ViTConfig) -> tuple[Source, Callable[[str], str]] | None:
    """Where a tensor of ours comes from, and how to fill in the names; None if the layout does not know it."""
    rows = layout.rows | layout.gated if config.mlp == "swiglu" else layout.rows
    stem, _, kind = name.rpartition(".")
    parts = name.split(".")
    block = parts[1] if parts[0] == "blocks" else ""
    with_block = f"blocks.{{i}}.{name.split('.', 2)[2]}" if block else name
    pattern = with_block.rpartition(".")[0] + ".{wb}" if stem else with_block
    found = rows.get(with_block, rows.get(pattern))
    if found is None:
        return None
    source = Copy(found) if isinstance(found, str) else found
    return source, lambda text: text.replace("{i}", block).replace("{wb}", kind)


@lru_cache(maxsize=512)
def meta_state_dict(config: ViTConfig) -> dict[str, Tensor]:
    """The tensors of a config's ViT by name, without memory; raises `VitrailError` where no machine could hold them."""
    try:
        with torch.device("meta"):
            return ViT(config).state_dict()
    except (RuntimeError, TypeError):  # sizes beyond what can be counted
        raise VitrailError("its config describes a model that no machine can hold") from None


def import_weights(layout: Layout, root: str, config: ViTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors -> ours, every one of both accounted for.

    Raises `VitrailError` naming a tensor that is missing, misshapen or unknown.
    """
    check_depth(layout, root, config, tensors)
    used: set[str] = set()
    filled: dict[str, Tensor] = {}
    for name, wanted in meta_state_dict(config).items():
        found = find_source(name, layout, config)
        if found is None:
            raise VitrailError(f"{layout.about} has no place for {name}")
        source, fill = found

        def get(template: str, fill: Callable[[str], str] = fill) -> Tensor:
            theirs = full_name(fill(template), root)
            if theirs not in tensors:
                raise VitrailError(f"the file lacks the tensor {theirs}", f"it was read as {layout.about}")
            used.add(theirs)
            return tensors[theirs]

        try:
            tensor = source.read(get, config)
        except (ValueError, RuntimeError, IndexError, TypeError) as error:  # of a tensor of other dimensions
            raise VitrailError(f"{name} cannot be made: {fill(str(error))}", f"read as {layout.about}") from None
        if tensor.shape != wanted.shape:
            raise VitrailError(
                f"{name} would be {tuple(tensor.shape)}, expected {tuple(wanted.shape)}", f"read as {layout.about}"
            )
        filled[name] = tensor.contiguous()
    drop = [full_name(pattern, root) for pattern in layout.drop]
    unknown = sorted(
        name for name in tensors if name not in used and not any(fnmatchcase(name, pattern) for pattern in drop)
    )
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise VitrailError(
            f"the file has tensors that {layout.about} does not: {', '.join(unknown[:5])}{more}",
            "is it another architecture? vitrail inspect says what the file looks like",
        )
    return filled


def check_depth(layout: Layout, root: str, config: ViTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raises `VitrailError` where the last block is missing, before a model of a claimed depth is made."""
    found = find_source(f"blocks.{config.depth - 1}.norm1.weight", layout, config)
    if found and isinstance(found[0], Copy):
        theirs = full_name(found[1](found[0].name), root)
        if theirs not in tensors:
            raise VitrailError(f"the file lacks the tensor {theirs}", f"it was read as {layout.about}")


def export_weights(layout: Layout, root: str, config: ViTConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors -> theirs; raises `VitrailError` naming what has no place there."""
    gathered: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in ours.items():
        found = find_source(name, layout, config)
        if found is None:
            raise VitrailError(f"{layout.about} has no place for {name}")
        source, fill = found
        try:
            pieces: Pieces = source.write(tensor, config)
        except ValueError as error:
            raise VitrailError(f"{name} {error}, so it cannot be written as {layout.about}") from None
        for template, piece in pieces.items():
            gathered.setdefault(full_name(fill(template), root), []).append(piece)
    joined = {}
    for name, pieces_of_one in gathered.items():
        tensors = [tensor for _, tensor in sorted(pieces_of_one, key=lambda piece: piece[0])]
        joined[name] = torch.cat(tensors, dim=max(0, tensors[0].ndim - 2)) if len(tensors) > 1 else tensors[0]
    return {name: tensor.contiguous() for name, tensor in joined.items()}
