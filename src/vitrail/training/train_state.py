"""What training changes: the model, its EMA weights, the optimizers and the step."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from vitrail.machine import has_native_bf16
from vitrail.model.vit import ViT
from vitrail.target_scale import TargetScale
from vitrail.tasks import SINGLE_LABEL
from vitrail.training.distributed import SINGLE_PROCESS, World
from vitrail.training.freezing import freeze_parameters
from vitrail.training.lora import add_lora, merge_lora
from vitrail.training.losses import Loss, LossContext, StepLoss, make_loss, make_step_loss
from vitrail.training.moving_average import MovingAverage
from vitrail.training.optimizers import build_optimizers
from vitrail.training.parallel import broadcast_parameters, shard_model, wrap_ddp
from vitrail.training.recipe import Recipe
from vitrail.training.teacher import Teacher, add_projection, make_distillation_loss, without_projection


@dataclass
class TrainState:
    """The model in training, its EMA weights, the optimizers and the number of steps done."""

    vit: nn.Module  # a ViT, unless the recipe has another architecture
    ema: MovingAverage | None
    optimizers: list[Optimizer]
    loss: StepLoss
    step: int = 0
    frozen: list[nn.Module] = field(default_factory=list)
    has_lora: bool = False
    world: World = SINGLE_PROCESS
    ddp_model: nn.Module | None = None
    classes: int = 0
    patch: int = 1  # image sizes are multiples of it
    task: str = SINGLE_LABEL
    teacher: Teacher | None = None
    target_scale: TargetScale | None = None  # of numbers

    @property
    def train_model(self) -> nn.Module:
        """The module to call in training: the model, or its DDP wrapper."""
        return self.ddp_model or self.vit

    @property
    def eval_model(self) -> nn.Module:
        """The weights to evaluate and save: the EMA weights if there are any, with LoRA updates merged."""
        averaged: nn.Module = self.ema.module if self.ema else self.vit
        merged = merge_lora(averaged) if self.has_lora and isinstance(averaged, ViT) else averaged
        return without_projection(merged)

    @property
    def replicas(self) -> dict[str, nn.Module]:
        """The modules that every process holds a copy of, by name."""
        return {"model": self.vit, **({"averaged model": self.ema} if self.ema else {})}

    def set_train_mode(self) -> None:
        """Turns on dropout and stochastic depth, except in frozen modules."""
        self.vit.train()
        for module in self.frozen:
            module.eval()


def init_train_state(
    vit: nn.Module,
    recipe: Recipe,
    world: World = SINGLE_PROCESS,
    loss: Loss | None = None,
    classes: int | None = None,
    task: str = SINGLE_LABEL,
    teacher: Teacher | None = None,
    target_scale: TargetScale | None = None,
) -> TrainState:
    """Prepares a model for training by a recipe, in all processes of the world.

    Without `loss` it is the recipe's, for classes of equal size. A model that is not a ViT needs `classes`.
    """
    if isinstance(vit, ViT):
        classes = vit.config.classes
        vit.gradient_checkpointing = recipe.gradient_checkpointing
        if recipe.lora_rank:
            add_lora(vit, recipe)
    assert classes is not None
    frozen = freeze_parameters(vit, recipe)
    if teacher:
        add_projection(vit, teacher, recipe.seed)
    broadcast_parameters(vit, world)  # including LoRA weights, which each process initialized by itself
    ema = MovingAverage(vit, recipe.ema_decay) if recipe.ema_decay else None
    if world.is_sharded:
        for module in (vit, ema.module) if ema else (vit,):
            shard_model(module, world)
    optimizers = build_optimizers(vit, recipe)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    if world.is_sharded:
        for parameter in vit.parameters():  # an empty parameter cannot be sharded and needs no gradient
            parameter.requires_grad_(parameter.requires_grad and parameter.numel() > 0)
    step_loss = make_step_loss(loss or make_loss(equal_classes(classes, recipe, task)))
    return TrainState(
        vit,
        ema,
        optimizers,
        make_distillation_loss(step_loss, teacher, vit, recipe) if teacher else step_loss,
        frozen=frozen,
        has_lora=bool(recipe.lora_rank),
        world=world,
        ddp_model=wrap_ddp(vit, world),
        classes=classes,
        patch=vit.config.patch if isinstance(vit, ViT) else 1,
        task=task,
        teacher=teacher,
        target_scale=target_scale,
    )


def equal_classes(classes: int, recipe: Recipe, task: str = SINGLE_LABEL) -> LossContext:
    """Returns the context of a loss for classes of equal size, which have numbers for names."""
    return LossContext(recipe, tuple(map(str, range(classes))), np.ones(classes), task, classes)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of the forward pass; `auto` is bf16 where the device computes it natively, else float32."""
    if precision == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32
