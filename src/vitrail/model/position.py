"""Position embeddings on the patch grid (h, w): learned, sin-cos, rotary or none.

`add` adds the positions to the patches; `rotation` returns a function that rotates queries and keys, or None.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.model.config import Learned, Rotary, SinCos, ViTConfig, position_kind
from vitrail.parts import make_part

Rotate = Callable[[Tensor], Tensor]


class PositionEmbedding(nn.Module):
    """No position: the patches are a set. The base class of the others."""

    def add(self, x_BhwD: Tensor) -> Tensor:
        return x_BhwD

    def rotation(self, h: int, w: int, keep_BP: Tensor | None = None) -> Rotate | None:
        """`keep_BP` selects patches by their number, row by row; None means all of them."""
        return None


class LearnedEmbedding(PositionEmbedding):
    """A parameter (h, w, D). The config's `Learned` says how it is resized for another grid."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        assert isinstance(config.position, Learned)
        self.options = config.position
        self.grid = nn.Parameter(torch.zeros(*config.grid, config.width))

    def add(self, x_BhwD: Tensor) -> Tensor:
        h, w = x_BhwD.shape[1:3]
        return x_BhwD + (self.grid if (h, w) == self.grid.shape[:2] else self.resize(h, w))

    def resize(self, h: int, w: int) -> Tensor:
        """Returns the positions for a grid of h x w. Computes in float32 at least: not every kernel supports bf16."""
        dtype = torch.promote_types(self.grid.dtype, torch.float32)
        old_h, old_w = self.grid.shape[:2]
        options = self.options
        scale = ((h + options.offset) / old_h, (w + options.offset) / old_w) if options.offset else None
        old_1Dhw = self.grid.to(dtype).permute(2, 0, 1).unsqueeze(0)
        rule = {"align_corners": options.align_corners, "antialias": options.antialias}
        new_1Dhw = F.interpolate(old_1Dhw, None if scale else (h, w), scale, options.interpolation, **rule)
        return new_1Dhw[0].permute(1, 2, 0).to(self.grid.dtype)


class SinCosEmbedding(PositionEmbedding):
    """Fixed sines and cosines of the row and of the column, a quarter of the width each (arXiv 2205.01580).

    The buffer holds integers, which `vit.bfloat16()` does not round: rounded frequencies would shift the positions.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        assert isinstance(config.position, SinCos)
        self.temperature = config.position.temperature
        self.index: Tensor
        self.register_buffer("index", torch.arange(config.width // 4), persistent=False)

    def add(self, x_BhwD: Tensor) -> Tensor:
        h, w = x_BhwD.shape[1:3]
        frequency = self.temperature ** (-self.index / max(len(self.index) - 1, 1))
        y_hK = torch.arange(h, device=frequency.device)[:, None] * frequency
        x_wK = torch.arange(w, device=frequency.device)[:, None] * frequency
        y_hwK, x_hwK = y_hK[:, None].expand(h, w, -1), x_wK[None].expand(h, w, -1)
        return x_BhwD + torch.cat([x_hwK.sin(), x_hwK.cos(), y_hwK.sin(), y_hwK.cos()], dim=-1)


class RotaryEmbedding(PositionEmbedding):
    """Rotary positions (RoPE) as in DINOv3 (arXiv 2508.10104): row and column in [-1, 1], half of a head's pairs each.

    Prefix tokens have no position and are not rotated. The buffer holds integers, as in `SinCosEmbedding`.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        assert isinstance(config.position, Rotary)
        self.prefix_tokens = config.prefix_tokens
        self.base = config.position.base
        self.index: Tensor
        self.register_buffer("index", torch.arange(config.width // config.heads // 4), persistent=False)

    def rotation(self, h: int, w: int, keep_BP: Tensor | None = None) -> Rotate | None:
        frequency = 2 * torch.pi / self.base ** (self.index / len(self.index))
        y_h = (torch.arange(h, device=frequency.device) + 0.5) / h * 2 - 1
        x_w = (torch.arange(w, device=frequency.device) + 0.5) / w * 2 - 1
        y_PK = (y_h[:, None, None] * frequency).expand(h, w, -1).flatten(0, 1)
        x_PK = (x_w[None, :, None] * frequency).expand(h, w, -1).flatten(0, 1)
        angle_PK = torch.cat([y_PK, x_PK], dim=-1).repeat(1, 2)
        angle_BPK = angle_PK[None] if keep_BP is None else angle_PK[keep_BP]
        zero_BRK = angle_BPK.new_zeros(angle_BPK.shape[0], self.prefix_tokens, angle_BPK.shape[-1])
        angle_B1TK = torch.cat([zero_BRK, angle_BPK], dim=1).unsqueeze(1)
        cos_B1TK, sin_B1TK = angle_B1TK.cos(), angle_B1TK.sin()

        def rotate(q_BNTK: Tensor) -> Tensor:
            first, second = q_BNTK.chunk(2, dim=-1)
            rotated = q_BNTK * cos_B1TK + torch.cat([-second, first], dim=-1) * sin_B1TK
            return rotated.to(q_BNTK.dtype)

        return rotate


EMBEDDINGS: dict[str, Callable[..., PositionEmbedding]] = {
    "learned": LearnedEmbedding,
    "sincos": SinCosEmbedding,
    "rotary": RotaryEmbedding,
    "none": lambda config: PositionEmbedding(),
}


def make_position(config: ViTConfig) -> PositionEmbedding:
    return make_part(EMBEDDINGS, position_kind(config.position), config)
