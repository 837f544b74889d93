"""A folder for timm: its VisionTransformer, its DeiT with a distillation token, or its DINOv3."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.exporting.library_format import (
    Document,
    LibraryModel,
    LoadedModel,
    State,
    require_values,
    with_layer_scale,
)
from vitrail.model.config import Rotary, ViTConfig
from vitrail.weights.conversion import export_weights
from vitrail.weights.families.timm import TimmTokens, find_timm_layout
from vitrail.weights.layouts import LAYOUTS

CROP_MODES = {"crop": "center", "pad": "border", "stretch": "squash"}
TRIM_NOTE = (
    "this classifier cuts rows and columns off at the bottom and at the right, timm's transform at all sides, so "
    "outputs differ a little"
)
BANDS_NOTE = (
    "timm's transform reads 8-bit color images: give the model tensors of the values that your files have, minus the "
    "mean, divided by std"
)
GLOBAL_POOLS = {"cls": "token", "mean": "avg", "mean_norm": "avg", "map": "map"}


@dataclass(frozen=True)
class TimmModel:
    """A model of timm: an architecture, the arguments in which it differs from it, and what is written."""

    architecture: str
    layout: str
    arguments: Document
    config: ViTConfig
    state: State
    head: str | list[str] = "head"


def convert_to_timm(classifier: Classifier, config: ViTConfig, state: State) -> LibraryModel:
    """Converts the classifier; raises `UsageError` naming a field that timm does not have."""
    make = next(make for fits, make in FAMILIES if fits(config))
    model = make(config, state)
    document = {
        "architecture": model.architecture,
        "num_classes": config.classes,
        "num_features": config.width,
        "global_pool": model.arguments.get("global_pool", "token"),
        "model_args": model.arguments,
        "pretrained_cfg": make_pretrained_cfg(classifier, model),
    }
    tensors = export_weights(LAYOUTS[model.layout], "", model.config, model.state)
    load_code = 'timm.create_model("local-dir:{folder}", pretrained=True).eval()'
    note = TRIM_NOTE if any(classifier.preprocess.trim) else ""
    if classifier.preprocess.has_bands:
        note = BANDS_NOTE
    return LibraryModel(tensors, {"config.json": document}, load_code, note)


def load_with_timm(folder: Path) -> LoadedModel:
    """Loads the folder with timm; raises `ImportError` if timm is not installed."""
    timm: Any = importlib.import_module("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return LoadedModel(model, model)


def make_pretrained_cfg(classifier: Classifier, model: TimmModel) -> Document:
    """Returns timm's document of preprocessing and classes."""
    preprocess, config = classifier.preprocess, model.config
    fraction = preprocess.crop_fraction
    if any(preprocess.trim):
        fraction *= preprocess.image_size[0] / preprocess.fitted_size[0]
    document: Document = {
        "input_size": [config.channels, *preprocess.image_size],
        "interpolation": preprocess.interpolation,
        "crop_pct": 1.0 if preprocess.fit == "pad" else fraction,  # padding crops nothing
        "crop_mode": CROP_MODES[preprocess.fit],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": config.classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": model.head,
        "fixed_input_size": True,
    }
    if classifier.classes:
        document["label_names"] = list(classifier.classes)
    return document


