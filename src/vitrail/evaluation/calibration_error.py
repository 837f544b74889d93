"""The calibration error with a correction of its bias and a confidence interval.

The expected calibration error (ECE) is a sum of absolute gaps, so that noise adds to it: a perfectly calibrated model
has an ECE of several points on a few hundred images.
"""

from dataclasses import dataclass

import numpy as np

from vitrail.evaluation.metrics import expected_calibration_error, reliability_bins
from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import Interval, t_interval

SIMULATIONS = 500
MAX_SCALE = 3.0  # largest factor of the observed gaps that is considered
SCALES = 46


@dataclass(frozen=True)
class CalibrationError:
    """The ECE as it is usually reported, its value corrected for bias, and the 95% interval of the true error."""

    ece: float
    corrected: float
    interval: Interval


def measure_calibration_error(outcome: Outcome, bins: int = 15, seed: int = 0) -> CalibrationError:
    """Returns the calibration error over bins of equal width.

    The interval inverts a test: it holds the true errors for which an ECE as large and one as small as the observed one
    each have a probability of at least 2.5%. The corrected error is the one whose median ECE is the observed one. Two
    families of truths are considered, and the interval covers both: one scales the observed gaps of the bins by a
    factor, from 0 (perfect calibration) upwards; the other has the same gap in every bin.
    """
    rows = reliability_bins(outcome, bins)
    n, confidence, accuracy = (np.array([row[key] for row in rows]) for key in ("images", "confidence", "accuracy"))
    ece = expected_calibration_error(outcome, bins)
    noise = np.random.Generator(np.random.Philox(seed)).standard_normal((SIMULATIONS, len(n) + 1))
    gap = accuracy - confidence
    ends = np.array([_invert(ece, n, confidence, each, noise) for each in (gap, np.sign(gap) * ece)])
    return CalibrationError(ece, float(ends[0, 1]), (float(ends[:, 0].min()), float(ends[:, 2].max())))


def _invert(ece: float, n: np.ndarray, confidence: np.ndarray, gap: np.ndarray, noise: np.ndarray) -> list[float]:
    """Returns the true errors at which `ece` is the 97.5%, the 50% and the 2.5% quantile, for truths along `gap`."""
    weight = n / n.sum()
    true_errors, quantiles = np.empty(SCALES), np.empty((SCALES, 3))
    for i, scale in enumerate(np.linspace(0, MAX_SCALE, SCALES)):
        expected = np.clip(confidence + scale * gap, 0, 1)
        true_gap = expected - confidence
        true_errors[i] = weight @ np.abs(true_gap)
        simulated = np.abs(true_gap + noise[:, 1:] * np.sqrt(expected * (1 - expected) / n)) @ weight
        variance = weight @ true_gap**2 - true_errors[i] ** 2  # of the gap of an image's bin: other images, other bins
        simulated += noise[:, 0] * np.sqrt(max(variance, 0) / n.sum())
        quantiles[i] = np.quantile(simulated, (0.975, 0.5, 0.025))
    return [float(np.interp(ece, np.maximum.accumulate(column), true_errors)) for column in quantiles.T]


def confidence_bias_interval(outcome: Outcome) -> Interval | None:
    """Returns the 95% interval of mean confidence minus accuracy: above 0 the model is overconfident."""
    return t_interval(outcome.confidence - outcome.correct)
