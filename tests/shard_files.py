"""Helpers of the tests of tar shards: write, damage and count them."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from conftest import picture
from vitrail.data.augment import Augment, build_augmentation
from vitrail.data.check import check_data
from vitrail.data.decode import ImageError
from vitrail.data.loader import TrainLoader
from vitrail.data.open import open_data, open_source
from vitrail.data.preprocess import Preprocess
from vitrail.data.shards.index import INDEX_FILE
from vitrail.data.shards.index_file import parse_index
from vitrail.data.shards.writer import write_shards

SMALL = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}


def write_set(data: Path | str, out: Path, **options) -> Path:
    write_shards(open_source(data), out, **options)
    return out


def modify_file(path: Path, change: Callable[[bytearray], object]) -> None:
    """Changes the bytes and the modification time of a file."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def locate_image(address: Path, name: str) -> tuple[Path, int, int]:
    """Returns shard, offset and length of an image in shards with an index file."""
    index = parse_index((address / INDEX_FILE).read_bytes(), "index")
    row = list(index.names).index(name)
    c = index.columns
    return address / index.shards[c["shard"][row]].address, int(c["offset"][row]), int(c["length"][row])


def tar_members(path: Path, ending: str) -> list[bytes]:
    with tarfile.open(path) as file:
        return [file.extractfile(m).read() for m in file if m.name.endswith(ending)]  # type: ignore[union-attr]


def digests_and_labels(photos: Path, split: str) -> list[tuple[str, str]]:
    """Returns (SHA-256, label) of the images of a split, sorted."""
    return sorted(
        (hashlib.sha256(path.read_bytes()).hexdigest(), path.parent.name) for path in (photos / split).rglob("*.png")
    )


def find_unreadable(address: object) -> dict[str, str]:
    """Returns the findings of `check` about unreadable images by their names, and other damage by its sentence."""
    report = check_data(str(address))
    sentences = {f.paths[0] if f.paths else f.message: f.message for f in report.findings if f.is_skippable}
    assert report.unreadable == [name for name in sentences if sentences[name] != name]
    return sentences


def count_read_and_refused(address: object) -> tuple[int, int]:
    """Counts the images of all splits that come in batches, and those that are refused."""
    transform = build_augmentation(Augment(), Preprocess(image_size=(8, 8)))
    refused: list[ImageError] = []
    read = 0
    for images in open_data(str(address), missing_ok=True).as_dict().values():
        for x, _ in TrainLoader(images, transform, 5, seed=0, workers=0, on_error=refused.append).epoch(0):
            read += len(x)
    return read, len(refused)


def write_tar(path: Path, *rows: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for member, content in rows:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content) if info.isreg() else 0
            file.addfile(info, io.BytesIO(content))
    return path


def png_bytes(value: int = 0) -> bytes:
    file = io.BytesIO()
    picture((value, 10, 90), value).save(file, "PNG")
    return file.getvalue()
