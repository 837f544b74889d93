"""A folder for transformers: its ViT, DeiT, DINOv2, DINOv3, CLIP or SigLIP."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from vitrail.tasks import MULTI_LABEL, REGRESSION
from vitrail.weights.conversion import export_weights
from vitrail.weights.families.hf import compute_swiglu_width
from vitrail.weights.layouts import LAYOUTS

PROBLEM_TYPES = {MULTI_LABEL: "multi_label_classification", REGRESSION: "regression"}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}
RESAMPLING = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
MAX_MLP_RATIO = 32
POOLED_OUTPUTS = ("CLIPVisionModel", "SiglipVisionModel")  # their features are `pooler_output`, not the class token
PAD_NOTE = (
    "this classifier pads images that are not square; transformers' image processor distorts them instead, so outputs "
    "for them differ; square images are preprocessed alike"
)


@dataclass(frozen=True)
class HFModel:
    """A model of transformers: its class, the tensors' layout and root, its `config.json`, and what is written."""

    architecture: str
    layout: str
    document: Document
    config: ViTConfig
    state: State
    is_backbone: bool = False  # a model without a head, whose tensors have no root

    @property
    def root(self) -> str:
        """The prefix of the tensors' names."""
        return "" if self.is_backbone else LAYOUTS[self.layout].roots[0]


def convert_to_transformers(classifier: Classifier, config: ViTConfig, state: State) -> LibraryModel:
    """Converts the classifier to the first family that fits; raises `UsageError` naming what none of them has."""
    reason = "transformers prepares 8-bit gray and color images"
    classifier.preprocess.refuse_bands(reason, "export it as onnx, torch or timm")
    require_values("transformers", config, qk_norm=(False,), head=("linear",))
    if not isinstance(config.image_size, int):
        raise UsageError("transformers has square images only", "export it as timm or onnx")
    model = make_model(config, state)
    tensors = export_weights(LAYOUTS[model.layout], model.root, model.config, model.state)
    document = model.document | {
        "architectures": [model.architecture],
        "num_channels": config.channels,
        "torch_dtype": "float32",
    }
    if classifier.classes:
        document["id2label"] = {str(index): name for index, name in enumerate(classifier.classes)}
        document["label2id"] = {name: index for index, name in enumerate(classifier.classes)}
    if classifier.task in PROBLEM_TYPES:
        document["problem_type"] = PROBLEM_TYPES[classifier.task]
    files = {"config.json": document, "preprocessor_config.json": make_preprocessor(classifier)}
    note = PAD_NOTE if classifier.preprocess.fit == "pad" else ""
    load_code = f'transformers.{model.architecture}.from_pretrained("{{folder}}").eval()'
    return LibraryModel(tensors, files, load_code, note)


def make_model(config: ViTConfig, state: State) -> HFModel:
    """Returns the model of the first family that fits; raises `UsageError` if there is none."""
    for fits, make in FAMILIES:
        if fits(config):
            return make(config, state)
    raise UsageError(
        f"transformers has no ViT with pool={config.pool!r}, prefix_tokens={config.prefix_tokens}, "
        f"mlp={config.mlp!r} and position={type(config.position).__name__.lower()}",
        "export it as timm or onnx",
    )


def load_with_transformers(folder: Path) -> LoadedModel:
    """Loads the folder with transformers; raises `ImportError` if transformers is not installed."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()

    def run(x: Tensor) -> Tensor:
        output = model(x)
        if "logits" in output:
            return output["logits"]
        if "image_embeds" in output:
            return output["image_embeds"]
        return output["pooler_output"] if architecture in POOLED_OUTPUTS else output["last_hidden_state"][:, 0]

    return LoadedModel(model, run)


def make_preprocessor(classifier: Classifier) -> Document:
    """Returns the `preprocessor_config.json` of the classifier's preprocessing; padding differs, see `PAD_NOTE`."""
    preprocess = classifier.preprocess
    height, width = preprocess.fitted_size  # the model ignores what is beyond its last patch, as in vitrail
    fraction = 1.0 if preprocess.fit == "pad" else preprocess.crop_fraction
    resized_height, resized_width = (round(size / fraction) for size in (height, width))
    is_cropped = preprocess.fit == "crop" or fraction < 1
    resized = {"height": resized_height, "width": resized_width}
    document: Document = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": resized_height} if preprocess.fit == "crop" else resized,
        "resample": RESAMPLING[preprocess.interpolation],
        "do_center_crop": is_cropped,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if is_cropped:
        document["crop_size"] = {"height": height, "width": width}
    return document


# What the families have in common


def make_shared_fields(config: ViTConfig, model_type: str) -> Document:
    """Returns the fields of `config.json` that all families have."""
    return {
        "model_type": model_type,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": ACTIVATIONS.get(config.mlp, "silu"),
        "patch_size": config.patch,
        "image_size": config.image_size,
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }


def has_plain_trunk(config: ViTConfig) -> bool:
    """Returns whether the model has learned positions, a norm after the last block and none before the first."""
    return not isinstance(config.position, Rotary) and config.final_norm and not config.pre_norm


def has_plain_blocks(config: ViTConfig) -> bool:
    """Returns whether the blocks have a known activation and no LayerScale."""
    return config.layer_scale is None and config.mlp in ACTIVATIONS


# ViT and DeiT


def is_vit(config: ViTConfig) -> bool:
    has_tokens = config.pool == "cls" and config.prefix_tokens == 1
    return has_plain_trunk(config) and has_plain_blocks(config) and has_tokens


def make_vit(config: ViTConfig, state: State) -> HFModel:
    architecture = "ViTForImageClassification" if config.classes else "ViTModel"
    document = make_shared_fields(config, "vit")
    return HFModel(architecture, "hf-vit", document, config, state, is_backbone=not config.classes)


