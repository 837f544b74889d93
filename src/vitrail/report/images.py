"""What is to say of the images themselves: suspected labels, copies, kinds, and which of them the model holds alike."""

from typing import Any

import numpy as np

from vitrail.data import Images
from vitrail.data.near_duplicates import find_near_duplicates
from vitrail.evaluation.embedding import neighbor_purity, pooled_features, project_to_2d
from vitrail.evaluation.label_errors import find_label_errors
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.properties import PROPERTIES, accuracy_by_quantile, measure_properties
from vitrail.report.embedding_map import draw_scatter
from vitrail.report.sprite_sheets import ThumbnailIndex
from vitrail.report.subject import SampleSizes, Subject


def suspected(outcome: Outcome, show: ThumbnailIndex, depth: SampleSizes) -> dict[str, Any]:
    """Labels that are worth a second look, the clearest with a thumbnail."""
    found = find_label_errors(outcome)
    return {
        "suspected": len(found),
        "shown": [row | {"thumbnail": show(row["image"])} for row in found[: depth.suspects]],
        "method": "confident learning (Northcutt et al. 2021)",
    }


def copies(subject: Subject, parts: dict[str, Images], show: ThumbnailIndex, depth: SampleSizes) -> dict[str, Any]:
    """Images of the scored split that are also in another split, or that are in it twice under two labels."""
    looked: dict[str, Images] = {}
    left_out = []
    for name, images in sorted(parts.items(), key=lambda part: part[0] != subject.split):
        fits = sum(map(len, looked.values())) + len(images) <= depth.compared
        if fits and (looked or name == subject.split):  # without the scored images there is nothing to compare with
            looked[name] = images
        else:
            left_out.append(name)
    pairs = find_near_duplicates(looked)
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
            rows.append({"likeness": pair.similarity, "images": both})
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


def by_property(subject: Subject, depth: SampleSizes) -> dict[str, Any]:
    """Accuracy in fifths of the images by what they are like."""
    outcome = subject.evaluation.outcome
    order = np.random.Generator(np.random.Philox(0)).permutation(len(outcome.labels))
    chosen = np.sort(order[: depth.properties])
    correct = (outcome.predicted == outcome.labels)[chosen]
    values = measure_properties(subject.images, subject.classifier.preprocess, chosen)
    return {
        "images": len(chosen),
        "by": {
            name: {"about": PROPERTIES[name], "rows": accuracy_by_quantile(values[name], correct)}
            for name in PROPERTIES
        },
    }


def embedded(subject: Subject, depth: SampleSizes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The flat map of what the model holds alike, and how pure each class's neighbourhood is."""
    outcome = subject.evaluation.outcome
    order = np.random.Generator(np.random.Philox(1)).permutation(len(outcome.labels))
    chosen = np.sort(order[: depth.embedded])
    vectors = pooled_features(subject.classifier, subject.images, chosen)
    places, made_by = project_to_2d(vectors)
    right = (outcome.predicted == outcome.labels)[chosen]
    labels = outcome.labels[chosen]
    picture, middles = draw_scatter(subject.images, subject.classifier.preprocess, chosen, places, labels, right)
    document = {
        "images": len(chosen),
        "made_by": made_by,
        "picture": "embedding",
        "points": [
            {"image": int(i), "x": round(float(x), 4), "y": round(float(y), 4), "true": int(outcome.labels[i]),
             "predicted": int(outcome.predicted[i])}
            for i, (x, y) in zip(chosen, middles, strict=True)
        ],
        "purity": neighbor_purity(vectors, labels, outcome.classes),
    }  # fmt: skip
    return document, {"embedding": picture}
