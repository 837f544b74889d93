"""The report on a classifier for several labels: report.json, and report.html as a function of it.

It has the scores of all labels, false and missed labels with their images and relevance maps, suspected label errors,
and which labels come together.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vitrail.classifier import Classifier
from vitrail.data.images import Images
from vitrail.evaluation.multi_label import MultiLabelOutcome, co_occurrence
from vitrail.evaluation.multi_label_errors import find_label_errors
from vitrail.evaluation.multi_label_evaluation import MultiLabelEvaluation
from vitrail.explanation.api import explain_batch
from vitrail.explanation.render import overlay_map
from vitrail.files import write_json, write_text
from vitrail.report.page import number, percent, read_resource
from vitrail.report.provenance import describe_model, describe_report
from vitrail.report.unlike import collect_unlike

FORMAT = 2
STEPS = 4  # calls of `on_step`
MAX_CLASSES = 12  # whose mistakes are shown, those with the lowest F1
PER_KIND = 6  # images of false, and of missed, labels of a class
MAX_SUSPECTS = 24
MAX_TABLE = 40  # classes of the co-occurrence table


@dataclass(frozen=True)
class LabelSubject:
    """A classifier for several labels and the images that it was scored on, in the order of the evaluation."""

    classifier: Classifier
    images: Images
    evaluation: MultiLabelEvaluation
    model_path: str = ""
    command: str = ""


def write_label_report(
    subject: LabelSubject, folder: Path, on_step: Callable[[str], object] = lambda name: None
) -> dict[str, Any]:
    """Writes report.json and report.html into `folder` and returns the document of report.json.

    `on_step` receives the name of each step as it begins. Raises `ImageError` for an unreadable image.
    """
    on_step("scores")
    document = collect_scores(subject)
    on_step("mistakes")
    document["mistakes"] = collect_mistakes(subject.evaluation)
    document["label_errors"] = [
        describe_image(subject.evaluation.outcome, each["image"], each["class"]) | each
        for each in find_label_errors(subject.evaluation.outcome, MAX_SUSPECTS)
    ]
    document["unlike"] = collect_unlike(subject.evaluation.outcome, subject.classifier.unlike_facts, MAX_SUSPECTS)
    on_step("relevance maps")
    rows = [row for each in document["mistakes"] for kind in ("false", "missed") for row in each[kind]]
    pictures = draw_rows(subject, [*rows, *document["label_errors"]])
    for row in document["unlike"]["examples"]:
        preprocess = subject.classifier.preprocess
        picture = preprocess.to_picture(subject.images.load_batch(preprocess, [row["image"]])[0])
        pictures.setdefault(str(row["image"]), encode_png(picture.permute(1, 2, 0).numpy()))
    on_step("page")
    write_json(folder / "report.json", document)
    write_text(folder / "report.html", render_labels(document, pictures))
    return document


def collect_scores(subject: LabelSubject) -> dict[str, Any]:
    """Returns the scores, the co-occurrences, and what the report is about."""
    evaluation, classes = subject.evaluation, subject.classifier.classes
    outcome = evaluation.outcome
    return {
        "format": FORMAT,
        "task": "multi_label",
        "provenance": describe_report(subject),
        "model": describe_model(subject),
        "data": {"description": evaluation.description, "images": evaluation.images},
        "classes": list(classes),
        "summary": evaluation.summary(),
        "per_class": [{"class": name, **scores} for name, scores in evaluation.per_class.items()],
        "co_occurrence": {
            "true": co_occurrence(outcome.labels).tolist(),
            "predicted": co_occurrence(outcome.predicted).tolist(),
        },
    }


def collect_mistakes(evaluation: MultiLabelEvaluation) -> list[dict[str, Any]]:
    """Returns the most confident false and missed labels of the classes with the lowest F1, worst class first."""
    outcome = evaluation.outcome
    f1 = [scores["f1"] if scores["f1"] is not None else 1.0 for scores in evaluation.per_class.values()]
    mistakes = []
    for k in np.argsort(f1, kind="stable")[:MAX_CLASSES].tolist():
        present, predicted, p = outcome.labels[:, k] == 1, outcome.predicted[:, k], outcome.probabilities[:, k]
        rows = {}
        for kind, members, order in (("false", predicted & ~present, -p), ("missed", present & ~predicted, p)):
            indices = np.flatnonzero(members)
            worst = indices[np.argsort(order[indices], kind="stable")][:PER_KIND]
            rows[kind] = [describe_image(outcome, int(i), k) for i in worst]
            rows[f"{kind}_labels"] = len(indices)  # type: ignore[assignment]
        if rows["false"] or rows["missed"]:
            mistakes.append({"class": k, **rows})
    return mistakes


def describe_image(outcome: MultiLabelOutcome, i: int, k: int) -> dict[str, Any]:
    """Returns an image with the probability of a label, and all its true and predicted labels."""
    return {
        "image": i,
        "path": outcome.paths[i],
        "class": k,
        "probability": float(outcome.probabilities[i, k]),
        "true": np.flatnonzero(outcome.labels[i]).tolist(),
        "predicted": np.flatnonzero(outcome.predicted[i]).tolist(),
    }


def draw_rows(subject: LabelSubject, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the image of each row, and its map of the evidence for the label, as PNG in base64.

    Their keys are IMAGE and IMAGE-CLASS.
    """
    classifier, pictures = subject.classifier, {}
    pairs = sorted({(row["image"], row["class"]) for row in rows})
    for i, k in pairs:
        pixels, sizes = subject.images.load_sized_batch(classifier.preprocess, [i])
        explanation = explain_batch(classifier, pixels, target=classifier.classes[k], sizes=sizes)[0]
        pictures[str(i)] = encode_png(explanation.image)
        pictures[f"{i}-{k}"] = encode_png(overlay_map(explanation))
    return pictures


def encode_png(array_HWC: np.ndarray) -> str:
    """Returns an image, uint8 or floats from 0 to 1, as PNG in base64."""
    pixels = array_HWC if array_HWC.dtype == np.uint8 else (array_HWC * 255).round().astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def render_labels(document: dict[str, Any], pictures: dict[str, str]) -> str:
    """Returns the page."""
    return render_template("labels.html", d=document, pictures=pictures, max_table=MAX_TABLE)


def render_template(name: str, **values: Any) -> str:
    """Returns the page of a template. It refers to nothing outside, and all names are escaped."""
    environment = Environment(
        loader=FunctionLoader(read_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number}
    page: str = environment.get_template(name).render(style=Markup(read_resource("style.css")), **values)
    return page
