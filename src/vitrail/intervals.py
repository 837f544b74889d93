"""Confidence intervals and tests: every figure with an interval and every verdict of the package uses these functions.

`docs/statistics.md` says which function is used where, and has their simulated coverage. Intervals are two-sided with a
confidence of `level`.
"""

import math
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
FALSE_FINDINGS = 1 - LEVEL  # largest probability that a family of tests has a finding where there is none
QUANTILES_95 = (0.025, 0.975)
RESAMPLES = 1000
PERMUTATIONS = 2000

Interval = tuple[float, float]


def normal_quantile(level: float = LEVEL) -> float:
    """Returns the z of a two-sided interval: 1.96 for 95%."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_interval(successes: float, n: float, level: float = LEVEL) -> Interval:
    """Returns the score interval of a proportion (Wilson 1927). It holds near 0 and 1 and for small samples."""
    p, z = successes / n, normal_quantile(level)
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def f1_interval(true_positives: int, errors: int, level: float = LEVEL) -> Interval:
    """Returns the interval of an F1 score; `errors` is the number of false positives and false negatives.

    F1 is 2J / (1 + J), where J is the proportion of true positives among true positives and errors: its interval is
    Wilson's interval of J, transformed.
    """
    low, high = wilson_interval(true_positives, true_positives + errors, level)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def mean_of_proportions_interval(successes: np.ndarray, n: np.ndarray, level: float = LEVEL) -> Interval:
    """Returns the interval of the unweighted mean of independent proportions.

    It is Wilson's interval with the effective number of items: the one at which a single proportion would have the
    variance of the mean, as for surveys (Korn & Graubard 1998). A proportion of fewer than five items has the variance
    of the mean proportion.
    """
    mean = float((successes / n).mean())
    of_mean = mean * (1 - mean) / n
    variance = np.where(n < 5, of_mean, successes * (n - successes) / (n**2 * np.maximum(n - 1, 1))).sum() / len(n) ** 2
    effective = mean * (1 - mean) / variance if variance > 0 else len(n) ** 2 / (1 / n).sum()
    return wilson_interval(mean * effective, effective, level)


def grouped_proportion_interval(successes: np.ndarray, n: np.ndarray, level: float = LEVEL) -> Interval:
    """Returns the interval of sum(successes) / sum(n), where the items of a group are alike and only groups are drawn.

    It is Wilson's interval with the effective number of items (Korn & Graubard 1998): the variance is that of a ratio
    of sums over groups, and the quantiles of Student's t correct for few groups. It is never more than the number of
    items. One group says nothing about others: the interval is then 0 to 1.
    """
    groups, total = len(n), float(n.sum())
    p = float(successes.sum()) / total
    if groups < 2:
        return 0.0, 1.0
    effective = total**2 / float((n.astype(float) ** 2).sum())  # without a success or a failure: the groups by size
    if 0 < p < 1:
        residuals = successes - p * n
        variance = groups / (groups - 1) * float((residuals**2).sum()) / total**2
        effective = min(total, p * (1 - p) / variance) if variance > 0 else total
    correction = t_quantile(max(total - 1, 1), level) / t_quantile(groups - 1, level)
    effective *= correction**2
    return wilson_interval(p * effective, effective, level)


def paired_difference_interval(only_first: int, only_second: int, n: int, level: float = LEVEL) -> Interval:
    """Returns the interval of the difference of two proportions that were counted on the same `n` items.

    `only_first` items succeed with the first method only, `only_second` with the second only; the difference is the
    first proportion minus the second. It is the score interval of Tango 1998, the paired counterpart of Wilson's. It
    has a width even if no item differs: then its ends are -z**2 / (n + z**2) and z**2 / (n + z**2).
    """
    estimate, z = (only_first - only_second) / n, normal_quantile(level)

    def score(difference: float) -> float:
        variance = n * (2 * _constrained_rate(only_first, only_second, n, difference) + difference * (1 - difference))
        gap = only_first - only_second - n * difference
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    def find_end(outside: float) -> float:
        inside = estimate
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= z else (inside, middle)
        return inside

    return find_end(-1.0), find_end(1.0)


def _constrained_rate(only_first: int, only_second: int, n: int, difference: float) -> float:
    """Returns the most likely rate of items that succeed with the second method only, at this difference."""
    b = -only_first - only_second + (2 * n - only_first + only_second) * difference
    c = -only_second * difference * (1 - difference)
    return (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)


def upper_bound(successes: np.ndarray, n: np.ndarray, confidence: float) -> np.ndarray:
    """Returns the exact one-sided upper bound of a proportion (Clopper & Pearson 1934), elementwise."""
    from scipy.special import betaincinv

    bound: np.ndarray = betaincinv(np.asarray(successes) + 1, np.maximum(n - np.asarray(successes), 1), confidence)
    return np.where(successes == n, 1.0, bound)


def exact_interval(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Returns the exact interval of a proportion (Clopper & Pearson 1934): at least `level` for every proportion."""
    confidence = (1 + level) / 2
    ends = upper_bound(np.array([n - successes, successes]), np.array([n, n]), confidence)
    return 1 - float(ends[0]), float(ends[1])


