"""Randomness that depends on what is drawn for, never on who draws it.

Every draw is keyed: (seed, epoch, index) for a sample, (seed, epoch) for an order, (seed, step) for a step. So the
same batches come whatever the number of workers, and a resumed run goes on exactly.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*key: int | str) -> int:
    """A 63-bit seed for this key; other keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which `n` samples are seen in this epoch."""
    return np.random.Generator(np.random.Philox(derive("order", seed, epoch))).permutation(n)


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
