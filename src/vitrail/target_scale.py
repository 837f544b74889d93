"""The scale of the numbers that a model is trained to predict: mean and standard deviation of the training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import VitrailError


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation of each number, (Y,): the outputs of the model are numbers minus mean, over std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(0 < std < float("inf") for std in self.std):
            raise ValueError(f"{self.std!r} are not standard deviations of {len(self.mean)} numbers")

    @classmethod
    def of(cls, numbers_NY: np.ndarray, names: Sequence[str]) -> "TargetScale":
        """Returns the scale of numbers (n, Y); raises `VitrailError` for one that never changes."""
        for name, column in zip(names, numbers_NY.T, strict=True):
            if (column == column[0]).all():
                raise VitrailError(
                    f"{name!r} is {column[0]:g} in all {len(column)} training images",
                    "a number that never changes cannot be learned; remove its column",
                )
        return cls(tuple(numbers_NY.mean(axis=0).tolist()), tuple(numbers_NY.std(axis=0).tolist()))

    def standardize(self, numbers_BY: Tensor) -> Tensor:
        """Returns what the model should return for these numbers, float32; computed in double precision."""
        mean_Y, std_Y = torch.tensor((self.mean, self.std), dtype=torch.float64)
        return ((numbers_BY.double() - mean_Y) / std_Y).float()

    def restore(self, outputs_BY: Tensor) -> Tensor:
        """Returns the numbers, in their units, for outputs of the model."""
        mean_Y, std_Y = torch.tensor((self.mean, self.std), dtype=outputs_BY.dtype, device=outputs_BY.device)
        return outputs_BY * std_Y + mean_Y

    def take(self, indices: Sequence[int]) -> "TargetScale":
        """Returns the scale of some of the numbers, in this order."""
        return TargetScale(tuple(self.mean[i] for i in indices), tuple(self.std[i] for i in indices))

    def to_json(self) -> dict[str, Any]:
        """Returns the scale as a JSON object."""
        return {"mean": list(self.mean), "std": list(self.std)}
