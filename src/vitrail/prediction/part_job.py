"""A part of the work, as any process does it: read, predict, write."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import VitrailError
from vitrail.prediction.folder import PartManifest, Plan, PredictionFolder, part_manifest
from vitrail.prediction.listing import Entry, Part, read_entries
from vitrail.prediction.model_spec import ModelSpec
from vitrail.prediction.rows import Rows, concatenate_rows, predict_rows, read_batch
from vitrail.prediction.table_formats import FORMS


@dataclass(frozen=True)
class PartJob:
    """What a process must know to do any part; it travels to other processes and machines."""

    model: ModelSpec
    plan: Plan
    folder: PredictionFolder
    listing: Path
    batch_size: int
    working_directory: str | None  # where relative paths are meant from, where there are any

    def open(self) -> BaseClassifier:
        """The classifier, warm; raises `VitrailError` where it is broken, or not the one that the work began with."""
        classifier = self.model.load_with_threads()
        if self.model.digest != self.plan.model:
            raise VitrailError(f"{self.model.model} is another model here", "give every machine the same one")
        preprocess = classifier.preprocess
        classifier.logits(torch.full((1, preprocess.channels, *preprocess.image_size), 128, dtype=torch.uint8))
        return classifier

    def batches(self, piece: Part) -> list[list[Entry]]:
        """The images of a part, so many at a time."""
        entries = read_entries(self.listing, piece)
        return [entries[at : at + self.batch_size] for at in range(0, len(entries), self.batch_size)]

    def predict_part(self, classifier: BaseClassifier, piece: Part, tick: Callable[[int], object]) -> PartManifest:
        """Does a part; `tick` is called with the images of each batch once they are predicted."""
        found: list[Rows] = []
        for entries in self.batches(piece):
            reading = read_batch(entries, classifier.preprocess)
            found.append(predict_rows(classifier, entries, reading, self.plan.top, self.plan.embedding))
            tick(len(entries))
        return self.write_part(classifier, piece, found)

    def write_part(self, classifier: BaseClassifier, piece: Part, found: Sequence[Rows]) -> PartManifest:
        """Writes a part's rows, whole or not at all."""
        rows, plan, classes = concatenate_rows(found), self.plan, classifier.classes
        width = self.width(classifier) if plan.embedding else None
        content = FORMS[plan.format](rows, classes, plan.top, width)
        readable = [i for i, error in enumerate(rows.errors) if error is None]
        labels = Counter(classes[i] for i in rows.labels[readable, 0]) if rows.labels.shape[1] else Counter[str]()
        errors = [(path, error) for path, error in zip(rows.paths, rows.errors, strict=True) if error is not None]
        done = part_manifest(piece.number, content, dict(labels), errors, len(rows))
        self.folder.write_part(done, content, plan.format)
        return done

    def width(self, classifier: BaseClassifier) -> int:
        """Numbers in an embedding."""
        assert isinstance(classifier, Classifier)
        return classifier.vit.config.pooled_width
