"""A classifier as a folder that timm, transformers or torchvision load, with the same logits.

What the other side has no word for is folded away where that changes nothing (fixed positions become a table, a
temperature part of the head); where it would change the answer, the export is refused and the field named.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.model import NoPosition, Rotary, SinCos, ViT, ViTConfig
from vitrail.weights.conversion import export_weights
from vitrail.weights.layouts import LAYOUTS

Document = dict[str, Any]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What a library gets: the tensors under its names, and JSON files by name.

    `loads` is the code that reads it; `note` a sentence about what the library does otherwise, if it does.
    """

    tensors: State
    files: dict[str, Document] = field(default_factory=dict)
    loads: str = ""
    note: str = ""


# Folding


def tabled(vit: ViT) -> tuple[ViTConfig, State]:
    """The ViT with positions as a learned table: fixed ones written out, absent ones zero, rotary ones as they are."""
    config, state = vit.config, vit.state_dict()
    if isinstance(config.position, SinCos | NoPosition):
        h, w = config.grid
        zeros = torch.zeros(1, h, w, config.width, device=vit.prefix.device)
        state["position.grid"] = vit.position.add(zeros)[0].to(vit.prefix.dtype)
        config = replace(config, position=LAYOUTS["timm"].position)
    return config, state


def cooled(state: State, temperature: float) -> State:
    """The temperature as part of the head, whose answers are then logits to be used as they are."""
    last = {"head.weight", "head.bias", "head.fc2.weight", "head.fc2.bias"}
    return {name: tensor / temperature if name in last else tensor for name, tensor in state.items()}


def only(library: str, config: ViTConfig, **allowed: Any) -> None:
    """Raises `UsageError` naming the first field whose value the library has no word for."""
    for name, values in allowed.items():
        if (value := getattr(config, name)) not in values:
            raise UsageError(f"{library} has no ViT with {name}={value!r}", "export it in another format")


# timm


def timm(classifier: Classifier, config: ViTConfig, state: State) -> Given:
    """timm's `VisionTransformer`, or its DINOv3 where positions are rotary."""
    if isinstance(config.position, Rotary):
        return timm_rotary(classifier, config, state)
    pools = ("cls", "cls+dist", "mean", "mean_norm", "map")
    only("timm", config, pool=pools, head=("linear",), mlp=("gelu", "gelu_tanh", "quick_gelu", "swiglu"))
    arguments: Document = {
        "img_size": config.image_size,
        "patch_size": config.patch,
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": (2 if config.mlp == "swiglu" else 1) * config.mlp_width / config.width,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "class_token": config.prefix_tokens > 0,
        "reg_tokens": max(config.prefix_tokens - 1, 0),
        "no_embed_class": config.prefix_tokens > 1,
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm or config.pool == "mean_norm",
        "fc_norm": config.pool == "mean_norm",
        "global_pool": {"mean": "avg", "mean_norm": "avg", "map": "map"}.get(config.pool, "token"),
    }
    only("timm", config, final_norm=(config.pool != "mean_norm", False))
    layout = "timm-registers" if config.prefix_tokens > 1 else "timm" if config.prefix_tokens else "timm-mean"
    architecture = "vit_base_patch16_224" if config.norm_eps < 5e-6 else "vit_base_patch16_clip_224"
    if config.mlp == "swiglu":
        architecture = "vit_giant_patch14_dinov2"
    elif config.mlp != "gelu":
        arguments["act_layer"] = config.mlp
    if config.pool == "map":
        layout = "timm-siglip"
        only("timm", config, prefix_tokens=(0,))
    if config.pool == "cls+dist":
        layout, architecture = "timm-distilled", "deit_base_distilled_patch16_224"
        only("timm", config, prefix_tokens=(2,), mlp=("gelu",))
        for name in ("class_token", "reg_tokens", "no_embed_class", "fc_norm", "global_pool"):
            arguments.pop(name)
    if config.pre_norm:  # timm's patch projection has no bias then
        layout = "timm-clip"
        only("timm", config, prefix_tokens=(1,))
    return timm_given(classifier, config, state, layout, architecture, arguments)


