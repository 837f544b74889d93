"""Subject -> the document that is report.json, and the pictures that go with it. Every number of the page is in it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vitrail.evaluation.corruptions import measure_robustness
from vitrail.evaluation.outcome import Outcome
from vitrail.report.attribution import mean_maps, mistake_maps, worst
from vitrail.report.calibration import sureness
from vitrail.report.caveats import limits
from vitrail.report.faithfulness import believed
from vitrail.report.findings import findings
from vitrail.report.images import by_property, copies, embedded, suspected
from vitrail.report.provenance import described, made
from vitrail.report.scores import confused, scores
from vitrail.report.sprite_sheets import ThumbnailIndex, Thumbnails, sheets
from vitrail.report.subject import SampleSizes, Subject

FORMAT = 1
REPORT_STEPS = 10  # calls of `tick`, and one more with corruptions

Pictures = dict[str, bytes]  # WebP by name
Tick = Callable[[str], object]


def collect(subject: Subject, depth: SampleSizes, tick: Tick = lambda doing: None) -> tuple[dict[str, Any], Pictures]:
    """Everything that is said of the subject; `tick` is called with what is being done as it begins."""
    outcome = subject.evaluation.outcome
    parts = subject.parts | {subject.split: subject.images}
    thumbnails = Thumbnails(parts, subject.classifier.preprocess, depth.thumbnails)
    show = ThumbnailIndex(thumbnails, subject.split)
    tick("counting")
    document: dict[str, Any] = {
        "format": FORMAT,
        "made": made(subject),
        "model": described(subject),
        "data": {
            "said": subject.evaluation.description,
            "split": subject.split,
            "images": len(outcome.labels),
            "parts": {name: len(images) for name, images in parts.items()},
        },
        "classes": list(outcome.classes),
        **scores(subject),
        "curves": [row for row in subject.curves if "epoch" in row],
    }
    tick("calibrating")
    document["calibration"], document["abstain"] = sureness(subject)
    tick("explaining mistakes")
    tiles: list[np.ndarray] = []
    chosen = worst(outcome, depth.mistakes)
    rows, drawn = mistake_maps(subject.classifier, subject.images, outcome, chosen)
    document["mistakes"] = [row | {"thumbnail": show(row["image"])} for row in rows]
    tiles += drawn
    tick("explaining each class")
    document["looks"], drawn = mean_maps(subject.classifier, subject.images, outcome, depth.maps)
    for row in document["looks"]["classes"]:
        row["tile"] += len(tiles)
    tiles += drawn
    tick("scoring the maps")
    document["faithfulness"], why_not = believed(subject, depth)
    document["left_out"] = {"faithfulness": why_not} if why_not else {}
    tick("looking for label errors")
    document["labels"] = suspected(outcome, show, depth)
    tick("looking for copies")
    document["copies"] = copies(subject, parts, show, depth)
    tick("brightness, size and sharpness")
    document["properties"] = by_property(subject, depth)
    document["corruptions"] = None
    if depth.corruptions:
        tick("corrupting images")
        document["corruptions"] = measure_robustness(subject.classifier, subject.images, max_images=depth.corruptions)
    tick("mapping what looks alike")
    document["embedding"], scatter = embedded(subject, depth)
    tick("drawing")
    document["confusion"] = confused(outcome, show, depth)
    document["thumbnails"], pictures = drawn_thumbnails(outcome, thumbnails, subject.split)
    document["tiles"], files = sheets("maps", tiles)
    document["limits"] = limits(document)
    document["findings"] = findings(document)
    return document, pictures | files | scatter


def drawn_thumbnails(outcome: Outcome, thumbnails: Thumbnails, split: str) -> tuple[dict[str, Any], Pictures]:
    """The sheets of thumbnails and what each of them shows."""
    layout, files = sheets("images", thumbnails.pixels())
    confidence = outcome.probabilities.max(axis=1)
    named: list[dict[str, Any]] = []
    for (part, i), row in zip(thumbnails.places, thumbnails.names(), strict=True):
        scored = part == split
        answer = (
            {"predicted": int(outcome.predicted[i]), "probability": round(float(confidence[i]), 4)} if scored else {}
        )
        named.append(row | answer)
    return layout | {"images": named}, files
