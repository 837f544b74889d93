"""The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 1)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.model.block import Block
from vitrail.model.config import ViTConfig
from vitrail.model.init import initialize
from vitrail.model.pool import POOLS
from vitrail.model.position import Rotate, make_position
from vitrail.parts import make_part


class ViT(nn.Module):
    """Normalized image (B, C, H, W) -> logits (B, Y); the pooled vector if the config has no classes.

    H and W can be any multiples of the patch, equal or not: positions are resized to the grid.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(config)
        self.prefix = nn.Parameter(torch.zeros(config.prefix_tokens, config.width))  # class token, then registers
        self.position = make_position(config)
        self.embedding_drop = nn.Dropout(config.embedding_dropout)
        self.pre_norm = nn.LayerNorm(config.width, config.norm_eps) if config.pre_norm else nn.Identity()
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.final_norm else nn.Identity()
        self.pool = make_part(POOLS, config.pool, config)
        self.head = make_part(HEADS, config.head, config) if config.classes else nn.Identity()
        initialize(self)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BTD = self.tokens(image_BCHW)
        x_BD = self.pool(x_BTD)
        return self.head(x_BD)

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        """Returns all tokens after the last block and norm, (B, R + h*w, D), prefix tokens first."""
        h, w = (size // self.config.patch for size in image_BCHW.shape[-2:])
        x_BTD = self.embed(image_BCHW)
        return self.encode(x_BTD, self.position.rotation(h, w))

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """Returns the tokens before the first block, (B, R + h*w, D): prefix tokens, then patches plus positions."""
        x_BhwD = self.patch_embed(image_BCHW)
        x_BPD = self.position.add(x_BhwD).flatten(1, 2)
        prefix_BRD = self.prefix.expand(x_BPD.shape[0], -1, -1)
        return torch.cat([prefix_BRD, x_BPD], dim=1).to(self.prefix.dtype)

    def encode(self, x_BTD: Tensor, rotate: Rotate | None) -> Tensor:
        """Applies the blocks and the final norm: (B, T, D) -> (B, T, D).

        The tokens may be a subset; then `rotate` comes from `position.rotation(h, w, keep_BP)` of the same subset.
        """
        x_BTD = self.pre_norm(self.embedding_drop(x_BTD))
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x_BTD = checkpoint(block, x_BTD, rotate, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotate)
        return self.norm(x_BTD)

    def features(self, image_BCHW: Tensor) -> Tensor:
        """Returns the pooled vector that the head reads: (B, D), or (B, 2D) for `cls+dist` and `cls+mean`."""
        return self.pool(self.tokens(image_BCHW))


class PatchEmbed(nn.Module):
    """Linear projection of each flattened patch, as a strided convolution: (B, C, H, W) -> (B, h, w, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.patch = config.patch
        self.proj = nn.Conv2d(config.channels, config.width, kernel_size=config.patch, stride=config.patch)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        check_divisible(image_BCHW, self.patch)
        patches_BDhw: Tensor = self.proj(image_BCHW)
        return patches_BDhw.permute(0, 2, 3, 1)


def check_divisible(image_BCHW: Tensor, patch: int) -> None:
    """Raises `ValueError` if the image does not divide into whole patches."""
    height, width = image_BCHW.shape[-2:]
    if height % patch or width % patch or min(height, width) < patch:
        raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {patch}")


class MlpHead(nn.Module):
    """One hidden layer with tanh, the paper's head during pre-training: pooled vector -> (B, Y)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.pooled_width, config.width)
        self.fc2 = nn.Linear(config.width, config.classes)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x_BD)))


HEADS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda config: nn.Linear(config.pooled_width, config.classes),
    "mlp": MlpHead,
}
