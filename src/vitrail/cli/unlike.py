"""`vitrail evaluate --unlike`: how well images of other things are told from those that were scored."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import UsageError

if TYPE_CHECKING:
    from vitrail.classifier import BaseClassifier
    from vitrail.cli.images import InputImage
    from vitrail.evaluation.outcomes import AnyOutcome
    from vitrail.image_documents import UnlikeEvaluation

SCORE_NAMES = {"mahalanobis": "feature distance", "max_probability": "max probability", "energy": "energy"}


def list_outside_images(source: str | None) -> list[InputImage]:
    """Returns the images of --unlike; raises `UsageError` if there are none, before any work."""
    if source is None:
        return []
    from vitrail.cli.images import list_input_images
    from vitrail.prediction.sources import is_shard_source

    if not is_shard_source(source) and not Path(source).exists():
        raise UsageError(f"there is no file or folder {source}", "--unlike takes a folder, an image or a tar shard")
    return list_input_images([source])


def measure_unlike(
    classifier: BaseClassifier, known: AnyOutcome, outside: list[InputImage], arguments: argparse.Namespace
) -> UnlikeEvaluation:
    """Returns how well each score tells the outside images from the scored ones.

    Raises `ImageError` for an unreadable image, unless --skip-unreadable is given.
    """
    from vitrail.cli.images import predict_input_images
    from vitrail.data.decode import ImageError
    from vitrail.evaluation.detection import evaluate_unlike

    predictions = predict_input_images(classifier, outside, arguments.batch_size)
    if predictions.errors and not arguments.skip_unreadable:
        first = min(predictions.errors)
        raise ImageError(str(predictions.paths[first]), predictions.errors[first])
    return evaluate_unlike(known, predictions, arguments.unlike)


def describe_unlike_scores(unlike: UnlikeEvaluation | None) -> list[Any]:
    """Returns the scores as lines and a table; nothing if none were measured."""
    if unlike is None:
        return []
    from rich.table import Table

    table = Table("score", "AUROC", "95% interval", "FPR at 95% TPR", "95% interval", box=None, header_style="bold")
    for name, row in unlike["scores"].items():
        numbers = (
            f"{row['auroc']:.4f}",
            "{:.4f} to {:.4f}".format(*row["auroc_interval"]),
            f"{row['fpr95']:.4f}",
            "{:.4f} to {:.4f}".format(*row["fpr95_interval"]),
        )
        table.add_row(SCORE_NAMES[name], *numbers)
    sizes = f"{unlike['outside_images']} images of {unlike['outside']} against {unlike['known_images']} scored images"
    lines: list[Any] = [f"unlike: {sizes}", table]
    if unreadable := unlike["unreadable_files"]:
        lines.append(f"{len(unreadable)} images could not be read and were skipped")
    if not unlike["fit"]["fitted"]:
        return [*lines, f"the feature distance is not fitted; {unlike['fit']['hint']}"]
    known, outside = unlike["flagged"]["known"], unlike["flagged"]["outside"]
    threshold = unlike["fit"]["threshold"]
    return [*lines, f"unlike of at least {threshold:g}: {outside:.1%} of these images, {known:.1%} of the scored ones"]
