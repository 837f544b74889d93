"""A training step of the masked autoencoder, for one process or several."""

from dataclasses import dataclass

import torch
from torch import nn

from vitrail.data.loader import Batch
from vitrail.data.preprocess import Preprocess
from vitrail.pretraining.masked_autoencoder import MaskedAutoencoder, draw_visible, reconstruction_loss
from vitrail.pretraining.settings import MaskSettings
from vitrail.training.batch_sharding import split_micro_batches
from vitrail.training.distributed import World
from vitrail.training.loop import clip_gradient, seed_micro_batch, update_weights
from vitrail.training.optimizers import has_weight_decay
from vitrail.training.parallel import broadcast_parameters, sync_gradients, wrap_ddp
from vitrail.training.recipe import Recipe
from vitrail.training.schedules import lr_factor
from vitrail.training.step_stats import DeviceNumbers, StepStats, statistics_dtype
from vitrail.training.train_state import TrainState, autocast_dtype

BETAS = (0.9, 0.95)  # of AdamW, as in the paper


@dataclass(frozen=True)
class MaskedTraining:
    """What a step needs besides its batch."""

    state: TrainState  # of a `MaskedAutoencoder`
    model: MaskedAutoencoder
    recipe: Recipe
    settings: MaskSettings
    preprocess: Preprocess
    steps_per_epoch: int
    total_steps: int


def init_masked_state(model: MaskedAutoencoder, recipe: Recipe, world: World) -> TrainState:
    """Prepares the model, its optimizer and its copies in all processes."""
    broadcast_parameters(model, world)
    groups = [
        {
            "params": [each for name, each in model.named_parameters() if decays(name, each) == has_decay],
            "weight_decay": recipe.weight_decay if has_decay else 0.0,
            "initial_lr": recipe.peak_lr,
        }
        for has_decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=BETAS, fused=True)

    def no_loss(*_: object) -> torch.Tensor:
        raise NotImplementedError("`take_step` computes the loss")

    return TrainState(model, None, [optimizer], no_loss, world=world, ddp_model=wrap_ddp(model, world))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Returns whether a parameter decays: the matrices of encoder and decoder."""
    return has_weight_decay(name.removeprefix("encoder."), parameter)


def take_step(training: MaskedTraining, batch: Batch) -> StepStats:
    """Computes the gradient of a batch of pixels and image numbers, and updates the weights.

    With several processes the pixels are this process's shard. The masks depend on the epoch and the image's number
    alone, so they are those of a single process.
    """
    state, recipe, settings = training.state, training.recipe, training.settings
    pixels, numbers = batch
    device = next(state.vit.parameters()).device
    lr_scale = lr_factor(state.step, training.total_steps, recipe)
    for group in state.optimizers[0].param_groups:
        group["lr"] = group["initial_lr"] * lr_scale
    epoch, patches = state.step // training.steps_per_epoch, count_patches(training.preprocess, training.model)
    patch, stats_dtype = training.model.encoder.config.patch, statistics_dtype(device)
    sums = torch.zeros(2, dtype=stats_dtype, device=device)  # of losses and of right answers, of which there are none
    micro_batches = split_micro_batches(pixels, numbers, recipe, state.world)
    for i, part in enumerate(micro_batches):
        seed_micro_batch(recipe.seed, state.step, i, state.world.rank)
        images_BCHW = training.preprocess.normalize(part.pixels.to(device))
        visible_BK = draw_visible(part.labels.numpy(), patches, settings.mask, "mask", recipe.seed, epoch).to(device)
        dtype = autocast_dtype(recipe.precision, device)
        with sync_gradients(state.train_model, enabled=i + 1 == len(micro_batches)):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                predicted_BPV = state.train_model(images_BCHW, visible_BK)
            loss = reconstruction_loss(predicted_BPV.float(), images_BCHW, visible_BK, patch)
            torch.autograd.backward(loss * (len(images_BCHW) / len(numbers) * state.world.size))
        sums[0] += loss.detach().to(stats_dtype) * len(images_BCHW)
    grad_norm = clip_gradient(state.vit, recipe.max_grad_norm)
    read_later = DeviceNumbers(torch.cat([state.world.sum_tensor(sums), grad_norm.to(stats_dtype).reshape(1)]))
    update_weights(state)
    state.step += 1
    return StepStats(state.step, len(numbers), recipe.peak_lr * lr_scale, read_later)


def count_patches(preprocess: Preprocess, model: MaskedAutoencoder) -> int:
    """Returns the number of patches of an image."""
    height, width = preprocess.image_size
    return (height // model.encoder.config.patch) * (width // model.encoder.config.patch)
