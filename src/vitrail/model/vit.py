"""The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 1)."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.model.block import Block
from vitrail.model.config import ViTConfig
from vitrail.model.head import head_module
from vitrail.model.init import initialize
from vitrail.model.patches import PatchEmbed
from vitrail.model.pool import POOLS
from vitrail.model.position import Rotate, position_module


class ViT(nn.Module):
    """Image (B, C, H, W), normalised -> logits (B, Y); the pooled vector when the config has no classes.

    Any H and W that are multiples of the patch work, square or not: positions are resized to the grid.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = (
            False  # in training: keep only the blocks' inputs and compute the rest again (less memory)
        )
        self.patch_embed = PatchEmbed(config)
        self.prefix = nn.Parameter(torch.zeros(config.prefix_tokens, config.width))
        self.position = position_module(config)
        self.embedding_drop = nn.Dropout(config.embedding_dropout)
        self.pre_norm = nn.LayerNorm(config.width, config.norm_eps) if config.pre_norm else nn.Identity()
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.width, config.norm_eps) if config.final_norm else nn.Identity()
        self.pool = POOLS[config.pool](config)
        self.head = head_module(config)
        initialize(self)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.classify(self.tokens(image_BCHW))

    def features(self, image_BCHW: Tensor) -> Tensor:
        """The vector that the head reads: (B, C, H, W) -> (B, D), or (B, 2D) where a pool puts two side by side."""
        pooled_BD: Tensor = self.pool(self.tokens(image_BCHW))
        return pooled_BD

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        """All tokens after the last block and norm: (B, C, H, W) -> (B, R + h*w, D), prefix tokens first."""
        h, w = (side // self.config.patch for side in image_BCHW.shape[-2:])
        return self.encode(self.embed(image_BCHW), self.position.rotation(h, w))

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """The prefix tokens, then the patches in their places: (B, C, H, W) -> (B, R + h*w, D)."""
        x_BhwD = self.patch_embed(image_BCHW)
        x_BPD = self.position.add(x_BhwD).flatten(1, 2)
        x_BTD = torch.cat([self.prefix.expand(x_BPD.shape[0], -1, -1), x_BPD], dim=1).to(self.prefix.dtype)
        return x_BTD

    def encode(self, x_BTD: Tensor, rotate: Rotate | None) -> Tensor:
        """Embedded tokens, or only some of them, through the blocks and the norm: (B, T, D) -> (B, T, D).

        `rotate` is the position's rotation of just these tokens (`position.rotation(h, w, keep_BP)`).
        """
        x_BTD = self.pre_norm(self.embedding_drop(x_BTD))
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x_BTD = checkpoint(block, x_BTD, rotate, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotate)
        x_BTD = self.norm(x_BTD)
        return x_BTD

    def classify(self, x_BTD: Tensor) -> Tensor:
        """Encoded tokens -> logits: (B, T, D) -> (B, Y)."""
        logits_BY: Tensor = self.head(self.pool(x_BTD))
        return logits_BY