def make_shared_arguments(config: ViTConfig) -> Document:
    """Returns the arguments that all of timm's ViTs take."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch,
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
    }


# VisionTransformer


def make_vit(config: ViTConfig, state: State) -> TimmModel:
    """timm's VisionTransformer."""
    mlps = ("gelu", "gelu_tanh", "quick_gelu", "swiglu")
    require_values("timm", config, pool=tuple(GLOBAL_POOLS), head=("linear",), mlp=mlps)
    is_normed_after = config.pool == "mean_norm"  # timm's fc_norm replaces the last norm
    require_values("timm", config, final_norm=(not is_normed_after, False))
    is_swiglu = config.mlp == "swiglu"
    arguments = make_shared_arguments(config) | {
        "mlp_ratio": (2 if is_swiglu else 1) * config.mlp_width / config.width,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "class_token": config.prefix_tokens > 0,
        "reg_tokens": max(config.prefix_tokens - 1, 0),
        "no_embed_class": config.prefix_tokens > 1,
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm or is_normed_after,
        "fc_norm": is_normed_after,
        "global_pool": GLOBAL_POOLS[config.pool],
    }
    if config.mlp not in ("gelu", "swiglu"):
        arguments["act_layer"] = config.mlp
    architecture = "vit_giant_patch14_dinov2" if is_swiglu else choose_architecture(config)
    return TimmModel(architecture, choose_layout(config), arguments, config, state)


def choose_architecture(config: ViTConfig) -> str:
    """Returns the architecture with the nearest epsilon of the norms, 1e-6 or 1e-5, which is not an argument."""
    return "vit_base_patch16_224" if config.norm_eps < 5e-6 else "vit_base_patch16_clip_224"


def choose_layout(config: ViTConfig) -> str:
    """Returns the layout of a VisionTransformer; raises `UsageError` if timm has none with these tokens."""
    tokens = TimmTokens(
        class_token=config.prefix_tokens > 0,
        class_position=config.prefix_tokens == 1,
        registers=config.prefix_tokens > 1,
        attention_pool=config.pool == "map",
        pre_norm=config.pre_norm,
    )
    try:
        return find_timm_layout(tokens)
    except UsageError as error:
        raise UsageError(error.sentence, "export it in another format") from None


# DeiT with a distillation token


def is_distilled(config: ViTConfig) -> bool:
    return config.pool == "cls+dist"


def make_distilled(config: ViTConfig, state: State) -> TimmModel:
    """timm's DeiT with two heads, whose mean is ours."""
    require_values("timm", config, prefix_tokens=(2,), mlp=("gelu",), head=("linear",), pre_norm=(False,))
    arguments = make_shared_arguments(config) | {
        "mlp_ratio": config.mlp_width / config.width,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm,
    }
    architecture = "deit_base_distilled_patch16_224"
    return TimmModel(architecture, "timm-distilled", arguments, config, state, ["head", "head_dist"])


# DINOv3


def is_rotary(config: ViTConfig) -> bool:
    return isinstance(config.position, Rotary)


def make_dinov3(config: ViTConfig, state: State) -> TimmModel:
    """timm's DINOv3."""
    assert isinstance(config.position, Rotary)
    require_values(
        "timm", config, pool=("cls", "mean"), head=("linear",), mlp=("gelu", "swiglu"), qk_norm=(False,),
        pre_norm=(False,), final_norm=(True,),
    )  # fmt: skip
    if config.prefix_tokens < 2:
        raise UsageError("timm has rotary positions only with a class token and registers", "export it as onnx")
    arguments = make_shared_arguments(config) | {
        "mlp_ratio": config.mlp_width / config.width,
        "num_reg_tokens": config.prefix_tokens - 1,
        "rope_temperature": config.position.base,
        "global_pool": GLOBAL_POOLS[config.pool],
    }
    if config.mlp == "swiglu":
        arguments["swiglu_align_to"] = 1
    size = "small_plus" if config.mlp == "swiglu" else "small"
    architecture = f"vit_{size}_patch16_dinov3" + ("_qkvb" if config.qkv_bias else "")
    layout = "timm-dinov3-bias" if config.qkv_bias else "timm-dinov3"
    return TimmModel(architecture, layout, arguments, *with_layer_scale(config, state))


FAMILIES: list[tuple[Callable[[ViTConfig], bool], Callable[[ViTConfig, State], TimmModel]]] = [
    (is_rotary, make_dinov3),
    (is_distilled, make_distilled),
    (lambda config: True, make_vit),
]
