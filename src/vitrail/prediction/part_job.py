"""A part of the work, as any process does it: read, predict, write."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import VitrailError
from vitrail.prediction.model_spec import Address
from vitrail.prediction.folder import Done, PartsFolder, Plan, noted
from vitrail.prediction.table_formats import FORMS
from vitrail.prediction.listing import Entry, Piece, read_entries
from vitrail.prediction.rows import Rows, joined, read, rows_of


@dataclass(frozen=True)
class Task:
    """What a process must know to do any part; it travels to other processes and machines."""

    address: Address
    plan: Plan
    folder: PartsFolder
    listing: Path
    batch: int
    home: str | None  # where relative paths are meant from, where there are any

    def open(self) -> BaseClassifier:
        """The classifier, warm; raises `VitrailError` where it is broken, or not the one that the work began with."""
        classifier = self.address.with_threads()
        if self.address.key != self.plan.model:
            raise VitrailError(f"{self.address.model} is another model here", "give every machine the same one")
        preprocess = classifier.preprocess
        classifier.logits(torch.full((1, preprocess.channels, *preprocess.image_size), 128, dtype=torch.uint8))
        return classifier

    def batches(self, piece: Piece) -> list[list[Entry]]:
        """The images of a part, so many at a time."""
        entries = read_entries(self.listing, piece)
        return [entries[at : at + self.batch] for at in range(0, len(entries), self.batch)]

    def do(self, classifier: BaseClassifier, piece: Piece, tick: Callable[[int], object]) -> Done:
        """Does a part; `tick` is called with the images of each batch once they are predicted."""
        found: list[Rows] = []
        for entries in self.batches(piece):
            reading = read(entries, classifier.preprocess)
            found.append(rows_of(classifier, entries, reading, self.plan.top, self.plan.embedding))
            tick(len(entries))
        return self.write(classifier, piece, found)

    def write(self, classifier: BaseClassifier, piece: Piece, found: Sequence[Rows]) -> Done:
        """Writes a part's rows, whole or not at all."""
        rows, plan, classes = joined(found), self.plan, classifier.classes
        width = self.width(classifier) if plan.embedding else None
        content = FORMS[plan.format](rows, classes, plan.top, width)
        readable = [i for i, error in enumerate(rows.errors) if error is None]
        labels = Counter(classes[i] for i in rows.labels[readable, 0]) if rows.labels.shape[1] else Counter[str]()
        errors = [(path, error) for path, error in zip(rows.paths, rows.errors, strict=True) if error is not None]
        done = noted(piece.number, content, dict(labels), errors, len(rows))
        self.folder.write(done, content, plan.format)
        return done

    def width(self, classifier: BaseClassifier) -> int:
        """Numbers in an embedding."""
        assert isinstance(classifier, Classifier)
        return classifier.vit.config.pooled_width
