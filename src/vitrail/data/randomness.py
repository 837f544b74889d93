"""Random numbers that depend only on a key, not on the process that draws them or on earlier draws.

Keys are (seed, epoch, index) for an image, (seed, epoch) for the order of an epoch, (seed, step) for a step. So batches
are the same for any number of workers, and a resumed run continues with the same bits.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def derive_seed(*key: int | str) -> int:
    """Returns a 63-bit seed for this key; the seeds of different keys are unrelated."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the order in which `n` images are seen in this epoch."""
    return np.random.Generator(np.random.Philox(derive_seed("order", seed, epoch))).permutation(n)


def keyed_uniform(indices: Sequence[int] | np.ndarray, n: int, *key: int | str) -> np.ndarray:
    """Returns `n` numbers in [0, 1) for each index, float64 (B, n); row `i` depends only on the key and `indices[i]`.

    A counter-based generator with the mixing function of SplitMix64 (Steele et al. 2014).
    """
    counter = np.asarray(indices, np.uint64)[:, None] * np.uint64(n) + np.arange(n, dtype=np.uint64)
    x: np.ndarray = np.uint64(derive_seed(*key)) + counter * np.uint64(0x9E3779B97F4A7C15)  # overflow is intended
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
