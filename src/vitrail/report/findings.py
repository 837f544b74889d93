"""The key findings of a report: a few sentences, each with a level."""

from enum import StrEnum
from typing import Any, NamedTuple

from vitrail.training.advice import describe_overfitting

MAX_NAMED_CLASSES = 4
LOW_RECALL = 0.5
HIGH_ECE = 0.03

Document = dict[str, Any]


class Level(StrEnum):
    """How important a finding is."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"


class Finding(NamedTuple):
    """A sentence, its level, and the anchor of the section that it summarizes."""

    level: Level
    text: str
    section: str


def write_findings(document: Document) -> list[dict[str, str]]:
    """Returns the findings of a document in the order of its sections."""
    functions = (
        overfitting,
        weakest_class,
        most_frequent_mistake,
        calibration,
        selective_prediction,
        border_evidence,
        faithfulness,
        label_errors,
        near_duplicates,
        properties,
        corruptions,
    )
    findings = [function(document) for function in functions]
    return [finding._asdict() for finding in findings if finding]


def overfitting(document: Document) -> Finding | None:
    sentence = describe_overfitting(document["training_metrics"])
    return Finding(Level.WARNING, sentence, "training") if sentence else None


def weakest_class(document: Document) -> Finding | None:
    rows = [row for row in document["per_class"] if row["images"]]
    if len(rows) < 2:
        return None
    worst, best = (choose(rows, key=lambda row: row["recall"]) for choose in (min, max))
    if worst["recall_interval"][1] >= best["recall_interval"][0]:
        return Finding(Level.OK, "No class is clearly weaker than the others.", "classes")
    return Finding(
        Level.WARNING if worst["recall"] < LOW_RECALL else Level.NOTE,
        f"The weakest class is {worst['class']}: its recall is {percent(worst['recall'])}; the best is "
        f"{percent(best['recall'])} ({best['class']}).",
        "classes",
    )


def most_frequent_mistake(document: Document) -> Finding:
    if not document["most_confused"]:
        return Finding(Level.OK, "All images are classified correctly.", "confusion")
    pair = document["most_confused"][0]
    support = {row["class"]: row["images"] for row in document["per_class"]}[pair["true"]]
    return Finding(
        Level.NOTE,
        f"The most frequent mistake: {pair['images']} of {support} images of class {pair['true']} are predicted as "
        f"{pair['predicted']}.",
        "confusion",
    )


def calibration(document: Document) -> Finding:
    section = document["calibration"]
    before, after = section["before"], section["after"]
    current = after if after and section["is_stored"] else before
    is_overconfident = current["confidence"] > document["summary"]["accuracy"]
    bias = "overconfident" if is_overconfident else "underconfident"
    error = f"The model is {bias}, with a calibration error (ECE) of {points(current['ece'])}"
    if after is None:
        reason = f" No temperature was fitted: {section['reason']}." if section["reason"] else ""
        level = Level.NOTE if current["ece"] > HIGH_ECE else Level.OK
        return Finding(level, f"{error}.{reason}", "calibration")
    if section["is_stored"]:
        return Finding(
            Level.OK if after["ece"] <= before["ece"] else Level.WARNING,
            f"A temperature of {section['temperature']:.2f} changes the calibration error (ECE) from "
            f"{points(before['ece'])} to {points(after['ece'])}.",
            "calibration",
        )
    return Finding(
        Level.NOTE,
        f"{error}. A temperature of {section['temperature']:.2f} would change it to {points(after['ece'])}; vitrail "
        "evaluate --fit-temperature stores it in the model.",
        "calibration",
    )


def selective_prediction(document: Document) -> Finding | None:
    section = document["selective_prediction"]
    rows = [row for row in section["thresholds"] if row["target_accuracy"] == section["recommended"]]
    if not rows or rows[0]["accuracy"] is None:
        return None
    row = rows[0]
    return Finding(
        Level.NOTE,
        f"If you accept only predictions with a confidence of at least {row['threshold']:.2f}, "
        f"{percent(row['coverage'])} of the images are answered and {percent(row['accuracy'])} of those are correct.",
        "selective-prediction",
    )


def border_evidence(document: Document) -> Finding | None:
    section = document["attribution"]
    if section["border_area"] is None:
        return None
    suspicious = [row["class"] for row in section["classes"] if row["is_suspicious"]]
    if not suspicious:
        return Finding(
            Level.OK, "The evidence is not concentrated on the border of the image for any class.", "attribution"
        )
    return Finding(
        Level.WARNING,
        f"Possible shortcut: for {join_names(suspicious)} the evidence is concentrated on the border of the image. "
        "Check whether the model uses the background instead of the object.",
        "attribution",
    )


def faithfulness(document: Document) -> Finding | None:
    section = document["faithfulness"]
    if section is None:
        return None
    default, random = (
        section["methods"].get(name, {}).get("deletion") for name in (section["default_method"], "random")
    )
    if not default or not random:
        return None
    is_better = default["interval"][1] < random["interval"][0]
    return Finding(
        Level.OK if is_better else Level.WARNING,
        f"The relevance maps are {'' if is_better else 'not '}better than random maps: removing the most relevant "
        f"patches first gives a mean probability of {default['mean']:.2f}, a random order gives {random['mean']:.2f}.",
        "faithfulness",
    )


def label_errors(document: Document) -> Finding:
    n = document["label_errors"]["suspected"]
    if not n:
        return Finding(Level.OK, "No label is suspected to be wrong.", "label-errors")
    fraction = percent(n / document["data"]["images"])
    return Finding(Level.NOTE, f"{count(n, 'label')} ({fraction}) may be wrong and should be checked.", "label-errors")


def near_duplicates(document: Document) -> Finding | None:
    section = document["near_duplicates"]
    anchor = "near-duplicates"
    if len(section["compared_images"]) < 2 and not section["pairs_within"]:
        return None
    if in_train := section["pairs_with_splits"].get("train", 0):
        accuracy = section["accuracy_without_images_in_training"]
        rest = f" Without these images the accuracy is {percent(accuracy)}." if accuracy is not None else ""
        pairs = count(in_train, "near-duplicate pair")
        text = f"There {'is' if in_train == 1 else 'are'} {pairs} of a scored image and a training image.{rest}"
        return Finding(Level.WARNING, text, anchor)
    if n := section["pairs_with_different_labels"]:
        return Finding(Level.WARNING, f"{count(n, 'near-duplicate pair')} with two different labels.", anchor)
    if n := section["pairs_within"]:
        return Finding(Level.NOTE, f"{count(n, 'near-duplicate pair')} among the scored images.", anchor)
    if "train" not in section["compared_images"]:
        return None
    return Finding(Level.OK, "No scored image is a near-duplicate of a training image.", anchor)


def properties(document: Document) -> Finding | None:
    """Returns the property with the largest difference in accuracy, among those with intervals that do not overlap."""
    gaps = []
    for name, result in document["properties"]["by"].items():
        low, high = (choose(result["bins"], key=lambda row: row["accuracy"]) for choose in (min, max))
        if low["interval"][1] < high["interval"][0]:
            gaps.append((high["accuracy"] - low["accuracy"], name, low, high))
    if not gaps:
        return None
    gap, name, low, high = max(gaps, key=lambda row: row[0])
    return Finding(
        Level.NOTE,
        f"The accuracy depends on {name}: {percent(low['accuracy'])} for values from {short(low['from'])} to "
        f"{short(low['to'])}, {percent(high['accuracy'])} for values from {short(high['from'])} to {short(high['to'])} "
        f"(difference: {points(gap)}).",
        "properties",
    )


def corruptions(document: Document) -> Finding | None:
    section = document["corruptions"]
    if not section:
        return None
    worst = min(section["corruptions"].values(), key=lambda row: row["levels"][-1]["accuracy"])
    return Finding(
        Level.NOTE,
        f"Corruptions lower the accuracy by {points(section['clean_accuracy'] - section['mean_accuracy'])} on average. "
        f"The worst is {worst['description']}: {percent(worst['levels'][-1]['accuracy'])} at the highest strength.",
        "corruptions",
    )


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def points(fraction: float) -> str:
    """Formats a difference of fractions in percentage points."""
    return f"{100 * fraction:.1f}\u00a0points"


def short(value: float) -> str:
    return f"{value:.3g}"


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def join_names(names: list[str]) -> str:
    """Joins names as "a, b and c"; of more than `MAX_NAMED_CLASSES` it names the first and counts the others."""
    if len(names) > MAX_NAMED_CLASSES:
        return f"{', '.join(names[:MAX_NAMED_CLASSES])} and {len(names) - MAX_NAMED_CLASSES} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
