"""Which parts of a ViT keep their weights while the rest is trained."""

from torch import nn

from vitrail.errors import UsageError
from vitrail.model import ViT
from vitrail.train.optim import depth_of
from vitrail.train.recipes import Recipe


def freeze(vit: ViT, recipe: Recipe) -> list[nn.Module]:
    """Takes the frozen parameters out of training; returns the frozen modules, which belong in eval mode.

    With a number the embedding and so many blocks stand still, with `backbone` everything but the head. Raises
    `UsageError` where there are fewer blocks.
    """
    if recipe.freeze == 0:
        return []
    if recipe.freeze == "backbone":
        for name, parameter in vit.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name.startswith("head."))
        return [module for name, module in vit.named_children() if name != "head"]
    if recipe.freeze > len(vit.blocks):
        raise UsageError(
            f"freeze is {recipe.freeze}, but the model has {len(vit.blocks)} blocks", "freeze fewer, or the backbone"
        )
    for name, parameter in vit.named_parameters():
        if depth_of(name, len(vit.blocks)) <= recipe.freeze:
            parameter.requires_grad_(False)
    return [vit.patch_embed, vit.position, vit.embedding_drop, *vit.blocks[: recipe.freeze]]
