"""The calibration error with a correction of its bias and a confidence interval.

The expected calibration error (ECE) is a sum of absolute gaps, so that noise adds to it: a perfectly calibrated model
has an ECE of several points on a few hundred images.
"""

import math
from dataclasses import dataclass

import numpy as np

from vitrail.evaluation.metrics import Answers, expected_calibration_error, reliability_bins
from vitrail.evaluation.outcome import Outcome
from vitrail.intervals import LEVEL, Interval, exact_interval, t_interval

SIMULATIONS = 300
TRUTHS = 12  # that are considered in each family; between them the probabilities are interpolated
MAX_SCALE = 3.0  # largest factor of the observed gaps that is considered
LOG_TAIL = math.log((1 - LEVEL) / 2)


@dataclass(frozen=True)
class CalibrationError:
    """The ECE as it is usually reported, its value corrected for bias, and the 95% interval of the true error."""

    ece: float
    corrected: float
    interval: Interval


def measure_calibration_error(outcome: Answers, bins: int = 15, seed: int = 0) -> CalibrationError:
    """Returns the calibration error over bins of equal width.

    The interval inverts a test: it holds the true errors for which an ECE as large and one as small as the observed one
    each have a probability of at least 2.5%. The corrected error is the one whose median ECE is the observed one. The
    interval covers four families of true gaps between confidence and accuracy: the observed gaps times a factor of 0
    (perfect calibration) or more; and the same gap in every bin, with the observed signs, all negative, or all
    positive. These three matter if few mistakes are expected: without one, the observed gaps say little.
    """
    rows = reliability_bins(outcome, bins)
    n, confidence, accuracy = (np.array([row[key] for row in rows]) for key in ("images", "confidence", "accuracy"))
    ece = expected_calibration_error(outcome, bins)
    gap = accuracy - confidence
    deviation = np.sqrt((n * confidence * (1 - confidence)).sum()) / n.sum()
    largest = min(1.0, MAX_SCALE * ece + 4 * deviation + 5 / n.sum())
    observed, *others = (
        _compare(ece, n, confidence, np.linspace(0, limit, TRUTHS)[:, None] * direction, seed)
        for limit, direction in ((MAX_SCALE, gap), *((largest, each) for each in (np.sign(gap), -1.0, 1.0)))
    )
    low = min(each.low for each in (observed, *others))
    high = max(each.high for each in (observed, *others))
    return CalibrationError(ece, observed.median, (min(low, high), high))


@dataclass(frozen=True)
class _Compatible:
    """The true errors of a family at which an ECE is the 97.5%, the 50% and the 2.5% quantile.

    `low` is infinite if no truth of the family makes an ECE as large as this likely.
    """

    low: float
    median: float
    high: float


def _compare(ece: float, n: np.ndarray, confidence: np.ndarray, gap: np.ndarray, seed: int) -> _Compatible:
    """Returns which of the truths have `ece` as a likely value; `gap` is accuracy - confidence, (truths, bins)."""
    weight = n / n.sum()
    expected = np.clip(confidence + gap, 0, 1)
    true_gap = expected - confidence
    true_errors = np.abs(true_gap) @ weight
    generator = np.random.Generator(np.random.Philox(seed))
    correct = generator.binomial(n[:, None], expected[:, :, None], size=(*expected.shape, SIMULATIONS))
    simulated = np.einsum("tbs,b->ts", np.abs(correct / n[:, None] - confidence[:, None]), weight)
    variance = true_gap**2 @ weight - true_errors**2  # of the gap of an image's bin: other images, other bins
    deviation = np.sqrt(np.maximum(variance, 0) / n.sum())
    simulated += deviation[:, None] * generator.standard_normal(SIMULATIONS)
    as_large, as_small = (  # logarithms of probabilities, which are closer to linear between the truths
        np.log(np.maximum(is_extreme.mean(axis=1), 0.5 / SIMULATIONS))
        for is_extreme in (simulated >= ece - 1e-9, simulated <= ece + 1e-9)
    )
    median = np.interp(ece, np.maximum.accumulate(np.median(simulated, axis=1)), true_errors)
    low = np.interp(LOG_TAIL, np.maximum.accumulate(as_large), true_errors) if as_large.max() >= LOG_TAIL else math.inf
    high = np.interp(LOG_TAIL, np.maximum.accumulate(as_small[::-1]), true_errors[::-1])
    return _Compatible(float(low), float(median), float(high))


def confidence_bias_interval(outcome: Outcome) -> Interval | None:
    """Returns the 95% interval of mean confidence minus accuracy: above 0 the model is overconfident.

    It is made from Student's interval of the confidence and the exact interval of the accuracy, with their correlation
    (MOVER, Zou & Donner 2008). Student's interval of the differences would have almost no width where few mistakes are
    expected and none is observed. Returns None for a single image.
    """
    confidence, correct = outcome.confidence, outcome.correct
    of_confidence = t_interval(confidence)
    if of_confidence is None:
        return None
    n, mean, accuracy = len(correct), float(confidence.mean()), outcome.accuracy
    exact = exact_interval(int(correct.sum()), n)
    deviations = float(confidence.std() * correct.std())
    correlation = float(((confidence - mean) * (correct - accuracy)).mean()) / deviations if deviations > 0 else 0.0

    def half(of_mean: float, of_accuracy: float) -> float:
        return math.sqrt(max(of_mean**2 + of_accuracy**2 - 2 * correlation * of_mean * of_accuracy, 0.0))

    bias = mean - accuracy
    return (
        bias - half(mean - of_confidence[0], exact[1] - accuracy),
        bias + half(of_confidence[1] - mean, accuracy - exact[0]),
    )
