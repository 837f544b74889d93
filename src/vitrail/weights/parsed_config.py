"""What the `config.json` of another library describes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError
from vitrail.model.config import ViTConfig
from vitrail.tasks import SINGLE_LABEL, TaskName

Document = dict[str, Any]
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class ParsedConfig:
    """A model as its library's `config.json` describes it; without classes it is a backbone or an embedding."""

    layout: str
    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    renamed: Mapping[str, str] = field(default_factory=dict)  # tensors that the file has under another name
    task: TaskName = SINGLE_LABEL


def make_unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Appends its index to a repeated class name: ImageNet has two cranes and two maillots."""
    seen: set[str] = set()
    unique = []
    for index, name in enumerate(names):
        unique.append(f"{name} ({index})" if name in seen else name)
        seen.add(name)
    return tuple(unique)


def parse_patch_size(size: Any) -> Any:
    """Returns the size of a square patch that is given as one number or as two equal ones."""
    if isinstance(size, list):
        if len(set(size)) != 1:
            raise UsageError(f"patches of {size} are not square")
        return size[0]
    return size


def split_image_size(size: tuple[int, int], patch: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns an image size rounded down to whole patches, and the rows and columns beyond them.

    A convolution without padding ignores these at the bottom and at the right, as in SigLIP So400m: 384 is 378 + 6.
    """
    height, width = (length // patch * patch for length in size)
    return (height, width), (size[0] - height, size[1] - width)


def to_image_size(size: tuple[int, int]) -> int | tuple[int, int]:
    """Returns one number for a square."""
    return size[0] if size[0] == size[1] else size
