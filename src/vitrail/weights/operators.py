"""How one of our tensors is made of theirs, and theirs of ours: the right-hand sides of the tables.

A source reads through `get(name)` and writes named pieces; pieces of one name are joined in order (their position
table holds the class token's row and the patches'). Names are templates: `{i}` is a block, `{wb}` weight or bias.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitrail.model import ViTConfig

Get = Callable[[str], Tensor]
Pieces = dict[str, tuple[int, Tensor]]  # their name -> (place among the pieces of that name, piece)


class Source(Protocol):
    """Where a tensor of ours comes from."""

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        """Our tensor."""

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        """Their tensors, or pieces of them; raises `ValueError` where they have no place for what ours says."""


@dataclass(frozen=True)
class Copy:
    """The same tensor; `lead` axes of length one stand before it in their file."""

    name: str
    lead: int = 0

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        if theirs.shape[: self.lead] != (1,) * self.lead:
            raise ValueError(f"{self.name} is {tuple(theirs.shape)}, expected {self.lead} leading axes of length 1")
        return theirs[(0,) * self.lead]

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours[(None,) * self.lead])}


@dataclass(frozen=True)
class Zero:
    """They have no such tensor: ours is zero, of this shape for a config."""

    shape: Callable[[ViTConfig], tuple[int, ...]]

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        return torch.zeros(self.shape(config))

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        if ours.is_meta or not ours.any():
            return {}
        raise ValueError("has no counterpart there and is not zero")


class Cat:
    """Several sources one over the other."""

    def __init__(self, *sources: Source | str):
        self.sources = [Copy(each) if isinstance(each, str) else each for each in sources]

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        parts = [source.read(get, config) for source in self.sources]
        return torch.cat([part.to(parts[0].dtype) for part in parts])

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        if len(ours) % len(self.sources):
            raise ValueError(f"has {len(ours)} rows, which do not divide into {len(self.sources)}")
        parts = ours.chunk(len(self.sources))
        return {
            name: piece
            for source, part in zip(self.sources, parts, strict=True)
            for name, piece in source.write(part, config).items()
        }


@dataclass(frozen=True)
class Thirds:
    """Some of the three equal parts of a packed projection: queries are part 0, keys 1, values 2."""

    name: str
    start: int
    stop: int

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        packed = get(self.name)
        if len(packed) % 3:
            raise ValueError(f"{self.name} has {len(packed)} rows, which do not divide into three")
        third = len(packed) // 3
        return packed[self.start * third : self.stop * third]

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (self.start, ours)}


@dataclass(frozen=True)
class Transposed:
    """A matrix the other way round."""

    name: str

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        return get(self.name).mT

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours.mT)}


@dataclass(frozen=True)
class Averaged:
    """One head over two tokens side by side that answers as the mean of two heads: [W1 W2] / 2, (b1 + b2) / 2."""

    first: str
    second: str

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        first, second = get(self.first), get(self.second)
        return torch.cat([first, second], dim=-1) / 2 if first.ndim == 2 else (first + second) / 2

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        first, second = (2 * ours).chunk(2, dim=-1) if ours.ndim == 2 else (ours, ours)
        return {self.first: (0, first), self.second: (0, second)}


# Positions. Their class token has a row in the position table; ours has none, because it would only be added to the
# token (docs/adr/0002). `rows` says how many of the prefix tokens have a row; writing gives those rows zeros.


@dataclass(frozen=True)
class Table:
    """A flat position table with `axes` axes before the vector: (1, rows + h*w, D) or (rows + h*w, D)."""

    name: str
    rows: int | None = None  # prefix tokens that have a row; None: all of them
    axes: int = 2

    def count(self, config: ViTConfig) -> int:
        """Rows of prefix tokens."""
        return config.prefix_tokens if self.rows is None else min(self.rows, config.prefix_tokens)

    def flat(self, get: Get, config: ViTConfig) -> Tensor:
        """All rows; raises `ValueError` where they are not as many as the config's grid and prefix."""
        theirs = get(self.name)
        h, w = config.grid
        expected = (1,) * (self.axes - 1) + (self.count(config) + h * w, config.width)
        if theirs.shape != expected:
            raise ValueError(f"{self.name} is {tuple(theirs.shape)}, expected {expected}")
        return theirs[(0,) * (self.axes - 1)]

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        return self.flat(get, config)[self.count(config) :].reshape(*config.grid, -1)

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (1, ours.flatten(0, 1)[(None,) * (self.axes - 1)])}


