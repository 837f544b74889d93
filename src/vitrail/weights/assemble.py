"""A ViT from weights that exist: nothing is drawn at random, and no memory is used twice."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.model.config import ViTConfig
from vitrail.model.position import make_position
from vitrail.model.vit import ViT


def assemble_vit(config: ViTConfig, weights: Mapping[str, Tensor]) -> ViT:
    """Returns a ViT whose parameters are these tensors, which must have its names and shapes.

    The state of torch's random generators does not change.
    """
    with torch.device("meta"):
        vit = ViT(config)
    vit.position = make_position(config)  # its buffers are computed, and not among the weights
    own = {name: tensor.clone() if is_view(tensor) else tensor for name, tensor in weights.items()}
    vit.load_state_dict(own, assign=True)
    return vit


def is_view(tensor: Tensor) -> bool:
    """Returns whether a tensor is a part of a larger one."""
    return tensor.untyped_storage().nbytes() != tensor.nbytes
