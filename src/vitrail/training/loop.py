"""The training loop. It yields after every step; measuring, printing and saving are its caller's plain code."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from vitrail.data import Preprocess
from vitrail.data.augment import mix
from vitrail.data.randomness import derive
from vitrail.errors import VitrailError
from vitrail.machine import has_native_bf16
from vitrail.model import ViT
from vitrail.training.batch_sharding import micro_batches
from vitrail.training.distributed import SINGLE_PROCESS, World, full_tensor, local_shard, sync_gradients
from vitrail.training.freezing import freeze_parameters
from vitrail.training.lora import add_lora, merge_lora
from vitrail.training.optimizers import OPTIMIZERS, lr_factor
from vitrail.training.recipes import Recipe

Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class StepStats:
    """What one step did."""

    step: int  # counted over the whole run, from 1
    loss: float
    correct: int  # of `images`, with the labels before mixing
    images: int
    lr: float
    grad_norm: float  # length of the gradient before clipping


DIVERGED_HINT = "try a lower learning rate or a longer warm-up"


class TrainingDiverged(VitrailError):
    """The loss or the gradient is not finite."""


@dataclass
class TrainState:
    """What training changes: the model, its average, the optimisers, and how far it has come."""

    vit: ViT
    ema: AveragedModel | None
    optimizers: list[Optimizer]
    step: int = 0
    frozen: list[nn.Module] = field(default_factory=list)
    has_lora: bool = False
    world: World = SINGLE_PROCESS
    ddp_model: nn.Module | None = None  # the model as the processes of the world share it

    @property
    def train_model(self) -> nn.Module:
        """What is called in training: the ViT, or what spreads it over processes."""
        return self.ddp_model or self.vit

    @property
    def eval_model(self) -> ViT:
        """The weights to evaluate: the average where there is one, with LoRA's updates merged into it."""
        averaged: ViT = self.ema.module if self.ema else self.vit  # type: ignore[assignment]
        return merge_lora(averaged) if self.has_lora else averaged

    @property
    def replicas(self) -> dict[str, nn.Module]:
        """What every process holds a copy of, by name."""
        return {"model": self.vit, **({"averaged model": self.ema} if self.ema else {})}

    def set_train_mode(self) -> None:
        """Dropout and stochastic depth on, but not in what is frozen."""
        self.vit.train()
        for module in self.frozen:
            module.eval()


def init_train_state(vit: ViT, recipe: Recipe, world: World = SINGLE_PROCESS) -> TrainState:
    """A model ready to be trained by this recipe, by the processes of this world together."""
    vit.gradient_checkpointing = recipe.gradient_checkpointing
    if recipe.lora_rank:
        add_lora(vit, recipe)
    frozen = freeze_parameters(vit, recipe)
    world.broadcast_parameters(vit)  # LoRA's updates too, which each process has drawn for itself
    average = AveragedModel(vit, multi_avg_fn=ema_update(recipe.ema_decay)) if recipe.ema_decay else None
    if world.is_sharded:
        for module in (vit, average.module) if average else (vit,):
            world.shard_model(module)
    optimizers = OPTIMIZERS[recipe.optimizer](vit, recipe)
    if world.is_sharded:
        for parameter in vit.parameters():  # an empty one cannot be sharded, and has nothing to learn
            parameter.requires_grad_(parameter.requires_grad and parameter.numel() > 0)
    lora = bool(recipe.lora_rank)
    return TrainState(
        vit, average, optimizers, frozen=frozen, has_lora=lora, world=world, ddp_model=world.wrap_ddp(vit)
    )


