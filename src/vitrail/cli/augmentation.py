"""`--tta`: test-time augmentation in evaluate and predict."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vitrail.cli.arguments import open_validation

if TYPE_CHECKING:
    from vitrail.classifier import BaseClassifier
    from vitrail.image_documents import AugmentationDocument

VIEWS = ("flip", "crops", "flip+crops")  # as in evaluation/augmented.py, whose import would slow the help down


def add_tta(parser: argparse.ArgumentParser, when: str) -> None:
    parser.add_argument(
        "--tta", choices=VIEWS, metavar="|".join(VIEWS),
        help=f"mean of 2, 5 or 10 views of an image, at as many times the cost; {when} (default: off)",
    )  # fmt: skip


def choose_augmentation(
    classifier: BaseClassifier, arguments: argparse.Namespace
) -> tuple[BaseClassifier, AugmentationDocument | None]:
    """Returns the classifier that --tta means, and what it changes on validation images; it is used only if it pays.

    Raises `UsageError` if the data has no validation images besides the scored ones.
    """
    if arguments.tta is None:
        return classifier, None
    from vitrail.console import progress_bar
    from vitrail.evaluation.augmented import AugmentedClassifier, measure_augmentation

    validation = open_validation(classifier, arguments, "--tta is used only if it pays on images that are not scored")
    with progress_bar("trying --tta on validation", 2 * len(validation)) as progress:
        document = measure_augmentation(
            classifier,
            validation,
            arguments.tta,
            batch_size=arguments.batch_size,
            on_batch=progress.advance,
            skip_unreadable=arguments.skip_unreadable,
        )
    return (AugmentedClassifier(classifier, arguments.tta) if document["pays"] else classifier), document


def describe_augmentation(document: AugmentationDocument | None) -> list[str]:
    """Returns what --tta changed on validation images, as lines; nothing without it."""
    if document is None:
        return []
    low, high = document["change_interval"]
    verdict = "the scores are with it" if document["pays"] else "it does not pay, so the scores are without it"
    return [
        f"--tta {document['views']}, {document['forwards']} forward passes an image: accuracy "
        f"{document['accuracy']:.4f} without, {document['augmented_accuracy']:.4f} with it on {document['images']} "
        f"validation images (change {low:+.4f} to {high:+.4f}); {verdict}"
    ]
