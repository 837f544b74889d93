"""Freezing parameters while the rest is trained: the first blocks, the backbone, or parameters by their names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from vitrail.errors import UsageError, did_you_mean
from vitrail.model.vit import ViT
from vitrail.training.recipe import Recipe


def check_freeze(recipe: Recipe, depth: int) -> None:
    """Raises `UsageError` if a recipe freezes more blocks than there are, or leaves none for LoRA."""
    if not isinstance(recipe.freeze, int):
        return
    if recipe.freeze > depth:
        raise UsageError(
            f"freeze is {recipe.freeze}, but the model has {depth} blocks", "freeze fewer, or the backbone"
        )
    if recipe.lora_rank and recipe.freeze == depth:
        raise UsageError(f"freeze {depth} leaves no block for LoRA to update", "freeze fewer blocks")


def freeze_parameters(vit: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """Freezes what the recipe's `freeze` tells: the embedding and the first blocks, all but the head, or by name.

    Returns the frozen modules, which must stay in eval mode. Raises `UsageError` as `check_freeze` and
    `match_parameters` do.
    """
    if recipe.frozen_patterns or not isinstance(vit, ViT):
        return freeze_by_name(vit, recipe.frozen_patterns)
    check_freeze(recipe, len(vit.blocks))
    children = dict(vit.named_children())
    if recipe.freeze == "backbone":
        frozen = [module for name, module in children.items() if name != "head"]
    elif isinstance(recipe.freeze, int) and recipe.freeze:
        embedding_names = list(children)[: list(children).index("blocks")]  # modules before the blocks
        frozen = [*(children[name] for name in embedding_names), *vit.blocks[: recipe.freeze]]
    else:
        return []
    vit.prefix.requires_grad_(False)
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def freeze_by_name(model: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Freezes the parameters that match; returns the modules of which every parameter is frozen."""
    parameters = dict(model.named_parameters())
    for name in match_parameters(parameters, patterns):
        parameters[name].requires_grad_(False)
    return [
        module
        for module in model.modules()
        if (own := list(module.parameters())) and not any(parameter.requires_grad for parameter in own)
    ]


def match_parameters(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Returns the names that match a pattern, or belong to a module that matches one (`fnmatch`; * matches dots too).

    Raises `UsageError` for a pattern that matches nothing, with the nearest names, and if no parameter is left.
    """
    names = list(names)
    matched: set[str] = set()
    for pattern in patterns:
        own = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
        if not own:
            raise UsageError(
                f"freeze {pattern!r} matches no parameter of the model",
                did_you_mean(pattern, names_of_parameters_and_modules(names)) or f"the first one is {names[0]}",
            )
        matched |= own
    if len(matched) == len(names):
        raise UsageError("freeze matches every parameter, so nothing is left to train", "freeze fewer")
    return [name for name in names if name in matched]


def names_of_parameters_and_modules(names: Iterable[str]) -> set[str]:
    """Returns the names of parameters, and of all modules that have some."""
    paths = [name.split(".") for name in names]
    return {".".join(path[:length]) for path in paths for length in range(1, len(path) + 1)}


def frozen_names(model: nn.Module) -> list[str]:
    """Returns the names of the parameters with `requires_grad=False`; none if all are so, as in a loaded model."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return [] if len(frozen) == len(list(model.parameters())) else frozen
