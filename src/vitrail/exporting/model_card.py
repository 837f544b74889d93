"""The model card of exported weights: what the model is, its scores, and code that loads it."""

from collections.abc import Mapping
from typing import Any

from vitrail.classifier import Classifier
from vitrail.data.scoring import OPTIMISTIC_NOTE
from vitrail.exporting.preparation import (
    describe_activation,
    describe_geometry,
    describe_normalization,
    describe_program,
    describe_scaling,
    describe_thresholds,
)
from vitrail.tasks import GRADES, TASKS
from vitrail.weights.origin import describe_teacher, without_paths

MINIMUM_VERSIONS = {"timm": ("Needs timm 1.0.16 or newer, which can load a folder.", "")}
METRIC_TITLES = {"mae": "mean absolute error", "quadratic_kappa": "quadratic weighted kappa", "accuracy": "accuracy"}


def write_model_card(
    classifier: Classifier,
    library: str,
    load_code: str,
    comparison: Mapping[str, Any] | None,
    note: str = "",
    *,
    oldest: str = "",
    is_program: bool = False,
) -> str:
    """Returns a README for the hub, YAML between dashes and then Markdown. It names no path of this machine.

    `comparison` has `compared_on` and `max_difference`; without it the card states that the outputs were not compared.
    `oldest` is the library's oldest version that was tested. A program takes pixels, other models normalized values.
    """
    origin = without_paths(classifier.origin)
    sections = [
        make_header(classifier, library),
        describe_model(classifier),
        ["## How to use", "", *MINIMUM_VERSIONS.get(library, ()), "```python", *load_code.split("; "), "```", ""],
        [f"It was tested with {library} {oldest} and newer.", ""] if oldest else [],
        describe_preprocessing(classifier, is_program),
        [f"Note: {note}.", ""] if note else [],
        describe_comparison(comparison, library),
        list_metrics(origin.get("metrics") or {}),
        list_thresholds(classifier),
        list_classes(classifier),
        describe_origin(origin),
    ]
    return "\n".join(line for section in sections for line in section)


def make_header(classifier: Classifier, library: str) -> list[str]:
    """Returns the YAML that the hub reads."""
    task = "image-classification" if classifier.classes else "image-feature-extraction"
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {task}"]
    if isinstance(license := classifier.origin.get("license"), str):
        lines.append(f"license: {quote_yaml(license.lower())}")
    return [*lines, "tags: [vision-transformer, vitrail]", "---", ""]


def describe_model(classifier: Classifier) -> list[str]:
    config = classifier.vit.config
    size = config.image_size if isinstance(config.image_size, int) else "x".join(map(str, config.image_size))
    parameters = sum(parameter.numel() for parameter in classifier.vit.parameters())
    title = f"# ViT of width {config.width} and depth {config.depth}, patch {config.patch}, {size} px"
    return [title, "", f"{parameters:,} parameters, written by vitrail.", ""]


def describe_preprocessing(classifier: Classifier, is_program: bool) -> list[str]:
    """Returns the steps from an image file to the model's input and outputs, as a numbered list."""
    steps = describe_geometry(classifier.preprocess)
    if is_program:
        steps += describe_program(classifier)
    else:
        steps.append(describe_normalization(classifier.preprocess))
        if classifier.classes:
            activation = describe_activation(classifier, "outputs")
            steps.append(f"{activation}: the {describe_scaling(classifier)} is part of the weights.")
    return ["## Preparing an image", "", *(f"{i}. {step}" for i, step in enumerate(steps, start=1)), ""]


def describe_comparison(comparison: Mapping[str, Any] | None, library: str) -> list[str]:
    if comparison is None:
        return [f"Its outputs were not compared with vitrail's: {library} was not installed.", ""]
    images, difference = comparison["compared_on"], comparison["max_difference"]
    return [f"Its outputs were compared with vitrail's on {images}: largest difference {difference:.1e}.", ""]


def list_metrics(metrics: dict[str, Any]) -> list[str]:
    """Returns a table of the main score on each split, and which of them are optimistic."""
    if not metrics:
        return []
    name = next((name for name in METRIC_TITLES if all(name in scores for scores in metrics.values())), "accuracy")
    title = METRIC_TITLES[name]
    lines = ["## Metrics", "", f"| split | images | {title} | 95% interval |", "| --- | --: | --: | --- |"]
    for split, scores in metrics.items():
        low, high = scores.get(f"{name}_interval") or (float("nan"),) * 2
        lines.append(f"| {split} | {scores['images']} | {scores[name]:.4f} | {low:.4f} to {high:.4f} |")
    lines.append("")
    for split, scores in metrics.items():
        if scores.get("optimistic"):
            lines += [f"The {split} images are those {OPTIMISTIC_NOTE}.", ""]
    return lines


def list_thresholds(classifier: Classifier) -> list[str]:
    """Returns a table of the thresholds of a classifier for several labels."""
    thresholds = describe_thresholds(classifier).get("thresholds", {})
    if not thresholds:
        return []
    rows = [f"| {escape_markdown(name)} | {threshold:.4f} |" for name, threshold in thresholds.items()]
    return ["## Thresholds", "", "| label | threshold |", "| --- | --: |", *rows, ""]


def list_classes(classifier: Classifier) -> list[str]:
    title = {"class": "Classes", "labels": "Labels", "numbers": "Numbers"}[TASKS[classifier.task].answer]
    if classifier.task == GRADES:
        title = "Grades, in their order"
    names = ", ".join(escape_markdown(name) for name in classifier.classes)
    return [f"## {title}", "", names, ""] if classifier.classes else []


def describe_origin(origin: dict[str, Any]) -> list[str]:
    """Returns a line each for the card, the source and the license of the weights that training started from."""
    lines = []
    for key, title in (("card", "Started from"), ("source", "Source"), ("license", "License")):
        if isinstance(text := origin.get(key), str) and text:
            lines += [f"{title}: {escape_markdown(text)}", ""]
    if sentence := describe_teacher(origin):
        lines += [f"{escape_markdown(sentence)}.", ""]
    return lines


def quote_yaml(text: str) -> str:
    """Returns the text as a YAML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', "'").replace("\n", " ") + '"'


def escape_markdown(text: str) -> str:
    """Returns the text with Markdown's special characters escaped, on one line."""
    return "".join("\\" + letter if letter in "\\`*_{}[]<>#|" else letter for letter in text.replace("\n", " "))
