"""The one seam to look inside: attention recorded from queries and keys, while the fast kernel stays on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, RLock, get_ident
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.model import ViT
from vitrail.model.attention import Attention
from vitrail.model.pool import AttentionPool

Rows = int | slice | Sequence[int]
_looking: WeakKeyDictionary[ViT, AbstractContextManager[bool]] = WeakKeyDictionary()  # a lock for each ViT
_making = Lock()


def wide(x: Tensor) -> Tensor:
    """In float32 at least: sums and softmaxes of half numbers lose too much."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Record:
    """What the last forward inside `recording` left: q, k and v of each layer, from which attention is recomputed."""

    def __init__(self, depth: int):
        self.depth = depth
        self.queries: dict[int, Tensor] = {}  # layer -> (B, N, T, K); the pool's is layer `depth`
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.mixed: dict[int, Tensor] = {}  # what the kernel gave: attention times values

    def attention(self, layer: int = -1, rows: Rows = slice(None)) -> Tensor:
        """softmax(q k^T / sqrt(K)) of a layer in float32 (or float64): (B, N, T, T), or only the asked-for rows of it.

        Layers count from 0, or from -1 backwards. Raises `UsageError` for a layer that is not there or before any
        forward has run.
        """
        if not -self.depth <= layer < self.depth:
            raise UsageError(f"there is no layer {layer}", f"the model has {self.depth}, from 0 to {self.depth - 1}")
        return self._weights(layer % self.depth, rows)

    @property
    def pool(self) -> Tensor | None:
        """The weights of attention pooling, (B, N, 1, T); None for other pools."""
        return self._weights(self.depth, slice(None)) if self.depth in self.queries else None

    def gradient(self, layer: int, d_mixed_BNTK: Tensor) -> Tensor:
        """The gradient of a score by a layer's attention, from its gradient by `mixed[layer]`: (B, N, T, T).

        mixed = attention @ v, so the gradient by attention is d_mixed @ v^T, and no matrix was kept to have it.
        """
        with torch.autocast(d_mixed_BNTK.device.type, enabled=False):
            return wide(d_mixed_BNTK) @ wide(self.values[layer].detach()).mT

    def _weights(self, layer: int, rows: Rows) -> Tensor:
        if layer not in self.queries:
            raise UsageError("nothing is recorded yet", "call the model inside the with block")
        q_BNTK, k_BNTK = wide(self.queries[layer]), wide(self.keys[layer])
        q_BNRK = q_BNTK[:, :, [rows] if isinstance(rows, int) else rows]
        with torch.autocast(q_BNTK.device.type, enabled=False):
            return (q_BNRK @ k_BNTK.mT * q_BNTK.shape[-1] ** -0.5).softmax(dim=-1)


@contextmanager
def alone(vit: ViT) -> Iterator[None]:
    """Inside, no other thread looks inside this ViT; it may go on calling it."""
    with _making:
        lock = _looking.setdefault(vit, RLock())
    with lock:
        yield


@contextmanager
def recording(vit: ViT) -> Iterator[Record]:
    """Inside, each call of `vit` by this thread leaves its attention in the record; outside nothing of it remains.

    Works for any pool, prefix tokens, grid, batch, dtype and device, with gradients or without; the model computes
    exactly what it computes otherwise. Another thread that would look inside too waits for the end.
    """
    record = Record(len(vit.blocks))
    watched: list[tuple[int, Attention | AttentionPool]] = []
    for layer, block in enumerate(vit.blocks):
        assert isinstance(block.attn, Attention)
        watched.append((layer, block.attn))
    if isinstance(vit.pool, AttentionPool):
        watched.append((record.depth, vit.pool))
    with alone(vit):
        before = [module.attend for _, module in watched]
        try:
            for layer, module in watched:
                module.attend = _keeping(record, layer, module.attend)
            yield record
        finally:
            for (_, module), attend in zip(watched, before, strict=True):
                module.attend = attend


def _keeping(record: Record, layer: int, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    mine = get_ident()

    def keep_and_attend(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, dropout: float = 0.0) -> Tensor:
        if get_ident() != mine:
            return attend(q_BNTK, k_BNTK, v_BNTK, dropout)
        record.queries[layer], record.keys[layer], record.values[layer] = q_BNTK, k_BNTK, v_BNTK
        record.mixed[layer] = attend(q_BNTK, k_BNTK, v_BNTK, dropout)
        return record.mixed[layer]

    return keep_and_attend
