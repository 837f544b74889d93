"""Randomness that depends on what is drawn for, never on who draws it.

Every draw is keyed: (seed, epoch, index) for a sample, (seed, epoch) for an order, (seed, step) for a step. So the
same batches come whatever the number of workers, and a resumed run goes on exactly.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed for this key; other keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which `n` samples are seen in this epoch."""
    return np.random.Generator(np.random.Philox(derive_seed("order", seed, epoch))).permutation(n)


def keyed_uniform(indices: Sequence[int] | np.ndarray, draws: int, *key: int | str) -> np.ndarray:
    """Numbers from 0 to 1, (B, `draws`) in float64, that depend on the key, the index and the number of the draw.

    A counter through a mixing function (SplitMix64, Steele et al. 2014): a whole batch at once, in any company.
    """
    counter = np.asarray(indices, np.uint64)[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
    x: np.ndarray = np.uint64(derive_seed(*key)) + counter * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


@contextmanager
def borrowed_generator() -> Iterator[torch.Generator]:
    """torch's global CPU generator, to be seeded at will inside; afterwards it is as it was.

    torchvision's transforms draw from the global generator alone.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        yield generator
    finally:
        generator.set_state(state)
