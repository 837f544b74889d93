"""Near-duplicates of the scored images: in other splits, and under another label."""

from typing import Any

import numpy as np

from vitrail.data.images import Images
from vitrail.data.near_duplicates import find_near_duplicates
from vitrail.evaluation import Outcome


def collect_near_duplicates(
    outcome: Outcome, splits: dict[str, Images], scored_split: str, max_images: int, max_examples: int
) -> dict[str, Any]:
    """Returns the near-duplicate pairs that contain a scored image: their numbers, and examples.

    Splits are compared as long as all of them together have at most `max_images` images.
    """
    compared, skipped = choose_splits(splits, scored_split, max_images)
    examples: list[dict[str, Any]] = []
    across: dict[str, int] = {}
    in_training: set[int] = set()  # scored images that have a near-duplicate in the training split
    within = with_different_labels = 0
    for pair in find_near_duplicates(compared):
        if scored_split not in (pair.a[0], pair.b[0]):
            continue
        scored, other = (pair.a, pair.b) if pair.a[0] == scored_split else (pair.b, pair.a)
        classes = [outcome.classes[int(compared[split].labels[i])] for split, i in (scored, other)]
        if scored[0] == other[0]:
            within += 1
        else:
            across[other[0]] = across.get(other[0], 0) + 1
        if other[0] == "train":
            in_training.add(scored[1])
        with_different_labels += classes[0] != classes[1]
        if len(examples) < max_examples:
            images = [
                {"split": split, "image": i, "path": compared[split].paths[i], "class": name}
                for (split, i), name in zip((scored, other), classes, strict=True)
            ]
            examples.append({"similarity": pair.similarity, "images": images})
    is_unseen = np.ones(len(outcome.labels), dtype=bool)
    is_unseen[list(in_training)] = False
    has_unseen = bool(in_training) and is_unseen.any()
    return {
        "compared_images": {split: len(images) for split, images in compared.items()},
        "skipped_splits": skipped,
        "pairs_with_splits": across,
        "images_in_training": len(in_training),
        "accuracy_without_images_in_training": float(outcome.correct[is_unseen].mean()) if has_unseen else None,
        "pairs_within": within,
        "pairs_with_different_labels": with_different_labels,
        "examples": examples,
    }


def choose_splits(splits: dict[str, Images], scored_split: str, max_images: int) -> tuple[dict[str, Images], list[str]]:
    """Returns the splits to compare, the scored one first, and the names of those that are too large.

    If the scored split itself is too large, no split is compared.
    """
    compared: dict[str, Images] = {}
    skipped = []
    for name, images in sorted(splits.items(), key=lambda split: split[0] != scored_split):
        fits = sum(map(len, compared.values())) + len(images) <= max_images
        if fits and (compared or name == scored_split):
            compared[name] = images
        else:
            skipped.append(name)
    return compared, skipped
