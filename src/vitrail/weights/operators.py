"""Operators that make one of vitrail's tensors from tensors of another library's file, and the other way round.

They are the right-hand sides of the tables in `families/`. `import_tensor` reads the file's tensors through `get(name)`
and returns ours. `export_tensor` returns named pieces of the file's tensors; pieces with the same name are concatenated
in order (a position table consists of the prefix tokens' rows and the patches' rows). Names are templates: `{i}` is the
index of a block, `{wb}` is `weight` or `bias`. `import_tensor` raises `ValueError` for a tensor of another shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitrail.model.config import ViTConfig

Get = Callable[[str], Tensor]
Pieces = dict[str, tuple[int, Tensor]]  # name in the file -> (order among the pieces of this name, piece)


class Operator(Protocol):
    """Converts one tensor between vitrail and a file."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the operator reads from the file and writes to it."""

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        """Returns our tensor."""

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        """Returns the file's tensors or pieces of them; raises `ValueError` if the file cannot express our values."""


@dataclass(frozen=True)
class OneName:
    """The base of operators on one tensor of the file."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class Copy(OneName):
    """The same tensor; the file's has `leading` more axes of length 1 in front."""

    leading: int = 0

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        if theirs.shape[: self.leading] != (1,) * self.leading:
            raise ValueError(f"{self.name} is {tuple(theirs.shape)}, expected {self.leading} leading axes of length 1")
        return theirs[(0,) * self.leading]

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours[(None,) * self.leading])}


@dataclass(frozen=True)
class Zeros:
    """The file has no such tensor: ours is zero, with the shape that `shape` returns for a config."""

    shape: Callable[[ViTConfig], tuple[int, ...]]
    names: tuple[str, ...] = ()

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        return torch.zeros(self.shape(config))

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        if ours.is_meta or not ours.any():
            return {}
        raise ValueError("has no counterpart there and is not zero")


class Concat:
    """Several tensors of equal length, concatenated along the first axis."""

    def __init__(self, *operators: Operator | str):
        self.operators = [Copy(each) if isinstance(each, str) else each for each in operators]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for operator in self.operators for name in operator.names)

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        parts = [operator.import_tensor(get, config) for operator in self.operators]
        return torch.cat([part.to(parts[0].dtype) for part in parts])

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        if len(ours) % len(self.operators):
            raise ValueError(f"has {len(ours)} rows, which is not a multiple of {len(self.operators)}")
        parts = ours.chunk(len(self.operators))
        return {
            name: piece
            for operator, part in zip(self.operators, parts, strict=True)
            for name, piece in operator.export_tensor(part, config).items()
        }


@dataclass(frozen=True)
class PackedSlice(OneName):
    """Thirds `start` to `stop` of a packed projection of queries (0), keys (1) and values (2)."""

    start: int
    stop: int

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        packed = get(self.name)
        if len(packed) % 3:
            raise ValueError(f"{self.name} has {len(packed)} rows, which is not a multiple of three")
        third = len(packed) // 3
        return packed[self.start * third : self.stop * third]

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (self.start, ours)}


@dataclass(frozen=True)
class Transpose(OneName):
    """A transposed matrix."""

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        return get(self.name).mT

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours.mT)}


@dataclass(frozen=True)
class MeanOfHeads:
    """Two heads whose mean is the output, as one head on both tokens: [W1 W2] / 2 and (b1 + b2) / 2."""

    first: str
    second: str

    @property
    def names(self) -> tuple[str, ...]:
        return self.first, self.second

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        first, second = get(self.first), get(self.second)
        return torch.cat([first, second], dim=-1) / 2 if first.ndim == 2 else (first + second) / 2

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        first, second = (2 * ours).chunk(2, dim=-1) if ours.ndim == 2 else (ours, ours)
        return {self.first: (0, first), self.second: (0, second)}


# Positions. In most files the position table has a row for the class token. Ours has none, because the row would only
# be added to the token (docs/adr/0002): it is added during the import, and an export writes zeros.


@dataclass(frozen=True)
class PositionTable(OneName):
    """A flat position table: (1, rows + h*w, D) if `axes` is 2, (rows + h*w, D) if it is 1.

    `rows` is the number of prefix tokens that have a row; None means all of them.
    """

    rows: int | None = None
    axes: int = 2

    def count_prefix_rows(self, config: ViTConfig) -> int:
        return config.prefix_tokens if self.rows is None else min(self.rows, config.prefix_tokens)

    def get_rows(self, get: Get, config: ViTConfig) -> Tensor:
        """Returns all rows, (rows + h*w, D); raises `ValueError` if the shape does not match the config."""
        theirs = get(self.name)
        h, w = config.grid
        expected = (1,) * (self.axes - 1) + (self.count_prefix_rows(config) + h * w, config.width)
        if theirs.shape != expected:
            raise ValueError(f"{self.name} is {tuple(theirs.shape)}, expected {expected}")
        return theirs[(0,) * (self.axes - 1)]

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        return self.get_rows(get, config)[self.count_prefix_rows(config) :].reshape(*config.grid, -1)

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (1, ours.flatten(0, 1)[(None,) * (self.axes - 1)])}


