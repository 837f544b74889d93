"""Subject -> the document that is report.json, and the pictures that go with it. Every number of the page is in it."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import torch

import vitrail
from vitrail.data import Images
from vitrail.data.copies import copies_across
from vitrail.errors import UsageError
from vitrail.evaluate.calibration import (
    Calibration,
    answered,
    brier,
    calibrate,
    cooled,
    reliability,
    risk_coverage,
    thresholds,
)
from vitrail.evaluate.corruptions import robustness
from vitrail.evaluate.labels import suspected_labels
from vitrail.evaluate.metrics import bootstrap, calibration_error, confusion, most_confused, per_class, wilson
from vitrail.evaluate.neighbours import flat_map, pooled, purity
from vitrail.evaluate.outcome import Outcome, classify
from vitrail.evaluate.properties import PROPERTIES, accuracy_by, properties
from vitrail.explain import DEFAULT, METHODS
from vitrail.explain.faithfulness import faithfulness
from vitrail.report.findings import findings
from vitrail.report.limits import limits
from vitrail.report.looks import mean_maps, mistake_maps, worst
from vitrail.report.scatter import draw_scatter
from vitrail.report.sheets import Thumbnails, sheets
from vitrail.report.subject import Depth, Subject
from vitrail.weights.artefact import digest

FORMAT = 1
FAITHFUL = (DEFAULT, "generic", "attention", "rollout")  # cheap enough to be scored in every report
FEWEST_SCORED = 30  # images below which scores of maps are chance
MATRIX_CLASSES = 30  # above it a matrix is a carpet: the largest confusions are listed instead
LISTED = 60

Pictures = dict[str, bytes]  # WebP by name
Tick = Callable[[str], object]


def collect(subject: Subject, depth: Depth, tick: Tick = lambda doing: None) -> tuple[dict[str, Any], Pictures]:
    """Everything that is said of the subject; `tick` is called with what is being done as it begins."""
    outcome = subject.evaluation.outcome
    parts = subject.parts | {subject.split: subject.images}
    thumbnails = Thumbnails(parts, subject.classifier.preprocess, depth.thumbnails)
    show = Shown(thumbnails, subject.split)
    tick("counting")
    document: dict[str, Any] = {
        "format": FORMAT,
        "made": made(subject),
        "model": described(subject),
        "data": {
            "said": subject.evaluation.said,
            "split": subject.split,
            "images": len(outcome.labels),
            "parts": {name: len(images) for name, images in parts.items()},
        },
        "classes": list(outcome.classes),
        **scores(subject),
        "curves": subject.curves,
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
    document["faithfulness"] = believed(subject, depth)
    document["left_out"] = left_out(subject, depth)
    tick("looking for label errors")
    suspects = suspected_labels(outcome)
    document["labels"] = {
        "suspected": len(suspects),
        "shown": [row | {"thumbnail": show(row["image"])} for row in suspects[: depth.suspects]],
        "method": "confident learning (Northcutt et al. 2021)",
    }
    tick("looking for copies")
    document["copies"] = copies(subject, parts, show, depth)
    tick("brightness, size and sharpness")
    document["properties"] = by_property(subject, depth)
    document["corruptions"] = None
    if depth.corruptions:
        tick("corrupting images")
        document["corruptions"] = robustness(subject.classifier, subject.images, most=depth.corruptions)
    tick("mapping what looks alike")
    document["embedding"], scatter = embedded(subject, depth)
    tick("drawing")
    document["confusion"] = confused(outcome, show, depth)
    document["thumbnails"], pictures = drawn_thumbnails(outcome, thumbnails, subject.split)
    document["tiles"], files = sheets("maps", tiles)
    document["limits"] = limits(document)
    document["findings"] = findings(document)
    return document, pictures | files | scatter


STEPS = 10  # calls of `tick`, and one more with corruptions


class Shown:
    """Gives images of the scored split a thumbnail."""

    def __init__(self, thumbnails: Thumbnails, split: str):
        self.thumbnails = thumbnails
        self.split = split

    def __call__(self, i: int, split: str | None = None) -> int | None:
        """The number of the thumbnail; None where there is no more room."""
        return self.thumbnails.add(split or self.split, int(i))


def made(subject: Subject) -> dict[str, Any]:
    """When, with what and how this was made."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": subject.command,
        "vitrail": vitrail.__version__,
        "torch": torch.__version__,
        "python": python_version(),
        "device": subject.classifier.device.type,
    }


def described(subject: Subject) -> dict[str, Any]:
    """The classifier: what it is, how it was made, and a digest that tells its weights from others."""
    vit = subject.classifier.vit
    origin = subject.classifier.origin
    recipe = origin.get("recipe") or {}
    trained_on = origin.get("data") or {}
    return {
        "path": subject.model,
        "name": Path(subject.model).name or subject.model,
        "sha256": digest({name: tensor.cpu() for name, tensor in vit.state_dict().items()}),
        "parameters": sum(p.numel() for p in vit.parameters()),
        "image_size": list(subject.classifier.preprocess.image_size),
        **{name: getattr(vit.config, name) for name in ("patch", "width", "depth", "heads", "pool")},
        "recipe": recipe.get("name"),
        "epochs": recipe.get("epochs"),
        "seed": origin.get("seed"),
        "trained_on": trained_on.get("name"),
        "training_images": (trained_on.get("images") or {}).get("train"),
        "data_fingerprint": trained_on.get("fingerprint"),
    }


