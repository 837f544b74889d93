"""Gradient-based methods: one backward pass or a few.

Each takes `TokenInputs` and returns the map (B, P) and the logits (B, Y). Gradients come from `torch.autograd.grad`, so
no parameter's `.grad` changes.
"""

import numpy as np
import torch
from torch import Tensor

from vitrail.explanation.attention import readout_weights
from vitrail.explanation.hooks import record_block_inputs, record_outputs
from vitrail.explanation.inputs import PatchInputs, TokenInputs
from vitrail.explanation.libragrad import balanced_gradients
from vitrail.explanation.recording import promote_to_float32, recording


def input_times_gradient(x_BTD: Tensor, gradient_BTD: Tensor) -> Tensor:
    """Returns the sum over channels of x * ds/dx, (B, T)."""
    return (promote_to_float32(x_BTD.detach()) * promote_to_float32(gradient_BTD)).sum(dim=-1)


@torch.enable_grad()
def input_x_gradient(inputs: PatchInputs) -> tuple[Tensor, Tensor]:
    """Input x gradient of the embedded patches, summed over channels: signed.

    Shrikumar et al. 2016 (arXiv 1605.01713).
    """
    x_BTD = inputs.x_BTD.detach().requires_grad_()
    logits_BY = inputs.logits(x_BTD)
    (gradient_BTD,) = torch.autograd.grad(inputs.score(logits_BY).sum(), x_BTD)
    return inputs.drop_prefix(input_times_gradient(x_BTD, gradient_BTD)), logits_BY.detach()


@torch.enable_grad()
def libragrad(inputs: TokenInputs) -> tuple[Tensor, Tensor]:
    """Input x LibraGrad gradient (`libragrad.py`) of the log-odds, mean over the inputs of all blocks: signed.

    Mehri et al. 2025 (arXiv 2411.16760). The map of every block's input sums to the same score. Their mean is more
    faithful than the map of the first input, and the log-odds more than the logit: measured on training images of two
    models (docs/log.md).
    """
    with balanced_gradients(inputs.vit), record_block_inputs(inputs.vit) as block_inputs:
        logits_BY = inputs.logits(inputs.x_BTD.detach().requires_grad_())
    gradients = torch.autograd.grad(inputs.log_odds(logits_BY).sum(), block_inputs)
    layers = [input_times_gradient(x, d) for x, d in zip(block_inputs, gradients, strict=True)]
    return inputs.drop_prefix(torch.stack(layers).mean(dim=0)), logits_BY.detach()


