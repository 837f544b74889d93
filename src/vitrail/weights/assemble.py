"""A ViT from weights that exist: nothing is drawn at random, and no memory is used twice."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.errors import VitrailError, first_line
from vitrail.model.config import ViTConfig
from vitrail.model.position import make_position
from vitrail.model.vit import ViT
from vitrail.weights.config_json import model_parts


def assemble_vit(config: ViTConfig, weights: Mapping[str, Tensor]) -> ViT:
    """Returns a ViT whose parameters are these tensors, which must have its names and shapes.

    The state of torch's random generators does not change.
    """
    if model_parts(config):
        vit = make_vit_of_plugin(config)
    else:
        with torch.device("meta"):
            vit = ViT(config)
        vit.position = make_position(config)  # its buffers are computed, and not among the weights
    own = {name: tensor.clone() if is_view(tensor) else tensor for name, tensor in weights.items()}
    vit.load_state_dict(own, assign=True)
    return vit


def make_vit_of_plugin(config: ViTConfig) -> ViT:
    """Returns a ViT with random weights that has parts of plugins, which may compute buffers or not know torch's meta
    device. The state of torch's random generators does not change. Raises `VitrailError` if a part fails.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return ViT(config)
    except VitrailError:
        raise
    except Exception as error:
        names = ", ".join(f"{part['kind']} {part['name']!r}" for part in model_parts(config))
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise VitrailError(f"the model with {names} cannot be made: {reason}") from error


def is_view(tensor: Tensor) -> bool:
    """Returns whether a tensor is a part of a larger one."""
    return tensor.untyped_storage().nbytes() != tensor.nbytes
