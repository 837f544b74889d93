"""Methods that follow the score backwards: one backward pass, or a few.

Each takes a scene and gives the map (B, P) and the logits (B, Y). Gradients come from `torch.autograd.grad`, so no
parameter's `.grad` is touched.
"""

import numpy as np
import torch
from torch import Tensor

from vitrail.explanation.attention import readout
from vitrail.explanation.balance import balanced
from vitrail.explanation.recording import recording, wide
from vitrail.explanation.scene import Scene, block_inputs


@torch.enable_grad()
def input_gradient(scene: Scene) -> tuple[Tensor, Tensor]:
    """Each embedded patch times the score's gradient by it: signed.

    Token by token the sum over channels of x * ds/dx (Shrikumar et al. 2016, arXiv 1605.01713).
    """
    x_BTD = scene.x_BTD.detach().requires_grad_()
    logits_BY = scene.logits(x_BTD)
    (gradient_BTD,) = torch.autograd.grad(scene.score(logits_BY).sum(), x_BTD)
    map_BT = (wide(x_BTD.detach()) * wide(gradient_BTD)).sum(dim=-1)
    return scene.of_patches(map_BT), logits_BY.detach()


@torch.enable_grad()
def balanced_gradient(scene: Scene) -> tuple[Tensor, Tensor]:
    """Input times balanced gradient (`balance.py`) of the log-odds, averaged over the inputs of all blocks: signed.

    Every block's input shares out the same score over the tokens; their mean was more faithful than the first alone,
    and log-odds more than the logit, on training images of two models (docs/log.md).
    """
    with balanced(scene.vit), block_inputs(scene.vit) as inputs:
        logits_BY = scene.logits(scene.x_BTD.detach().requires_grad_())
    gradients = torch.autograd.grad(scene.log_odds(logits_BY).sum(), inputs)
    layers = [(wide(x.detach()) * wide(d)).sum(dim=-1) for x, d in zip(inputs, gradients, strict=True)]
    return scene.of_patches(torch.stack(layers).mean(dim=0)), logits_BY.detach()


@torch.enable_grad()
def integrated_gradients(scene: Scene, steps: int = 20) -> tuple[Tensor, Tensor]:
    """The gradient averaged on the straight way from a mean-coloured image, times the difference: signed.

    Sundararajan et al. 2017 (arXiv 1703.01365), with Gauss-Legendre points. Embedding is linear, so the way through
    tokens is the way through pixels, and a patch's sum over channels is its sum over pixels.
    """
    points, shares = np.polynomial.legendre.leggauss(steps)
    grey_1TD = scene.grey_1TD
    away_BTD = scene.x_BTD - grey_1TD
    with torch.no_grad():
        logits_BY = scene.logits(scene.x_BTD)
        scene.settle(logits_BY)
    mean_BTD = torch.zeros_like(wide(away_BTD))
    for point, share in zip((points + 1) / 2, shares / 2, strict=True):
        x_BTD = (grey_1TD + point * away_BTD).detach().requires_grad_()
        (gradient_BTD,) = torch.autograd.grad(scene.score(scene.logits(x_BTD)).sum(), x_BTD)
        mean_BTD += share * gradient_BTD
    return scene.of_patches((away_BTD * mean_BTD).sum(dim=-1)), logits_BY


