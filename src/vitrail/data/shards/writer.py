"""Images -> tar shards in the WebDataset layout, with an index.

A sample is three members: KEY.jpg (the bytes as they were), KEY.cls (number of the class) and KEY.json (the names of
class and image). Keys are numbers, since a dot in a name would end the key. Members carry no times or owners: the same
data give the same shards, to the last bit.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitrail.data.decode import EXTENSIONS, ImageError
from vitrail.data.encoded import EncodedImages
from vitrail.data.randomness import epoch_permutation
from vitrail.data.shards.index import INDEX_FILE, MAX_IMAGE_BYTES, SPLITS, ShardIndex, empty_columns, save_index
from vitrail.data.shards.storage import Shard
from vitrail.data.source import Listing, Source
from vitrail.data.strings import StringArray, factorize
from vitrail.errors import UsageError, VitrailError
from vitrail.files import fsync

MIB = 1 << 20
DEFAULT_SHARD_MIB = 256  # MiB of a shard: large enough to be read in a stream, small enough to be fetched again
BLOCK, RECORD = 512, 10240  # of a tar file
ONE_SPELLING = {"jpeg": "jpg", "jfif": "jpg", "tif": "tiff", "pgm": "ppm", "pbm": "ppm", "pnm": "ppm"}


@dataclass
class ShardSummary:
    """What was written, and what could not be."""

    out: str
    images: int = 0
    bytes: int = 0
    shards: dict[str, int] = field(default_factory=dict)  # per split
    splits: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def write_shards(
    found: Source,
    out: Path,
    *,
    shard_mib: float = DEFAULT_SHARD_MIB,
    images_per_shard: int | None = None,
    seed: int | None = 0,
    skip_unreadable: bool = False,
    tick: Callable[[int], object] = lambda n: None,
) -> ShardSummary:
    """Writes the folder `out`: SPLIT-000000.tar (or shards-000000.tar), ... and index.safetensors.

    A shard ends before it has more than `size` MiB or `images` images. Its images come in an order drawn by `seed`, so
    that who reads it as a stream sees mixed classes; without a seed they stay in their order. The index keeps the order
    of the source in either case. `tick` is called with the images done. The folder appears when it is whole. Raises
    `UsageError` where `out` exists, `ImageError` naming a file that is not there (with `skip_unreadable` left out and
    counted), `VitrailError` where the place is too small.
    """
    if shard_mib <= 0 or (images_per_shard is not None and images_per_shard < 1):
        raise UsageError("a shard holds at least one image", "take a larger --size or --images")
    refuse_taken(out)
    refuse_full(found, out)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}-"))
        try:
            writer = _Writer(
                aside, found, int(shard_mib * MIB), images_per_shard or np.iinfo(np.int64).max, skip_unreadable
            )
            for split, listing in found.splits.items():
                writer.write(split, listing, seed, tick)
            written = writer.close()
            fsync(aside)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(aside, 0o777 & ~mask)
            refuse_taken(out)
            with_nothing = out.is_dir()  # an empty folder may be waiting for them
            if with_nothing:
                out.rmdir()
            os.rename(aside, out)
            fsync(out.absolute().parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise VitrailError(
            f"{out} cannot be written: {error.strerror or error}", "make room, or choose another place"
        ) from None
    written.out = str(out)
    return written


def refuse_taken(out: Path) -> None:
    """Raises `UsageError` where there is something already."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists already", "choose another place, or move it away")


