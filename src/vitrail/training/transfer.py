"""Training that starts from weights: what the model brings, and what data and recipe change about it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitrail.data import Preprocess, Splits
from vitrail.errors import UsageError
from vitrail.model import ViT, ViTConfig
from vitrail.model.config import to_pair
from vitrail.training.data_defaults import resolve_epochs_and_batch_size, with_normalization
from vitrail.training.freezing import check_freeze
from vitrail.training.lora import check_peft
from vitrail.training.recipes import Recipe
from vitrail.weights.resize import resize_vit

# Fields of a model that can change without making its weights meaningless; the others are the weights' own.
CHANGEABLE = ("image_size", "patch", "head", "dropout", "attention_dropout", "embedding_dropout", "drop_path")


def resolve_transfer_recipe(
    recipe: Recipe, splits: Splits, config: ViTConfig, preprocess: Preprocess
) -> tuple[Recipe, ViTConfig, Preprocess]:
    """The recipe with sizes, epochs and batch; the model and preprocessing are the given ones unless it says otherwise.

    Raises `UsageError` naming every field of the recipe's model that the weights contradict.
    """
    against = [
        name for name, value in recipe.model.items() if name not in CHANGEABLE and value != getattr(config, name)
    ]
    if against:
        asked = ", ".join(f"{name} {format_value(recipe.model[name])}" for name in against)
        have = ", ".join(f"{name} {format_value(getattr(config, name))}" for name in against)
        raise UsageError(
            f"recipe {recipe.name} asks for {asked}, but the weights to start from have {have}",
            "leave that to the weights: use finetune, linear or lora, and name no such field",
        )
    check_freeze(recipe, config.depth)
    if recipe.lora_rank:
        check_peft()
    changes: dict[str, Any] = {name: recipe.model[name] for name in CHANGEABLE if name in recipe.model}
    if recipe.train_on == "features":
        changes["head"] = "linear"
    height, width = to_pair(recipe.model.get("image_size", preprocess.image_size))
    changes["image_size"] = height if height == width else (height, width)
    new = replace(config, **changes, classes=len(splits.classes))
    preprocess = replace(
        preprocess,
        image_size=(height, width),
        smallest=preprocess.smallest if new.patch == config.patch else new.patch,
        fit=recipe.fit or preprocess.fit,
        interpolation=recipe.interpolation or preprocess.interpolation,
        crop_fraction=recipe.crop_fraction or preprocess.crop_fraction,
    )
    if recipe.normalize:
        preprocess = with_normalization(
            preprocess, recipe.normalize, splits.train, skip_unreadable=recipe.skip_unreadable
        )
    return (
        resolve_epochs_and_batch_size(recipe.with_changes(image_size=new.image_size, patch=new.patch), splits),
        new,
        preprocess,
    )


def format_value(value: Any) -> str:
    """A field's value in a sentence."""
    return type(value).__name__ if hasattr(value, "__dataclass_fields__") else str(value).lower()


def transfer_weights(vit: ViT, theirs: tuple[str, ...], config: ViTConfig, ours: tuple[str, ...]) -> tuple[ViT, str]:
    """A ViT of this config with the weights of `vit`, and what became of its head: kept, reordered or new.

    The same class names keep their rows of the head, in whatever order; other names get a new head, drawn from torch's
    global generator.
    """
    body = resize_vit(vit, replace(vit.config, image_size=config.image_size, patch=config.patch))
    same = len(theirs) == vit.config.classes and set(theirs) == set(ours) and vit.config.head == config.head
    new = ViT(config).to(vit.prefix.device)
    weights = body.state_dict()
    if not same:
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
        fresh = {f"head.{name}": tensor for name, tensor in new.head.state_dict().items()}
        new.load_state_dict(kept | fresh)
        return new, "new"
    if theirs != ours:
        last = "head" if config.head == "linear" else "head.fc2"
        places = torch.tensor([theirs.index(name) for name in ours], device=vit.prefix.device)
        for name in (f"{last}.weight", f"{last}.bias"):
            weights[name] = weights[name][places]
    new.load_state_dict(weights)
    return new, "kept" if theirs == ours else "reordered"


def describe_head(fate: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """What became of the head, in a sentence."""
    if fate == "kept":
        return f"the data have the model's own {len(ours)} classes; its head is kept"
    if fate == "reordered":
        return f"the data have the model's own {len(ours)} classes in another order; its head's rows follow them"
    if not theirs:
        return f"the model has no classes of its own; it gets a head of {len(ours)} ({join_names(ours)})"
    if set(theirs) == set(ours):
        return f"the classes are the model's own {len(ours)}; a head of another kind takes the place of its own"
    old, new = (f"{len(names)} classes ({join_names(names)})" for names in (theirs, ours))
    return f"a new head of {new} replaces that of {old}"


def join_names(names: tuple[str, ...], most: int = 4) -> str:
    """The first names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def set_head(vit: ViT, weight_YD: Tensor, bias_Y: Tensor) -> None:
    """Gives a linear head these weights."""
    head = vit.head
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight_YD)
        head.bias.copy_(bias_Y)
