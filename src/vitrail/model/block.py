"""The pre-norm encoder block: x + attention(norm(x)), then x + MLP(norm(x))."""

import torch
from torch import Tensor, nn

from vitrail.model.attention import Attention
from vitrail.model.config import ViTConfig
from vitrail.model.mlp import MLPS
from vitrail.model.position import Rotate
from vitrail.parts import make_part


class Block(nn.Module):
    """One encoder layer: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = nn.Identity() if config.layer_scale is None else LayerScale(config.width, config.layer_scale)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = make_part(MLPS, config.mlp, config)
        self.ls2 = nn.Identity() if config.layer_scale is None else LayerScale(config.width, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BTD: Tensor, rotate: Rotate | None = None) -> Tensor:
        x_BTD = x_BTD + self.drop_path(self.ls1(self.attn(self.norm1(x_BTD), rotate)))
        x_BTD = x_BTD + self.drop_path(self.ls2(self.mlp(self.norm2(x_BTD))))
        return x_BTD


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int, init: float):
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a branch for a random fraction of the images (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_BTD
        keep = 1 - self.rate
        return x_BTD * x_BTD.new_empty(len(x_BTD), 1, 1).bernoulli_(keep) / keep