def timm_rotary(classifier: Classifier, config: ViTConfig, state: State) -> Given:
    """timm's DINOv3."""
    assert isinstance(config.position, Rotary)
    base = config.position.base
    only(
        "timm", config, pool=("cls", "mean"), head=("linear",), mlp=("gelu", "swiglu"), qk_norm=(False,),
        pre_norm=(False,), final_norm=(True,),
    )  # fmt: skip
    if config.prefix_tokens < 2:
        raise UsageError("timm has rotary positions only with a class token and registers", "export it as onnx")
    if config.layer_scale is None:
        config, state = scaled_by_one(config, state)
    arguments: Document = {
        "img_size": config.image_size,
        "patch_size": config.patch,
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_width / config.width,
        "num_reg_tokens": config.prefix_tokens - 1,
        "rope_temperature": base,
        "global_pool": "token" if config.pool == "cls" else "avg",
    }
    if config.mlp == "swiglu":
        arguments["swiglu_align_to"] = 1
    kind = "small_plus" if config.mlp == "swiglu" else "small"
    architecture = f"vit_{kind}_patch16_dinov3" + ("_qkvb" if config.qkv_bias else "")
    layout = "timm-dinov3-bias" if config.qkv_bias else "timm-dinov3"
    return timm_given(classifier, config, state, layout, architecture, arguments)


def timm_given(
    classifier: Classifier, config: ViTConfig, state: State, layout: str, architecture: str, arguments: Document
) -> Given:
    """A folder for `timm.create_model("local-dir:...")` or `"hf-hub:..."`."""
    preprocess = classifier.preprocess
    prepared: Document = {
        "input_size": [config.channels, *preprocess.image_size],
        "interpolation": preprocess.interpolation,
        "crop_pct": 1.0 if preprocess.fit == "pad" else preprocess.crop_fraction,  # padding leaves nothing out
        "crop_mode": {"crop": "center", "pad": "border", "stretch": "squash"}[preprocess.fit],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": config.classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if config.pool == "cls+dist" else "head",
        "fixed_input_size": True,
    }
    if classifier.classes:
        prepared["label_names"] = list(classifier.classes)
    document = {
        "architecture": architecture,
        "num_classes": config.classes,
        "num_features": config.width,
        "global_pool": arguments.get("global_pool", "token"),
        "model_args": arguments,
        "pretrained_cfg": prepared,
    }
    tensors = export_weights(LAYOUTS[layout], "", config, state)
    return Given(tensors, {"config.json": document}, 'timm.create_model("local-dir:{folder}", pretrained=True).eval()')


def scaled_by_one(config: ViTConfig, state: State) -> tuple[ViTConfig, State]:
    """The same model with LayerScale, which scales by one."""
    ones = {
        f"blocks.{i}.{part}.gamma": torch.ones_like(state["prefix"][0])
        for i in range(config.depth)
        for part in ("ls1", "ls2")
    }
    return replace(config, layer_scale=1.0), {**state, **ones}


# transformers


def hf(classifier: Classifier, config: ViTConfig, state: State) -> Given:
    """The family of transformers' that this ViT is: ViT, DeiT, DINOv2, DINOv3, CLIP or SigLIP."""
    only("transformers", config, qk_norm=(False,), head=("linear",))
    if not isinstance(config.image_size, int):
        raise UsageError("transformers knows square images only", "export it as timm or onnx")
    for fits, make in HF_FAMILIES:
        if fits(config):
            architecture, layout, document, config, state = make(config, state)
            break
    else:
        raise UsageError(
            f"transformers has no ViT with pool={config.pool!r}, prefix_tokens={config.prefix_tokens}, "
            f"mlp={config.mlp!r} and position={type(config.position).__name__.lower()}",
            "export it as timm or onnx",
        )
    root = "" if architecture.endswith("Model") else LAYOUTS[layout].roots[0]
    tensors = export_weights(LAYOUTS[layout], root, config, state)
    document |= {"architectures": [architecture], "num_channels": config.channels, "torch_dtype": "float32"}
    if classifier.classes:
        names = list(classifier.classes)
        document["id2label"] = {str(number): name for number, name in enumerate(names)}
        document["label2id"] = {name: number for number, name in enumerate(names)}
    files = {"config.json": document, "preprocessor_config.json": hf_preparation(classifier)}
    note = BENT if classifier.preprocess.fit == "pad" else ""
    return Given(tensors, files, f'transformers.{architecture}.from_pretrained("{{folder}}").eval()', note)


Family = tuple[str, str, Document, ViTConfig, State]  # architecture, layout, config.json, what is written
HF_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def hf_fields(config: ViTConfig, kind: str) -> Document:
    """The fields of `config.json` that the families share."""
    return {
        "model_type": kind,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": HF_ACT.get(config.mlp, "silu"),
        "patch_size": config.patch,
        "image_size": config.image_size,
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }


