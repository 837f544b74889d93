"""Collects the document of a report, which is report.json, and its pictures. The page shows nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from vitrail.data.images import Images
from vitrail.evaluation.corruptions import measure_robustness
from vitrail.evaluation.label_errors import suspect_labels
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.properties import PROPERTIES, accuracy_by_quantile
from vitrail.explanation.faithfulness import count_steps
from vitrail.report.attribution import explain_classes, explain_mistakes
from vitrail.report.budget import NO_LIMIT, Budget, fit_sizes, list_shortened
from vitrail.report.calibration import collect_calibration
from vitrail.report.caveats import write_caveats
from vitrail.report.embedding import collect_embedding
from vitrail.report.faithfulness import METHODS_IN_REPORT, collect_faithfulness
from vitrail.report.findings import write_findings
from vitrail.report.frequency import collect_frequency, collect_groups
from vitrail.report.near_duplicates import collect_near_duplicates
from vitrail.report.provenance import describe_model, describe_report
from vitrail.report.sample import Sample, Selection, read_sample, select_images
from vitrail.report.scores import collect_confusion, collect_scores
from vitrail.report.sprite_sheets import make_sheets
from vitrail.report.subject import SampleSizes, Subject
from vitrail.report.thumbnails import ThumbnailIndex, make_thumbnail
from vitrail.report.unlike import collect_unlike
from vitrail.report.verdicts import find_dependencies

FORMAT = 5
REPORT_STEPS = 8 + count_steps(len(METHODS_IN_REPORT))  # calls of `on_step`; one more with corruptions

Document = dict[str, Any]
Pictures = dict[str, bytes]  # WebP by name


def collect(
    subject: Subject,
    sizes: SampleSizes,
    on_step: Callable[[str], object] = lambda name: None,
    budget: Budget = NO_LIMIT,
) -> tuple[Document, Pictures]:
    """Returns the document and the pictures of a report. `on_step` receives the name of each step as it begins.

    A `budget` lowers the sizes to what fits into it; `shortened_parts` of the document then names those parts. Raises
    `ImageError` for an unreadable image.
    """
    complete, sizes = sizes, fit_sizes(subject, sizes, budget)
    classifier, outcome = subject.classifier, subject.evaluation.outcome
    splits = subject.splits | {subject.split: subject.images}
    on_step("scores")
    document = describe_subject(subject, splits) | collect_scores(subject.evaluation)
    document["class_frequency"] = collect_frequency(document["per_class"], splits)
    document["groups"] = collect_groups(subject.evaluation)
    document["confusion"] = collect_confusion(outcome, sizes.per_cell)
    document["label_errors"] = collect_label_errors(outcome, sizes)
    document["unlike"] = collect_unlike(outcome, classifier.unlike_facts, sizes.examples)
    on_step("calibration")
    document["calibration"], document["selective_prediction"] = collect_calibration(subject)
    on_step("near-duplicates")
    document["near_duplicates"] = collect_near_duplicates(
        outcome, splits, subject.split, sizes.near_duplicates, sizes.examples
    )
    on_step("reading images")
    selection = select_images(outcome, sizes)
    thumbnails = number_thumbnails(document, selection, subject.split, ThumbnailIndex(sizes.thumbnails))
    sample = read_sample(subject.images, classifier.preprocess, selection, thumbnails.images_of(subject.split))
    document["properties"] = collect_properties(outcome, sample)
    document["corruptions"] = None
    on_step("maps of mistakes")
    mistakes, mistake_tiles = explain_mistakes(classifier, outcome, sample)
    for row in mistakes:
        row["thumbnail"] = thumbnails.numbers.get((subject.split, row["image"]))
    document["mistakes"] = mistakes
    on_step("maps of classes")
    document["attribution"], class_tiles = explain_classes(classifier, outcome, sample)
    for row in document["attribution"]["classes"]:
        row["tile"] += len(mistake_tiles)
    if len(selection.corruptions):
        on_step("corruptions")
        document["corruptions"] = measure_robustness(
            classifier, sample.batch(selection.corruptions), subject.images.labels[selection.corruptions]
        )
    on_step("embedding")
    document["embedding"], pictures = collect_embedding(classifier, outcome, sample)
    on_step("faithfulness")
    document["faithfulness"], reason = collect_faithfulness(
        subject,
        sample.subset(subject.images, selection.faithfulness),
        budget,
        lambda name: on_step(f"faithfulness: {name}"),
    )
    document["skipped_parts"] = {"faithfulness": reason} if reason else {}
    used = replace(sizes, near_duplicates=sum(document["near_duplicates"]["compared_images"].values()))
    document["shortened_parts"] = list_shortened(used, complete, count_available(splits, subject.split))
    tiles = thumbnail_tiles(thumbnails, sample, splits, subject)
    document["thumbnails"], thumbnail_sheets = make_sheets("images", tiles)
    document["thumbnails"]["images"] = thumbnails.describe(splits, subject.split, outcome)
    document["map_tiles"], map_sheets = make_sheets("maps", mistake_tiles + class_tiles)
    document["caveats"] = write_caveats(document)
    document["findings"] = write_findings(document)
    return document, pictures | thumbnail_sheets | map_sheets


def describe_subject(subject: Subject, splits: dict[str, Images]) -> Document:
    """Returns what the report is about."""
    return {
        "format": FORMAT,
        "provenance": describe_report(subject),
        "model": describe_model(subject),
        "data": {
            "description": subject.evaluation.description,
            "split": subject.split,
            "images": len(subject.evaluation.outcome.labels),
            "splits": {name: len(images) for name, images in splits.items()},
        },
        "classes": list(subject.evaluation.outcome.classes),
        "stopped_early": subject.stopped_early,
        "training_metrics": [row for row in subject.training_metrics if "epoch" in row],
    }


def count_available(splits: dict[str, Images], scored_split: str) -> dict[str, int]:
    """Returns how many images each part of a report could use."""
    scored, in_all = len(splits[scored_split]), sum(map(len, splits.values()))
    return {"near_duplicates": in_all} | dict.fromkeys(
        ("properties", "attribution", "embedding", "faithfulness"), scored
    )


def collect_label_errors(outcome: Outcome, sizes: SampleSizes) -> Document:
    """Returns the number of suspected label errors, and the clearest as examples; or the reason why there are none."""
    suspects = suspect_labels(outcome)
    return {
        "suspected": len(suspects.rows),
        "wrong_fraction": suspects.wrong_fraction,
        "reason": suspects.reason,
        "examples": suspects.rows[: sizes.examples],
        "method": "confident learning (Northcutt et al. 2021)",
    }


def collect_properties(outcome: Outcome, sample: Sample) -> Document:
    """Returns the accuracy in quantile bins of each property of the images, and the properties with an effect on it."""
    indices = sample.selection.properties
    bins = {name: accuracy_by_quantile(sample.properties[name], outcome.correct[indices]) for name in PROPERTIES}
    return {
        "images": len(indices),
        "by": {name: {"description": PROPERTIES[name], "bins": rows} for name, rows in bins.items()},
        "with_effect": find_dependencies(bins),
    }


def number_thumbnails(
    document: Document, selection: Selection, scored_split: str, index: ThumbnailIndex
) -> ThumbnailIndex:
    """Adds the number of its thumbnail to every example of the document, in order of importance.

    Of the cells of the confusion matrix, mistakes come first, and rare ones before frequent ones.
    """
    for i in selection.mistakes:
        index.add(scored_split, int(i))
    for row in document["label_errors"]["examples"]:
        row["thumbnail"] = index.add(scored_split, row["image"])
    for row in document["unlike"]["examples"]:
        row["thumbnail"] = index.add(scored_split, row["image"])
    for pair in document["near_duplicates"]["examples"]:
        for image in pair["images"]:
            image["thumbnail"] = index.add(image["split"], image["image"])
    for cell in sorted(document["confusion"]["cells"], key=lambda c: (c["true"] == c["predicted"], c["images"])):
        numbers = [index.add(scored_split, i) for i in cell.pop("examples")]
        cell["thumbnails"] = [number for number in numbers if number is not None]
    return index


def thumbnail_tiles(
    index: ThumbnailIndex, sample: Sample, splits: dict[str, Images], subject: Subject
) -> list[np.ndarray]:
    """Returns the pixels of all thumbnails in order; those of other splits are read here."""
    preprocess = subject.classifier.preprocess

    def read(split: str, i: int) -> np.ndarray:
        return make_thumbnail(preprocess.to_picture(splits[split].load_batch(preprocess, [i])[0]))

    return [sample.thumbnails[i] if split == subject.split else read(split, i) for split, i in index.numbers]
