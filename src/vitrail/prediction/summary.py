"""The totals of a prediction run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.documents import PredictTotals
from vitrail.prediction.folder import MAX_EXAMPLES, PredictionFolder
from vitrail.prediction.listing import Part


@dataclass(frozen=True)
class PredictSummary:
    """The result of `predict_all`. `parts_done` counts this slice's parts, `parts` those of all slices."""

    out: Path
    images: int  # in the parts that are done
    unreadable: int
    examples: list[list[str]]  # some of the unreadable images: path, error
    labels: dict[str, int]  # images per predicted class
    parts: int
    parts_done: int
    over_8_bits: int = 0  # images in 16 bits or floats
    over_8_bits_example: str | None = None  # the path of one
    resumed: int = 0  # parts that were done before
    seconds: float = 0.0
    images_now: int = 0  # images predicted in these seconds
    complete: bool = False  # whether all slices are done

    def to_json(self) -> PredictTotals:
        rate = self.images_now / self.seconds if self.seconds else 0.0
        return {
            "images": self.images,
            "unreadable": self.unreadable,
            "labels": self.labels,
            "parts": self.parts,
            "parts_done": self.parts_done,
            "over_8_bits": self.over_8_bits,
            "over_8_bits_example": self.over_8_bits_example,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "complete": self.complete,
            "out": str(self.out),
            "images_per_second": round(rate, 2),
            "unreadable_files": [{"path": path, "error": error} for path, error in self.examples],
        }


def summarize(
    folder: PredictionFolder, format: str, parts: Sequence[Part], total_parts: int, **fields: Any
) -> PredictSummary:
    """Adds up the manifests of those `parts` that are done; `fields` are further fields of the summary."""
    images = parts_done = unreadable = over_8_bits = 0
    over_8_bits_example: str | None = None
    labels: Counter[str] = Counter()
    examples: list[list[str]] = []
    for part in parts:
        if manifest := folder.read_manifest(part, format):
            images, parts_done = images + manifest.rows, parts_done + 1
            unreadable += manifest.unreadable
            over_8_bits += manifest.over_8_bits
            over_8_bits_example = over_8_bits_example or manifest.over_8_bits_example
            labels.update(manifest.labels)
            examples += manifest.examples[: MAX_EXAMPLES - len(examples)]
    labels_by_count = dict(labels.most_common())
    return PredictSummary(
        folder.path,
        images,
        unreadable,
        examples,
        labels_by_count,
        total_parts,
        parts_done,
        over_8_bits,
        over_8_bits_example,
        **fields,
    )