def plain_learned(config: ViTConfig) -> bool:
    """Whether there is nothing but learned positions, a last norm and GELU."""
    return not isinstance(config.position, Rotary) and config.final_norm and not config.pre_norm


def hf_vit(config: ViTConfig, state: State) -> Family:
    """ViT."""
    architecture = "ViTForImageClassification" if config.classes else "ViTModel"
    return architecture, "hf-vit", hf_fields(config, "vit"), config, state


def hf_deit(config: ViTConfig, state: State) -> Family:
    """DeiT with two heads, whose mean is ours."""
    layout = "hf-deit-distilled"
    return "DeiTForImageClassificationWithTeacher", layout, hf_fields(config, "deit"), config, state


def hf_dinov2(config: ViTConfig, state: State) -> Family:
    """DINOv2, whose head looks at the class token and the mean side by side: what ours does not look at weighs zero."""
    registers = config.prefix_tokens - 1
    if config.layer_scale is None:
        config, state = scaled_by_one(config, state)
    if config.classes and config.pool != "cls+mean":
        nothing = torch.zeros_like(state["head.weight"])
        halves = (state["head.weight"], nothing) if config.pool == "cls" else (nothing, state["head.weight"])
        state = {**state, "head.weight": torch.cat(halves, dim=1)}
        config = replace(config, pool="cls+mean")
    kind, name = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    document = hf_fields(config, kind) | {
        "layerscale_value": config.layer_scale,
        "use_swiglu_ffn": config.mlp == "swiglu",
        "mlp_ratio": whole_ratio(config),
        "hidden_act": "gelu",
    }
    document.pop("intermediate_size")
    if registers:
        document["num_register_tokens"] = registers
    layout = "hf-dinov2-registers" if registers else "hf-dinov2"
    return name + ("ForImageClassification" if config.classes else "Model"), layout, document, config, state