def scores(subject: Subject) -> dict[str, Any]:
    """The headline and each class, with intervals; the classes mistaken most often for one another."""
    evaluation = subject.evaluation
    outcome = evaluation.outcome
    resampled = bootstrap(outcome)
    f1_intervals = resampled.pop("f1_intervals")
    matrix = confusion(outcome)
    right = np.diag(matrix)
    rows = []
    for i, (name, row) in enumerate(per_class(outcome).items()):
        true, predicted = int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            {
                "class": name,
                **row,
                "recall_interval": list(wilson(int(right[i]), true)) if true else None,
                "precision_interval": list(wilson(int(right[i]), predicted)) if predicted else None,
                "f1_interval": f1_intervals[name] if true else None,
            }
        )
    return {
        "summary": evaluation.summary() | resampled,
        "per_class": rows,
        "most_confused": most_confused(matrix, outcome.classes),
    }


def sureness(subject: Subject) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calibration before and after the temperature, and what abstaining gives.

    The temperature is the artefact's. If that has none, one is fitted on validation images for comparison alone; the
    scored images never choose it.
    """
    outcome = subject.evaluation.outcome
    stored = subject.evaluation.temperature
    plain = cooled(outcome, 1 / stored)
    known = subject.classifier.origin.get("calibration")
    kept = known is not None
    fitted: Calibration | None = None
    chosen: list[dict[str, Any]] = []  # thresholds on the probabilities that the classifier gives today
    if known is not None:
        fitted = Calibration(**known)
        chosen = fitted.thresholds
    elif subject.validation is not None and stored == 1:
        held_out = classify(subject.classifier, subject.validation, skip_unreadable=subject.skip_unreadable)
        fitted, chosen = calibrate(held_out), thresholds(held_out)
    temperature = fitted.temperature if fitted else stored
    mended = cooled(plain, temperature)
    calibration = {
        "temperature": temperature,
        "kept": kept or stored != 1,
        "fitted_on": fitted.fitted_on if fitted else None,
        "images": fitted.images if fitted else None,
        "why": fitted.why if fitted else None if stored != 1 else "there are no validation images to fit it on",
        "optimistic": bool(fitted and fitted.fitted_on == subject.split),
        "before": sure(plain),
        "after": sure(mended) if temperature != 1 else None,
    }
    rows = [
        {
            "wanted": row["wanted"],
            "threshold": row["threshold"],
            "coverage_chosen": row["coverage"],
            "accuracy_chosen": row["accuracy"],
            **answered(outcome, row["threshold"]),
        }
        for row in chosen
    ]
    abstain = {
        "curve": risk_coverage(outcome),
        "chosen_on": fitted.fitted_on if fitted else None,
        "advised": advised(rows, outcome.accuracy),
        "thresholds": rows,
    }
    return calibration, abstain


def sure(outcome: Outcome) -> dict[str, Any]:
    """How sure and how right: the three numbers and the diagram."""
    return {
        "ece": calibration_error(outcome),
        "nll": outcome.loss,
        "brier": brier(outcome),
        "confidence": float(outcome.probabilities.max(axis=1).mean()),
        "bins": reliability(outcome),
    }


def advised(rows: list[dict[str, Any]], accuracy: float) -> float | None:
    """The wanted accuracy to begin with: the first that at least halves the error."""
    better = [row["wanted"] for row in rows if 1 - row["wanted"] <= (1 - accuracy) / 2]
    return better[0] if better else rows[-1]["wanted"] if rows else None


def believed(subject: Subject, depth: Depth) -> dict[str, Any] | None:
    """How far this model's maps can be believed; None where that was left out or cannot be measured."""
    if not depth.scored or len(subject.images) < FEWEST_SCORED:
        return None
    methods = [name for name in FAITHFUL if name in METHODS]
    try:
        scored = faithfulness(
            subject.classifier, subject.images, methods=methods, most=depth.scored, said=subject.evaluation.said
        )
    except UsageError:
        return None
    return scored.to_json() | {"default": DEFAULT}


def left_out(subject: Subject, depth: Depth) -> dict[str, str]:
    """Why parts are missing, in words."""
    if not depth.scored:
        return {"faithfulness": "for a model of this size on this device it would take long"}
    return {"faithfulness": f"it takes {FEWEST_SCORED} images, and parts of them, to say anything"}


