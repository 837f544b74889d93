"""Training from pretrained weights: which model and preprocessing result, and how the weights are transferred."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError
from vitrail.model.config import ViTConfig, to_pair
from vitrail.model.vit import ViT
from vitrail.training.freezing import check_freeze
from vitrail.training.lora import check_peft
from vitrail.training.recipe import Recipe
from vitrail.weights.resize import resize_vit

HeadTransfer = Literal["kept", "reordered", "new"]

# Fields of a model that a recipe may change; a change of any other makes the weights meaningless.
CHANGEABLE = ("image_size", "patch", "head", "dropout", "attention_dropout", "embedding_dropout", "drop_path")


def resolve_transfer(
    recipe: Recipe, classes: int, config: ViTConfig, preprocess: Preprocess, channels: int | None = None
) -> tuple[ViTConfig, Preprocess]:
    """Returns the model and preprocessing: the pretrained ones, where the recipe does not change them.

    `channels` are those of the images; None: those of the weights.

    Raises `UsageError` naming every field of the recipe's model that contradicts the weights.
    """
    check_same_architecture(recipe, config)
    check_freeze(recipe, config.depth)
    if recipe.lora_rank:
        check_peft()
    changes: dict[str, Any] = {name: value for name, value in recipe.model.items() if name in CHANGEABLE}
    if recipe.train_on == "features":
        changes["head"] = "linear"
    height, width = to_pair(recipe.model.get("image_size", preprocess.image_size))
    changes["image_size"] = height if height == width else (height, width)
    new_config = replace(config, **changes, classes=classes, channels=channels or config.channels)
    preprocess = replace(
        preprocess.with_image_size((height, width)),
        min_size=preprocess.min_size if new_config.patch == config.patch else new_config.patch,
        fit=recipe.fit or preprocess.fit,
        interpolation=recipe.interpolation or preprocess.interpolation,
        crop_fraction=recipe.crop_fraction or preprocess.crop_fraction,
    )
    return new_config, preprocess


def check_same_architecture(recipe: Recipe, config: ViTConfig) -> None:
    """Raises `UsageError` if the recipe sets a field of the model that contradicts the weights."""
    different = {
        name: value for name, value in recipe.model.items() if name not in CHANGEABLE and value != getattr(config, name)
    }
    if different:
        in_recipe = ", ".join(f"{name} {format_value(value)}" for name, value in different.items())
        in_weights = ", ".join(f"{name} {format_value(getattr(config, name))}" for name in different)
        raise UsageError(
            f"recipe {recipe.name} has {in_recipe}, but the weights to start from have {in_weights}",
            f"leave out {', '.join(different)}, and use recipe finetune, linear or lora",
        )


def format_value(value: Any) -> str:
    """Formats a field's value for a sentence."""
    return type(value).__name__ if hasattr(value, "__dataclass_fields__") else str(value).lower()


def transfer_weights(
    vit: ViT, old_classes: tuple[str, ...], config: ViTConfig, new_classes: tuple[str, ...]
) -> tuple[ViT, HeadTransfer]:
    """Returns a ViT of this config with the weights of `vit`, and whether its head is kept, reordered or new.

    If the class names are the same, the head keeps its rows, in the new order; otherwise it is initialized from torch's
    global generator.
    """
    pretrained = resize_vit(
        vit, replace(vit.config, image_size=config.image_size, patch=config.patch, channels=config.channels)
    )
    has_same_classes = len(old_classes) == vit.config.classes and set(old_classes) == set(new_classes)
    device = vit.prefix.device
    new_vit = ViT(config).to(device)
    weights = pretrained.state_dict()
    is_reordered = old_classes != new_classes and config.head not in ("linear", "mlp")  # whose rows are not known
    if not (has_same_classes and vit.config.head == config.head) or is_reordered:
        backbone = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        new_head = {f"head.{name}": tensor for name, tensor in new_vit.head.state_dict().items()}
        new_vit.load_state_dict(backbone | new_head)
        return new_vit, "new"
    if old_classes != new_classes:
        output_layer = "head" if config.head == "linear" else "head.fc2"
        rows = torch.tensor([old_classes.index(name) for name in new_classes], device=device)
        for name in (f"{output_layer}.weight", f"{output_layer}.bias"):
            weights[name] = weights[name][rows]
    new_vit.load_state_dict(weights)
    return new_vit, "kept" if old_classes == new_classes else "reordered"


def describe_channels_of_weights(old: int, new: int) -> str:
    """Returns a sentence on how the weights for `old` channels become those for `new` channels."""
    if new == 1:
        return f"the weights of the {old} input channels are summed for 1 channel, as timm does for in_chans"
    rule = f"are repeated for {new} channels and scaled by {old}/{new}, as timm does for in_chans"
    return f"the weights of {old} input channels {rule}"


def describe_head(transfer: HeadTransfer, old_classes: tuple[str, ...], new_classes: tuple[str, ...]) -> str:
    """Returns a sentence on where the weights of the head come from."""
    n = len(new_classes)
    if transfer == "kept":
        return f"the data has the same {n} classes as the model; the head is kept"
    if transfer == "reordered":
        return f"the data has the same {n} classes as the model in another order; the rows of the head are reordered"
    if not old_classes:
        return f"the model has no classes; it gets a new head of {n} classes ({join_names(new_classes)})"
    if set(old_classes) == set(new_classes):
        return f"the data has the same {n} classes as the model; a head of another kind replaces its head"
    old, new = (f"{len(names)} classes ({join_names(names)})" for names in (old_classes, new_classes))
    return f"a new head of {new} replaces that of {old}"


def join_names(names: tuple[str, ...], max_names: int = 4) -> str:
    """Joins the first names, with an ellipsis if there are more."""
    return ", ".join(names[:max_names]) + (", ..." if len(names) > max_names else "")


def set_head(vit: ViT, weight_YD: Tensor, bias_Y: Tensor) -> None:
    """Sets the weights of a linear head."""
    head = vit.head
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight_YD)
        head.bias.copy_(bias_Y)
