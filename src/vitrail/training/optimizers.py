"""Optimizers by name in a recipe, and which parameters they update with which learning rate and weight decay.

To add one, write a function that builds it, add a row to `OPTIMIZERS`, and its name to `OptimizerName` in `recipe.py`,
which also has its hyperparameters. A plugin registers a class of optimizers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vitrail.errors import UsageError, first_line
from vitrail.model.vit import ViT
from vitrail.parts import part_name, split_part
from vitrail.training.muon import Muon
from vitrail.training.recipe import Recipe


def build_adamw(vit: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """AdamW (arXiv 1711.05101), with torch's fused kernel."""
    return [torch.optim.AdamW(parameter_groups(vit, recipe, recipe.peak_lr), lr=recipe.peak_lr, fused=True)]


def build_sgd(vit: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """SGD with Nesterov momentum."""
    groups = parameter_groups(vit, recipe, recipe.peak_lr)
    nesterov = recipe.momentum > 0
    return [torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=nesterov)]


def build_muon(vit: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all other parameters."""
    other = parameter_groups(vit, recipe, recipe.peak_lr, lambda name, p: not is_block_matrix(name, p))
    optimizers: list[Optimizer] = [torch.optim.AdamW(other, lr=recipe.peak_lr, fused=True)]
    matrices = [
        {**group, "parts": parts}
        for is_chosen, parts in ((is_qkv, 3), (is_single_matrix, 1))
        for group in parameter_groups(vit, recipe, recipe.muon_lr, is_chosen, has_decay=lambda name, p: True)
    ]
    if not matrices:
        return optimizers
    return [Muon(matrices, lr=recipe.muon_lr, momentum=recipe.muon_momentum), *optimizers]


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is built, and what the rest of training must know of it."""

    build: Callable[..., list[Optimizer]]  # of the ViT, the recipe, and the arguments after its name
    state_per_weight: int  # numbers of optimizer state per weight, at most
    needs_full_matrices: bool = False  # it cannot work on FSDP2's shards


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(build_adamw, state_per_weight=2),
    "sgd": OptimizerKind(build_sgd, state_per_weight=1),
    "muon": OptimizerKind(build_muon, state_per_weight=2, needs_full_matrices=True),
}


def find_optimizer(recipe: Recipe) -> OptimizerKind:
    """Returns the row of a recipe's optimizer."""
    return OPTIMIZERS[part_name(recipe.optimizer)]


def build_optimizers(vit: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """Returns the optimizers of a recipe, for all trainable parameters; raises `UsageError` for wrong arguments."""
    _, arguments = split_part(recipe.optimizer)
    build = find_optimizer(recipe).build
    if arguments and not isinstance(build, partial):
        raise UsageError(f"{recipe.optimizer!r} has arguments", "set momentum, weight_decay and others in the recipe")
    return build(vit, recipe, **arguments)


def build_from_class(
    kind: Callable[..., Optimizer], vit: nn.Module, recipe: Recipe, **arguments: Any
) -> list[Optimizer]:
    """Returns an optimizer of a plugin for all parameters; raises `UsageError` if it cannot be made."""
    groups = parameter_groups(vit, recipe, recipe.peak_lr)
    try:
        return [kind(groups, lr=recipe.peak_lr, **arguments)]
    except (TypeError, ValueError) as error:
        raise UsageError(f"the optimizer {recipe.optimizer!r} cannot be made: {first_line(error)}") from error


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Returns whether a parameter should decay: matrices and the patch projection; not vectors, tokens or positions."""
    return parameter.ndim >= 2 and name not in ("prefix", "position.grid", "pool.query")


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Returns whether a parameter is a hidden matrix, for which Muon is made."""
    return parameter.ndim == 2 and name.startswith("blocks.")


def is_qkv(name: str, parameter: nn.Parameter) -> bool:
    """Returns whether a parameter holds the three matrices of queries, keys and values, one below the other."""
    return is_block_matrix(name, parameter) and name.endswith("attn.qkv.weight")


def is_single_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Returns whether a parameter is a hidden matrix other than the qkv projection."""
    return is_block_matrix(name, parameter) and not is_qkv(name, parameter)


def layer_index(name: str, depth: int) -> int:
    """Returns the layer of a parameter: 0 for the embedding, i + 1 for block i, `depth` + 1 for pooling and head.

    The last norm belongs to the last block, as in timm (in BEiT's own code it belongs to the head).
    """
    module, *rest = name.split(".")
    if module == "blocks":
        return int(rest[0]) + 1
    return {"patch_embed": 0, "prefix": 0, "position": 0, "pre_norm": 0, "norm": depth}.get(module, depth + 1)


def parameter_groups(
    vit: nn.Module,
    recipe: Recipe,
    lr: float,
    is_chosen: Callable[[str, nn.Parameter], bool] = lambda name, p: True,
    has_decay: Callable[[str, nn.Parameter], bool] = has_weight_decay,
) -> list[dict[str, Any]]:
    """Groups the chosen trainable parameters by learning rate and weight decay.

    With layer-wise decay (Clark et al. 2020; for ViTs arXiv 2106.08254) the learning rate falls by a factor with every
    layer from the head to the embedding.
    """
    depth = vit.config.depth if isinstance(vit, ViT) else 0
    last_layer = depth + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in vit.named_parameters():
        if parameter.requires_grad and is_chosen(name, parameter):
            layer = layer_index(name, depth) if recipe.layer_decay != 1 else last_layer
            decays = recipe.weight_decay_on == "all" or has_decay(name, parameter)
            groups.setdefault((layer, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * recipe.layer_decay ** (last_layer - layer),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (layer, decays), parameters in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]
