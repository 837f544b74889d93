"""Adapts a trained ViT to another image size, patch size or number of channels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.model.config import ViTConfig
from vitrail.model.position import LearnedEmbedding
from vitrail.model.vit import ViT
from vitrail.weights.assemble import assemble_vit


def resize_vit(vit: ViT, config: ViTConfig) -> ViT:
    """Returns a ViT of this config, which may differ in `image_size`, `patch` and `channels`, with the weights adapted.

    Learned positions are resized as the forward does it, the patch projection as in
    `resize_patch_projection` and `change_channels`.
    """
    weights = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    if isinstance(vit.position, LearnedEmbedding) and vit.config.grid != config.grid:
        weights["position.grid"] = vit.position.resize(*config.grid).detach()
    if vit.config.patch != config.patch:
        weights["patch_embed.proj.weight"] = resize_patch_projection(weights["patch_embed.proj.weight"], config.patch)
    if vit.config.channels != config.channels:
        weights["patch_embed.proj.weight"] = change_channels(weights["patch_embed.proj.weight"], config.channels)
    return assemble_vit(config, weights).to(vit.prefix.device).train(vit.training)


def change_channels(weight_DCpp: Tensor, channels: int) -> Tensor:
    """Returns the projection for another number of channels, by the rule of timm's `adapt_input_conv` for `in_chans`.

    For one channel, the weights of all are summed. Otherwise they are repeated in their order until there are enough,
    and scaled so that an image with the same values in all channels keeps the size of its vector.
    """
    old = weight_DCpp.shape[1]
    if channels == 1:
        return weight_DCpp.sum(1, keepdim=True)
    return weight_DCpp.repeat(1, -(-channels // old), 1, 1)[:, :channels] * (old / channels)


def resize_patch_projection(weight_DCpp: Tensor, patch: int) -> Tensor:
    """Returns the projection for another patch size, by the pseudo-inverse of resizing (FlexiViT, arXiv 2212.08013).

    It maps a resized patch to the vector that the old weights gave for the patch: exactly if the patch grows, by least
    squares if it shrinks.
    """
    old = weight_DCpp.shape[-1]
    # on the CPU: MPS has no float64
    basis = torch.eye(old * old, dtype=torch.float64, device="cpu").view(-1, 1, old, old)
    resize = F.interpolate(basis, size=(patch, patch), mode="bicubic", antialias=True).flatten(1)  # old², new²
    new_DCn = weight_DCpp.cpu().double().flatten(2) @ torch.linalg.pinv(resize).mT
    return new_DCn.unflatten(2, (patch, patch)).to(weight_DCpp)
