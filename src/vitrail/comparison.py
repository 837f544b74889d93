"""Compares the outputs of two implementations of the same model: logits, features, attention or maps.

Shapes: N images, Y classes or features.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrail.errors import VitrailError

Outputs = Callable[[Tensor], Tensor]  # a batch of images -> one row of outputs for each image


@dataclass(frozen=True)
class Tolerance:
    """The allowed difference: `relative` times the largest reference value, which counts as at least `floor`."""

    relative: float
    floor: float = 1.0

    def allowed(self, largest: float) -> float:
        """Returns the allowed absolute difference where the largest reference value is `largest`."""
        return self.relative * max(self.floor, largest)


EXACT = Tolerance(1e-4)  # for the same weights in another float32 implementation


@dataclass(frozen=True)
class Comparison:
    """The outputs of a reference and of a candidate for the same images, (N, ...), and the allowed difference."""

    reference: Tensor = field(repr=False)
    candidate: Tensor = field(repr=False)
    tolerance: Tolerance = EXACT

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.reference)

    @property
    def largest(self) -> float:
        """The largest absolute value of the reference."""
        return self.reference.abs().max().item()

    @property
    def max_difference(self) -> float:
        """The largest absolute difference."""
        return (self.candidate - self.reference).abs().max().item()

    @property
    def relative_difference(self) -> float:
        """The largest absolute difference, divided by the largest reference value or the tolerance's floor."""
        largest = self.reference.abs().max().clamp_min(self.tolerance.floor)
        return ((self.candidate - self.reference).abs().max() / largest).item()

    @property
    def rms_ratio(self) -> float:
        """The root mean square of the difference, divided by the standard deviation of the reference."""
        rms = (self.candidate - self.reference).square().mean().sqrt()
        return (rms / self.reference.std().clamp_min(1e-12)).item()

    @property
    def agreement(self) -> float:
        """The fraction of images for which both give the same class the largest output."""
        return fraction_equal(self.reference.argmax(1), self.candidate.argmax(1))

    @property
    def neighbor_agreement(self) -> float:
        """The fraction of images that have the same nearest neighbor among the others, by cosine similarity."""
        return fraction_equal(nearest_neighbors(self.reference), nearest_neighbors(self.candidate))

    @property
    def allowed_difference(self) -> float:
        """The largest absolute difference that the tolerance allows."""
        return self.tolerance.allowed(self.largest)

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the largest difference is allowed; False for outputs that are not numbers."""
        return self.max_difference <= self.allowed_difference


@torch.inference_mode()
def compare(
    reference: Outputs,
    candidate: Outputs,
    probes: Iterable[Tensor],
    tolerance: Tolerance = EXACT,
    *,
    name: str = "the candidate",
    on_batch: Callable[[int], object] = lambda images: None,
) -> Comparison:
    """Runs both implementations on every batch of `probes` and returns their outputs as a `Comparison`.

    `on_batch` is called with the number of images after each batch. Raises `VitrailError` where the shapes differ;
    `name` is the candidate's name in that message.
    """
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for batch in probes:
        ours.append(reference(batch).cpu())
        theirs.append(candidate(batch).cpu())
        if theirs[-1].shape != ours[-1].shape:
            raise VitrailError(
                f"{name} returns {tuple(theirs[-1].shape)} where the classifier returns {tuple(ours[-1].shape)}"
            )
        on_batch(len(batch))
    return Comparison(torch.cat(ours), torch.cat(theirs), tolerance)


def nearest_neighbors(features_NY: Tensor) -> Tensor:
    """Returns the index of each image's nearest other image by cosine similarity, (N,)."""
    unit_NY = torch.nn.functional.normalize(features_NY, dim=1)
    return (unit_NY @ unit_NY.mT).fill_diagonal_(-2).argmax(1)


def fraction_equal(first_N: Tensor, second_N: Tensor) -> float:
    """Returns the fraction of positions at which two tensors are equal."""
    return (first_N == second_N).double().mean().item()
