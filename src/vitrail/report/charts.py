"""The charts of a report."""

import math
from typing import Any

from markupsafe import Markup

from vitrail.report.plot import Plot, percent_ticks, round_steps

MIN_BIN_IMAGES = 20  # in a bin with fewer images the dot is gray and not connected
MAX_DOTTED_EPOCHS = 25  # curves of fewer epochs have dots
SPLIT_STYLES = {"train": "s4", "validation": "s0", "test": "s1"}


def reliability_chart(calibration: dict[str, Any], key: str) -> Markup:
    """Confidence and accuracy with intervals, `key` before or after the temperature; the diagonal is perfect."""
    bins = calibration[key]["bins"]
    max_images = max((row["images"] for row in bins), default=1)
    plot = Plot(
        f"Reliability {key} temperature scaling",
        f"Mean confidence and accuracy in {len(bins)} bins; expected calibration error {calibration[key]['ece']:.3f}",
        (0, 1), (0, 1), ("confidence", "accuracy"),
    )  # fmt: skip
    plot.add_series("s4 dashed", "perfect").add_series("s0", key)
    for row in bins:
        plot.bar(row["from"], row["to"], 0.16 * row["images"] / max_images, "faint", f"{row['images']:,} images")
    plot.line([(0, 0), (1, 1)], "s4 dashed")
    for row in bins:
        plot.whisker(row["confidence"], row["interval"], "s0" if row["images"] >= MIN_BIN_IMAGES else "s4 thin")
    plot.line([(row["confidence"], row["accuracy"]) for row in bins if row["images"] >= MIN_BIN_IMAGES], "s0")
    for row in bins:
        tooltip = f"confidence {row['confidence']:.2f}, accuracy {row['accuracy']:.2f}, {row['images']:,} images"
        style = "s0" if row["images"] >= MIN_BIN_IMAGES else "s4"
        plot.dot((row["confidence"], row["accuracy"]), style, tooltip=tooltip)
    return plot.svg(percent_ticks(0, 1), percent_ticks(0, 1))


def risk_chart(section: dict[str, Any]) -> Markup:
    """Returns the risk-coverage curve, and the thresholds of selective prediction on it."""
    curve = section["curve"]
    max_risk = max(*curve["risk"], 0.01)
    plot = Plot(
        "Risk and coverage", f"Error rate at full coverage {curve['risk'][-1]:.3f}, mean {curve['aurc']:.3f}",
        (0, 1), (0, max_risk * 1.05), ("coverage", "risk (error rate)"),
    )  # fmt: skip
    plot.add_series("s0", "risk")
    if section["thresholds"]:
        plot.add_series("s1", "thresholds chosen in advance")
    plot.line(list(zip(curve["coverage"], curve["risk"], strict=True)), "s0")
    for row in section["thresholds"]:
        if row["accuracy"] is not None:
            tooltip = (
                f"target {row['target_accuracy']:.0%}: coverage {row['coverage']:.1%}, accuracy {row['accuracy']:.1%}"
            )
            plot.dot((row["coverage"], 1 - row["accuracy"]), "s1", 4.5, tooltip)
    return plot.svg(percent_ticks(0, 1), percent_ticks(0, max_risk * 1.05))


def curve_chart(rows: list[dict[str, Any]], metric: str) -> Markup:
    """Returns the loss or the accuracy by epoch, for each split that was measured."""
    series = {
        split: [(row["epoch"], row[f"{split}_{metric}"]) for row in rows if row.get(f"{split}_{metric}") is not None]
        for split in SPLIT_STYLES
    }
    series = {name: points for name, points in series.items() if points}
    values = [y for points in series.values() for _, y in points] or [0]
    low, high = (min(0, *values), max(values) * 1.05) if metric == "loss" else (0, 1)
    epochs = [row["epoch"] for row in rows]
    first, last = min(epochs), max(*epochs, min(epochs) + 1)
    final = ", ".join(f"{name} {points[-1][1]:.3f}" for name, points in series.items())
    plot = Plot(metric.capitalize(), f"By epoch; final values: {final}", (first, last), (low, high), ("epoch", metric))
    for name in series:
        plot.add_series(SPLIT_STYLES[name], name)
    for name, points in series.items():
        plot.line(points, SPLIT_STYLES[name])
        if len(points) < MAX_DOTTED_EPOCHS:
            for point in points:
                plot.dot(point, SPLIT_STYLES[name], 2.4, f"epoch {point[0]}: {point[1]:.3f}")
    epoch_ticks = [(float(v), str(int(v))) for v in round_steps(first, last) if v == int(v)]
    return plot.svg(epoch_ticks, percent_ticks(0, 1) if metric == "accuracy" else ())


