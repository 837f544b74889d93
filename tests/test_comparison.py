"""The comparison of two implementations of one model."""

import pytest
import torch

from vitrail.comparison import Comparison, Tolerance, compare
from vitrail.errors import VitrailError

BATCHES = [torch.tensor([[1.0, -4.0], [3.0, 2.0]]), torch.tensor([[0.5, 0.25]])]


def test_differences_agreement_and_tolerance():
    seen: list[int] = []
    comparison = compare(lambda x: x, lambda x: x + torch.tensor([0.0, 0.5]), BATCHES, on_batch=seen.append)
    assert seen == [2, 1]
    assert (comparison.images, comparison.largest, comparison.max_difference) == (3, 4.0, 0.5)
    assert comparison.relative_difference == 0.125
    assert comparison.agreement == pytest.approx(2 / 3)  # the last image changes its class
    reference = torch.cat(BATCHES)
    assert comparison.rms_ratio == pytest.approx(float((0.125**0.5) / reference.std()))
    assert comparison.allowed_difference == pytest.approx(4e-4)
    assert not comparison.is_within_tolerance
    assert Comparison(comparison.reference, comparison.candidate, Tolerance(0.125)).is_within_tolerance
    assert not Comparison(comparison.reference, torch.full((3, 2), torch.nan), Tolerance(1.0)).is_within_tolerance


def test_the_floor_replaces_a_small_reference():
    small = torch.tensor([[0.0, 1e-3]])
    assert Comparison(small, small + 5e-5, Tolerance(1e-4)).is_within_tolerance
    assert not Comparison(small, small + 5e-5, Tolerance(1e-4, floor=1e-6)).is_within_tolerance


def test_neighbors_of_features():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert Comparison(features, 3 * features).neighbor_agreement == 1
    assert Comparison(features, features[[0, 2, 1, 3]]).neighbor_agreement == 0


def test_outputs_of_another_shape_are_an_error():
    with pytest.raises(VitrailError, match=r"timm returns \(2, 1\) where the classifier returns \(2, 2\)"):
        compare(lambda x: x, lambda x: x[:, :1], BATCHES, name="timm")