@dataclass(frozen=True)
class Token:
    """A parameter with `count` prefix tokens (None: all that the others leave) and this number of axes."""

    name: str
    count: int | None = 1
    axes: int = 3

    def import_tokens(self, get: Get) -> Tensor:
        theirs = get(self.name)
        if theirs.ndim != self.axes or theirs.shape[:-2] != (1,) * max(self.axes - 2, 0):
            raise ValueError(f"{self.name} is {tuple(theirs.shape)}, expected {self.axes} axes, (1, tokens, width)")
        return theirs.reshape(-1, theirs.shape[-1])

    def export_tokens(self, tokens_RD: Tensor) -> Tensor:
        return tokens_RD[0] if self.axes == 1 else tokens_RD[(None,) * (self.axes - 2)]


class Prefix:
    """The prefix tokens; rows of a position table are added to the tokens that have one."""

    def __init__(self, *tokens: Token, positions: PositionTable | None = None):
        self.tokens = tokens
        self.positions = positions

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(each.name for each in (*self.tokens, self.positions) if each)

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        if not self.tokens:
            return torch.zeros(0, config.width)
        prefix_RD = torch.cat([token.import_tokens(get) for token in self.tokens])
        if self.positions:
            count = self.positions.count_prefix_rows(config)
            positions = self.positions.get_rows(get, config)[:count]
            if len(prefix_RD) < count:
                raise ValueError(f"the file has {len(prefix_RD)} prefix tokens, expected {config.prefix_tokens}")
            prefix_RD = torch.cat([prefix_RD[:count] + positions, prefix_RD[count:]])
        return prefix_RD

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        pieces: Pieces = {}
        counted = sum(token.count or 0 for token in self.tokens)
        start = 0
        for token in self.tokens:
            count = len(ours) - counted if token.count is None else token.count
            pieces[token.name] = (0, token.export_tokens(ours[start : start + count]))
            start += count
        if start != len(ours):
            raise ValueError(f"has {len(ours)} rows, the format takes {start}")
        if self.positions and (count := self.positions.count_prefix_rows(config)):
            zeros = torch.zeros(count, ours.shape[-1], dtype=ours.dtype, device=ours.device)
            pieces[self.positions.name] = (0, zeros[(None,) * (self.positions.axes - 1)])
        return pieces


# JAX orders the axes of a kernel differently: inputs first, and heads have an axis of their own.


@dataclass(frozen=True)
class JaxKernel(OneName):
    """A kernel of a convolution, (H, W, in, out) -> (out, in, H, W), or of a linear layer, (in, out) -> (out, in)."""

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        return theirs.permute(3, 2, 0, 1) if theirs.ndim == 4 else theirs.mT

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours.permute(2, 3, 1, 0) if ours.ndim == 4 else ours.mT)}


@dataclass(frozen=True)
class JaxHeadInput(OneName):
    """A projection to heads: kernel (D, N, K) -> (N*K, D), bias (N, K) -> (N*K)."""

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        if theirs.shape[-2] != config.heads:
            raise ValueError(f"{self.name} has {theirs.shape[-2]} heads, expected {config.heads}")
        return theirs.flatten(-2) if theirs.ndim == 2 else theirs.flatten(-2).mT

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, (ours if ours.ndim == 1 else ours.mT).reshape(*ours.shape[1:], config.heads, -1))}


@dataclass(frozen=True)
class JaxHeadOutput(OneName):
    """The projection after attention: kernel (N, K, D) -> (D, N*K)."""

    def import_tensor(self, get: Get, config: ViTConfig) -> Tensor:
        theirs = get(self.name)
        if theirs.shape[0] != config.heads:
            raise ValueError(f"{self.name} has {theirs.shape[0]} heads, expected {config.heads}")
        return theirs.flatten(0, 1).mT

    def export_tensor(self, ours: Tensor, config: ViTConfig) -> Pieces:
        return {self.name: (0, ours.mT.reshape(config.heads, -1, len(ours)))}


# A table maps a name of ours to a name in the file or to an operator.

Rows = dict[str, Operator | str]


def make_position_rows(table: PositionTable, *tokens: Token) -> Rows:
    """Returns the rows for prefix tokens and a position table."""
    return {"prefix": Prefix(*tokens, positions=table), "position.grid": table}


def make_layer_scale_rows(first: str, second: str) -> Rows:
    """Returns the rows for LayerScale under these names."""
    return {"blocks.{i}.ls1.gamma": first, "blocks.{i}.ls2.gamma": second}


ZERO_WIDTH_BIAS = Zeros(lambda config: (config.width,))
ZERO_HEAD_BIAS = Zeros(lambda config: (config.classes,))
