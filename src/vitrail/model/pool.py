"""Tokens -> one vector per image, by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitrail.model.attention import attend
from vitrail.model.config import ViTConfig
from vitrail.model.mlp import MLPS


class ClassToken(nn.Module):
    """The first token: (B, T, D) -> (B, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD[:, 0]


class Mean(nn.Module):
    """The mean of the patches; prefix tokens do not count: (B, T, D) -> (B, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.prefix_tokens = config.prefix_tokens

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD[:, self.prefix_tokens :].mean(dim=1)


class MeanNorm(nn.Module):
    """The mean of the patches, normed after pooling (MAE's fine-tuning, arXiv 2111.06377): (B, T, D) -> (B, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.mean = Mean(config)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BD: Tensor = self.norm(self.mean(x_BTD))
        return x_BD


class ClassAndDistillation(nn.Module):
    """The class and the distillation token side by side (DeiT, arXiv 2012.12877): (B, T, D) -> (B, 2D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD[:, :2].flatten(1)


class ClassAndMean(nn.Module):
    """The class token and the mean of the patches side by side (DINOv2's linear head): (B, T, D) -> (B, 2D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.mean = Mean(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.cat([x_BTD[:, 0], self.mean(x_BTD)], dim=-1)


class AttentionPool(nn.Module):
    """A learned query attends to all tokens, then an MLP (Zhai et al. 2022, arXiv 2106.04560): (B, T, D) -> (B, D).

    `attend` is held here for the same reason as in `Attention`.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.query = nn.Parameter(torch.zeros(1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.attend = attend
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = MLPS[config.mlp](config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BN1K = self.q(self.query).expand(x_BTD.shape[0], -1, -1).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BNTK, v_BNTK = self.kv(x_BTD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        pooled_BN1K = self.attend(q_BN1K, k_BNTK, v_BNTK, 0.0)
        x_BD: Tensor = self.proj(pooled_BN1K.flatten(1))
        x_BD = x_BD + self.mlp(self.norm(x_BD))
        return x_BD


POOLS: dict[str, Callable[[ViTConfig], nn.Module]] = {
    "cls": ClassToken,
    "cls+dist": ClassAndDistillation,
    "mean": Mean,
    "mean_norm": MeanNorm,
    "cls+mean": ClassAndMean,
    "map": AttentionPool,
}
