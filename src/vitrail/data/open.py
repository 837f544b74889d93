"""DATA -> training, validation and test images, with one class order for all of them.

A source says what lies at an address (`Found`: images, names and class names per split); what is missing is divided
off here, by class and by seed. The class order comes from the training images alone.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.data.builtin import BUILTIN_DATASETS, read_builtin_dataset
from vitrail.data.encoded import DIGEST, EncodedImages
from vitrail.data.folder import read_image_folder
from vitrail.data.hf import HF_PREFIX, read_hf_dataset
from vitrail.data.images import Images
from vitrail.data.randomness import derive_seed
from vitrail.data.shards import is_shards, list_shards
from vitrail.data.source import Listing, Source
from vitrail.data.strings import factorize
from vitrail.data.table import TABLE_EXTENSIONS, read_table
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.files import absolute_if_exists

SCORED = ("test", "validation", "all", "train")  # the first of these that there is, is what a classifier is scored on
CHOSE = "by which training made its choices"  # of images that chose weights, a temperature or a penalty
OPTIMISTIC = f"{CHOSE}, so the figures are a little too good"


@dataclass(frozen=True)
class Splits:
    """What to train on, what to choose by and what to report on; all share `classes`."""

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images | None
    test: Images | None
    channels: int
    fingerprint: str  # of names, labels and sizes of everything found
    can_flip: bool = True  # whether a mirrored image keeps its class (digits do not)
    notes: list[str] = field(default_factory=list)  # how the splits came about, in sentences
    unreadable: dict[str, int] = field(default_factory=dict)  # images per split that were listed and are left out
    source_splits: dict[str, str] = field(default_factory=dict)  # split -> that of the source which its images are from

    def as_dict(self) -> dict[str, Images]:
        """The splits that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: images for name, images in named.items() if images is not None}


def absolute_address(address: str | Path) -> str:
    """An address that means the same in any folder: a path, or a pattern of paths, in full; a name as it is."""
    said = str(address)
    if isinstance(address, str) and said in BUILTIN_DATASETS:  # also where a folder is called so
        return said
    if said.startswith(HF_PREFIX):
        return HF_PREFIX + absolute_if_exists(said.removeprefix(HF_PREFIX))
    return str(Path(said).resolve()) if "://" not in said and is_shards(said) else absolute_if_exists(said)


def open_source(address: str | Path, channels: int | None = None, missing_ok: bool = False) -> Source:
    """What lies at an address, in its own or in so many channels: a built-in name, a folder, a table, shards, hf:NAME.

    Raises `VitrailError` for a file or shard that is listed and that is not there, unless `missing_ok`.
    """
    found = read_source(address)
    if (gone := [*found.missing, *found.damaged]) and not missing_ok:
        more = f" (and {len(gone) - 1} more are missing)" if len(gone) > 1 else ""
        raise VitrailError(gone[0] + more, found.hint)
    return found.in_channels(channels) if channels else found


def read_source(address: str | Path) -> Source:
    if isinstance(address, str) and address in BUILTIN_DATASETS:
        found = read_builtin_dataset(address)
        if Path(address).exists():
            found.notes.append(f"the built-in {address} is meant; the folder of that name is ./{address}")
        return found
    if str(address).startswith(HF_PREFIX):
        return read_hf_dataset(str(address))
    if is_shards(address):
        return list_shards(address)
    path = Path(address)
    if os.path.isdir(path):  # os.path's own: pathlib raises where a name is too long
        return read_image_folder(path)
    if path.suffix.lower() in TABLE_EXTENSIONS and os.path.isfile(path):
        return read_table(path)
    if os.path.isfile(path):
        raise UsageError(
            f"{path} is not a folder, a table ({', '.join(TABLE_EXTENSIONS)}), a tar shard or a built-in name"
        )
    hint = did_you_mean(str(address), BUILTIN_DATASETS) if "/" not in str(address) else None
    raise UsageError(f"there is no folder, table or built-in data set {str(address)!r}", hint)