@torch.enable_grad()
def generic_attention(scene: Scene) -> tuple[Tensor, Tensor]:
    """Relevance carried through all layers by attention whose gradient favours the score: not signed.

    Chefer et al. 2021 (arXiv 2103.15679): R = I, then R += mean over heads of relu(A * dA) @ R, layer by layer. The
    pool reads R as it reads tokens; attention pooling does one such step of its own.
    """
    x_BTD = scene.x_BTD.detach().requires_grad_()
    depth = len(scene.vit.blocks)
    with recording(scene.vit) as record:
        logits_BY = scene.logits(x_BTD)
    layers = sorted(record.mixed)  # attention pooling, where there is one, comes after the last block
    gradients = torch.autograd.grad(scene.score(logits_BY).sum(), [record.mixed[layer] for layer in layers])
    with torch.no_grad():
        eye_TT = torch.eye(x_BTD.shape[1], device=x_BTD.device, dtype=wide(x_BTD).dtype)
        relevance_BTT = eye_TT.expand(len(x_BTD), -1, -1)
        for layer in range(depth):
            positive_BTT = (record.attention(layer) * record.gradient(layer, gradients[layer])).relu().mean(dim=1)
            relevance_BTT = relevance_BTT + positive_BTT @ relevance_BTT
        if record.pool is not None:
            positive_B1T = (record.pool * record.gradient(depth, gradients[depth])).relu().mean(dim=1)
            map_BT = (positive_B1T @ relevance_BTT)[:, 0]
        else:
            row_BT = readout(record, scene.vit.config, x_BTD.shape[1])
            carried_BTT = relevance_BTT - eye_TT  # what attention brought
            map_BT = torch.einsum("bt,bts->bs", row_BT, carried_BTT)
    return scene.of_patches(map_BT), logits_BY.detach()


@torch.enable_grad()
def legrad(scene: Scene) -> tuple[Tensor, Tensor]:
    """How attention would have to change for the score that each layer's mean token gets, averaged: not signed.

    Bousselham et al. 2025 (LeGrad, arXiv 2404.03214): per layer the positive part of the score's gradient by attention,
    mean over heads and rows. The score of a layer is that of its mean token, or with attention pooling its pooled
    tokens'. Each block is differentiated alone, so memory is one block's.
    """
    vit = scene.vit
    with torch.no_grad(), block_inputs(vit) as inputs:
        logits_BY = scene.logits(scene.x_BTD)
    scene.settle(logits_BY)
    total_BT = torch.zeros_like(wide(scene.x_BTD[..., 0]))
    for layer, block in enumerate(vit.blocks):
        with recording(vit) as record:
            z_BTD = vit.norm(block(inputs[layer].detach().requires_grad_(), scene.rotate))
            if vit.config.pool != "map":  # every pool reads copies of the mean token as that token
                z_BTD = z_BTD.mean(dim=1, keepdim=True).expand_as(z_BTD)
            score = scene.score(wide(vit.head(vit.pool(z_BTD)))).sum()
        (gradient_BNTK,) = torch.autograd.grad(score, record.mixed[layer])
        with torch.no_grad():
            total_BT += record.gradient(layer, gradient_BNTK).relu().mean(dim=(1, 2))
    return scene.of_patches(total_BT / len(vit.blocks)), logits_BY


@torch.enable_grad()
def gradcam(scene: Scene, layer: int = -1) -> tuple[Tensor, Tensor]:
    """Grad-CAM on tokens: a block's normed input, its channels weighed by their mean gradient: not signed.

    Selvaraju et al. 2017 (arXiv 1610.02391) at `norm1`, since behind the last block a class token gives patches no
    gradient.
    """
    norm = scene.vit.blocks[layer].norm1
    seen: list[Tensor] = []

    def keep(_: object, given: object, out: Tensor) -> None:
        seen.append(out)

    hook = norm.register_forward_hook(keep)  # type: ignore[union-attr]
    try:
        logits_BY = scene.logits(scene.x_BTD.detach().requires_grad_())
    finally:
        hook.remove()
    prefix = scene.vit.config.prefix_tokens
    (gradient_BTD,) = torch.autograd.grad(scene.score(logits_BY).sum(), seen[0])
    a_BPD, gradient_BPD = wide(seen[0].detach()[:, prefix:]), wide(gradient_BTD[:, prefix:])
    return (a_BPD * gradient_BPD.mean(dim=1, keepdim=True)).sum(dim=-1).relu(), logits_BY.detach()
