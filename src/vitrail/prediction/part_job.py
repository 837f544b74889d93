"""The work on one part, the same in every process: read, predict, write."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.batching import BatchHalver
from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import VitrailError
from vitrail.prediction.entry import Entry
from vitrail.prediction.folder import PartManifest, Plan, PredictionFolder, part_manifest
from vitrail.prediction.listing import Part, read_entries
from vitrail.prediction.model_spec import ModelSpec
from vitrail.prediction.rows import Rows, concatenate_rows, predict_rows, read_batch
from vitrail.prediction.table_formats import TABLE_FORMATS


@dataclass(frozen=True)
class PartJob:
    """What a process needs to predict any part; it is pickled for other processes and machines."""

    model: ModelSpec
    plan: Plan
    folder: PredictionFolder
    listing: Path
    batch_size: int
    working_directory: str | None  # where relative paths start, if there are any

    def load_classifier(self) -> BaseClassifier:
        """Returns the classifier after a first forward; raises `VitrailError` if it is broken or not the plan's."""
        classifier = self.model.load_with_threads()
        if self.model.digest != self.plan.model:
            raise VitrailError(f"{self.model.model} is another model here", "give every machine the same one")
        preprocess = classifier.preprocess
        classifier.logits(preprocess.blank())
        return classifier

    def batches(self, part: Part) -> list[list[Entry]]:
        """Cuts the images of a part into batches."""
        entries = read_entries(self.listing, part)
        return [entries[start : start + self.batch_size] for start in range(0, len(entries), self.batch_size)]

    def predict_part(
        self, classifier: BaseClassifier, part: Part, on_batch: Callable[[int], object] = lambda images: None
    ) -> PartManifest:
        """Predicts and writes a part; calls `on_batch` with the number of images after each batch."""
        batches: list[Rows] = []
        halve = BatchHalver()
        for entries in self.batches(part):
            batch = read_batch(entries, classifier.preprocess)
            batches.append(predict_rows(classifier, entries, batch, self.plan.top, self.plan.embedding, halve))
            on_batch(len(entries))
        return self.write_part(classifier, part, batches)

    def write_part(self, classifier: BaseClassifier, part: Part, batches: Sequence[Rows]) -> PartManifest:
        """Writes the rows of all batches of a part."""
        rows, plan, classes = concatenate_rows(batches), self.plan, classifier.classes
        content = TABLE_FORMATS[plan.format](rows, classes, plan.top, self._embedding_width(classifier))
        readable = [i for i, error in enumerate(rows.errors) if error is None]
        labels = Counter(classes[i] for i in rows.labels[readable, 0]) if rows.labels.shape[1] else Counter[str]()
        labels.update(each.label for found in rows.found or () for each in found)
        errors = [(path, error) for path, error in zip(rows.paths, rows.errors, strict=True) if error is not None]
        manifest = part_manifest(part.number, content, dict(labels), errors, rows.over_8_bits, len(rows))
        self.folder.write_part(manifest, content, plan.format)
        return manifest

    def _embedding_width(self, classifier: BaseClassifier) -> int | None:
        if not self.plan.embedding:
            return None
        assert isinstance(classifier, Classifier)
        return classifier.vit.config.pooled_width
