"""The exponential moving average (EMA) of a model's weights."""

import copy

import torch
from torch import Tensor, nn

from vitrail.training.parallel import local_shard


class MovingAverage(nn.Module):
    """A copy of a model that holds the EMA of its weights: after n updates the decay is min(decay, (1 + n) / (10 + n)).

    The first update copies the weights. Its tensors have the names of `torch.optim.swa_utils.AveragedModel`, which
    reads the number of updates from the device at each of them; here the host counts too.
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", torch.tensor(0))
        self.decay = decay
        self.updates = 0
        self.register_load_state_dict_post_hook(count_updates)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights, and copies its buffers."""
        averages = [local_shard(parameter) for parameter in self.module.parameters()]
        weights = [local_shard(parameter) for parameter in model.parameters()]
        if self.updates:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(averages, weights, 1 - decay)
        else:
            torch._foreach_copy_(averages, weights)
        for own, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            own.copy_(theirs)
        self.n_averaged += 1
        self.updates += 1


def count_updates(average: nn.Module, _: object) -> None:
    """Sets the host's number of updates to the one that was loaded."""
    assert isinstance(average, MovingAverage)
    average.updates = int(average.n_averaged)