def is_deit(config: ViTConfig) -> bool:
    has_tokens = config.pool == "cls+dist" and config.prefix_tokens == 2
    return has_plain_trunk(config) and has_plain_blocks(config) and has_tokens and config.classes > 0


def make_deit(config: ViTConfig, state: State) -> HFModel:
    """DeiT with two heads, whose mean is ours."""
    document = make_shared_fields(config, "deit")
    return HFModel("DeiTForImageClassificationWithTeacher", "hf-deit-distilled", document, config, state)


# DINOv2


def is_dinov2(config: ViTConfig) -> bool:
    pools = ("cls", "mean", "cls+mean") if config.classes else ("cls",)
    has_tokens = config.prefix_tokens >= 1 and config.pool in pools
    return has_plain_trunk(config) and has_tokens and config.mlp in ("gelu", "swiglu")


def make_dinov2(config: ViTConfig, state: State) -> HFModel:
    """DINOv2, whose head reads the class token and the mean, concatenated: what ours does not read gets zero weight."""
    registers = config.prefix_tokens - 1
    config, state = with_layer_scale(config, state)
    if config.classes and config.pool != "cls+mean":
        weight = state["head.weight"]
        zeros = torch.zeros_like(weight)
        halves = (weight, zeros) if config.pool == "cls" else (zeros, weight)
        state = {**state, "head.weight": torch.cat(halves, dim=1)}
        config = replace(config, pool="cls+mean")
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    document = make_shared_fields(config, "dinov2_with_registers" if registers else "dinov2") | {
        "layerscale_value": config.layer_scale,
        "use_swiglu_ffn": config.mlp == "swiglu",
        "mlp_ratio": find_mlp_ratio(config),
        "hidden_act": "gelu",
    }
    document.pop("intermediate_size")
    if registers:
        document["num_register_tokens"] = registers
    architecture = name + ("ForImageClassification" if config.classes else "Model")
    layout = "hf-dinov2-registers" if registers else "hf-dinov2"
    return HFModel(architecture, layout, document, config, state, is_backbone=not config.classes)


def find_mlp_ratio(config: ViTConfig) -> int:
    """Returns the integer from which transformers computes the MLP's width; raises `UsageError` if there is none."""
    for ratio in range(1, MAX_MLP_RATIO + 1):
        hidden = config.width * ratio
        if config.mlp_width == (compute_swiglu_width(hidden) if config.mlp == "swiglu" else hidden):
            return ratio
    raise UsageError(
        f"transformers' DINOv2 has no MLP of width {config.mlp_width} at width {config.width}",
        "its MLP's width is an integer multiple of the width; export it as timm",
    )


# DINOv3


def is_dinov3(config: ViTConfig) -> bool:
    has_norms = config.final_norm and not config.pre_norm
    has_tokens = config.pool == "cls" and config.prefix_tokens >= 1
    is_known = config.mlp in (*ACTIVATIONS, "swiglu")
    return isinstance(config.position, Rotary) and has_norms and has_tokens and is_known and not config.classes


def make_dinov3(config: ViTConfig, state: State) -> HFModel:
    """DINOv3's backbone."""
    assert isinstance(config.position, Rotary)
    config, state = with_layer_scale(config, state)
    assert isinstance(config.position, Rotary)
    document = make_shared_fields(config, "dinov3_vit") | {
        "layerscale_value": config.layer_scale,
        "num_register_tokens": config.prefix_tokens - 1,
        "rope_theta": config.position.base,
        "use_gated_mlp": config.mlp == "swiglu",
        "query_bias": config.qkv_bias,
        "key_bias": False,
        "value_bias": config.qkv_bias,
    }
    document.pop("qkv_bias")
    return HFModel("DINOv3ViTModel", "hf-dinov3", document, config, state, is_backbone=True)


# CLIP and SigLIP


def is_clip(config: ViTConfig) -> bool:
    has_norms = config.pre_norm and config.final_norm
    has_tokens = config.pool == "cls" and config.prefix_tokens == 1
    is_learned = not isinstance(config.position, Rotary)
    return is_learned and has_norms and has_tokens and has_plain_blocks(config) and config.qkv_bias


def make_clip(config: ViTConfig, state: State) -> HFModel:
    """CLIP's image tower."""
    architecture = "CLIPVisionModelWithProjection" if config.classes else "CLIPVisionModel"
    document = make_shared_fields(config, "clip_vision_model") | {"projection_dim": config.classes or 512}
    return HFModel(architecture, "hf-clip", document, config, state, is_backbone=not config.classes)


def is_siglip(config: ViTConfig) -> bool:
    has_pool = config.pool == ("mean" if config.classes else "map") and config.prefix_tokens == 0
    return has_plain_trunk(config) and has_plain_blocks(config) and has_pool and config.qkv_bias


def make_siglip(config: ViTConfig, state: State) -> HFModel:
    """SigLIP's image tower, with its attention pooling or with a classifier on the mean."""
    document = make_shared_fields(config, "siglip_vision_model")
    if config.pool == "map":
        return HFModel("SiglipVisionModel", "hf-siglip", document, config, state, is_backbone=True)
    document = {"model_type": "siglip", "vision_config": document | {"vision_use_head": False}}
    return HFModel("SiglipForImageClassification", "hf-siglip-classifier", document, config, state)


FAMILIES: list[tuple[Callable[[ViTConfig], bool], Callable[[ViTConfig, State], HFModel]]] = [
    (is_vit, make_vit),
    (is_deit, make_deit),
    (is_dinov2, make_dinov2),
    (is_dinov3, make_dinov3),
    (is_clip, make_clip),
    (is_siglip, make_siglip),
]
