"""What the `config.json` of another library describes."""

from dataclasses import dataclass
from typing import Any

from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig

Document = dict[str, Any]
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class ParsedConfig:
    """A model as its library's `config.json` describes it; without classes it is a backbone or an embedding."""

    layout: str
    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess


def make_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Appends its index to a repeated class name: ImageNet has two cranes and two maillots."""
    seen: set[str] = set()
    unique = []
    for index, name in enumerate(names):
        unique.append(f"{name} ({index})" if name in seen else name)
        seen.add(name)
    return tuple(unique)