def open_data(
    address: str | Path,
    *,
    channels: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    split_seed: int = 0,
    missing_ok: bool = False,
) -> Splits:
    """The splits at an address for training.

    Splits that are there are taken as they are; where there is only one, `test` and `validation` of it are divided
    off class by class; where only validation is missing, it comes off training. Raises `VitrailError` where
    training makes no sense.
    """
    found = open_source(address, channels, missing_ok)
    notes = list(found.notes)
    parts = complete_splits(found.splits, test, validation, split_seed)
    if "train" not in parts:
        raise VitrailError(f"{address} has {' and '.join(parts)} but no training images", "add a folder named train")
    for name, fraction, purpose in (
        ("test", test, "are kept back as test"),
        ("validation", validation, "choose the weights"),
    ):
        if name in parts and name not in found.splits:
            notes.append(f"{len(parts[name])} images ({fraction:.0%} of each class) {purpose}")
    classes = tuple(sorted(set(parts["train"].labels)))
    if len(classes) < 2:
        raise VitrailError(
            f"{address} has {len(classes)} class{'' if len(classes) == 1 else 'es'} to train on; two are needed",
            "put each class into a folder of its own",
        )
    indexed = {
        split: encode_labels(listing, classes, f"{address}, {split}")
        for split, listing in parts.items()
        if listing.labels
    }
    for split, images in indexed.items():
        missing = [name for name, n in images.count_by_class().items() if n == 0]
        if split != "train" and missing:
            notes.append(f"{split} has no image of {', '.join(missing)}")
    return Splits(
        name=found.name,
        classes=classes,
        train=indexed["train"],
        validation=indexed.get("validation"),
        test=indexed.get("test"),
        channels=found.channels,
        fingerprint=compute_fingerprint(found),
        can_flip=found.can_flip,
        notes=notes,
        source_splits={
            split: split if split in found.splits else "all" if "all" in found.splits else "train" for split in indexed
        },
    )


def open_evaluation_images(
    address: str | Path,
    classes: tuple[str, ...],
    channels: int,
    trained_on: dict[str, Any],
    missing_ok: bool = False,
) -> tuple[Images, str]:
    """The images at an address that this classifier should be scored on, and words that say which they are.

    The test split, else validation, else everything. Where the classifier was trained on this very source, what it
    lacks is divided off as training did, so that no training image is scored.
    """
    found, parts, same = open_as_trained(address, channels, trained_on, missing_ok)
    name = next(s for s in SCORED if len(parts.get(s, ())))
    listing = parts[name]
    said = f"{'all' if name == 'all' else 'the'} {len(listing)} {'' if name == 'all' else name + ' '}images"
    if name in ("test", "validation") and name not in found.splits:
        said += " that training kept back"
    said += f" of {found.name}"
    if name == "train" and same:
        said += ", which the model was trained on"
    elif name == "validation" and same:
        said += f", {CHOSE}"
    elif name in ("all", "train") and found.name == trained_on.get("name"):
        said += ", which have changed since training: images that the model was trained on may be among them"
    return encode_labels(
        listing, classes, str(address), " (vitrail train DATA --from MODEL makes a head for others)"
    ), said


def open_known_splits(
    address: str | Path,
    classes: tuple[str, ...],
    channels: int,
    trained_on: dict[str, Any],
    missing_ok: bool = False,
) -> dict[str, Images]:
    """Every split at an address by name, divided as training did; without those that have a class of their own."""
    _, parts, _ = open_as_trained(address, channels, trained_on, missing_ok)
    known = {name: listing for name, listing in parts.items() if len(listing) and set(listing.labels) <= set(classes)}
    return {name: encode_labels(listing, classes, str(address)) for name, listing in known.items()}


def open_as_trained(
    address: str | Path, channels: int, trained_on: dict[str, Any], missing_ok: bool
) -> tuple[Source, dict[str, Listing], bool]:
    """What lies at an address, its splits, and whether it is what the classifier was trained on.

    If so, splits that it lacks are divided off as training did.
    """
    found = open_source(address, channels, missing_ok)
    split = trained_on.get("split")
    same = bool(split) and trained_on.get("fingerprint") == compute_fingerprint(found)
    if split and same:
        return found, complete_splits(found.splits, split["test"], split["validation"], split["seed"]), True
    return found, found.splits, False


def complete_splits(parts: dict[str, Listing], test: float, validation: float, seed: int) -> dict[str, Listing]:
    """The splits with what is missing divided off: test of an undivided source, validation of training."""
    parts = dict(parts)
    if "all" in parts:
        parts["train"], parts["test"] = split_listing(parts.pop("all"), test, seed)
    if "train" in parts and "validation" not in parts:
        parts["train"], parts["validation"] = split_listing(parts["train"], validation, seed + 1)
    return {name: listing for name, listing in parts.items() if len(listing)}


