"""What a source hands over: images with their names and class names, per split."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torchvision.transforms.v2.functional as F
from torch import Tensor

from vitrail.data.encoded import EncodedImages
from vitrail.data.images import Images, LazyImages, Pixels
from vitrail.data.strings import take_strings
from vitrail.errors import VitrailError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Listing:
    """Images with their names, each with the name of its class."""

    pixels: Pixels
    names: Sequence[str]
    labels: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Listing":
        """The images at these places."""
        part = Images(self.pixels, self.names, np.zeros(len(self), dtype=np.int64), ()).subset(indices)
        return Listing(part.pixels, part.names, take_strings(self.labels, np.asarray(indices, dtype=np.int64)))

    def with_channels(self, channels: int) -> "Listing":
        """The same images, each with this many channels."""
        if isinstance(self.pixels, EncodedImages):
            return replace(self, pixels=self.pixels.with_channels(channels))
        convert = F.grayscale_to_rgb if channels == 3 else F.rgb_to_grayscale
        if isinstance(self.pixels, Tensor):
            return replace(self, pixels=convert(self.pixels))
        return replace(self, pixels=LazyImages(self.pixels, range(len(self)), convert))


@dataclass(frozen=True)
class Source:
    """Listings by split: `train`, `validation` and `test`, or `all` where the source is not divided."""

    name: str
    splits: dict[str, Listing]
    notes: list[str] = field(default_factory=list)
    can_flip: bool = True
    channels: int = 3
    missing: list[str] = field(default_factory=list)  # files that a table lists and that are not there, in sentences
    damaged: list[str] = field(
        default_factory=list
    )  # what cannot even be listed, as behind a tear in a shard: sentences
    hint: str = "paths are relative to the table"  # what to do about what is missing or lost

    def in_channels(self, channels: int) -> "Source":
        """The same with grey pixels as colour, or colour pixels as grey; files are decoded as asked anyway."""
        if channels == self.channels:
            return self
        splits = {split: listing.with_channels(channels) for split, listing in self.splits.items()}
        return replace(self, splits=splits, channels=channels)


def parse_split_name(word: str, where: str) -> str:
    """train, validation or test for any usual spelling; raises `VitrailError` for another word."""
    try:
        return SPLIT_NAMES[word.strip().lower()]
    except KeyError:
        raise VitrailError(f"{where}: {word!r} is not a split", "use train, validation or test") from None
