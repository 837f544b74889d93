"""The pictures of a sweep: round numbers at the axes, and a legend that hides no point."""

from pathlib import Path
from typing import Any

import pytest

from vitrail.sweeps.plots import axis_ticks, draw_parallel, draw_slices, scale_to_unit
from vitrail.sweeps.space import Choice, Range, Space

SPACE: Space = {
    "lr": Range(1e-4, 1e-2, log=True),
    "depth": Range(4, 12, is_integer=True),
    "optimizer": Choice(("adamw", "muon")),
}


def make_rows() -> list[dict[str, Any]]:
    """Trials at the ends of all axes; the best one is in a corner."""
    values = [
        {"lr": 1e-2, "depth": 12, "optimizer": "muon"},
        {"lr": 1e-4, "depth": 4, "optimizer": "adamw"},
        {"lr": 1e-3, "depth": 8, "optimizer": "adamw"},
    ]
    accuracies = (0.9, 0.8, 0.7)
    states = ("complete", "complete", "pruned")
    return [
        {"state": state, "values": each, "accuracy": accuracy, "accuracy_interval": [accuracy - 0.02, accuracy + 0.02]}
        for each, accuracy, state in zip(values, accuracies, states, strict=True)
    ]


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (Range(1e-4, 1e-2, log=True), ["0.0001", "0.0002", "0.0005", "0.001", "0.002", "0.005", "0.01"]),
        (Range(1e-5, 1e-1, log=True), ["1e-05", "0.0001", "0.001", "0.01", "0.1"]),
        (Range(3e-4, 8e-4, log=True), ["0.0003", "0.0004", "0.0005", "0.0006", "0.0007", "0.0008"]),
        (Range(0, 0.3), ["0", "0.1", "0.2", "0.3"]),
        (Range(4, 12, is_integer=True), ["4", "6", "8", "10", "12"]),
        (Range(96, 192, step=32), ["96", "128", "160", "192"]),
        (Choice(("adamw", "muon", "sgd")), ["adamw", "muon", "sgd"]),
    ],
)
def test_ticks_are_round_numbers(axis, labels):
    coordinates, written = axis_ticks(axis)
    assert written == labels
    assert coordinates == sorted(coordinates)
    assert all(-1e-9 <= scale_to_unit(axis, each) <= 1 + 1e-9 for each in coordinates)


def test_a_range_without_round_numbers_has_its_ends():
    assert axis_ticks(Range(0.1234, 0.12341))[1]


def test_the_legend_is_outside_and_no_point_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: (drawn.append(self), path.write_bytes(b"")))
    draw_slices(SPACE, make_rows(), "accuracy", tmp_path / "slices.png")
    draw_parallel(SPACE, make_rows(), "accuracy", tmp_path / "parallel.png")
    slices, parallel = drawn
    slices.draw_without_rendering()
    (legend,) = slices.legends
    assert [text.get_text() for text in legend.get_texts()] == ["pruned", "complete", "best"]
    box = legend.get_window_extent()
    for panel in slices.axes:
        assert panel.get_legend() is None
        assert not box.overlaps(panel.get_window_extent())
        low, high = panel.get_xlim()
        for points in panel.collections:
            for x, _ in points.get_offsets() if isinstance(points, PathCollection) else ():
                assert low + 0.04 * (high - low) <= x <= high - 0.04 * (high - low)
    assert "dashed: stopped early" in parallel.axes[0].get_title()
