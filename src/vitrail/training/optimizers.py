"""Which weights decay, which optimiser follows the gradients, how fast at each step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vitrail.model import ViT
from vitrail.training.muon import Muon
from vitrail.training.recipes import Recipe


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay makes sense: for matrices and the patch projection, not for vectors, tokens, positions."""
    return parameter.ndim >= 2 and name not in ("prefix", "position.grid", "pool.query")


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """What Muon is meant for: the hidden matrices of the blocks."""
    return parameter.ndim == 2 and name.startswith("blocks.")


def is_qkv(name: str, parameter: nn.Parameter) -> bool:
    """Queries', keys' and values' matrices, which are kept as one."""
    return is_block_matrix(name, parameter) and name.endswith("attn.qkv.weight")


def is_other_matrix(name: str, parameter: nn.Parameter) -> bool:
    """The blocks' matrices that are one matrix each."""
    return is_block_matrix(name, parameter) and not is_qkv(name, parameter)


def layer_index(name: str, blocks: int) -> int:
    """Where a parameter stands in the flow: 0 the embedding, i + 1 block i, `blocks` + 1 pooling and head.

    The last norm belongs to the last block, as in timm (in BEiT's own code it stands with the head).
    """
    part, *rest = name.split(".")
    if part == "blocks":
        return int(rest[0]) + 1
    return {"patch_embed": 0, "prefix": 0, "position": 0, "pre_norm": 0, "norm": blocks}.get(part, blocks + 1)


def adamw(vit: ViT, recipe: Recipe) -> list[Optimizer]:
    """AdamW, as in arXiv 1711.05101, with torch's fused kernel."""
    return [torch.optim.AdamW(parameter_groups(vit, recipe, recipe.lr), lr=recipe.lr, fused=True)]


def sgd(vit: ViT, recipe: Recipe) -> list[Optimizer]:
    """SGD with momentum."""
    nesterov = recipe.momentum > 0
    return [
        torch.optim.SGD(
            parameter_groups(vit, recipe, recipe.lr), lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov
        )
    ]


def muon(vit: ViT, recipe: Recipe) -> list[Optimizer]:
    """Muon on the blocks' matrices, AdamW on everything else."""
    rest = parameter_groups(vit, recipe, recipe.lr, lambda name, p: not is_block_matrix(name, p))
    optimizers: list[Optimizer] = [torch.optim.AdamW(rest, lr=recipe.lr, fused=True)]
    matrices = [
        {**group, "parts": parts}
        for chosen, parts in ((is_qkv, 3), (is_other_matrix, 1))
        for group in parameter_groups(vit, recipe, recipe.muon_lr, chosen, has_weight_decay=lambda name, p: True)
    ]
    if not matrices:
        return optimizers
    return [Muon(matrices, lr=recipe.muon_lr, momentum=recipe.muon_momentum), *optimizers]


def parameter_groups(
    vit: ViT,
    recipe: Recipe,
    lr: float,
    chosen: Callable[[str, nn.Parameter], bool] = lambda name, p: True,
    has_weight_decay: Callable[[str, nn.Parameter], bool] = has_weight_decay,
) -> list[dict[str, Any]]:
    """The chosen parameters that are to be trained, by learning rate and by whether they decay.

    With layer-wise decay (Clark et al. 2020; for ViTs arXiv 2106.08254) the rate falls by a factor with every step from
    the head towards the embedding.
    """
    last = vit.config.depth + 1
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in vit.named_parameters():
        if p.requires_grad and chosen(name, p):
            place = layer_index(name, vit.config.depth) if recipe.layer_decay != 1 else last
            found.setdefault((place, recipe.weight_decay_on == "all" or has_weight_decay(name, p)), []).append(p)
    return [
        {
            "params": parameters,
            "lr": lr * recipe.layer_decay ** (last - place),
            "weight_decay": recipe.weight_decay if decaying else 0.0,
        }
        for (place, decaying), parameters in sorted(found.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]


OPTIMIZERS: dict[str, Callable[[ViT, Recipe], list[Optimizer]]] = {"adamw": adamw, "sgd": sgd, "muon": muon}


SCHEDULES: dict[str, Callable[[float], float]] = {  # progress after warm-up, 0 to 1 -> part of the highest rate
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 + 0.5 * math.cos(math.pi * progress),
}


def lr_factor(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate at a step, as a part of the highest: a rise, then the recipe's schedule."""
    warmup = round(recipe.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[recipe.schedule]((step - warmup) / max(steps - warmup, 1))
