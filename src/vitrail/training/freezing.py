"""Which parts of a ViT keep their weights while the rest is trained."""

from torch import nn

from vitrail.errors import UsageError
from vitrail.model import ViT
from vitrail.training.recipes import Recipe


def check_freeze(recipe: Recipe, blocks: int) -> None:
    """Raises `UsageError` where more blocks are to be frozen than there are, or none is left for LoRA."""
    if recipe.freeze == "backbone":
        return
    if recipe.freeze > blocks:
        raise UsageError(
            f"freeze is {recipe.freeze}, but the model has {blocks} blocks", "freeze fewer, or the backbone"
        )
    if recipe.lora_rank and recipe.freeze == blocks:
        raise UsageError(f"freeze {blocks} leaves no block for LoRA to update", "freeze fewer blocks")


def freeze_parameters(vit: ViT, recipe: Recipe) -> list[nn.Module]:
    """Takes the frozen parameters out of training; returns the frozen modules, which belong in eval mode.

    With a number the embedding and so many blocks stand still, with `backbone` everything but the head.
    """
    check_freeze(recipe, len(vit.blocks))
    children = dict(vit.named_children())
    if recipe.freeze == "backbone":
        modules = [module for name, module in children.items() if name != "head"]
    elif recipe.freeze:
        embedding = list(children)[: list(children).index("blocks")]  # everything before the blocks
        modules = [*(children[name] for name in embedding), *vit.blocks[: recipe.freeze]]
    else:
        return []
    vit.prefix.requires_grad_(False)
    for module in modules:
        module.requires_grad_(False)
    return modules