def refuse_full(found: Source, out: Path) -> None:
    """Raises `VitrailError` where the images would not fit."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    need = 0
    for listing in found.splits.values():
        if isinstance(listing.pixels, EncodedImages):
            need += int(np.maximum(listing.pixels.byte_sizes(), 0).sum()) + 7 * BLOCK * len(listing)
    if need > (free := shutil.disk_usage(folder).free):
        raise VitrailError(
            f"{out} needs {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB left", "choose another place"
        )


class _Writer:
    """Shards that are being written, and what their index will say."""

    def __init__(self, folder: Path, found: Source, size: int, images: int, skip_unreadable: bool):
        self.folder, self.found, self.size, self.most = folder, found, size, images
        self.skip_unreadable = skip_unreadable
        self.classes = class_names(found)
        self.number = {label: i for i, label in enumerate(self.classes)}
        self.columns = empty_columns(sum(map(len, found.splits.values())))
        self.filled = np.zeros(len(self.columns["shard"]), dtype=bool)
        self.shards: list[Shard] = []
        self.formats: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self.rows = 0
        self.splits: dict[str, int] = {}
        self.per_split: Counter[str] = Counter()

    def write(self, split: str, listing: Listing, seed: int | None, tick: Callable[[int], object]) -> None:
        """All images of a split, into shards of its own."""
        begun, shards = self.rows, len(self.shards)
        self.rows += len(listing)
        stem = "shards" if split == "all" else split
        places = range(len(listing)) if seed is None else epoch_permutation(len(listing), seed, 0).tolist()
        with ExitStack() as stack:
            tar: _Tar | None = None
            for key, i in enumerate(places):
                tick(1)
                try:
                    extension, content = encoded(listing, i)
                except ImageError as error:
                    if not self.skip_unreadable:
                        raise
                    self.unreadable.append(error.name)
                    continue
                if tar and (tar.images >= self.most or tar.bytes + len(content) + 6 * BLOCK > self.size):
                    self.shards.append(tar.close())
                    tar = None
                tar = tar or _Tar(self.folder, f"{stem}-{len(self.shards) - shards:06d}.tar", stack)
                label, name = listing.labels[i], listing.names[i]
                row = Sample(f"{key:09d}", extension, content, label, self.number[label], name)
                self.note(begun + i, tar.add_sample(row), row, SPLITS.index(split))
            if tar:
                self.shards.append(tar.close())
        self.splits[split] = int(self.filled[begun : self.rows].sum())
        self.per_split[split] = len(self.shards) - shards

    def note(self, row: int, offset: int, sample: "Sample", split: int) -> None:
        """Where an image lies now: in the shard that is being written."""
        length, label = len(sample.content), sample.number
        facts = {"shard": len(self.shards), "offset": offset, "length": length, "label": label, "split": split}
        for column, value in facts.items():
            self.columns[column][row] = value
        self.columns["sha256"][row] = np.frombuffer(hashlib.sha256(sample.content).digest(), dtype=np.uint8)
        self.filled[row] = True
        self.formats[sample.extension] += 1

    def close(self) -> ShardSummary:
        """Writes the index; returns what there is."""
        if not self.filled.any():
            raise VitrailError(f"not one image of {self.found.name} can be read", "vitrail check says why")
        names = StringArray.from_strings(name for listing in self.found.splits.values() for name in listing.names)
        rows = np.flatnonzero(self.filled)
        if len(rows) < len(self.filled):
            names = StringArray.from_strings(names.take(rows))
        columns = {name: column[rows] for name, column in self.columns.items()}
        found = self.found
        index = ShardIndex(
            found.name, tuple(self.shards), self.classes, columns, names, channels=found.channels,
            flippable=found.can_flip,
        )  # fmt: skip
        save_index(index, self.folder / INDEX_FILE)
        return ShardSummary(
            "",
            images=len(index),
            bytes=sum(shard.size for shard in self.shards),
            shards=dict(self.per_split),
            splits=self.splits,
            classes=len(self.classes),
            formats=dict(self.formats),
            unreadable=self.unreadable,
        )


@dataclass(frozen=True)
class Sample:
    """An image with what is said of it."""

    key: str
    extension: str
    content: bytes
    label: str
    number: int
    name: str


class _Tar:
    """A shard that is being written; `stack` closes its file where nobody else does."""

    def __init__(self, folder: Path, name: str, stack: ExitStack):
        self.name = name
        self.file = stack.enter_context((folder / name).open("xb"))
        self.bytes = self.images = 0

    def add_sample(self, sample: Sample) -> int:
        """Writes the members of a sample; returns where the image begins."""
        said = json.dumps({"label": sample.label, "name": sample.name}, ensure_ascii=False)
        offset = self.add(f"{sample.key}.{sample.extension}", sample.content)
        self.add(f"{sample.key}.cls", str(sample.number).encode())
        self.add(f"{sample.key}.json", said.encode(errors="replace"))
        self.images += 1
        return offset

    def add(self, name: str, content: bytes) -> int:
        """Writes a member; returns where its bytes begin."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        begin = self.bytes + BLOCK
        padding = b"\0" * (-len(content) % BLOCK)
        self.file.write(member.tobuf(tarfile.USTAR_FORMAT))
        self.file.write(content)
        self.file.write(padding)
        self.bytes += BLOCK + len(content) + len(padding)
        return begin

    def close(self) -> Shard:
        """Ends the shard as tar does, and waits until it is on the disk."""
        end = b"\0" * (2 * BLOCK)
        self.file.write(end + b"\0" * (-(self.bytes + len(end)) % RECORD))
        self.file.flush()
        os.fsync(self.file.fileno())
        size = self.file.tell()
        self.file.close()
        return Shard(self.name, size)


def class_names(found: Source) -> tuple[str, ...]:
    """The classes in the order that training gives them, those that only other splits have behind."""
    splits = sorted(found.splits, key=lambda split: split not in ("train", "all"))
    ordered: dict[str, None] = {}
    for split in splits:
        ordered |= dict.fromkeys(factorize(found.splits[split].labels)[0])
    return tuple(ordered)


def encoded(listing: Listing, i: int) -> tuple[str, bytes]:
    """(extension, bytes) of an image: as it lies there, or pixels as PNG. Raises `ImageError`."""
    if not isinstance(listing.pixels, EncodedImages):
        return "png", png(listing.pixels[i])
    content = listing.pixels.read_bytes(i)
    if len(content) > MAX_IMAGE_BYTES:
        raise ImageError(
            listing.pixels.location(i),
            f"{len(content):,} bytes are more than the {MAX_IMAGE_BYTES:,} of a shard's image",
        )
    extension = PurePosixPath(listing.names[i]).suffix.lower()
    extension = extension[1:] if extension in EXTENSIONS else form_of(content)
    return ONE_SPELLING.get(extension, extension), content


def form_of(content: bytes) -> str:
    """The extension for bytes whose name says none; those of no image become .png, and stay unreadable."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            form = (image.format or "png").lower()
    except Exception:  # Pillow raises nearly anything
        return "png"
    return form if f".{form}" in EXTENSIONS else "png"


def png(pixels_CHW: Tensor) -> bytes:
    """Pixels without loss."""
    array: np.ndarray[Any, Any] = pixels_CHW.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()


def count_images(found: Source) -> int:
    """Images in all splits."""
    return sum(map(len, found.splits.values()))


def mixed_formats_note(formats: Sequence[str]) -> str | None:
    """What to say where a set has more than one format."""
    if len(formats) < 2:
        return None
    return f"images are {', '.join(sorted(formats))}: Hugging Face datasets takes shards of one format only"
