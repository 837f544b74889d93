"""Schedules over the steps of a run: the learning rate and the image size."""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from vitrail.parts import make_part
from vitrail.training.recipe import Recipe

SCHEDULES: dict[str, Callable[..., float]] = {  # progress after the warmup, 0 to 1 -> fraction of the peak rate
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 + 0.5 * math.cos(math.pi * progress),
}


def lr_factor(step: int, total_steps: int, recipe: Recipe) -> float:
    """Returns the learning rate at a step, counted from 0, as a fraction of its peak: a warmup, then the schedule."""
    warmup_steps = count_warmup_steps(total_steps, recipe)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return make_part(SCHEDULES, recipe.schedule, (step - warmup_steps) / max(total_steps - warmup_steps, 1))


def count_warmup_steps(total_steps: int, recipe: Recipe) -> int:
    """Returns the number of warmup steps."""
    return max(round(recipe.warmup_fraction * total_steps), min(recipe.min_warmup_steps, total_steps // 2))


def image_scale(step: int, total_steps: int, recipe: Recipe) -> float:
    """Returns the image size at a step as a fraction of the full size; it grows linearly, then stays at 1.

    Progressive resizing (fast.ai, Howard 2018; for ViTs arXiv 2104.00298): small images give fewer tokens, so early
    steps are faster, and coarse features can be learned from them.
    """
    growth_steps = recipe.image_growth_fraction * total_steps
    return min(1.0, recipe.initial_image_scale + (1 - recipe.initial_image_scale) * step / growth_steps)


def downscale(images_BCHW: Tensor, scale: float, patch: int) -> Tensor:
    """Resizes images to about `scale` times their height and width, rounded down to whole patches, at least one."""
    size = [max(1, int(length * scale + 1e-6) // patch) * patch for length in images_BCHW.shape[-2:]]
    return F.interpolate(images_BCHW, size=size, mode="bilinear", antialias=True)