def copies(subject: Subject, parts: dict[str, Images], show: Shown, depth: Depth) -> dict[str, Any]:
    """Images of the scored split that are also in another split, or that are in it twice under two labels."""
    looked: dict[str, Images] = {}
    left_out = []
    for name, images in sorted(parts.items(), key=lambda part: part[0] != subject.split):
        if sum(map(len, looked.values())) + len(images) <= depth.compared:
            looked[name] = images
        else:
            left_out.append(name)
    pairs = copies_across(looked) if subject.split in looked else []
    rows: list[dict[str, Any]] = []
    across: dict[str, int] = {}
    seen: set[int] = set()  # scored images with a copy in training
    twice = under_two_labels = 0
    for pair in pairs:
        if subject.split not in (pair.a[0], pair.b[0]):
            continue
        ours, theirs = (pair.a, pair.b) if pair.a[0] == subject.split else (pair.b, pair.a)
        labels = [subject.evaluation.outcome.classes[int(looked[s].labels[i])] for s, i in (ours, theirs)]
        if ours[0] == theirs[0]:
            twice += 1
        else:
            across[theirs[0]] = across.get(theirs[0], 0) + 1
        if theirs[0] == "train":
            seen.add(ours[1])
        under_two_labels += labels[0] != labels[1]
        if len(rows) < depth.suspects:
            both = [
                {"split": s, "path": looked[s].paths[i], "class": label, "thumbnail": show(i, s)}
                for (s, i), label in zip((ours, theirs), labels, strict=True)
            ]
            rows.append({"likeness": pair.likeness, "images": both})
    right = subject.evaluation.outcome.predicted == subject.evaluation.outcome.labels
    unseen = np.ones(len(right), dtype=bool)
    unseen[list(seen)] = False
    return {
        "looked_at": {name: len(images) for name, images in looked.items()},
        "left_out": left_out,
        "across": across,
        "seen_in_training": len(seen),
        "accuracy_without": float(right[unseen].mean()) if seen and unseen.any() else None,
        "within": twice,
        "under_two_labels": under_two_labels,
        "shown": rows,
    }


def by_property(subject: Subject, depth: Depth) -> dict[str, Any]:
    """Accuracy in fifths of the images by what they are like."""
    outcome = subject.evaluation.outcome
    order = np.random.Generator(np.random.Philox(0)).permutation(len(outcome.labels))
    chosen = np.sort(order[: depth.properties])
    correct = (outcome.predicted == outcome.labels)[chosen]
    values = properties(subject.images, subject.classifier.preprocess, chosen)
    return {
        "images": len(chosen),
        "by": {name: {"about": PROPERTIES[name], "rows": accuracy_by(values[name], correct)} for name in PROPERTIES},
    }


def embedded(subject: Subject, depth: Depth) -> tuple[dict[str, Any], Pictures]:
    """The flat map of what the model holds alike, and how pure each class's neighbourhood is."""
    outcome = subject.evaluation.outcome
    order = np.random.Generator(np.random.Philox(1)).permutation(len(outcome.labels))
    chosen = np.sort(order[: depth.embedded])
    vectors = pooled(subject.classifier, subject.images, chosen)
    places, made_by = flat_map(vectors)
    right = (outcome.predicted == outcome.labels)[chosen]
    picture = draw_scatter(subject.images, subject.classifier.preprocess, chosen, places, outcome.labels[chosen], right)
    document = {
        "images": len(chosen),
        "made_by": made_by,
        "picture": "embedding",
        "points": [
            {"image": int(i), "x": round(float(x), 4), "y": round(float(y), 4), "true": int(outcome.labels[i]),
             "predicted": int(outcome.predicted[i])}
            for i, (x, y) in zip(chosen, places, strict=True)
        ],
        "purity": purity(vectors, outcome.labels[chosen], outcome.classes),
    }  # fmt: skip
    return document, {"embedding": picture}


def confused(outcome: Outcome, show: Shown, depth: Depth) -> dict[str, Any]:
    """The matrix and, for each of its cells, the images to show: the surest mistakes, and the least sure hits.

    Mistakes get their thumbnails first, the rarest cells before the frequent ones.
    """
    matrix = confusion(outcome)
    few = len(matrix) <= MATRIX_CLASSES
    cells = [(int(i), int(j)) for i, j in zip(*np.nonzero(matrix), strict=True) if few or i != j]
    if not few:
        cells = sorted(cells, key=lambda cell: -int(matrix[cell]))[:LISTED]
    confidence = outcome.probabilities.max(axis=1)
    shown: dict[tuple[int, int], list[int]] = {}
    for i, j in sorted(cells, key=lambda cell: (cell[0] == cell[1], int(matrix[cell]))):
        members = np.flatnonzero((outcome.labels == i) & (outcome.predicted == j))
        order = np.argsort(confidence[members] * (1 if i == j else -1), kind="stable")
        numbers = [show(k) for k in members[order][: depth.by_cell]]
        shown[i, j] = [number for number in numbers if number is not None]
    return {
        "order": neighbourly(matrix) if few else list(range(len(matrix))),
        "matrix": matrix.tolist() if few else None,
        "cells": [{"true": i, "predicted": j, "images": int(matrix[i, j]), "shown": shown[i, j]} for i, j in cells],
    }


def neighbourly(matrix: np.ndarray) -> list[int]:
    """The classes in an order in which those that are confused stand together: average linkage, best leaf order."""
    n = len(matrix)
    if n < 4:
        return list(range(n))
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    likeness = (parts + parts.T) / 2
    distance = 1 - likeness
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    return [int(i) for i in leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))]


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
