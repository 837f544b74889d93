"""What a ViT is made of, as a value: frozen, checked when made, saved beside the weights as JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vitrail.errors import UsageError, did_you_mean
from vitrail.options import check_fields, check_values, option

Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A learned vector for each place of the grid (Dosovitskiy et al. 2021, section 3.1).

    The fields say how the grid is resized for another image size: every family has its own rule.
    """

    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    align_corners: bool = False  # the grid's outer places stay where they are: the paper's code and torchvision
    offset: float = option(0.0, "added to the target size while resizing: 0.1 in DINO and DINOv2", ge=0, lt=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.antialias and self.align_corners:
            raise UsageError("positions are resized with antialias or with align_corners, not both")


@dataclass(frozen=True, kw_only=True)
class SinCos:
    """Fixed two-dimensional sines and cosines (Beyer et al. 2022, arXiv 2205.01580)."""

    temperature: float = option(10_000.0, "slowest wave", gt=0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys turn by where their patch stands (Su et al. 2021; in two axes as in DINOv3)."""

    base: float = option(100.0, "slowest turn", gt=0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class NoPosition:
    """Patches are a bag: nothing says where they stand."""


Position = Learned | SinCos | Rotary | NoPosition
POSITIONS: dict[str, type[Position]] = {
    "learned": Learned,
    "sincos": SinCos,
    "rotary": Rotary,
    "none": NoPosition,
}

MlpKind = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
PoolKind = Literal["cls", "cls+dist", "mean", "mean_norm", "cls+mean", "map"]
CLASS_TOKENS = {"cls": 1, "cls+dist": 2, "cls+mean": 1}  # tokens at the front that a pool reads
HeadKind = Literal["linear", "mlp"]


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The fields of a ViT; the defaults are ViT-B/16, the paper's base model.

    `image_size` is an int or (height, width); `classes=0` makes a ViT that returns the pooled vector.
    Raises `UsageError` when the fields do not fit together.
    """

    width: int = option(768, "length of a token's vector", ge=1)
    depth: int = option(12, "number of blocks", ge=1)
    heads: int = option(12, "attention heads in a block", ge=1)
    mlp_width: int = option(3072, "hidden width of a block's MLP", ge=1)
    patch: int = option(16, "side of a patch in pixels", ge=1)
    image_size: int | tuple[int, int] = option(224, "side of the image in pixels", ge=1)
    channels: int = option(3, "1 for grey images, 3 for colour", ge=1)
    prefix_tokens: int = option(1, "class token and registers before the patches", ge=0)
    position: Position = option(Learned(), "where a patch stands")
    pre_norm: bool = option(False, "a norm before the first block, as in CLIP")
    mlp: MlpKind = option("gelu", "the MLP of a block")
    qkv_bias: bool = option(True, "a bias on queries, keys and values")
    qk_norm: bool = option(False, "normalise queries and keys")
    layer_scale: float | None = option(None, "start of LayerScale, or none")
    final_norm: bool = option(True, "a norm after the last block")
    norm_eps: float = option(1e-6, "epsilon of the norms", gt=0)
    pool: PoolKind = option(
        "cls",
        "cls: class token; cls+dist: and DeiT's second; mean: of patches; mean_norm: that, normed after; "
        "cls+mean: both; map: attention pooling",
    )
    head: HeadKind = option("linear", "what turns the pooled vector into logits")
    dropout: float = option(0.0, "dropout after projections and in the MLP", ge=0, lt=1)
    attention_dropout: float = option(0.0, "dropout of attention weights", ge=0, lt=1)
    embedding_dropout: float = option(0.0, "dropout of embedded tokens", ge=0, lt=1)
    drop_path: float = option(0.0, "stochastic depth of the last block", ge=0, lt=1)
    classes: int = option(0, "number of classes; 0 for features only", ge=0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.heads:
            raise UsageError(f"width {self.width} does not divide into {self.heads} heads")
        height, width = to_pair(self.image_size)
        if height % self.patch or width % self.patch or min(height, width) < self.patch:
            raise UsageError(
                f"an image of {height}x{width} pixels does not divide into patches of {self.patch}",
                f"use a multiple of {self.patch}, or another patch",
            )
        if self.prefix_tokens < (needed := CLASS_TOKENS.get(self.pool, 0)):
            tokens = "a class token" if needed == 1 else f"{needed} class tokens"
            raise UsageError(f"pool {self.pool!r} needs {tokens}, but prefix_tokens is {self.prefix_tokens}")
        if isinstance(self.position, SinCos) and self.width % 4:
            raise UsageError(f"sin-cos positions need a width divisible by 4, not {self.width}")
        if isinstance(self.position, Rotary) and (self.width // self.heads) % 4:
            raise UsageError(f"rotary positions need a head width divisible by 4, not {self.width // self.heads}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        height, width = to_pair(self.image_size)
        return height // self.patch, width // self.patch

    @property
    def pooled_width(self) -> int:
        """Length of the pooled vector: two vectors side by side in `cls+dist` and `cls+mean`."""
        return 2 * self.width if "+" in self.pool else self.width

    def to_json(self) -> dict[str, Any]:
        """A plain dict; the position keeps its kind, which `asdict` alone would lose."""
        return {**asdict(self), "position": position_to_json(self.position)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "ViTConfig":
        """The config that `to_json` wrote; raises `UsageError` naming an unknown or impossible field."""
        return cls(**values_from_json(document))


def values_from_json(document: dict[str, Any]) -> dict[str, Any]:
    """Some fields of a config as they stand in JSON -> their values; raises `UsageError` for what cannot be one."""
    values = dict(document)
    if isinstance(values.get("image_size"), list):  # JSON has no tuples
        values["image_size"] = tuple(values["image_size"])
    if "position" in values:
        values["position"] = position_from_json(values["position"])
    check_values(ViTConfig, values)
    return values


def position_to_json(position: Position) -> dict[str, Any]:
    """The position with its kind, which `asdict` alone would lose."""
    kind = next(name for name, part in POSITIONS.items() if isinstance(position, part))
    return {"kind": kind, **asdict(position)}


def position_from_json(value: "str | dict[str, Any] | Position") -> Position:
    """A position from its name, its tagged JSON form, or itself."""
    if not isinstance(value, str | dict):
        return value
    options = {"kind": value} if isinstance(value, str) else dict(value)
    kind = str(options.pop("kind", None))
    if kind not in POSITIONS:
        raise UsageError(f"position {kind!r} is not known", did_you_mean(kind, POSITIONS))
    try:
        return POSITIONS[kind](**options)
    except TypeError:
        raise UsageError(f"position {kind!r} has no option {', '.join(options)}") from None
