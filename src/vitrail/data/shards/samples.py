"""Members of a tar file -> samples: which image belongs to which label.

In WebDataset, members with the same key, the path up to the first dot of the file name, are one sample: 0001.jpg,
0001.cls, 0001.json. In an archive of a folder, a dot is only a part of a name: IMG_2024.06.01.png. Members that follow
one another and have the same key are a group. In a group:

- an image with a label of its own name up to the last dot (a.b.png, a.b.cls) is a sample;
- if the key has a label (a.cls), the other images of the group are one sample, with one image; the rest is left out;
- otherwise every other image is a sample, whose class is its folder.
"""

import json
import re
import tarfile
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vitrail.data.formats import EXTENSIONS, is_hidden
from vitrail.data.shards.index import Fault
from vitrail.data.table_rows import LABEL_COLUMNS

LABEL_EXTENSIONS = ("json", "cls", "label")  # by priority
Label = str | tuple[str, ...]  # a class, or several labels
METADATA_NAME = re.compile("__[^/]*__")  # which WebDataset skips


@dataclass
class TarMember:
    """A member of a tar file that may be an image or have a label."""

    info: tarfile.TarInfo
    fault: Fault = Fault.NONE
    sha256: bytes = b""  # of an image
    label: Label | None = None  # in a label member

    @property
    def stem(self) -> str:
        """The path up to the last dot of the file name."""
        return split_name(self.info.name)[0]

    @property
    def extension(self) -> str:
        """What follows the last dot of the file name, in lower case."""
        return split_name(self.info.name)[1]

    @property
    def is_image(self) -> bool:
        return f".{self.extension}" in EXTENSIONS

    @property
    def is_label(self) -> bool:
        return self.extension in LABEL_EXTENSIONS


@dataclass
class TarSample:
    """An image with its label, or None if there is none; or members without an image."""

    image: TarMember | None
    label: Label | None = None


def split_name(path: str) -> tuple[str, str]:
    """Returns a path up to the last dot of its file name, and what follows in lower case."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.rpartition(".")
    return (folder + slash + stem, extension.lower()) if stem else (path, "")


def sample_key(path: str) -> str:
    """Returns a path up to the first dot of its file name, as WebDataset does."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def is_skipped(path: str) -> bool:
    """Returns whether a member is hidden, as in a folder, or has metadata of the archive (__name__)."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return not parts or any(map(is_hidden, parts)) or bool(METADATA_NAME.fullmatch(parts[-1]))


def divide_group(key: str, group: list[TarMember]) -> tuple[list[TarSample], list[TarMember]]:
    """Returns the samples of a group of members, and the images that are left out."""
    labels: dict[str, dict[str, TarMember]] = {}  # by stem and extension
    for member in group:
        if member.is_label:
            labels.setdefault(member.stem, {}).setdefault(member.extension, member)
    images = [member for member in group if member.is_image]
    if not images:
        return [TarSample(None)], []
    shared = [image for image in images if image.stem == key or image.stem not in labels]
    left_out: list[TarMember] = []
    if key in labels and shared:
        chosen = min(shared, key=lambda image: image.stem != key)  # the first, but rather a.png than a.mask.png
        left_out = [image for image in shared if image is not chosen]
    dropped = set(map(id, left_out))
    samples = [
        TarSample(image, find_label(image, labels.get(image.stem if image.stem in labels else key, {})))
        for image in images
        if id(image) not in dropped
    ]
    return samples, left_out


def find_label(image: TarMember, labels: dict[str, TarMember]) -> Label | None:
    """Returns the label of an image: from its JSON, its .cls, its .label, or its folder."""
    for extension in LABEL_EXTENSIONS:
        if extension in labels and (label := labels[extension].label) is not None:
            return label
    folder = PurePosixPath(printable_name(image.info.name)).parent.name
    return unicodedata.normalize("NFC", folder) if folder not in ("", "/", "..") else None


def parse_label(extension: str, content: bytes) -> Label | None:
    """Returns the label in a member's bytes, several from a list in JSON, None if there is none."""
    try:
        value: Any = json.loads(content) if extension == "json" else content.decode()
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in value if str(key).lower() in LABEL_COLUMNS), None)
    if isinstance(value, list) and all(isinstance(each, str | int) and not isinstance(each, bool) for each in value):
        return tuple(sorted({unicodedata.normalize("NFC", str(each).strip()) for each in value}))
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return unicodedata.normalize("NFC", str(value).strip()) or None


def printable_name(name: str) -> str:
    """Returns a member's name with bytes that are not UTF-8 replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
