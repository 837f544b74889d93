"""What a ViT is made of, as a value: frozen, checked when made, saved beside the weights as JSON."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from vitrail.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A learned vector for each place of the grid (Dosovitskiy et al. 2021, section 3.1)."""

    antialias: bool = True  # how the grid is resized for another image size
    offset: float = 0.0  # added to the target size while resizing: 0.1 in DINOv2 without registers


@dataclass(frozen=True, kw_only=True)
class SinCos:
    """Fixed two-dimensional sines and cosines (Beyer et al. 2022, arXiv 2205.01580)."""

    temperature: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys turn by where their patch stands (Su et al. 2021; in two axes as in DINOv3)."""

    base: float = 100.0


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

Mlp = Literal["gelu", "gelu_tanh", "swiglu"]
Pool = Literal["cls", "mean", "map"]
Head = Literal["linear", "mlp"]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The fields of a ViT; the defaults are ViT-B/16, the paper's base model.

    `image_size` is an int or (height, width); `classes=0` makes a ViT that returns the pooled vector.
    Raises `UsageError` when the fields do not fit together.
    """

    width: int = field(default=768, metadata={"help": "length of a token's vector"})
    depth: int = field(default=12, metadata={"help": "number of blocks"})
    heads: int = field(default=12, metadata={"help": "attention heads in a block"})
    mlp_width: int = field(default=3072, metadata={"help": "hidden width of a block's MLP"})
    patch: int = field(default=16, metadata={"help": "side of a patch in pixels"})
    image_size: int | tuple[int, int] = field(default=224, metadata={"help": "side of the image in pixels"})
    channels: int = field(default=3, metadata={"help": "1 for grey images, 3 for colour"})
    prefix_tokens: int = field(default=1, metadata={"help": "class token and registers before the patches"})
    position: Position = field(default=Learned(), metadata={"help": "where a patch stands"})
    mlp: Mlp = field(default="gelu", metadata={"help": "the MLP of a block"})
    qkv_bias: bool = field(default=True, metadata={"help": "a bias on queries, keys and values"})
    qk_norm: bool = field(default=False, metadata={"help": "normalise queries and keys"})
    layer_scale: float | None = field(default=None, metadata={"help": "start of LayerScale, or none"})
    final_norm: bool = field(default=True, metadata={"help": "a norm after the last block"})
    norm_eps: float = field(default=1e-6, metadata={"help": "epsilon of the norms"})
    pool: Pool = field(default="cls", metadata={"help": "class token, mean of patches, attention pooling"})
    head: Head = field(default="linear", metadata={"help": "what turns the pooled vector into logits"})
    dropout: float = field(default=0.0, metadata={"help": "dropout after projections and in the MLP"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    embedding_dropout: float = field(default=0.0, metadata={"help": "dropout of embedded tokens"})
    drop_path: float = field(default=0.0, metadata={"help": "stochastic depth of the last block"})
    classes: int = field(default=0, metadata={"help": "number of classes; 0 for features only"})

    def __post_init__(self) -> None:
        at_least = dict.fromkeys(("width", "depth", "heads", "mlp_width", "patch", "channels"), 1)
        for name, least in (at_least | {"prefix_tokens": 0, "classes": 0}).items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        size = self.image_size
        if not isinstance(size, int) and (not isinstance(size, tuple) or [type(side) for side in size] != [int, int]):
            raise UsageError(f"image_size is {size!r}; it must be a whole number, or (height, width)")
        if type(self.position) not in POSITIONS.values():
            kinds = ", ".join(f"{part.__name__}()" for part in POSITIONS.values())
            raise UsageError(f"position {self.position!r} is not a position", f"known: {kinds}")
        for name in ("dropout", "attention_dropout", "embedding_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        for name, allowed in (("mlp", Mlp), ("pool", Pool), ("head", Head)):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is not known", did_you_mean(getattr(self, name), get_args(allowed))
                )
        if self.width % self.heads:
            raise UsageError(f"width {self.width} does not divide into {self.heads} heads")
        height, width = pair(self.image_size)
        if height % self.patch or width % self.patch or min(height, width) < self.patch:
            raise UsageError(
                f"an image of {height}x{width} pixels does not divide into patches of {self.patch}",
                f"use a multiple of {self.patch}, or another patch",
            )
        if self.pool == "cls" and self.prefix_tokens < 1:
            raise UsageError(f"pool 'cls' needs a class token, but prefix_tokens is {self.prefix_tokens}")
        if isinstance(self.position, SinCos) and self.width % 4:
            raise UsageError(f"sin-cos positions need a width divisible by 4, not {self.width}")
        if isinstance(self.position, Rotary) and (self.width // self.heads) % 4:
            raise UsageError(f"rotary positions need a head width divisible by 4, not {self.width // self.heads}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        height, width = pair(self.image_size)
        return height // self.patch, width // self.patch

    def to_json(self) -> dict[str, Any]:
        """A plain dict; the position keeps its kind, which `asdict` alone would lose."""
        kind = next(name for name, part in POSITIONS.items() if isinstance(self.position, part))
        return {**asdict(self), "position": {"kind": kind, **asdict(self.position)}}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "ViTConfig":
        """The config that `to_json` wrote; raises `UsageError` naming an unknown or impossible field."""
        known = {f.name for f in fields(cls)}
        for name in document:
            if name not in known:
                raise UsageError(f"the model has no field {name!r}", did_you_mean(name, known))
        values = dict(document)
        if isinstance(values.get("image_size"), list):  # JSON has no tuples
            values["image_size"] = tuple(values["image_size"])
        if "position" in values:
            values["position"] = position_from_json(values["position"])
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"the model's fields have a wrong type: {error}") from None


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
