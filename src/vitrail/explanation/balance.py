"""Balanced gradients: a backward pass in which no part counts its input twice, over an unchanged forward.

In a product of two things that both depend on the input, the plain gradient follows both, and input times gradient
counts the product twice; in a norm or a softmax it cancels what should be shared out. Here one factor is held still:
the norm's spread, attention's weights, an activation's gate. What remains is linear, so input times gradient shares the
score out over tokens and biases and nothing is lost (`tests/test_methods.py` adds it up).

The principle is LibraGrad's (Mehri et al. 2025, arXiv 2411.16760); Ali et al. 2022 (arXiv 2202.07304) hold norm and
softmax still likewise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.explanation.recording import alone
from vitrail.model import ViT
from vitrail.model.attention import Attention
from vitrail.model.mlp import QuickGELU, SwiGluMlp
from vitrail.model.pool import AttentionPool
from vitrail.model.vit import MlpHead


class _Gated(torch.autograd.Function):
    """act(u), taken as u times a gate; the gradient takes the gate as a constant."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, act: Callable[[Tensor], Tensor], gate_at_0: float) -> Tensor:
        out = act(u)
        ctx.save_for_backward((out / u).masked_fill_(u == 0, gate_at_0))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gate,) = ctx.saved_tensors
        return grads[0] * gate, None, None


class _Normed(torch.autograd.Function):
    """LayerNorm; the gradient takes the spread as a constant, while the mean, which is linear, stays live."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.LayerNorm) -> Tensor:
        shape, weight = module.normalized_shape, module.weight
        out, _, over_spread = torch.native_layer_norm(x, shape, weight, module.bias, module.eps)
        ctx.save_for_backward(over_spread, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        over_spread, weight = ctx.saved_tensors
        d = grads[0] * weight
        return ((d - d.mean(dim=-1, keepdim=True)) * over_spread).to(d.dtype), None


def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """The spread held still."""
    normed: Tensor = _Normed.apply(x, module)
    return normed


def gelu(module: nn.Module, u: Tensor) -> Tensor:
    """u * gate(u) with the gate held still: Phi, or what stands for it."""
    gated: Tensor = _Gated.apply(u, type(module).forward.__get__(module), 0.5)
    return gated


def swiglu(module: SwiGluMlp, x: Tensor) -> Tensor:
    """u * sigmoid(u) * v with the sigmoid held still, and half the gradient to each of the two live factors."""
    u, v = module.fc1(x).chunk(2, dim=-1)
    still = torch.sigmoid(u.detach())
    product: Tensor = module.fc2((u * (still * v.detach()) + v * (still * u.detach())) / 2)
    return product


def mlp_head(module: MlpHead, x: Tensor) -> Tensor:
    """tanh(u) as u times a gate that is held still."""
    gated: Tensor = _Gated.apply(module.fc1(x), torch.tanh, 1.0)
    logits: Tensor = module.fc2(gated)
    return logits


RULES: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.LayerNorm: norm,
    nn.GELU: gelu,
    QuickGELU: gelu,
    SwiGluMlp: swiglu,
    MlpHead: mlp_head,
}


@contextmanager
def balanced(vit: ViT) -> Iterator[None]:
    """Inside, gradients through `vit` are balanced; its answers stay what they are, and outside nothing remains.

    Another thread that would look inside too waits for the end.
    """
    ruled = [(module, RULES[type(module)]) for module in vit.modules() if type(module) in RULES]
    attention = [module for module in vit.modules() if isinstance(module, Attention | AttentionPool)]
    with alone(vit):
        before = [module.attend for module in attention]
        try:
            for module, rule in ruled:
                module.forward = partial(rule, module)
            for module, attend in zip(attention, before, strict=True):
                module.attend = _still(attend)
            yield
        finally:
            for module, _ in ruled:
                vars(module).pop("forward", None)
            for module, attend in zip(attention, before, strict=True):
                module.attend = attend


def _still(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same kernel with q and k detached: attention's weights are constants, values alone are live."""
    return lambda q_BNTK, k_BNTK, v_BNTK, dropout=0.0: attend(q_BNTK.detach(), k_BNTK.detach(), v_BNTK, dropout)
