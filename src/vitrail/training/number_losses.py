"""The losses of predicted numbers, which are rows of `losses.LOSSES`. Each ignores its `LossContext`."""

import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.tasks import REGRESSION


class MseLoss:
    """Mean squared error of standardized numbers; a model that ignores the image has 1."""

    tasks = (REGRESSION,)
    chance_level = 1.0

    def __init__(self, context: object):
        pass

    def __call__(self, outputs_BY: Tensor, targets_BY: Tensor) -> Tensor:
        return F.mse_loss(outputs_BY, targets_BY)


class L1Loss:
    """Mean absolute error of standardized numbers."""

    tasks = (REGRESSION,)

    def __init__(self, context: object):
        pass

    def __call__(self, outputs_BY: Tensor, targets_BY: Tensor) -> Tensor:
        return F.l1_loss(outputs_BY, targets_BY)


class SmoothL1Loss:
    """Squared error below `beta` standard deviations, absolute error above it (Girshick 2015, arXiv 1504.08083)."""

    tasks = (REGRESSION,)

    def __init__(self, context: object, beta: float = 1.0):
        if beta < 0:
            raise UsageError(f"beta is {beta!r}", "give 0 or a larger number")
        self.beta = beta

    def __call__(self, outputs_BY: Tensor, targets_BY: Tensor) -> Tensor:
        return F.smooth_l1_loss(outputs_BY, targets_BY, beta=self.beta)


class HuberLoss:
    """`SmoothL1Loss` times `delta` (Huber 1964)."""

    tasks = (REGRESSION,)

    def __init__(self, context: object, delta: float = 1.0):
        if delta <= 0:
            raise UsageError(f"delta is {delta!r}", "give a number above 0")
        self.delta = delta

    def __call__(self, outputs_BY: Tensor, targets_BY: Tensor) -> Tensor:
        return F.huber_loss(outputs_BY, targets_BY, delta=self.delta)
