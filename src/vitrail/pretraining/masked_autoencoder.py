"""The masked autoencoder (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377).

Most patches of an image are left out. The encoder, an ordinary ViT, sees the others alone. A small decoder gets its
tokens, and one learned token in the place of each masked patch, and predicts the pixels of every patch.

Shapes: B images, P = h*w patches, K of them visible, R prefix tokens, D and E the widths of encoder and decoder, V the
pixel values of a patch.
"""

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.data.randomness import keyed_uniform
from vitrail.errors import UsageError
from vitrail.model.block import Block
from vitrail.model.config import SinCos, ViTConfig
from vitrail.model.position import make_position
from vitrail.model.vit import ViT

EPSILON = 1e-6  # added to the variance of a patch, as in the paper's code


class MaskedAutoencoder(nn.Module):
    """Normalized images (B, C, H, W) and their visible patches (B, K) -> predicted patches (B, P, V)."""

    def __init__(self, encoder: ViT, width: int, depth: int, heads: int):
        super().__init__()
        if sum(each.numel() for module in (encoder.pool, encoder.head) for each in module.parameters()):
            raise UsageError(f"pool {encoder.config.pool!r} has weights, which no patch trains", "use pool cls or mean")
        self.encoder = encoder
        self.decoder = Decoder(encoder.config, width, depth, heads)

    def forward(self, images_BCHW: Tensor, visible_BK: Tensor) -> Tensor:
        h, w = (size // self.encoder.config.patch for size in images_BCHW.shape[-2:])
        prefix = self.encoder.config.prefix_tokens
        prefix_BR = torch.arange(prefix, device=visible_BK.device).expand(len(visible_BK), -1)
        kept_BT = torch.cat([prefix_BR, visible_BK + prefix], dim=1)
        x_BTD = take_tokens(self.encoder.embed(images_BCHW), kept_BT)  # the others are left out
        x_BTD = self.encoder.encode(x_BTD, self.encoder.position.rotation(h, w, visible_BK))
        predicted_BPV: Tensor = self.decoder(x_BTD, visible_BK, (h, w))
        return predicted_BPV


class Decoder(nn.Module):
    """The tokens of visible patches (B, R + K, D) -> the pixels of all patches (B, P, V)."""

    def __init__(self, encoder: ViTConfig, width: int, depth: int, heads: int):
        super().__init__()
        self.config = ViTConfig(
            width=width, depth=depth, heads=heads, mlp_width=4 * width, patch=encoder.patch,
            image_size=encoder.image_size, prefix_tokens=encoder.prefix_tokens, position=SinCos(), pool="mean",
        )  # fmt: skip
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.position = make_position(self.config)
        self.blocks = nn.ModuleList(Block(self.config, drop_path=0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width, self.config.norm_eps)
        self.head = nn.Linear(width, encoder.patch**2 * encoder.channels)
        self.initialize()

    def initialize(self) -> None:
        """Draws the weights as the paper does: Xavier's for matrices, a normal of 0.02 for the mask token."""
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x_BTD: Tensor, visible_BK: Tensor, grid: tuple[int, int]) -> Tensor:
        h, w = grid
        prefix = self.config.prefix_tokens
        x_BTE = self.embed(x_BTD)
        masked_BPE = self.mask_token.to(x_BTE.dtype).expand(len(x_BTE), h * w, -1)
        index_BKE = visible_BK[..., None].expand(-1, -1, x_BTE.shape[-1])
        patches_BPE = masked_BPE.scatter(1, index_BKE, x_BTE[:, prefix:])
        patches_BPE = self.position.add(patches_BPE.reshape(len(x_BTE), h, w, x_BTE.shape[-1])).flatten(1, 2)
        x_BTE = torch.cat([x_BTE[:, :prefix], patches_BPE.to(x_BTE.dtype)], dim=1)
        for block in self.blocks:
            x_BTE = block(x_BTE)
        predicted_BPV: Tensor = self.head(self.norm(x_BTE))[:, prefix:]
        return predicted_BPV


def take_tokens(x_BTD: Tensor, index_BK: Tensor) -> Tensor:
    """Returns the tokens with these indices, in this order, (B, K, D)."""
    return x_BTD.gather(1, index_BK[..., None].expand(-1, -1, x_BTD.shape[-1]))


def draw_visible(numbers: np.ndarray, patches: int, mask: float, *key: int | str) -> Tensor:
    """Returns the visible patches of each image, (B, K): its draw depends only on the key and the image's number."""
    count = max(1, int(patches * (1 - mask)))
    order = keyed_uniform(numbers, patches, *key).argsort(axis=1)
    return torch.from_numpy(order[:, :count].copy())


def patchify(images_BCHW: Tensor, patch: int) -> Tensor:
    """Returns the pixel values of each patch, (B, P, V): rows, then columns, then channels."""
    batch, channels, height, width = images_BCHW.shape
    h, w = height // patch, width // patch
    patches = images_BCHW.reshape(batch, channels, h, patch, w, patch).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, h * w, patch * patch * channels)


def unpatchify(patches_BPV: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Returns the images of patches, the inverse of `patchify`."""
    h, w = grid
    channels = patches_BPV.shape[-1] // patch**2
    patches = patches_BPV.reshape(len(patches_BPV), h, w, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return patches.reshape(len(patches_BPV), channels, h * patch, w * patch)


def patch_statistics(target_BPV: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of the pixels of each patch, (B, P, 1)."""
    return target_BPV.mean(-1, keepdim=True), (target_BPV.var(-1, keepdim=True) + EPSILON).sqrt()


def reconstruction_loss(predicted_BPV: Tensor, images_BCHW: Tensor, visible_BK: Tensor, patch: int) -> Tensor:
    """Mean squared error of the masked patches alone, whose pixels have mean 0 and deviation 1 in each patch."""
    if not len(images_BCHW):  # an empty shard, whose backward still takes part in the collectives
        return predicted_BPV.sum()
    target_BPV = patchify(images_BCHW, patch)
    mean_BP1, deviation_BP1 = patch_statistics(target_BPV)
    error_BP = (predicted_BPV - (target_BPV - mean_BP1) / deviation_BP1).square().mean(-1)
    is_masked_BP = torch.ones_like(error_BP).scatter(1, visible_BK, 0.0)
    return (error_BP * is_masked_BP).sum() / is_masked_BP.sum().clamp(min=1)
