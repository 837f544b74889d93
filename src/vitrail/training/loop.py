"""The training step, and the loop over batches, which yields after each step.

Validation, printing and checkpoints are the caller's code between two steps.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.data.augment import mix_batch
from vitrail.data.loader import Batch
from vitrail.data.preprocess import Preprocess
from vitrail.data.randomness import derive_seed
from vitrail.errors import VitrailError
from vitrail.tasks import TASKS
from vitrail.training.batch_sharding import MicroBatch, split_micro_batches
from vitrail.training.losses import StepBatch
from vitrail.training.parallel import full_tensor, local_shard, sync_gradients
from vitrail.training.recipe import Recipe
from vitrail.training.schedules import downscale, image_scale, lr_factor
from vitrail.training.train_state import TrainState, autocast_dtype

DIVERGED_HINT = "try a lower learning rate or a longer warmup"


@dataclass(frozen=True)
class StepStats:
    """Statistics of one training step."""

    step: int  # counted over the whole run, from 1
    loss: float
    correct: int  # of `images`, with the labels before mixing; 0 for numbers
    images: int
    lr: float
    grad_norm: float  # before clipping
    unlabeled: int = 0  # of `images`: those of a teacher alone

    @property
    def accuracy(self) -> float:
        """The fraction of right answers among the images with labels."""
        return self.correct / max(self.images - self.unlabeled, 1)


class TrainingDiverged(VitrailError):
    """The loss, the gradient or a weight is not finite."""


def train_steps(
    state: TrainState, batches: Iterable[Batch], recipe: Recipe, preprocess: Preprocess, *, total_steps: int
) -> Iterator[StepStats]:
    """Takes one step per batch of uint8 pixels and labels, and yields its statistics.

    With several processes the pixels are this process's shard of the batch, the labels those of the whole batch
    (`batch_sharding`). `total_steps` is the length of the whole run, for the schedules. Raises `TrainingDiverged`.
    """
    state.set_train_mode()
    last: StepStats | None = None
    for batch in batches:
        if len(batch[1]):
            last = train_step(state, batch, recipe, preprocess, total_steps=total_steps)
            yield last
        else:  # none of its images could be read: the step is counted, the weights stay
            state.step += 1
    check_weights_finite(state, last)


def train_step(
    state: TrainState, batch: Batch, recipe: Recipe, preprocess: Preprocess, *, total_steps: int
) -> StepStats:
    """Computes the gradient of a batch, micro-batch by micro-batch, and updates the weights.

    Raises `TrainingDiverged` before the update if the loss or the gradient is not finite.
    """
    pixels, labels = batch
    lr_scale = lr_factor(state.step, total_steps, recipe)
    for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
        group["lr"] = group["initial_lr"] * lr_scale
    scale = image_scale(state.step, total_steps, recipe)
    loss_sum = correct = 0.0
    count_correct = TASKS[state.task].count_correct
    micro_batches = split_micro_batches(pixels, labels, recipe, state.world)
    for i, micro_batch in enumerate(micro_batches):
        step_batch, targets = prepare_micro_batch(state, micro_batch, i, recipe, preprocess, scale)
        # gradients are averaged over processes, and each process has a part of the batch
        weight = len(targets) / len(labels) * state.world.size
        with sync_gradients(state.train_model, enabled=i + 1 == len(micro_batches)):
            logits_BY, loss = forward_backward(state, step_batch, targets, recipe, weight)
        loss_sum += loss.item() * len(targets)
        if count_correct is not None:
            correct += int(count_correct(logits_BY, step_batch.labels_B))
    max_norm = recipe.max_grad_norm or float("inf")
    grad_norm = full_tensor(torch.nn.utils.clip_grad_norm_(list(state.vit.parameters()), max_norm)).item()
    loss_sum, correct = state.world.sum(loss_sum, correct)
    stats = StepStats(
        state.step + 1, loss_sum / len(labels), int(correct), len(labels), recipe.peak_lr * lr_scale, grad_norm,
        state.teacher.count_unlabeled(labels) if state.teacher else 0,
    )  # fmt: skip
    state.step += 1
    if not math.isfinite(stats.loss + stats.grad_norm):
        raise divergence_error(state, f"loss {stats.loss:.3g}", stats)
    update_weights(state)
    return stats


def prepare_micro_batch(
    state: TrainState, micro_batch: MicroBatch, index: int, recipe: Recipe, preprocess: Preprocess, scale: float
) -> tuple[StepBatch, Tensor]:
    """Normalizes, resizes and mixes the images of a micro-batch on the model's device.

    Seeds torch for the mixing, then for the dropout and stochastic depth of the forward pass. Returns the batch and its
    targets, without the images that only serve as mixing partners (`MicroBatch.overlap`).
    """
    device = next(state.vit.parameters()).device
    seed_micro_batch(recipe.seed, state.step, index)
    images_BCHW = preprocess.normalize(micro_batch.pixels.to(device, non_blocking=True))
    labels_B = micro_batch.labels
    if state.target_scale:
        labels_B = state.target_scale.standardize(labels_B)
    labels_B = labels_B.to(device, non_blocking=True)
    numbers_B = None
    if state.teacher:  # the loader gives numbers in place of labels
        numbers_B, labels_B = labels_B[micro_batch.overlap :], state.teacher.find_labels(labels_B)
    if scale < 1:
        images_BCHW = downscale(images_BCHW, scale, state.patch)
    images_BCHW, targets = mix_batch(recipe.augment, images_BCHW, labels_B, state.classes, micro_batch.overlap)
    if state.world.rank:  # all processes mix alike, but each has its own dropout
        seed_micro_batch(recipe.seed, state.step, index, state.world.rank)
    return StepBatch(images_BCHW, labels_B[micro_batch.overlap :], numbers_B), targets


def forward_backward(
    state: TrainState, batch: StepBatch, targets: Tensor, recipe: Recipe, weight: float
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of `weight` times the loss to the parameters; returns logits and unweighted loss."""
    device = batch.images_BCHW.device
    dtype = autocast_dtype(recipe.precision, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits_BY = state.train_model(batch.images_BCHW)
    loss = state.loss(logits_BY.float(), targets, batch)
    torch.autograd.backward(loss * weight)
    return logits_BY, loss


def update_weights(state: TrainState) -> None:
    """Applies the gradients to the weights, and the weights to the EMA."""
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    if state.ema:
        state.ema.update_parameters(state.vit)


def check_weights_finite(state: TrainState, last: StepStats | None) -> None:
    """Raises `TrainingDiverged` if a weight is not finite after the last update, which no later loss would reveal."""
    is_broken = not all(local_shard(parameter).isfinite().all() for parameter in state.vit.parameters())
    if any(state.world.any(is_broken)):
        raise divergence_error(state, "a weight is not finite", last)


def divergence_error(state: TrainState, reason: str, stats: StepStats | None) -> TrainingDiverged:
    """Returns the error with the reason and the step at which training diverged."""
    grad_norm, lr = (stats.grad_norm, stats.lr) if stats else (0.0, 0.0)
    return TrainingDiverged(
        f"training diverged at step {state.step}: {reason}, gradient norm {grad_norm:.3g}, learning rate {lr:.3g}",
        DIVERGED_HINT,
    )


def seed_micro_batch(seed: int, step: int, index: int, rank: int = 0) -> None:
    """Seeds torch's global generator for one micro-batch of a step in one process."""
    torch.manual_seed(derive_seed("step", seed, step, *([index, rank] if index or rank else [])))