def train_steps(
    trainee: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    preprocess: Preprocess,
    *,
    steps: int,
) -> Iterator[StepStats]:
    """Takes a step for each batch of uint8 pixels and labels, and yields what it did.

    Where several processes train together (`cut_batches`), each has its cut of the pixels and all labels. `steps` is
    the length of the whole run, for the schedule. Raises `Diverged` at a loss or gradient that is not finite, before
    the weights are touched, and at the end where the last update broke them.
    """
    vit, world = trainee.vit, trainee.world
    device = next(vit.parameters()).device
    dtype = autocast_dtype(recipe.precision, device)
    parameters = list(vit.parameters())
    groups = [group for optimizer in trainee.optimizers for group in optimizer.param_groups]
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
    trainee.set_train_mode()
    part = gradient = 0.0
    for pixels, labels in batches:
        if not len(labels):  # not one of its images could be read: the step is counted, and changes nothing
            trainee.step += 1
            continue
        part = lr_factor(trainee.step, steps, recipe)
        size = image_scale(trainee.step, steps, recipe)
        for group in groups:
            group["lr"] = group["initial_lr"] * part
        loss_sum, correct = 0.0, 0.0
        parts = micro_batches(pixels, labels, recipe, world)
        for number, (some_pixels, some_labels, spare) in enumerate(parts):
            seed_micro_batch(recipe.seed, trainee.step, number)  # mixing, dropout, stochastic depth
            images_BCHW = preprocess.normalise(some_pixels.to(device, non_blocking=True))
            labels_B = some_labels.to(device, non_blocking=True)
            if size < 1:
                images_BCHW = downscale(images_BCHW, size, vit.config.patch)
            images_BCHW, targets = mix(recipe.augment, images_BCHW, labels_B, vit.config.classes, spare)
            if world.rank:  # all have mixed alike; what a process drops out is its own
                seed_micro_batch(recipe.seed, trainee.step, number, world.rank)
            with sync_gradients(trainee.train_model, now=number + 1 == len(parts)):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    logits_BY = trainee.train_model(images_BCHW)
                loss = cross_entropy(logits_BY.float(), targets, recipe.label_smoothing)
                part_of_batch = len(targets) / len(labels) * world.size  # gradients are averaged over the processes
                (loss * part_of_batch).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item() * len(targets)
            correct += int((logits_BY.argmax(1) == labels_B[spare:]).sum())
        gradient = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm or float("inf"))).item()
        loss_sum, correct = world.sum(loss_sum, correct)
        mean_loss = loss_sum / len(labels)
        trainee.step += 1
        if not math.isfinite(mean_loss + gradient):
            raise TrainingDiverged(
                f"training diverged at step {trainee.step}: loss {mean_loss:.3g}, gradient {gradient:.3g}, "
                f"learning rate {recipe.lr * part:.3g}",
                DIVERGED_HINT,
            )
        for optimizer in trainee.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if trainee.ema:
            trainee.ema.update_parameters(vit)
        yield StepStats(trainee.step, mean_loss, int(correct), len(labels), recipe.lr * part, gradient)
    broken = not all(local_shard(parameter).isfinite().all() for parameter in parameters)
    if any(world.any(broken)):  # by the last update, which no loss has seen
        raise TrainingDiverged(
            f"training diverged at step {trainee.step}: a weight is not finite, gradient {gradient:.3g}, "
            f"learning rate {recipe.lr * part:.3g}",
            DIVERGED_HINT,
        )


def seed_micro_batch(seed: int, step: int, number: int, rank: int = 0) -> None:
    """Keys torch's draws to a step, the number of a part of its batch, and the process."""
    torch.manual_seed(derive("step", seed, step, *([number, rank] if number or rank else [])))


def cross_entropy(logits_BY: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy; zero for a process whose cut of a small batch is empty."""
    return F.cross_entropy(logits_BY, targets, label_smoothing=smoothing) if len(targets) else logits_BY.sum()


def image_scale(step: int, steps: int, recipe: Recipe) -> float:
    """The side of the images at a step, as a part of the model's: it grows evenly, then stays whole.

    A ViT's time falls with the number of its tokens, and what is coarse can be learnt first (fast.ai's progressive
    resizing, Howard 2018; for ViTs arXiv 2104.00298).
    """
    return min(
        1.0,
        recipe.initial_image_scale + (1 - recipe.initial_image_scale) * step / (recipe.image_growth_fraction * steps),
    )


def downscale(images_BCHW: Tensor, part: float, patch: int) -> Tensor:
    """The images at about this part of their sides, the nearest whole number of patches below."""
    sides = [max(1, int(side * part + 1e-6) // patch) * patch for side in images_BCHW.shape[-2:]]
    return F.interpolate(images_BCHW, size=sides, mode="bilinear", antialias=True)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format of the forward: bf16 where the device computes it natively, unless told otherwise."""
    if precision == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def ema_update(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An exponential average that trusts the first steps less: min(decay, (1 + n) / (10 + n))."""

    @torch.no_grad()
    def update(averages: Tensors, currents: Tensors, n: Tensor | int) -> None:
        now = min(decay, (1 + int(n)) / (10 + int(n)))
        torch._foreach_lerp_([*map(local_shard, averages)], [*map(local_shard, currents)], 1 - now)

    return update
