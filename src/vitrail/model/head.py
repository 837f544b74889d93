"""The pooled vector -> logits, by name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitrail.model.config import ViTConfig


class MlpHead(nn.Module):
    """One hidden layer with tanh, as the paper's head while pre-training: pooled vector -> (B, Y)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.pooled_width, config.width)
        self.fc2 = nn.Linear(config.width, config.classes)

    def forward(self, x_BD: Tensor) -> Tensor:
        logits_BY: Tensor = self.fc2(torch.tanh(self.fc1(x_BD)))
        return logits_BY


HEADS: dict[str, Callable[[ViTConfig], nn.Module]] = {
    "linear": lambda config: nn.Linear(config.pooled_width, config.classes),
    "mlp": MlpHead,
}


def head_module(config: ViTConfig) -> nn.Module:
    """The head the config asks for; without classes the pooled vector itself is the answer."""
    return HEADS[config.head](config) if config.classes else nn.Identity()
