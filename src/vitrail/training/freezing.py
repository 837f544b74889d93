"""Freezing parameters of a ViT while the rest is trained."""

from torch import nn

from vitrail.errors import UsageError
from vitrail.model.vit import ViT
from vitrail.training.recipe import Recipe


def check_freeze(recipe: Recipe, depth: int) -> None:
    """Raises `UsageError` if a recipe freezes more blocks than there are, or leaves none for LoRA."""
    if recipe.freeze == "backbone":
        return
    if recipe.freeze > depth:
        raise UsageError(
            f"freeze is {recipe.freeze}, but the model has {depth} blocks", "freeze fewer, or the backbone"
        )
    if recipe.lora_rank and recipe.freeze == depth:
        raise UsageError(f"freeze {depth} leaves no block for LoRA to update", "freeze fewer blocks")


def freeze_parameters(vit: ViT, recipe: Recipe) -> list[nn.Module]:
    """Freezes the embedding and the first blocks, or everything but the head, as the recipe's `freeze` tells.

    Returns the frozen modules, which must stay in eval mode. Raises `UsageError` as `check_freeze` does.
    """
    check_freeze(recipe, len(vit.blocks))
    children = dict(vit.named_children())
    if recipe.freeze == "backbone":
        frozen = [module for name, module in children.items() if name != "head"]
    elif recipe.freeze:
        embedding_names = list(children)[: list(children).index("blocks")]  # modules before the blocks
        frozen = [*(children[name] for name in embedding_names), *vit.blocks[: recipe.freeze]]
    else:
        return []
    vit.prefix.requires_grad_(False)
    for module in frozen:
        module.requires_grad_(False)
    return frozen
