"""A folder for torchvision's VisionTransformer: the arguments that build it, and its state dict."""

import json
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.exporting.library_format import LibraryModel, LoadedModel, State, require_values
from vitrail.model.config import Rotary, ViTConfig
from vitrail.weights.conversion import export_weights
from vitrail.weights.layouts import LAYOUTS

FILE = "torchvision.json"
LOAD_CODE = (
    "norm = partial(nn.LayerNorm, eps=norm_eps); "
    "vit = torchvision.models.VisionTransformer(**arguments, norm_layer=norm).eval(); "
    'vit.load_state_dict(safetensors.torch.load_file("{folder}/model.safetensors"))'
)


def convert_to_torchvision(classifier: Classifier, config: ViTConfig, state: State) -> LibraryModel:
    """Converts the classifier; raises `UsageError` naming a field that torchvision does not have."""
    reason = "torchvision's weights are for 8-bit color images"
    classifier.preprocess.refuse_bands(reason, "export it as onnx, torch or timm")
    require_values(
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
    return LibraryModel(export_weights(LAYOUTS["torchvision"], "", config, state), {FILE: document}, LOAD_CODE)


def load_with_torchvision(folder: Path) -> LoadedModel:
    """Loads the folder with torchvision."""
    import torchvision

    document = json.loads((folder / FILE).read_text(encoding="utf-8"))
    norm = partial(nn.LayerNorm, eps=document["norm_eps"])
    model = torchvision.models.VisionTransformer(**document["arguments"], norm_layer=norm).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return LoadedModel(model, model)
