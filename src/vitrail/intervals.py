"""Every 95% confidence interval of the package: Wilson, normal approximation, percentile bootstrap."""

import math

import numpy as np

Z_95 = 1.959963984540054  # 97.5% quantile of the standard normal distribution
QUANTILES_95 = (0.025, 0.975)
RESAMPLES = 1000


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927). It holds near 0 and 1 and for small samples."""
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def normal_interval(mean: float, std: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the interval of a mean of `n` values by the normal approximation (Wald).

    For a paired difference, `mean` and `std` are those of the differences per image.
    """
    margin = z * std / n**0.5
    return mean - margin, mean + margin


def bootstrap_means(values: np.ndarray, generator: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the means of `resamples` samples drawn with replacement from `values` (n,), as (resamples,).

    Generators in the same state draw the same indices: two arrays of equal length are then resampled in pairs.
    """
    indices = generator.integers(len(values), size=(resamples, len(values)))
    means: np.ndarray = values[indices].mean(axis=1)
    return means


def bootstrap_counts(counts: np.ndarray, generator: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Return `resamples` draws of counts (cells,) under resampling of the counted items, as (resamples, cells)."""
    n = counts.sum()
    drawn: np.ndarray = generator.multinomial(n, counts / n, size=resamples)
    return drawn


def percentile_interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 2.5% and the 97.5% quantile over the first axis of `resampled` (resamples, ...)."""
    low, high = np.quantile(resampled, QUANTILES_95, axis=0)
    return low, high