def t_interval(values: np.ndarray, level: float = LEVEL) -> Interval | None:
    """Returns the interval of the mean of independent values (n,); None if there are fewer than two."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return None
    half = t_quantile(n - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def t_quantile(degrees_of_freedom: float, level: float = LEVEL) -> float:
    """Returns the quantile of Student's t distribution for a two-sided interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))


def cluster_interval(values: np.ndarray, level: float = LEVEL) -> Interval | None:
    """Returns the interval of the mean of `values` (clusters, members), where only clusters are independent."""
    return t_interval(values.mean(axis=1), level)


def two_way_interval(values: np.ndarray, level: float = LEVEL) -> Interval | None:
    """Returns the interval of the mean of `values` (kinds, draws, images): other draws and other images may be used.

    The kinds are fixed; the draws of each kind are independent, and every draw uses the same images. The variance is
    that of the means of the draws plus that of the means of the images, minus the interaction, which both contain; the
    degrees of freedom are those of Satterthwaite 1946. Returns None if there is one draw or one image.
    """
    kinds, draws, images = values.shape
    if draws < 2 or images < 2:
        return None
    draw_means, image_means = values.mean(axis=2), values.mean(axis=(0, 1))
    of_draws = float(draw_means.var(axis=1, ddof=1).mean()) / (kinds * draws)
    of_images = float(image_means.var(ddof=1)) / images
    kind_means = draw_means.mean(axis=1)[:, None, None]
    residuals = values - draw_means[..., None] - values.mean(axis=1, keepdims=True) + kind_means
    interaction = float((residuals**2).sum()) / (kinds * (draws - 1) * (images - 1)) / (kinds * draws * images)
    variance = max(of_draws + of_images - interaction, of_draws, of_images)
    if variance == 0:
        return float(values.mean()), float(values.mean())
    freedom = (of_draws + of_images) ** 2 / (of_draws**2 / (kinds * (draws - 1)) + of_images**2 / (images - 1))
    half = t_quantile(freedom, level) * math.sqrt(variance)
    return float(values.mean()) - half, float(values.mean()) + half


def bootstrap_counts(counts: np.ndarray, generator: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Returns `resamples` draws of counts (cells,) under resampling of the counted items, as (resamples, cells)."""
    n = counts.sum()
    drawn: np.ndarray = generator.multinomial(n, counts / n, size=resamples)
    return drawn


def bootstrap_groups(
    cells: np.ndarray, groups: np.ndarray, generator: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Returns `resamples` draws of the counts of cells under resampling of whole groups, (resamples, cells).

    `cells` and `groups` are the cell and the group of each item, as numbers from 0.
    """
    from scipy.sparse import coo_array

    counts = coo_array((np.ones(len(cells), dtype=np.int64), (groups, cells))).tocsr()
    n = counts.shape[0]
    draws = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
    resampled: np.ndarray = draws @ counts
    return resampled


def widen_for_groups(
    interval: Interval, estimate: float, groups: int, level: float = LEVEL, bounds: Interval = (0.0, 1.0)
) -> Interval:
    """Returns a bootstrap interval from few groups with the width that Student's t would give it, within the bounds.

    A bootstrap of few groups is too narrow, and that of one group has no width: it says nothing about others.
    """
    if groups < 2:
        return bounds
    factor = math.sqrt(groups / (groups - 1)) * t_quantile(groups - 1, level) / normal_quantile(level)
    low, high = (estimate + factor * (end - estimate) for end in interval)
    return max(bounds[0], low), min(bounds[1], high)


def percentile_interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 2.5% and the 97.5% quantile over the first axis of `resampled` (resamples, ...)."""
    low, high = np.quantile(resampled, QUANTILES_95, axis=0)
    return low, high


def lower_tail_p_values(successes: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Returns for each group the p-value of Fisher's exact test that its success rate is below that of the others."""
    from scipy.stats import hypergeom

    pairs, pair_of_group = np.unique(np.stack([successes, n]), axis=1, return_inverse=True)
    p_values: np.ndarray = hypergeom.cdf(pairs[0], n.sum(), successes.sum(), pairs[1])
    return p_values[pair_of_group]


def homogeneity_p_value(
    successes: np.ndarray, n: np.ndarray, generator: np.random.Generator, permutations: int = PERMUTATIONS
) -> float:
    """Returns the p-value of the hypothesis that all groups have the same success rate.

    It is a permutation test with the chi-squared statistic, which is exact for any number of items.
    """
    total, overall = int(n.sum()), float(successes.sum() / n.sum())
    if len(n) < 2 or overall in (0.0, 1.0):
        return 1.0
    permuted = generator.multivariate_hypergeometric(n, round(overall * total), size=permutations)
    observed, under_null = (((k - n * overall) ** 2 / n).sum(axis=-1) for k in (successes, permuted))
    return float((1 + (under_null >= observed - 1e-9).sum()) / (1 + permutations))


def holm(p_values: np.ndarray, level: float = FALSE_FINDINGS) -> np.ndarray:
    """Returns which hypotheses are rejected. Any false rejection has at most probability `level` (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    passes = np.asarray(p_values)[order] <= level / np.arange(len(order), 0, -1)
    rejected = np.zeros(len(order), dtype=bool)
    rejected[order] = np.logical_and.accumulate(passes)
    return rejected
