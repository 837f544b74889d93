"""The MLP of a block, by name."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.model.config import ViTConfig


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the stand-in for GELU that OpenAI's CLIP was trained with (arXiv 2103.00020)."""

    def forward(self, x_BTM: Tensor) -> Tensor:
        return x_BTM * torch.sigmoid(1.702 * x_BTM)


class Mlp(nn.Module):
    """Two layers with a GELU between, exact (erf), in its tanh form or CLIP's: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ViTConfig, act: nn.Module):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = act
        self.drop = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x_BTD)))))
        return x


class SwiGluMlp(nn.Module):
    """A gate times a value (Shazeer 2020, arXiv 2002.05202); `fc1` holds the gate's rows over the value's."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, 2 * config.mlp_width)
        self.drop = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, value = self.fc1(x_BTD).chunk(2, dim=-1)
        x: Tensor = self.drop(self.fc2(self.drop(F.silu(gate) * value)))
        return x


MLPS: dict[str, Callable[[ViTConfig], nn.Module]] = {
    "gelu": lambda config: Mlp(config, nn.GELU()),
    "gelu_tanh": lambda config: Mlp(config, nn.GELU(approximate="tanh")),
    "quick_gelu": lambda config: Mlp(config, QuickGELU()),
    "swiglu": SwiGluMlp,
}