def deletion_chart(faithfulness: dict[str, Any]) -> Markup:
    """Returns the deletion curves, most relevant patches first: a line for each method and one for random order."""
    methods = {name: row for name, row in faithfulness["methods"].items() if not row["control"] or name == "random"}
    plot = Plot(
        "Deletion",
        "Calibrated probability of the class while the most relevant patches are removed first; lower is better",
        (0, 1), (0, 1), ("fraction of patches removed", "probability"),
    )  # fmt: skip
    styles = {name: f"s{i}" for i, name in enumerate(n for n in methods if n != "random")} | {"random": "s4 dashed"}
    for name in methods:
        plot.add_series(styles[name], name)
    for name, row in methods.items():
        curve = row["curves"].get("deletion", [])
        removed = [1 - fraction for fraction in faithfulness["remaining"][: len(curve)]]
        plot.line(list(zip(removed, curve, strict=True)), styles[name])
    return plot.svg(percent_ticks(0, 1), percent_ticks(0, 1))


def property_chart(name: str, bins: list[dict[str, Any]], accuracy: float) -> Markup:
    """Returns the accuracy in quantile bins of a property with intervals, and the accuracy of all images."""
    plot = Plot(
        f"Accuracy by {name}",
        "; ".join(f"{row['from']:.3g} to {row['to']:.3g}: {row['accuracy']:.1%}" for row in bins),
        (0, len(bins)), (0, 1), (f"{name}, from low to high", "accuracy"),
    )  # fmt: skip
    for i, row in enumerate(bins):
        tooltip = f"{row['from']:.3g} to {row['to']:.3g}: {row['accuracy']:.1%} of {row['images']:,} images"
        plot.bar(i + 0.12, i + 0.88, row["accuracy"], "s0 soft", tooltip)
    for i, row in enumerate(bins):
        plot.whisker(i + 0.5, row["interval"], "ink")
    plot.line([(0, accuracy), (len(bins), accuracy)], "s4 dashed")
    ticks = [(i + 0.5, f"≤ {row['to']:.3g}") for i, row in enumerate(bins)]
    return plot.svg(ticks, percent_ticks(0, 1))


def frequency_chart(rows: list[dict[str, Any]], balanced_accuracy: float) -> Markup:
    """Returns the recall of each class with its interval by its training images, and the balanced accuracy."""
    counts = [math.log10(max(row["training_images"], 1)) for row in rows]
    low, high = math.floor(min(counts)), math.ceil(max(counts))
    plot = Plot(
        "Recall by training images",
        "; ".join(f"{row['class']}: {row['training_images']:,} images, {row['recall']:.1%}" for row in rows),
        (low, high), (0, 1), ("training images of the class", "recall"),
    )  # fmt: skip
    plot.line([(low, balanced_accuracy), (high, balanced_accuracy)], "s4 dashed")
    for x, row in zip(counts, rows, strict=True):
        plot.whisker(x, row["interval"], "ink")
    for x, row in zip(counts, rows, strict=True):
        tooltip = f"{row['class']}: {row['training_images']:,} training images, recall {row['recall']:.1%}"
        plot.dot((x, row["recall"]), "s0", tooltip=tooltip)
    ticks = [(float(power), f"{10**power:,}") for power in range(low, high + 1)]
    return plot.svg(ticks, percent_ticks(0, 1))


def corruption_chart(section: dict[str, Any]) -> Markup:
    """Returns the accuracy by strength, a line for each corruption."""
    clean = section["clean_accuracy"]
    plot = Plot(
        "Accuracy under corruption", f"Clean {clean:.1%}, mean over all corruptions {section['mean_accuracy']:.1%}",
        (0, 3), (0, 1), ("strength", "accuracy"), 280,
    )  # fmt: skip
    for i, name in enumerate(section["corruptions"]):
        plot.add_series(f"s{i}", name)
    for i, row in enumerate(section["corruptions"].values()):
        points = [(0.0, clean)] + [(k + 1.0, level["accuracy"]) for k, level in enumerate(row["levels"])]
        plot.line(points, f"s{i}")
        for point in points[1:]:
            plot.dot(point, f"s{i}", 2.6, f"{row['description']}, strength {point[0]:.0f}: {point[1]:.1%}")
    return plot.svg([(0, "clean"), (1, "1"), (2, "2"), (3, "3")], percent_ticks(0, 1))
