"""Recorded attention: recomputed from queries and keys, while the model keeps its fused kernel."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, RLock, get_ident
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.model.attention import Attention
from vitrail.model.pool import AttentionPool
from vitrail.model.vit import ViT

Rows = int | slice | Sequence[int]
_locks: WeakKeyDictionary[ViT, AbstractContextManager[bool]] = WeakKeyDictionary()  # one for each ViT
_locks_guard = Lock()


def promote_to_float32(x: Tensor) -> Tensor:
    """In float32 at least: sums and softmaxes in half precision are too inexact."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Record:
    """Queries, keys and values of each layer in the last forward pass inside `recording`."""

    def __init__(self, depth: int):
        self.depth = depth
        self.queries: dict[int, Tensor] = {}  # layer -> (B, N, T, K); attention pooling is layer `depth`
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.attended: dict[int, Tensor] = {}  # the kernel's output: attention times values

    def attention(self, layer: int = -1, rows: Rows = slice(None)) -> Tensor:
        """softmax(q k^T / sqrt(K)) of a layer in float32 at least: (B, N, T, T), or only some rows of it.

        Layers count from 0, or from -1 backwards. Raises `UsageError` for a layer that the model does not have and
        before any forward pass.
        """
        if not -self.depth <= layer < self.depth:
            raise UsageError(f"there is no layer {layer}", f"the model has {self.depth}, from 0 to {self.depth - 1}")
        return self._weights(layer % self.depth, rows)

    @property
    def pool_attention(self) -> Tensor | None:
        """The weights of attention pooling, (B, N, 1, T); None for other pools."""
        return self._weights(self.depth, slice(None)) if self.depth in self.queries else None

    def gradient(self, layer: int, d_attended_BNTK: Tensor) -> Tensor:
        """Returns the gradient with respect to a layer's attention, (B, N, T, T), from that of `attended[layer]`.

        attended = attention @ v, so the gradient is d_attended @ v^T, and the forward pass stores no attention matrix.
        """
        with torch.autocast(d_attended_BNTK.device.type, enabled=False):
            return promote_to_float32(d_attended_BNTK) @ promote_to_float32(self.values[layer].detach()).mT

    def _weights(self, layer: int, rows: Rows) -> Tensor:
        if layer not in self.queries:
            raise UsageError("nothing is recorded yet", "call the model inside the with block")
        q_BNTK, k_BNTK = promote_to_float32(self.queries[layer]), promote_to_float32(self.keys[layer])
        q_BNRK = q_BNTK[:, :, [rows] if isinstance(rows, int) else rows]
        with torch.autocast(q_BNTK.device.type, enabled=False):
            return (q_BNRK @ k_BNTK.mT * q_BNTK.shape[-1] ** -0.5).softmax(dim=-1)


@contextmanager
def exclusive_access(vit: ViT) -> Iterator[None]:
    """Inside, other threads that call this or `recording` for the same ViT wait; calls of the ViT do not."""
    with _locks_guard:
        lock = _locks.setdefault(vit, RLock())
    with lock:
        yield


@contextmanager
def recording(vit: ViT) -> Iterator[Record]:
    """Inside, each call of `vit` by this thread fills the record; afterwards the model is unchanged.

    Works for any pool, prefix tokens, grid, batch, dtype and device, with gradients or without; the outputs of the
    model are the same to the last bit. Another thread that enters `recording` for the same ViT waits for the end.
    """
    record = Record(len(vit.blocks))
    layers: list[tuple[int, Attention | AttentionPool]] = []
    for layer, block in enumerate(vit.blocks):
        assert isinstance(block.attn, Attention)
        layers.append((layer, block.attn))
    if isinstance(vit.pool, AttentionPool):
        layers.append((record.depth, vit.pool))
    with exclusive_access(vit):
        original = [module.attend for _, module in layers]
        try:
            for layer, module in layers:
                module.attend = _recorded(record, layer, module.attend)
            yield record
        finally:
            for (_, module), attend in zip(layers, original, strict=True):
                module.attend = attend


def _recorded(record: Record, layer: int, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    thread = get_ident()

    def record_and_attend(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, dropout: float = 0.0) -> Tensor:
        if get_ident() != thread:
            return attend(q_BNTK, k_BNTK, v_BNTK, dropout)
        record.queries[layer], record.keys[layer], record.values[layer] = q_BNTK, k_BNTK, v_BNTK
        record.attended[layer] = attend(q_BNTK, k_BNTK, v_BNTK, dropout)
        return record.attended[layer]

    return record_and_attend