def whole_ratio(config: ViTConfig) -> int:
    """The whole number from which transformers computes the MLP's width; raises `UsageError` if there is none."""
    for ratio in range(1, 33):
        hidden = config.width * ratio
        if config.mlp_width == ((int(hidden * 2 / 3) + 7) // 8 * 8 if config.mlp == "swiglu" else hidden):
            return ratio
    raise UsageError(
        f"transformers' DINOv2 has no MLP of width {config.mlp_width} at width {config.width}",
        "its MLP is a whole multiple of the width; export it as timm",
    )


def hf_dinov3(config: ViTConfig, state: State) -> Family:
    """DINOv3's backbone."""
    assert isinstance(config.position, Rotary)
    base = config.position.base
    if config.layer_scale is None:
        config, state = scaled_by_one(config, state)
    document = hf_fields(config, "dinov3_vit") | {
        "layerscale_value": config.layer_scale,
        "num_register_tokens": config.prefix_tokens - 1,
        "rope_theta": base,
        "use_gated_mlp": config.mlp == "swiglu",
        "query_bias": config.qkv_bias,
        "key_bias": False,
        "value_bias": config.qkv_bias,
    }
    document.pop("qkv_bias")
    return "DINOv3ViTModel", "hf-dinov3", document, config, state


def hf_clip(config: ViTConfig, state: State) -> Family:
    """CLIP's image tower."""
    architecture = "CLIPVisionModelWithProjection" if config.classes else "CLIPVisionModel"
    document = hf_fields(config, "clip_vision_model") | {"projection_dim": config.classes or 512}
    return architecture, "hf-clip", document, config, state


def hf_siglip(config: ViTConfig, state: State) -> Family:
    """SigLIP's image tower, with its attention pooling or with a classifier on the mean."""
    if config.pool == "map":
        return "SiglipVisionModel", "hf-siglip", hf_fields(config, "siglip_vision_model"), config, state
    vision = hf_fields(config, "siglip_vision_model") | {"vision_use_head": False}
    document = {"model_type": "siglip", "vision_config": vision}
    return "SiglipForImageClassification", "hf-siglip-classifier", document, config, state


HF_FAMILIES: list[tuple[Callable[[ViTConfig], bool], Callable[[ViTConfig, State], Family]]] = [
    (
        lambda c: plain_learned(c) and c.pool == "cls" and c.prefix_tokens == 1 and c.layer_scale is None
        and c.mlp in HF_ACT,
        hf_vit,
    ),
    (
        lambda c: plain_learned(c) and c.pool == "cls+dist" and c.prefix_tokens == 2 and c.layer_scale is None
        and c.mlp in HF_ACT and c.classes > 0,
        hf_deit,
    ),
    (
        lambda c: plain_learned(c) and c.prefix_tokens >= 1 and c.mlp in ("gelu", "swiglu")
        and (c.pool in ("cls", "mean", "cls+mean") if c.classes else c.pool == "cls"),
        hf_dinov2,
    ),
    (
        lambda c: isinstance(c.position, Rotary) and c.pool == "cls" and not c.classes and c.prefix_tokens >= 1
        and c.final_norm and not c.pre_norm and c.mlp in (*HF_ACT, "swiglu"),
        hf_dinov3,
    ),
    (
        lambda c: not isinstance(c.position, Rotary) and c.pre_norm and c.final_norm and c.pool == "cls"
        and c.prefix_tokens == 1 and c.layer_scale is None and c.mlp in HF_ACT and c.qkv_bias,
        hf_clip,
    ),
    (
        lambda c: plain_learned(c) and c.prefix_tokens == 0 and c.layer_scale is None and c.mlp in HF_ACT
        and c.qkv_bias and ((c.pool == "map" and not c.classes) or (c.pool == "mean" and c.classes > 0)),
        hf_siglip,
    ),
]  # fmt: skip


BENT = (
    "this classifier pads images that are not square, which transformers' image processor cannot: it bends them, "
    "and answers to them differ; square images are prepared alike"
)


def hf_preparation(classifier: Classifier) -> Document:
    """The `preprocessor_config.json` that prepares images as the classifier does, but for padding: see `BENT`."""
    preprocess = classifier.preprocess
    height, width = preprocess.image_size
    fraction = 1.0 if preprocess.fit == "pad" else preprocess.crop_fraction
    tall, wide = (round(side / fraction) for side in (height, width))
    cropped = preprocess.fit == "crop" or fraction < 1
    document: Document = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": tall} if preprocess.fit == "crop" else {"height": tall, "width": wide},
        "resample": {"bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "do_center_crop": cropped,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if cropped:
        document["crop_size"] = {"height": height, "width": width}
    return document


# torchvision


def torchvision(classifier: Classifier, config: ViTConfig, state: State) -> Given:
    """torchvision's `VisionTransformer`: the arguments that make it, and its state dict."""
    only(
        "torchvision", config, pool=("cls",), prefix_tokens=(1,), mlp=("gelu",), layer_scale=(None,), qk_norm=(False,),
        qkv_bias=(True,), pre_norm=(False,), final_norm=(True,), channels=(3,),
    )  # fmt: skip
    if isinstance(config.position, Rotary) or not isinstance(config.image_size, int) or not config.classes:
        raise UsageError(
            "torchvision has only classifiers of square images with learned positions", "export it as timm"
        )
    arguments = {
        "image_size": config.image_size,
        "patch_size": config.patch,
        "num_layers": config.depth,
        "num_heads": config.heads,
        "hidden_dim": config.width,
        "mlp_dim": config.mlp_width,
        "num_classes": config.classes,
        "representation_size": config.width if config.head == "mlp" else None,
    }
    document = {
        "model": "torchvision.models.VisionTransformer",
        "arguments": arguments,
        "norm_eps": config.norm_eps,
        "classes": list(classifier.classes),
        "preprocess": classifier.preprocess.to_json(),
    }
    code = (
        "norm = partial(nn.LayerNorm, eps=norm_eps); "
        "vit = torchvision.models.VisionTransformer(**arguments, norm_layer=norm).eval(); "
        'vit.load_state_dict(safetensors.torch.load_file("{folder}/model.safetensors"))'
    )
    return Given(export_weights(LAYOUTS["torchvision"], "", config, state), {"torchvision.json": document}, code)


LIBRARIES: dict[str, Callable[[Classifier, ViTConfig, State], Given]] = {
    "timm": timm,
    "hf": hf,
    "torchvision": torchvision,
}


def given(classifier: Classifier, form: str) -> Given:
    """What a library gets; raises `UsageError` or `VitrailError` naming what it has no word for."""
    config, state = tabled(classifier.vit)
    found = LIBRARIES[form](classifier, config, cooled(state, classifier.temperature))
    return replace(found, tensors={name: tensor.cpu().clone() for name, tensor in found.tensors.items()})
