"""Where a patch stands, in four ways with one interface.

`add(x_BhwD)` puts the position into the patches; `rotation(h, w)` gives the turn of queries and keys, or None: of all
patches, or of those that are left, numbered row by row in `keep_BP`.
Positions live on the grid (h, w), so no one guesses a square root, and another image size is a resize by rule.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.model.config import Learned, NoPosition, Position, Rotary, SinCos, ViTConfig

Rotate = Callable[[Tensor], Tensor]


class LearnedPosition(nn.Module):
    """A parameter (h, w, D), resized by its options when the image has another grid."""

    def __init__(self, config: ViTConfig, options: Learned):
        super().__init__()
        self.options = options
        self.grid = nn.Parameter(torch.zeros(*config.grid, config.width))

    def add(self, x_BhwD: Tensor) -> Tensor:
        h, w = x_BhwD.shape[1:3]
        return x_BhwD + (self.grid if (h, w) == self.grid.shape[:2] else self.resized(h, w))

    def resized(self, h: int, w: int) -> Tensor:
        """The positions for a grid of h x w, computed in float32 at least: not every kernel knows bf16."""
        wide = torch.promote_types(self.grid.dtype, torch.float32)
        old_h, old_w = self.grid.shape[:2]
        options = self.options
        scale = ((h + options.offset) / old_h, (w + options.offset) / old_w) if options.offset else None
        new_1Dhw = F.interpolate(
            self.grid.to(wide).permute(2, 0, 1).unsqueeze(0),
            size=None if scale else (h, w),
            scale_factor=scale,
            mode=options.interpolation,
            align_corners=options.align_corners,
            antialias=options.antialias,
        )
        return new_1Dhw[0].permute(1, 2, 0).to(self.grid.dtype)

    def rotation(self, h: int, w: int, keep_BP: Tensor | None = None) -> Rotate | None:
        return None


class SinCosPosition(nn.Module):
    """Sines and cosines of the row and of the column, a quarter of the width each; nothing to learn or resize.

    The buffer holds integers, which `vit.bfloat16()` leaves as they are: rounded frequencies would misplace patches.
    """

    def __init__(self, config: ViTConfig, options: SinCos):
        super().__init__()
        self.temperature = options.temperature
        self.index: Tensor
        self.register_buffer("index", torch.arange(config.width // 4), persistent=False)

    def add(self, x_BhwD: Tensor) -> Tensor:
        h, w = x_BhwD.shape[1:3]
        frequency = self.temperature ** (-self.index / max(len(self.index) - 1, 1))
        y_hK = torch.arange(h, device=frequency.device)[:, None] * frequency
        x_wK = torch.arange(w, device=frequency.device)[:, None] * frequency
        y_hwK, x_hwK = y_hK[:, None].expand(h, w, -1), x_wK[None].expand(h, w, -1)
        return x_BhwD + torch.cat([x_hwK.sin(), x_hwK.cos(), y_hwK.sin(), y_hwK.cos()], dim=-1)

    def rotation(self, h: int, w: int, keep_BP: Tensor | None = None) -> Rotate | None:
        return None


class RotaryPosition(nn.Module):
    """Half of a head's pairs turn with the row, half with the column; coordinates run from -1 to 1.

    Prefix tokens stand nowhere and do not turn. Formula: DINOv3 (arXiv 2508.10104). The buffer holds integers for
    the same reason as in `SinCosPosition`.
    """

    def __init__(self, config: ViTConfig, options: Rotary):
        super().__init__()
        self.prefix_tokens = config.prefix_tokens
        self.base = options.base
        self.index: Tensor
        self.register_buffer("index", torch.arange(config.width // config.heads // 4), persistent=False)

    def add(self, x_BhwD: Tensor) -> Tensor:
        return x_BhwD

    def rotation(self, h: int, w: int, keep_BP: Tensor | None = None) -> Rotate | None:
        frequency = 2 * torch.pi / self.base ** (self.index / len(self.index))
        y_h = (torch.arange(h, device=frequency.device) + 0.5) / h * 2 - 1
        x_w = (torch.arange(w, device=frequency.device) + 0.5) / w * 2 - 1
        y_PK = (y_h[:, None, None] * frequency).expand(h, w, -1).flatten(0, 1)
        x_PK = (x_w[None, :, None] * frequency).expand(h, w, -1).flatten(0, 1)
        angle_PK = torch.cat([y_PK, x_PK], dim=-1).repeat(1, 2)
        angle_BPK = angle_PK[None] if keep_BP is None else angle_PK[keep_BP]
        still_BRK = angle_BPK.new_zeros(angle_BPK.shape[0], self.prefix_tokens, angle_BPK.shape[-1])
        angle_B1TK = torch.cat([still_BRK, angle_BPK], dim=1).unsqueeze(1)
        cos_B1TK, sin_B1TK = angle_B1TK.cos(), angle_B1TK.sin()

        def rotate(q_BNTK: Tensor) -> Tensor:
            first, second = q_BNTK.chunk(2, dim=-1)
            turned = q_BNTK * cos_B1TK + torch.cat([-second, first], dim=-1) * sin_B1TK
            return turned.to(q_BNTK.dtype)

        return rotate


class Unplaced(nn.Module):
    """No position at all."""

    def __init__(self, config: ViTConfig, options: NoPosition):
        super().__init__()

    def add(self, x_BhwD: Tensor) -> Tensor:
        return x_BhwD

    def rotation(self, h: int, w: int, keep_BP: Tensor | None = None) -> Rotate | None:
        return None


PositionModule = LearnedPosition | SinCosPosition | RotaryPosition | Unplaced
MODULES: dict[type[Position], Callable[..., PositionModule]] = {
    Learned: LearnedPosition,
    SinCos: SinCosPosition,
    Rotary: RotaryPosition,
    NoPosition: Unplaced,
}


def position_module(config: ViTConfig) -> PositionModule:
    """The module for the config's position."""
    return MODULES[type(config.position)](config, config.position)
