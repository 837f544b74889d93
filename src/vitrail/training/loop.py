"""The training step, and the loop over batches, which yields after each step.

Validation, printing and checkpoints are the caller's code between two steps.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vitrail.data.augment import mix_batch
from vitrail.data.loader import Batch
from vitrail.data.preprocess import Preprocess
from vitrail.data.randomness import derive_seed
from vitrail.tasks import TASKS
from vitrail.training.batch_sharding import MicroBatch, split_micro_batches
from vitrail.training.losses import StepBatch
from vitrail.training.parallel import full_tensor, local_shard, sync_gradients
from vitrail.training.recipe import Recipe
from vitrail.training.schedules import downscale, image_scale, lr_factor
from vitrail.training.step_stats import DeviceNumbers, StepStats, check_stats_finite, divergence_error, statistics_dtype
from vitrail.training.train_state import TrainState, autocast_dtype


def train_steps(
    state: TrainState, batches: Iterable[Batch], recipe: Recipe, preprocess: Preprocess, *, total_steps: int
) -> Iterator[StepStats]:
    """Takes one step per batch of uint8 pixels and labels, and yields its statistics, which may be read later.

    The loss and the gradient of a step are checked when the next step is under way, and those of the last step at the
    end. With several processes the pixels are this process's shard of the batch, the labels those of the whole batch
    (`batch_sharding`). `total_steps` is the length of the whole run, for the schedules. Raises `TrainingDiverged`.
    """
    state.set_train_mode()
    last: StepStats | None = None
    for batch in batches:
        if len(batch[1]):
            stats = train_step(state, batch, recipe, preprocess, total_steps=total_steps)
            if last:
                check_stats_finite(last)
            last = stats
            yield stats
        else:  # none of its images could be read: the step is counted, the weights stay
            state.step += 1
    if last:
        check_stats_finite(last)
    check_weights_finite(state, last)


def train_step(
    state: TrainState, batch: Batch, recipe: Recipe, preprocess: Preprocess, *, total_steps: int
) -> StepStats:
    """Computes the gradient of a batch, micro-batch by micro-batch, and updates the weights.

    Reads nothing from the device, so that the next step can be queued while this one computes.
    """
    pixels, labels = batch
    lr_scale = lr_factor(state.step, total_steps, recipe)
    for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
        group["lr"] = group["initial_lr"] * lr_scale
    scale = image_scale(state.step, total_steps, recipe)
    dtype = statistics_dtype(state.world.device)
    sums = torch.zeros(2, dtype=dtype, device=next(state.vit.parameters()).device)  # of losses and of right answers
    count_correct = TASKS[state.task].count_correct
    micro_batches = split_micro_batches(pixels, labels, recipe, state.world)
    for i, micro_batch in enumerate(micro_batches):
        step_batch, targets = prepare_micro_batch(state, micro_batch, i, recipe, preprocess, scale)
        # gradients are averaged over processes, and each process has a part of the batch
        weight = len(targets) / len(labels) * state.world.size
        with sync_gradients(state.train_model, enabled=i + 1 == len(micro_batches)):
            logits_BY, loss = forward_backward(state, step_batch, targets, recipe, weight)
        sums[0] += loss.detach().to(dtype) * len(targets)
        if count_correct is not None:
            sums[1] += count_correct(logits_BY, step_batch.labels_B)
    grad_norm = clip_gradient(state.vit, recipe.max_grad_norm)
    numbers = DeviceNumbers(torch.cat([state.world.sum_tensor(sums), grad_norm.to(dtype).reshape(1)]))
    unlabeled = state.teacher.count_unlabeled(labels) if state.teacher else 0
    update_weights(state)
    state.step += 1
    return StepStats(state.step, len(labels), recipe.peak_lr * lr_scale, numbers, unlabeled)


def clip_gradient(model: nn.Module, max_norm: float | None) -> Tensor:
    """Returns the norm of the gradient, and scales the gradient down to `max_norm` if it is longer."""
    parameters = list(model.parameters())
    if max_norm:
        return full_tensor(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return full_tensor(torch.nn.utils.get_total_norm(gradients))


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
    numbers_B = None
    if state.teacher:  # the loader gives numbers in place of labels
        numbers_B = labels_B[micro_batch.overlap :].to(device, non_blocking=True)
        labels_B = state.teacher.find_labels(labels_B)  # of an image with numbers: standardized
    elif state.target_scale:
        labels_B = state.target_scale.standardize(labels_B)
    labels_B = labels_B.to(device, non_blocking=True)
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
        state.ema.update(state.vit)


def check_weights_finite(state: TrainState, last: StepStats | None) -> None:
    """Raises `TrainingDiverged` if a weight is not finite after the last update, which no later loss would reveal."""
    is_broken = not all(local_shard(parameter).isfinite().all() for parameter in state.vit.parameters())
    if any(state.world.any(is_broken)):
        raise divergence_error(state.step, "a weight is not finite", last)


def seed_micro_batch(seed: int, step: int, index: int, rank: int = 0) -> None:
    """Seeds torch's global generator for one micro-batch of a step in one process."""
    torch.manual_seed(derive_seed("step", seed, step, *([index, rank] if index or rank else [])))