@torch.enable_grad()
def integrated_gradients(inputs: PatchInputs, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Returns the mean gradient on the straight path from the baseline to the image, times their difference: signed.

    Sundararajan et al. 2017 (arXiv 1703.01365) with Gauss-Legendre quadrature; the baseline is the mean color. The
    embedding is linear, so the path through tokens is the path through pixels, and the sum over the channels of a patch
    is the sum over its pixels.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    baseline_1TD = inputs.baseline_1TD
    delta_BTD = inputs.x_BTD - baseline_1TD
    with torch.no_grad():
        logits_BY = inputs.logits(inputs.x_BTD)
        inputs.fix_target(logits_BY)
    mean_BTD = torch.zeros_like(promote_to_float32(delta_BTD))
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        x_BTD = (baseline_1TD + point * delta_BTD).detach().requires_grad_()
        (gradient_BTD,) = torch.autograd.grad(inputs.score(inputs.logits(x_BTD)).sum(), x_BTD)
        mean_BTD += weight * gradient_BTD
    return inputs.drop_prefix((delta_BTD * mean_BTD).sum(dim=-1)), logits_BY


@torch.enable_grad()
def chefer(inputs: TokenInputs) -> tuple[Tensor, Tensor]:
    """Relevance propagated through all layers by the positive part of attention x gradient: not signed.

    Chefer et al. 2021 (arXiv 2103.15679): R = I, then R += mean over heads of relu(A * dA) @ R, layer by layer. The
    pool reads R as it reads tokens; attention pooling is one more such step.
    """
    x_BTD = inputs.x_BTD.detach().requires_grad_()
    depth = len(inputs.vit.blocks)
    with recording(inputs.vit) as record:
        logits_BY = inputs.logits(x_BTD)
    layers = sorted(record.attended)  # attention pooling, if any, comes after the last block
    gradients = torch.autograd.grad(inputs.score(logits_BY).sum(), [record.attended[layer] for layer in layers])
    with torch.no_grad():
        eye_TT = torch.eye(x_BTD.shape[1], device=x_BTD.device, dtype=promote_to_float32(x_BTD).dtype)
        relevance_BTT = eye_TT.expand(len(x_BTD), -1, -1)
        for layer in range(depth):
            positive_BTT = (record.attention(layer) * record.gradient(layer, gradients[layer])).relu().mean(dim=1)
            relevance_BTT = relevance_BTT + positive_BTT @ relevance_BTT
        if record.pool_attention is not None:
            positive_B1T = (record.pool_attention * record.gradient(depth, gradients[depth])).relu().mean(dim=1)
            map_BT = (positive_B1T @ relevance_BTT)[:, 0]
        else:
            row_BT = readout_weights(record, inputs.vit.config, x_BTD.shape[1])
            map_BT = torch.einsum("bt,bts->bs", row_BT, relevance_BTT - eye_TT)
    return inputs.drop_prefix(map_BT), logits_BY.detach()


@torch.enable_grad()
def legrad(inputs: TokenInputs) -> tuple[Tensor, Tensor]:
    """Returns the positive gradient of each layer's score with respect to its attention, mean over layers: not signed.

    Bousselham et al. 2025 (LeGrad, arXiv 2404.03214): the mean over heads and rows of the positive part. The score of a
    layer is that of its mean token, or of its pooled tokens with attention pooling. Each block is differentiated on its
    own, so memory is that of one block.
    """
    vit = inputs.vit
    with torch.no_grad(), record_block_inputs(vit) as block_inputs:
        logits_BY = inputs.logits(inputs.x_BTD)
    inputs.fix_target(logits_BY)
    total_BT = torch.zeros_like(promote_to_float32(inputs.x_BTD[..., 0]))
    for layer, block in enumerate(vit.blocks):
        with recording(vit) as record:
            z_BTD = vit.norm(block(block_inputs[layer].detach().requires_grad_(), inputs.rotation))
            if vit.config.pool != "map":  # every other pool returns the mean token when all tokens are copies of it
                z_BTD = z_BTD.mean(dim=1, keepdim=True).expand_as(z_BTD)
            score = inputs.score(inputs.classify(z_BTD)).sum()
        (gradient_BNTK,) = torch.autograd.grad(score, record.attended[layer])
        with torch.no_grad():
            total_BT += record.gradient(layer, gradient_BNTK).relu().mean(dim=(1, 2))
    return inputs.drop_prefix(total_BT / len(vit.blocks)), logits_BY


@torch.enable_grad()
def gradcam(inputs: TokenInputs, layer: int = -1) -> tuple[Tensor, Tensor]:
    """Grad-CAM on tokens: the normalized input of a block, channels weighted by their mean gradient: not signed.

    Selvaraju et al. 2017 (arXiv 1610.02391) at `norm1`: after the last block, the patches of a model with a class token
    have no gradient.
    """
    norm1 = inputs.vit.blocks[layer].get_submodule("norm1")
    with record_outputs(norm1) as outputs:
        logits_BY = inputs.logits(inputs.x_BTD.detach().requires_grad_())
    prefix = inputs.vit.config.prefix_tokens
    (gradient_BTD,) = torch.autograd.grad(inputs.score(logits_BY).sum(), outputs[0])
    a_BPD = promote_to_float32(outputs[0].detach()[:, prefix:])
    gradient_BPD = promote_to_float32(gradient_BTD[:, prefix:])
    return (a_BPD * gradient_BPD.mean(dim=1, keepdim=True)).sum(dim=-1).relu(), logits_BY.detach()