@dataclass(frozen=True)
class Token:
    """`count` prefix tokens (None: what the others leave) under one name, with this many axes."""

    name: str
    count: int | None = 1
    axes: int = 3

    def read(self, get: Get) -> Tensor:
        theirs = get(self.name)
        if theirs.ndim != self.axes or theirs.shape[:-2] != (1,) * max(self.axes - 2, 0):
            raise ValueError(f"{self.name} is {tuple(theirs.shape)}, expected {self.axes} axes, (1, tokens, width)")
        return theirs.reshape(-1, theirs.shape[-1])

    def write(self, tokens: Tensor) -> Tensor:
        return tokens[0] if self.axes == 1 else tokens[(None,) * (self.axes - 2)]


class Prefix:
    """The prefix tokens, with their positions added to those that have some."""

    def __init__(self, *tokens: Token, positions: Table | None = None):
        self.tokens = tokens
        self.positions = positions

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        if not self.tokens:
            return torch.zeros(0, config.width)
        prefix_RD = torch.cat([token.read(get) for token in self.tokens])
        if self.positions:
            count = self.positions.count(config)
            positions = self.positions.flat(get, config)[:count]
            if len(prefix_RD) < count:
                raise ValueError(f"the file has {len(prefix_RD)} prefix tokens, expected {config.prefix_tokens}")
            prefix_RD = torch.cat([prefix_RD[:count] + positions, prefix_RD[count:]])
        return prefix_RD

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        pieces: Pieces = {}
        known = sum(token.count or 0 for token in self.tokens)
        at = 0
        for token in self.tokens:
            count = len(ours) - known if token.count is None else token.count
            pieces[token.name] = (0, token.write(ours[at : at + count]))
            at += count
        if at != len(ours):
            raise ValueError(f"has {len(ours)} rows, there is room for {at}")
        if self.positions and (count := self.positions.count(config)):
            zeros = torch.zeros(count, ours.shape[-1], dtype=ours.dtype, device=ours.device)
            pieces[self.positions.name] = (0, zeros[(None,) * (self.positions.axes - 1)])
        return pieces


# JAX keeps the axes of a product in another order: inputs first, heads apart.


@dataclass(frozen=True)
class Kernel:
    """A JAX kernel: of a convolution (H, W, in, out) -> (out, in, H, W), of a linear layer (in, out) -> (out, in)."""

    name: str

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        return theirs.permute(3, 2, 0, 1) if theirs.ndim == 4 else theirs.mT

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours.permute(2, 3, 1, 0) if ours.ndim == 4 else ours.mT)}


@dataclass(frozen=True)
class IntoHeads:
    """Into heads: kernel (D, N, K) -> (N*K, D), bias (N, K) -> (N*K)."""

    name: str

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        if theirs.shape[-2] != config.heads:
            raise ValueError(f"{self.name} has {theirs.shape[-2]} heads, expected {config.heads}")
        return theirs.flatten(-2) if theirs.ndim == 2 else theirs.flatten(-2).mT

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, (ours if ours.ndim == 1 else ours.mT).reshape(*ours.shape[1:], config.heads, -1))}


@dataclass(frozen=True)
class OutOfHeads:
    """Out of heads: kernel (N, K, D) -> (D, N*K)."""

    name: str

    def read(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        if theirs.shape[0] != config.heads:
            raise ValueError(f"{self.name} has {theirs.shape[0]} heads, expected {config.heads}")
        return theirs.flatten(0, 1).mT

    def write(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours.mT.reshape(config.heads, -1, len(ours)))}
