"""What the arguments of `train` mean for the recipe: a loss, a model's config, frozen parameters, an architecture."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitrail.data.augment import name_augmentation
from vitrail.errors import UsageError
from vitrail.model.config import ViTConfig
from vitrail.runs.pretrained import Model, find_frozen_parameters
from vitrail.runs.resolve import describe_model
from vitrail.training.losses import name_loss
from vitrail.training.recipe import Recipe
from vitrail.training.recipes import find_recipe


def resolve_arguments(
    model: Model | ViTConfig | None,
    architecture: str | None,
    recipe: str | Path | Recipe | None,
    loss: str | Callable[..., Any] | None,
    augment: str | Callable[..., Any] | None,
    changes: Mapping[str, Any],
) -> tuple[Model | None, Mapping[str, Any]]:
    """Returns the weights to start from, and the changes of the recipe with those that the other arguments mean."""
    requested = find_recipe(recipe) if recipe is not None else None
    if architecture is not None:
        changes = {**changes, "architecture": architecture}
    elif requested is not None:
        architecture = requested.architecture
    if loss is not None:
        changes = {**changes, "loss": loss if isinstance(loss, str) else name_loss(loss)}
    if augment is not None:
        if "policy" in changes:
            raise UsageError("augment and policy are the same setting", "leave out one of them")
        changes = {**changes, "policy": augment if isinstance(augment, str) else name_augmentation(augment)}
    if isinstance(model, ViTConfig):
        return None, {**describe_model(model), **changes}
    if model is not None and (frozen := find_frozen_parameters(model, architecture or "vit")):
        if changes.get("freeze") or (requested is not None and requested.freeze):
            raise UsageError(
                "parameters are frozen twice: by requires_grad=False of the model, and by freeze",
                "use one of them",
            )
        changes = {**changes, "freeze": " ".join(frozen)}
    return model, changes
