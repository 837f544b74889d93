"""A trained ViT for images or patches of another size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.model.config import ViTConfig
from vitrail.model.position import LearnedPosition
from vitrail.model.vit import ViT


def resize_vit(vit: ViT, config: ViTConfig) -> ViT:
    """A ViT of this config, which differs in `image_size` or `patch` at most, with the same weights.

    Learned positions are resized by their own rule, as the forward does at run time; the patch projection so that a
    resized patch gives what the patch gave.
    """
    weights = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    if isinstance(vit.position, LearnedPosition) and vit.config.grid != config.grid:
        weights["position.grid"] = vit.position.resized(*config.grid).detach()
    if vit.config.patch != config.patch:
        weights["patch_embed.proj.weight"] = resize_patch_projection(weights["patch_embed.proj.weight"], config.patch)
    new = ViT(config).to(vit.prefix.device, vit.prefix.dtype)
    new.load_state_dict(weights)
    return new.train(vit.training)


def resize_patch_projection(weight_DCpp: Tensor, patch: int) -> Tensor:
    """The patch projection for patches of another side, by the pseudo-inverse of resizing (FlexiViT, arXiv 2212.08013).

    The new weights give a resized patch the vector that the old ones gave the patch: exactly where the patch grows, as
    nearly as can be where it shrinks.
    """
    old = weight_DCpp.shape[-1]
    basis = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
    resize = F.interpolate(basis, size=(patch, patch), mode="bicubic", antialias=True).flatten(1)  # old², new²
    new_DCn = weight_DCpp.double().cpu().flatten(2) @ torch.linalg.pinv(resize).mT
    return new_DCn.unflatten(2, (patch, patch)).to(weight_DCpp)
