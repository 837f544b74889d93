"""The key findings of a report: a few sentences, each with a level."""

from enum import StrEnum
from typing import Any, NamedTuple

from vitrail.training.advice import describe_early_stop, describe_overfitting

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
        early_stop,
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


def early_stop(document: Document) -> Finding | None:
    stopped = document.get("stopped_early")
    return Finding(Level.NOTE, f"{describe_early_stop(stopped)}.", "training") if stopped else None


def overfitting(document: Document) -> Finding | None:
    sentence = describe_overfitting(document["training_metrics"])
    return Finding(Level.WARNING, sentence, "training") if sentence else None


def weakest_class(document: Document) -> Finding | None:
    """Returns the class with the lowest recall, if it is below that of the other classes beyond chance."""
    section = document["class_comparison"]
    rows = {row["class"]: row for row in document["per_class"] if row["images"]}
    if len(rows) < 2:
        return None
    few = f"fewer than {section['min_images']} images"
    if section["judged_classes"] < 2:
        return Finding(Level.NOTE, f"The classes are not compared, since most have {few}.", "classes")
    hidden = len(rows) - section["judged_classes"]
    unjudged = f" {count(hidden, 'class', 'classes')} with {few} {'is' if hidden == 1 else 'are'} not compared."
    rest = unjudged if hidden else ""
    if not section["weak_classes"]:
        return Finding(Level.OK, f"No class is clearly weaker than the others.{rest}", "classes")
    worst = rows[section["weak_classes"][0]]
    low, high = worst["recall_interval"]
    return Finding(
        Level.WARNING if high < LOW_RECALL else Level.NOTE,
        f"The weakest class is {worst['class']}: its recall is {percent(worst['recall'])} (95% interval {percent(low)} "
        f"to {percent(high)}), below that of the other classes.{rest}",
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
    """Returns the calibration of the probabilities that the model gives now, and what a temperature changes."""
    section = document["calibration"]
    before, after = section["before"], section["after"]
    current = after if after and section["is_stored"] else before
    low, high = current["ece_interval"]
    level = Level.OK if high <= HIGH_ECE else Level.WARNING if low > HIGH_ECE else Level.NOTE
    text = describe_calibration(current)
    gain = section["loss_decrease_interval"] or (0, 0)
    if after is None:
        reason = f" No temperature was fitted: {section['reason']}." if section["reason"] else ""
        return Finding(level, f"{text}{reason}", "calibration")
    temperature = f"temperature of {section['temperature']:.2f}"
    effect = (
        "lowers the loss" if gain[0] > 0 else "raises the loss" if gain[1] < 0 else "does not change the loss clearly"
    )
    if section["is_stored"]:
        return Finding(
            Level.WARNING if gain[1] < 0 else level,
            f"{text} The {temperature} {effect} on these images.",
            "calibration",
        )
    advice = "; vitrail evaluate --fit-temperature stores it in the model" if gain[0] > 0 else ""
    return Finding(level, f"{text} A {temperature}, which is not stored, {effect}{advice}.", "calibration")


def describe_calibration(measured: dict[str, Any]) -> str:
    """Returns a sentence about the calibration error that claims no more than its interval supports."""
    low, high = measured["ece_interval"]
    bias = measured["confidence_bias_interval"] or (0, 0)
    interval = f"{points(measured['ece_corrected'])} (95% interval {100 * low:.1f} to {100 * high:.1f})"
    if bias[0] > 0 or bias[1] < 0:
        direction = "overconfident" if bias[0] > 0 else "underconfident"
        return f"The model is {direction}; its calibration error is {interval}."
    if low > 0:
        return f"The calibration error is {interval}: too much confidence in some predictions, too little in others."
    return f"No calibration error is visible on these images; it is at most {points(high)} (95% interval)."


def selective_prediction(document: Document) -> Finding | None:
    section = document["selective_prediction"]
    rows = [row for row in section["thresholds"] if row["target_accuracy"] == section["recommended"]]
    if not rows or rows[0]["accuracy"] is None:
        return None
    row = rows[0]
    return Finding(
        Level.NOTE,
        f"If you accept only predictions with a confidence of at least {row['threshold']:.2f}, "
        f"{percent(row['coverage'])} of the images are answered and {percent(row['accuracy'])} of those are correct; "
        f"{percent(row['guaranteed_accuracy'])} are guaranteed with 95% confidence.",
        "selective-prediction",
    )


def border_evidence(document: Document) -> Finding | None:
    """Returns the classes whose evidence is on the border beyond chance; None if no class has enough images."""
    section = document["attribution"]
    if section["border_area"] is None or section["images"] < section["min_images"]:
        return None
    suspicious = [row["class"] for row in section["classes"] if row["is_suspicious"]]
    if not suspicious and not section["is_suspicious"]:
        judged = sum(row["images"] >= section["min_images"] for row in section["classes"])
        scope = "all classes together" if judged < len(section["classes"]) else "any class"
        return Finding(
            Level.OK, f"The evidence is not concentrated on the border of the image for {scope}.", "attribution"
        )
    return Finding(
        Level.WARNING,
        f"Possible shortcut: for {join_names(suspicious) or 'all classes together'} the evidence is concentrated on "
        "the border of the image. Check whether the model uses the background instead of the object.",
        "attribution",
    )


def faithfulness(document: Document) -> Finding | None:
    """Returns whether the default maps rank patches better than random maps; better and worse need clear intervals."""
    section = document["faithfulness"]
    if section is None:
        return None
    default, random = (
        section["methods"].get(name, {}).get("deletion") for name in (section["default_method"], "random")
    )
    if not default or not random or not default["interval"] or not random["interval"]:
        return None
    is_better, is_worse = default["interval"][1] < random["interval"][0], default["interval"][0] > random["interval"][1]
    verdict = "better" if is_better else "worse" if is_worse else "not clearly better"
    return Finding(
        Level.OK if is_better else Level.WARNING if is_worse else Level.NOTE,
        f"The relevance maps are {verdict} than random maps: removing the most relevant patches first gives a mean "
        f"probability of {default['mean']:.2f}, a random order gives {random['mean']:.2f}.",
        "faithfulness",
    )


def label_errors(document: Document) -> Finding:
    """Returns how many labels are suspected to be wrong, or why none is listed."""
    section = document["label_errors"]
    n, wrong = section["suspected"], section["wrong_fraction"]
    if not n:
        level = Level.OK if wrong == 0 else Level.NOTE
        return Finding(level, f"No label is listed as suspect: {section['reason']}.", "label-errors")
    return Finding(
        Level.NOTE,
        f"{count(n, 'label')} should be checked: each is more likely wrong than the model. An estimated "
        f"{percent(wrong)} of all labels are wrong.",
        "label-errors",
    )


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
    """Returns the property with the largest difference in accuracy, among those with an effect beyond chance."""
    gaps = []
    for name in document["properties"]["with_effect"]:
        bins = document["properties"]["by"][name]["bins"]
        low, high = (choose(bins, key=lambda row: row["accuracy"]) for choose in (min, max))
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


def count(n: int, noun: str, plural: str = "") -> str:
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def join_names(names: list[str]) -> str:
    """Joins names as "a, b and c", no names as "". Of more than `MAX_NAMED_CLASSES` it counts the last."""
    if len(names) > MAX_NAMED_CLASSES:
        return f"{', '.join(names[:MAX_NAMED_CLASSES])} and {len(names) - MAX_NAMED_CLASSES} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
