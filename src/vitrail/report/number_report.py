"""The report on a model of numbers: report.json, and report.html as a function of it.

It has the errors of each number, predictions against true numbers, a histogram of the errors, and the images with the
largest errors with their relevance maps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.evaluation.numbers import NumberEvaluation
from vitrail.explanation.api import explain_batch
from vitrail.explanation.render import overlay_map
from vitrail.files import write_json, write_text
from vitrail.report.label_report import encode_png, render_template
from vitrail.report.plot import Plot
from vitrail.report.provenance import describe_model, describe_report

FORMAT = 1
STEPS = 4  # calls of `on_step`
MAX_ERRORS = 24  # images, those with the largest errors
MAX_POINTS = 1500  # of a scatter plot: every k-th image by true number
BINS = 25  # of the histogram of errors


@dataclass(frozen=True)
class NumberSubject:
    """A model of numbers and the images that it was scored on, in the order of the evaluation."""

    classifier: Classifier
    images: Images
    evaluation: NumberEvaluation
    model_path: str = ""
    command: str = ""


def write_number_report(
    subject: NumberSubject, folder: Path, on_step: Callable[[str], object] = lambda name: None
) -> dict[str, Any]:
    """Writes report.json and report.html into `folder` and returns the document of report.json.

    `on_step` receives the name of each step as it begins. Raises `ImageError` for an unreadable image.
    """
    on_step("scores")
    evaluation = subject.evaluation
    document: dict[str, Any] = {
        "format": FORMAT,
        "task": "regression",
        "provenance": describe_report(subject),
        "model": describe_model(subject),
        "data": {"description": evaluation.description, "images": evaluation.images},
        "summary": evaluation.summary(),
        "numbers": [collect_number(evaluation, k) for k in range(len(subject.classifier.classes))],
    }
    on_step("largest errors")
    document["largest_errors"] = collect_errors(evaluation)
    on_step("relevance maps")
    pictures = draw_rows(subject, document["largest_errors"])
    on_step("page")
    charts = [
        {"scatter": scatter_chart(number), "histogram": histogram_chart(number)} for number in document["numbers"]
    ]
    page = render_template("numbers.html", d=document, pictures=pictures, charts=charts)
    write_json(folder / "report.json", document)
    write_text(folder / "report.html", page)
    return document


def collect_number(evaluation: NumberEvaluation, k: int) -> dict[str, Any]:
    """Returns the errors of a number, points (true, predicted) and the histogram of its errors."""
    outcome = evaluation.outcome
    name, true, predicted = outcome.classes[k], outcome.labels[:, k], outcome.predicted[:, k]
    order = np.argsort(true, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MAX_POINTS)).astype(int))]
    counts, edges = np.histogram(outcome.errors[:, k], bins=BINS)
    return {
        "name": name,
        **evaluation.per_number[name],
        "points": np.stack([true[shown], predicted[shown]], axis=1).tolist(),
        "histogram": {"edges": edges.tolist(), "images": counts.tolist()},
    }


def collect_errors(evaluation: NumberEvaluation) -> list[dict[str, Any]]:
    """Returns the images with the largest mean error over numbers, in standard deviations of the true numbers."""
    outcome = evaluation.outcome
    names, errors = outcome.classes, outcome.relative_errors.mean(axis=1)
    rows = []
    for i in np.argsort(-errors, kind="stable")[:MAX_ERRORS].tolist():
        rows.append(
            {
                "image": i,
                "path": outcome.paths[i],
                "relative_error": float(errors[i]),
                "number": int(outcome.relative_errors[i].argmax()),  # with the largest error; the map explains it
                "true": dict(zip(names, outcome.labels[i].tolist(), strict=True)),
                "predicted": dict(zip(names, outcome.predicted[i].tolist(), strict=True)),
            }
        )
    return rows


def draw_rows(subject: NumberSubject, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns each image, and the map of its number, as PNG in base64; their keys are IMAGE and IMAGE-map."""
    classifier, pictures = subject.classifier, {}
    for row in rows:
        pixels, sizes = subject.images.load_sized_batch(classifier.preprocess, [row["image"]])
        explanation = explain_batch(classifier, pixels, target=classifier.classes[row["number"]], sizes=sizes)[0]
        pictures[str(row["image"])] = encode_png(explanation.image)
        pictures[f"{row['image']}-map"] = encode_png(overlay_map(explanation))
    return pictures


def scatter_chart(number: dict[str, Any]) -> Markup:
    """Returns predicted against true numbers; on the line they are equal."""
    values = np.array(number["points"])
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    plot = Plot(
        f"{number['name']}: predicted against true",
        f"{len(values)} images; R2 {number['r2']:.3f}", ends, ends, ("true", "predicted"),
    )  # fmt: skip
    plot.add_series("s4 dashed", "equal").add_series("s0", "images")
    plot.line([(ends[0], ends[0]), (ends[1], ends[1])], "s4 dashed")
    for true, predicted in number["points"]:
        plot.dot((true, predicted), "s0", 2.0, f"true {true:.4g}, predicted {predicted:.4g}")
    return plot.svg()


def histogram_chart(number: dict[str, Any]) -> Markup:
    """Returns the number of images by error, predicted minus true."""
    edges, images = number["histogram"]["edges"], number["histogram"]["images"]
    plot = Plot(
        f"{number['name']}: errors", f"Mean {number['mean_error']:.4g}, mean absolute error {number['mae']:.4g}",
        (edges[0], edges[-1]), (0, max(images) * 1.05), ("predicted minus true", "images"),
    )  # fmt: skip
    for left, right, count in zip(edges, edges[1:], images, strict=False):
        plot.bar(left, right, count, "faint", f"{left:.4g} to {right:.4g}: {count} images")
    if edges[0] < 0 < edges[-1]:
        plot.line([(0, 0), (0, max(images) * 1.05)], "s4 dashed")
    return plot.svg()
