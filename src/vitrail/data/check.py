"""A look at the data before anyone trains on it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.data.decode import ImageError
from vitrail.data.found import Found, Listing
from vitrail.data.images import Files
from vitrail.data.sources import find
from vitrail.errors import UsageError, VitrailError

TINY_CLASS = 10  # images; below it neither training nor a test score says much
TOO_SMALL = 4  # times smaller than the median side
IMBALANCE = 10  # largest class over smallest


@dataclass
class Report:
    """What was found: errors stop training, warnings do not."""

    data: str
    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # images per class over all splits
    splits: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)  # smallest, median, largest of height and width
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(vars(self))


def check(address: str | Path, tick: Callable[[int, int], object] = lambda done, total: None) -> Report:
    """Reads every image at an address and reports what would hurt training or its score.

    `tick` is called with (done, total). Raises `UsageError` where nothing lies at the address; everything else is in
    the report.
    """
    report = Report(str(address))
    try:
        found = find(address)
    except UsageError:
        raise
    except VitrailError as error:
        report.errors.append(str(error))
        return report
    report.splits = {split: len(listing) for split, listing in found.splits.items()}
    report.images = sum(report.splits.values())
    report.classes = dict(sorted(Counter(c for listing in found.splits.values() for c in listing.labels).items()))
    report.warnings += [note for note in found.notes if "left out" in note or "takes in" in note]
    _classes(found, report)
    _images(found, report, tick)
    return report


def _classes(found: Found, report: Report) -> None:
    training = found.splits.get("train", found.splits.get("all"))
    if training is None:
        report.errors.append(f"{report.data} has {' and '.join(found.splits)} but no training images")
        return
    counts = Counter(training.labels)
    if len(counts) < 2:
        report.errors.append(f"there is only the class {next(iter(counts))!r}; two are needed")
    for split, listing in found.splits.items():
        strangers = sorted(set(listing.labels) - set(counts))
        missing = sorted(set(counts) - set(listing.labels))
        if strangers:
            report.errors.append(f"{split} has classes that training lacks: {', '.join(strangers)}")
        if missing:
            report.warnings.append(f"{split} has no image of {', '.join(missing)}")
    tiny = [f"{name} ({n})" for name, n in sorted(counts.items()) if n < TINY_CLASS]
    if tiny:
        report.warnings.append(f"fewer than {TINY_CLASS} training images: {', '.join(tiny)}")
    if max(counts.values()) > IMBALANCE * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        report.warnings.append(f"{most!r} has {counts[most]} training images, {least!r} only {counts[least]}")
    alike = defaultdict(list)
    for name in counts:
        alike[" ".join(name.casefold().split())].append(name)
    for names in alike.values():
        if len(names) > 1:
            report.warnings.append(f"the classes {' and '.join(map(repr, names))} differ in case or spaces only")


def _images(found: Found, report: Report, tick: Callable[[int, int], object]) -> None:
    seen: dict[bytes, list[tuple[str, str, str]]] = defaultdict(list)
    shapes: list[tuple[int, ...]] = []
    readable: list[str] = []
    done = 0
    for split, listing in found.splits.items():
        for i, name in enumerate(listing.names):
            try:
                pixels = listing.pixels[i]
                shapes.append(tuple(pixels.shape[-2:]))
                readable.append(name)
                seen[_content(listing, i, pixels)].append((split, name, listing.labels[i]))
            except ImageError as error:
                report.unreadable.append(name)
                report.errors.append(f"{name}: {error.reason}")
            done += 1
            tick(done, report.images)
    if shapes:
        for side, values in zip(("height", "width"), np.array(shapes).T, strict=True):
            report.sizes[side] = [int(values.min()), int(np.median(values)), int(values.max())]
        sides = np.array(shapes).min(axis=1)
        dwarfs = np.flatnonzero(sides * TOO_SMALL < np.median(sides))
        if len(dwarfs):
            h, w = shapes[dwarfs[0]]
            report.warnings.append(
                f"{len(dwarfs)} image{'s' if len(dwarfs) > 1 else ''} far smaller than the others, for instance "
                f"{readable[dwarfs[0]]} with {w}x{h} pixels; training refuses one that is smaller than a patch"
            )
    _duplicates([copies for copies in seen.values() if len(copies) > 1], report)


def _content(listing: Listing, i: int, pixels: Tensor) -> bytes:
    """A digest of the file, or of the pixels where there is no file."""
    content = listing.pixels.paths[i].read_bytes() if isinstance(listing.pixels, Files) else pixels.numpy().tobytes()
    return hashlib.sha256(content).digest()


def _duplicates(groups: list[list[tuple[str, str, str]]], report: Report) -> None:
    kinds: tuple[tuple[str, Callable[[list[tuple[str, str, str]]], bool]], ...] = (
        ("the same image under different classes", lambda copies: len({c for _, _, c in copies}) > 1),
        ("the same image in different splits", lambda copies: len({s for s, _, _ in copies}) > 1),
        ("the same image more than once", lambda copies: len({s for s, _, _ in copies}) == 1),
    )
    for kind, differ in kinds:
        hit = [copies for copies in groups if differ(copies)]
        if hit:
            example = " = ".join(name for _, name, _ in hit[0][:3])
            report.warnings.append(f"{kind}, {len(hit)} time{'s' if len(hit) > 1 else ''}, for instance {example}")
