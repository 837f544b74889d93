"""Which weights decay, which optimiser follows the gradients, how fast at each step."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from vitrail.model import ViT
from vitrail.train.recipes import Recipe


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay makes sense: for matrices and the patch projection, not for vectors, tokens, positions."""
    return parameter.ndim >= 2 and name not in ("prefix", "position.grid", "pool.query")


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """What Muon is meant for: the hidden matrices of the blocks."""
    return parameter.ndim == 2 and name.startswith("blocks.")


def adamw(vit: ViT, recipe: Recipe) -> list[Optimizer]:
    """AdamW, as in arXiv 1711.05101, with torch's fused kernel."""
    return [torch.optim.AdamW(_groups(vit, recipe, lambda name, p: True), lr=recipe.lr, fused=True)]


def sgd(vit: ViT, recipe: Recipe) -> list[Optimizer]:
    """SGD with momentum."""
    groups = _groups(vit, recipe, lambda name, p: True)
    return [torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)]


def muon(vit: ViT, recipe: Recipe) -> list[Optimizer]:
    """Muon (Jordan 2024) on the blocks' matrices, AdamW on everything else."""
    matrices = [p for name, p in vit.named_parameters() if is_block_matrix(name, p)]
    rest = _groups(vit, recipe, lambda name, p: not is_block_matrix(name, p))
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.lr, fused=True),
    ]


def _groups(vit: ViT, recipe: Recipe, chosen: Callable[[str, nn.Parameter], bool]) -> list[dict[str, object]]:
    named = [(name, p) for name, p in vit.named_parameters() if chosen(name, p)]
    spare = [p for name, p in named if recipe.decay_on == "matrices" and not decays(name, p)]
    rest = [p for name, p in named if recipe.decay_on == "all" or decays(name, p)]
    groups = [{"params": rest, "weight_decay": recipe.weight_decay}, {"params": spare, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


OPTIMIZERS: dict[str, Callable[[ViT, Recipe], list[Optimizer]]] = {"adamw": adamw, "sgd": sgd, "muon": muon}


SCHEDULES: dict[str, Callable[[float], float]] = {  # progress after warm-up, 0 to 1 -> part of the highest rate
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 + 0.5 * math.cos(math.pi * progress),
}


def lr_part(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate at a step, as a part of the highest: a rise, then the recipe's schedule."""
    warmup = round(recipe.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[recipe.schedule]((step - warmup) / max(steps - warmup, 1))
