"""A survey: the facts of every image of a source, and the duplicates among them."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitrail.data.decode import ImageError
from vitrail.data.encoded import ImageFiles
from vitrail.data.facts import ImageFacts
from vitrail.data.near_duplicates import IndexPair
from vitrail.data.source import Listing, Source
from vitrail.data.stacks import ImageStacks


@dataclass(frozen=True)
class ImageRecord:
    """An image of a source."""

    split: str
    index: int  # in the split
    name: str
    label: str


@dataclass
class Survey:
    """A source with the facts of its images, and the settings of the recipe that matter for a check."""

    source: Source
    facts: dict[str, list[ImageFacts | ImageError]]  # by split
    find_pairs: Callable[[list[bytes], list[str]], list[IndexPair]]  # `near_duplicate_pairs`, cached
    batch_size: int | None = None
    fit: str = "pad"

    @cached_property
    def training(self) -> Listing | None:
        """The images for training."""
        return self.source.splits.get("train", self.source.splits.get("all"))

    @cached_property
    def class_counts(self) -> Counter[str]:
        """The number of training images per class, or with each label."""
        return self.training.labels.counts() if self.training else Counter()

    @cached_property
    def images(self) -> list[tuple[ImageRecord, ImageFacts | ImageError]]:
        """All listed images."""
        return [
            (ImageRecord(split, i, listing.names[i], listing.labels[i]), facts)
            for split, listing in self.source.splits.items()
            for i, facts in enumerate(self.facts[split])
        ]

    @cached_property
    def readable(self) -> list[tuple[ImageRecord, ImageFacts]]:
        return [(record, facts) for record, facts in self.images if isinstance(facts, ImageFacts)]

    @cached_property
    def unreadable(self) -> list[tuple[ImageRecord, ImageError]]:
        return [(record, error) for record, error in self.images if isinstance(error, ImageError)]

    @cached_property
    def duplicates(self) -> list[list[ImageRecord]]:
        """Groups of identical images."""
        groups: dict[bytes, list[ImageRecord]] = defaultdict(list)
        for record, facts in self.readable:
            groups[facts.sha256].append(record)
        return [group for group in groups.values() if len(group) > 1]

    @cached_property
    def near_duplicates(self) -> list[tuple[ImageRecord, ImageRecord, float]]:
        """Pairs of near-duplicates with their similarity; of identical images, the first of each split and class."""
        identical: dict[bytes, dict[tuple[str, str], ImageRecord]] = defaultdict(dict)
        signatures: dict[bytes, bytes] = {}
        for record, facts in self.readable:
            if facts.signature:
                identical[facts.sha256].setdefault((record.split, record.label), record)
                signatures[facts.sha256] = facts.signature
        groups = [list(records.values()) for records in identical.values()]
        splits = [" ".join(sorted({record.split for record in group})) for group in groups]
        pairs = self.find_pairs(list(signatures.values()), splits)
        return [(a, b, similarity) for i, j, similarity in pairs for a in groups[i] for b in groups[j]]

    def files(self, record: ImageRecord) -> tuple[Path, ...]:
        """Returns the file of an image, or its files if it has several; none if it has none of its own."""
        pixels = self.source.splits[record.split].pixels
        if isinstance(pixels, ImageStacks):
            return pixels.stacks[record.index]
        return (pixels.paths[record.index],) if isinstance(pixels, ImageFiles) else ()


def have_conflicting_labels(records: list[ImageRecord]) -> bool:
    return len({record.label for record in records}) > 1


def are_across_splits(records: list[ImageRecord]) -> bool:
    return len({record.split for record in records}) > 1
