"""ViTs of timm, transformers and torchvision that are in memory."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError
from vitrail.model.config import ViTConfig
from vitrail.weights.conversion import import_weights
from vitrail.weights.families.torchvision import POSITION
from vitrail.weights.layouts import LAYOUTS
from vitrail.weights.weight_files import PublicModel

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer

IMAGENET: dict[str, Any] = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # of torchvision's weights
KNOWN = "a ViT, or a Vision Transformer of timm, transformers or torchvision"
REGISTER_HINT = (
    f"give {KNOWN}; for any other module register a function of its config that returns it, "
    'vitrail.register("model", "mine", build), and train with architecture="mine"'
)


def is_known_library(module: nn.Module) -> bool:
    """Returns whether a module may be a Vision Transformer that can be taken over, by its library."""
    if library_of(module) == "torchvision":
        from torchvision.models import VisionTransformer

        return isinstance(module, VisionTransformer)
    if library_of(module) == "transformers":
        from transformers import PreTrainedModel

        return isinstance(module, PreTrainedModel)
    return library_of(module) == "timm"


def library_of(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def refuse_unknown(module: nn.Module) -> UsageError:
    """Returns the error for a module of another kind."""
    kind = f"{type(module).__module__}.{type(module).__name__}"
    return UsageError(f"vitrail knows no Vision Transformer of type {kind}", REGISTER_HINT)


def save_module(module: nn.Module, folder: Path) -> Path:
    """Saves a model of timm or transformers into a folder, with its own saving function; returns what to load."""
    if library_of(module) == "timm":
        from timm.models import save_for_hf

        save_for_hf(module, str(folder), safe_serialization=True)
    else:
        module.save_pretrained(str(folder))  # type: ignore[operator]
    return folder


def convert_torchvision(module: "VisionTransformer") -> PublicModel:
    """Returns torchvision's ViT in our terms: its shape is in its attributes. Its classes have numbers for names."""
    first = module.encoder.layers[0]
    has_hidden_layer = module.representation_size is not None
    config = ViTConfig(
        width=module.hidden_dim,
        depth=len(module.encoder.layers),
        heads=int(first.num_heads),
        mlp_width=module.mlp_dim,
        patch=module.patch_size,
        image_size=module.image_size,
        head="mlp" if has_hidden_layer else "linear",
        norm_eps=float(first.ln_1.eps),
        position=POSITION,
        classes=module.num_classes,
    )
    weights = import_weights(LAYOUTS["torchvision"], "", config, module.state_dict())
    preprocess = Preprocess(image_size=(module.image_size, module.image_size), fit="crop", **IMAGENET)
    return PublicModel(config, tuple(map(str, range(module.num_classes))), preprocess, weights)
