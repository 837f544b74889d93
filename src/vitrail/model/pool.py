"""Pooling: all tokens -> one vector per image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitrail.model.attention import attend
from vitrail.model.config import ViTConfig
from vitrail.model.mlp import MLPS
from vitrail.parts import make_part


def class_token(x_BTD: Tensor, prefix_tokens: int) -> Tensor:
    return x_BTD[:, 0]


def patch_mean(x_BTD: Tensor, prefix_tokens: int) -> Tensor:
    return x_BTD[:, prefix_tokens:].mean(dim=1)


def class_and_distillation_token(x_BTD: Tensor, prefix_tokens: int) -> Tensor:
    """DeiT (arXiv 2012.12877): (B, T, D) -> (B, 2D)."""
    return x_BTD[:, :2].flatten(1)


def class_token_and_patch_mean(x_BTD: Tensor, prefix_tokens: int) -> Tensor:
    """DINOv2's linear head: (B, T, D) -> (B, 2D)."""
    return torch.cat([x_BTD[:, 0], patch_mean(x_BTD, prefix_tokens)], dim=-1)


POOL_FUNCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cls": class_token,
    "cls+dist": class_and_distillation_token,
    "mean": patch_mean,
    "mean_norm": patch_mean,
    "cls+mean": class_token_and_patch_mean,
}


class Pool(nn.Module):
    """One of `POOL_FUNCTIONS`, then a norm for `mean_norm` (MAE's fine-tuning, arXiv 2111.06377)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.function = POOL_FUNCTIONS[config.pool]
        self.prefix_tokens = config.prefix_tokens
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.pool == "mean_norm" else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(self.function(x_BTD, self.prefix_tokens))


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, then an MLP (Zhai et al. 2022, arXiv 2106.04560): (B, T, D) -> (B, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.zeros(1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.attend = attend  # can be replaced, as in `Attention`
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = make_part(MLPS, config.mlp, config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BN1K = self.q(self.query).expand(x_BTD.shape[0], -1, -1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BNTK, v_BNTK = self.kv(x_BTD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x_BD: Tensor = self.proj(self.attend(q_BN1K, k_BNTK, v_BNTK, 0.0).flatten(1))
        return x_BD + self.mlp(self.norm(x_BD))


POOLS: dict[str, Callable[..., nn.Module]] = {**dict.fromkeys(POOL_FUNCTIONS, Pool), "map": AttentionPool}
