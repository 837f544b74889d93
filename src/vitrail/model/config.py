"""The configuration of a ViT: a frozen dataclass, checked when it is created."""

from dataclasses import dataclass
from typing import Literal

from vitrail.errors import UsageError
from vitrail.options import Checked, option
from vitrail.parts import part_name

Interpolation = Literal["bicubic", "bilinear"]
MlpKind = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
PoolKind = Literal["cls", "cls+dist", "mean", "mean_norm", "cls+mean", "map"]
PositionKind = Literal["learned", "sincos", "rotary", "none"]
POOL_HELP = (
    "cls: class token; mean: mean of the patches; mean_norm: mean, then a norm; map: attention pooling; "
    "cls+mean: both, concatenated; cls+dist: class and distillation token, concatenated"
)
CLASS_TOKENS = {"cls": 1, "cls+dist": 2, "cls+mean": 1}  # prefix tokens that a pool reads
POOLED_VECTORS = {"cls+dist": 2, "cls+mean": 2}  # vectors that a pool concatenates, if not one


@dataclass(frozen=True, kw_only=True)
class Learned(Checked):
    """A learned vector for each grid cell (Dosovitskiy et al. 2021, section 3.1), and how the grid is resized."""

    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    align_corners: bool = False  # True in the paper's code and in torchvision
    offset: float = option(0.0, "added to the target size while resizing: 0.1 in DINO and DINOv2", ge=0, lt=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.antialias and self.align_corners:
            raise UsageError("positions are resized with antialias or with align_corners, not both")


@dataclass(frozen=True, kw_only=True)
class SinCos(Checked):
    """Fixed two-dimensional sines and cosines (Beyer et al. 2022, arXiv 2205.01580)."""

    temperature: float = option(10_000.0, "ratio of the slowest to the fastest wavelength", gt=0)


@dataclass(frozen=True, kw_only=True)
class Rotary(Checked):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864), in two dimensions as in DINOv3."""

    base: float = option(100.0, "ratio of the slowest to the fastest wavelength", gt=0)


@dataclass(frozen=True, kw_only=True)
class NoPosition(Checked):
    """No position: the patches are a set."""


Position = Learned | SinCos | Rotary | NoPosition
POSITIONS: dict[str, type[Position]] = {"learned": Learned, "sincos": SinCos, "rotary": Rotary, "none": NoPosition}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Checked):
    """The fields of a ViT; the defaults are ViT-B/16. Raises `UsageError` for fields that do not fit together."""

    width: int = option(768, "length of a token (hidden size)", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads per block", ge=1)
    mlp_width: int = option(3072, "hidden width of a block's MLP", ge=1)
    patch: int = option(16, "patch size in pixels", ge=1)
    image_size: int | tuple[int, int] = option(224, "image size in pixels: one number, or HEIGHTxWIDTH", ge=1)
    channels: int = option(3, "image channels: 1 for gray, 3 for color, or any number of bands", ge=1)
    prefix_tokens: int = option(1, "tokens before the patches: class token and registers", ge=0)
    position: Position | PositionKind | str = option(Learned(), "position embedding", part="position")
    pre_norm: bool = option(False, "a norm before the first block, as in CLIP")
    mlp: MlpKind | str = option("gelu", "activation of the MLP", part="mlp")
    qkv_bias: bool = option(True, "a bias on queries, keys and values")
    qk_norm: bool = option(False, "normalize queries and keys")
    layer_scale: float | None = option(None, "initial value of LayerScale; none: no LayerScale")
    final_norm: bool = option(True, "a norm after the last block")
    norm_eps: float = option(1e-6, "epsilon of the norms", gt=0)
    pool: PoolKind | str = option("cls", POOL_HELP, part="pool")
    head: Literal["linear", "mlp"] | str = option("linear", "classification head", part="head")
    dropout: float = option(0.0, "dropout after projections and in the MLP", ge=0, lt=1)
    attention_dropout: float = option(0.0, "dropout of the attention weights", ge=0, lt=1)
    embedding_dropout: float = option(0.0, "dropout of the embedded tokens", ge=0, lt=1)
    drop_path: float = option(0.0, "stochastic depth: drop rate of the last block's branches", ge=0, lt=1)
    classes: int = option(0, "number of classes; 0: the ViT returns the pooled vector", ge=0)

    def __post_init__(self) -> None:
        if isinstance(self.position, str) and self.position in POSITIONS:
            object.__setattr__(self, "position", POSITIONS[self.position]())
        super().__post_init__()
        if self.width % self.heads:
            raise UsageError(f"width {self.width} does not divide into {self.heads} heads")
        height, width = to_pair(self.image_size)
        if height % self.patch or width % self.patch or min(height, width) < self.patch:
            raise UsageError(
                f"an image of {height}x{width} pixels does not divide into patches of {self.patch}",
                f"use a multiple of {self.patch}, or another patch",
            )
        if self.prefix_tokens < (needed := CLASS_TOKENS.get(part_name(self.pool), 0)):
            tokens = "a class token" if needed == 1 else f"{needed} class tokens"
            raise UsageError(f"pool {self.pool!r} needs {tokens}, but prefix_tokens is {self.prefix_tokens}")
        if isinstance(self.position, SinCos) and self.width % 4:
            raise UsageError(f"sin-cos positions need a width divisible by 4, not {self.width}")
        if isinstance(self.position, Rotary) and (self.width // self.heads) % 4:
            raise UsageError(f"rotary positions need a head width divisible by 4, not {self.width // self.heads}")

    @property
    def grid(self) -> tuple[int, int]:
        """The patch grid: rows, columns."""
        height, width = to_pair(self.image_size)
        return height // self.patch, width // self.patch

    @property
    def pooled_width(self) -> int:
        return self.width * POOLED_VECTORS.get(part_name(self.pool), 1)


def position_kind(position: Position | str) -> str:
    return position if isinstance(position, str) else next(k for k, v in POSITIONS.items() if isinstance(position, v))


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a size that is one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
