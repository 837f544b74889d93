"""The MLP of a block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.model.config import ViTConfig


class Mlp(nn.Module):
    """Two linear layers with an activation between them: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig, act: nn.Module):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = act
        self.drop = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x_BTD)))))


class SwiGluMlp(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202); the rows of `fc1` are the gate's, then the value's."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, 2 * config.mlp_width)
        self.drop = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, value = self.fc1(x_BTD).chunk(2, dim=-1)
        return self.drop(self.fc2(self.drop(F.silu(gate) * value)))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP (arXiv 2103.00020)."""

    def forward(self, x_BTM: Tensor) -> Tensor:
        return x_BTM * torch.sigmoid(1.702 * x_BTM)


MLPS: dict[str, Callable[..., nn.Module]] = {
    "gelu": lambda config: Mlp(config, nn.GELU()),
    "gelu_tanh": lambda config: Mlp(config, nn.GELU(approximate="tanh")),
    "quick_gelu": lambda config: Mlp(config, QuickGELU()),
    "swiglu": SwiGluMlp,
}