def split_listing(listing: Listing, fraction: float, seed: int) -> tuple[Listing, Listing]:
    """(rest, part): `part` has the fraction of each class, at least one image where the class has three.

    Which images depends on their names and the seed alone, not on how they are listed; copies of one image stay
    together, so that `part` holds nothing that is also in `rest`.
    """
    if not fraction:
        return listing, listing.subset([])
    part: list[int] = []
    table, codes = factorize(listing.labels)
    copies = first_duplicates(listing)
    for members in np.split(np.argsort(codes, kind="stable"), np.bincount(codes, minlength=len(table)).cumsum()[:-1]):
        wanted = min(max(round(fraction * len(members)), 1 if len(members) >= 3 else 0), len(members) - 1)
        groups: dict[int, list[int]] = {}
        for i in sorted(members.tolist(), key=lambda i: listing.names[i]):
            groups.setdefault(int(copies[i]), []).append(i)
        chosen: list[int] = []
        for group in sorted(groups.values(), key=lambda group: derive_seed("split", seed, listing.names[group[0]])):
            if len(chosen) + len(group) <= wanted:
                chosen += group
        part += chosen
    return listing.subset(np.delete(np.arange(len(listing)), part)), listing.subset(sorted(part))


def first_duplicates(listing: Listing) -> np.ndarray:
    """For each image the place of the first with the very same content; only files of equal size are read."""
    first = np.arange(len(listing))
    if isinstance(listing.pixels, Tensor):
        seen: dict[bytes, int] = {}
        return np.array([seen.setdefault(pixels.numpy().tobytes(), i) for i, pixels in enumerate(listing.pixels)])
    if not isinstance(listing.pixels, EncodedImages):
        return first  # a set that decodes when asked: too long to read just for this
    sizes = listing.pixels.byte_sizes()
    _, number, often = np.unique(sizes, return_inverse=True, return_counts=True)
    alike = np.flatnonzero((often[number] > 1) & (sizes >= 0))
    digests = np.ascontiguousarray(listing.pixels.sha256(alike)).view(f"S{DIGEST}").ravel()
    _, earliest, which = np.unique(digests, return_index=True, return_inverse=True)
    first[alike] = alike[earliest[which]]
    return first


def encode_labels(listing: Listing, classes: tuple[str, ...], where: str, advice: str = "") -> Images:
    """The listing with its class names as numbers; raises `VitrailError` for a class that training does not know."""
    table, codes = factorize(listing.labels)
    unknown = sorted(set(table) - set(classes))
    if unknown:
        raise VitrailError(
            f"{where}: the class{'es' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))} "
            f"{'are' if len(unknown) > 1 else 'is'} not among the classes trained on",
            f"the classes are {', '.join(map(repr, classes[:20]))}{' ...' if len(classes) > 20 else ''}{advice}",
        )
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[label] for label in table], dtype=np.int64)[codes]
    files = listing.pixels.locations() if isinstance(listing.pixels, EncodedImages) else None
    return Images(listing.pixels, listing.names, labels, classes, files)


def compute_fingerprint(found: Source) -> str:
    """SHA-256 over every split's names, labels and (for files) sizes, in an order of its own.

    Rows that come in order, as they mostly do, are not held in memory.
    """
    sha = hashlib.sha256()
    between = b""
    for split, listing in sorted(found.splits.items()):
        sizes = (
            listing.pixels.byte_sizes()
            if isinstance(listing.pixels, EncodedImages)
            else np.zeros(len(listing), dtype=int)
        )
        rows = partial(fingerprint_rows, split, listing, sizes)
        for row in rows() if is_sorted(rows()) else sorted(rows()):
            sha.update(between + row.encode())
            between = b"\n"
    return sha.hexdigest()


def fingerprint_rows(split: str, listing: Listing, sizes: np.ndarray) -> Iterator[str]:
    """A row for each image of a split: what its fingerprint is made of."""
    for name, label, size in zip(listing.names, listing.labels, sizes, strict=True):
        yield f"{split}\0{name}\0{label}\0{size}"


def is_sorted(rows: Iterable[str]) -> bool:
    """Whether each comes after the one before."""
    return all(a <= b for a, b in pairwise(rows))
