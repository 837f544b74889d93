"""LibraGrad: a backward pass with balanced gradients through an unchanged forward pass.

Mehri et al. 2025 (arXiv 2411.16760); Ali et al. 2022 (arXiv 2202.07304) treat norm and softmax in the same way. In a
product of two factors that both depend on the input, the plain gradient follows both, so input x gradient counts the
product twice; in a norm or a softmax the two parts cancel. Here one factor is constant in the backward pass: the
standard deviation of a norm, the attention weights, the gate of an activation. The rest is linear, so input x
gradient distributes the score over tokens and biases without loss (a test in tests/test_methods.py checks the sum).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.explanation.recording import exclusive_access
from vitrail.model.attention import Attention
from vitrail.model.mlp import QuickGELU, SwiGluMlp
from vitrail.model.pool import AttentionPool
from vitrail.model.vit import MlpHead, ViT


class _GatedActivation(torch.autograd.Function):
    """act(u) as u times a gate act(u) / u; the gate is constant in the backward pass."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, act: Callable[[Tensor], Tensor], gate_at_0: float) -> Tensor:
        out = act(u)
        ctx.save_for_backward((out / u).masked_fill_(u == 0, gate_at_0))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gate,) = ctx.saved_tensors
        return grads[0] * gate, None, None


class _LayerNorm(torch.autograd.Function):
    """LayerNorm whose standard deviation is constant in the backward pass; the mean, which is linear, is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.LayerNorm) -> Tensor:
        shape, weight = module.normalized_shape, module.weight
        out, _, inverse_std = torch.native_layer_norm(x, shape, weight, module.bias, module.eps)
        ctx.save_for_backward(inverse_std, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inverse_std, weight = ctx.saved_tensors
        d = grads[0] * weight
        return ((d - d.mean(dim=-1, keepdim=True)) * inverse_std).to(d.dtype), None


def layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm with a constant standard deviation."""
    out: Tensor = _LayerNorm.apply(x, module)
    return out


def gelu(module: nn.Module, u: Tensor) -> Tensor:
    """u * gate(u) with a constant gate: Phi(u) for GELU, and what replaces it in its approximations."""
    out: Tensor = _GatedActivation.apply(u, type(module).forward.__get__(module), 0.5)
    return out


def swiglu(module: SwiGluMlp, x: Tensor) -> Tensor:
    """u * sigmoid(u) * v with a constant sigmoid, and half of the gradient to each of the two other factors."""
    u, v = module.fc1(x).chunk(2, dim=-1)
    gate = torch.sigmoid(u.detach())
    out: Tensor = module.fc2((u * (gate * v.detach()) + v * (gate * u.detach())) / 2)
    return out


def mlp_head(module: MlpHead, x: Tensor) -> Tensor:
    """Computes the head with tanh(u) as u times a constant gate."""
    hidden: Tensor = _GatedActivation.apply(module.fc1(x), torch.tanh, 1.0)
    logits: Tensor = module.fc2(hidden)
    return logits


BALANCED_FORWARDS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.LayerNorm: layer_norm,
    nn.GELU: gelu,
    QuickGELU: gelu,
    SwiGluMlp: swiglu,
    MlpHead: mlp_head,
}


@contextmanager
def balanced_gradients(vit: ViT) -> Iterator[None]:
    """Inside, gradients through `vit` are balanced and its outputs the same; afterwards the model is unchanged.

    Another thread that enters this or `recording` for the same ViT waits for the end.
    """
    replaced = [module for module in vit.modules() if type(module) in BALANCED_FORWARDS]
    attention = [module for module in vit.modules() if isinstance(module, Attention | AttentionPool)]
    with exclusive_access(vit):
        original = [module.attend for module in attention]
        try:
            for module in replaced:
                module.forward = partial(BALANCED_FORWARDS[type(module)], module)
            for module, attend in zip(attention, original, strict=True):
                module.attend = _with_constant_weights(attend)
            yield
        finally:
            for module in replaced:
                vars(module).pop("forward", None)
            for module, attend in zip(attention, original, strict=True):
                module.attend = attend


def _with_constant_weights(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the same kernel with q and k detached: the attention weights have no gradient, only the values do."""
    return lambda q_BNTK, k_BNTK, v_BNTK, dropout=0.0: attend(q_BNTK.detach(), k_BNTK.detach(), v_BNTK, dropout)
