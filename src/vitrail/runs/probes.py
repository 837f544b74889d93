"""Probes of pretrained weights in a run: what their features are worth before training, and a head made of them."""

from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data.split import Splits
from vitrail.documents import Scores
from vitrail.evaluation.evaluation import describe_scored_images
from vitrail.evaluation.probe import Probe, probe
from vitrail.evaluation.probe_scores import SCORE_TITLES, describe_probe_scores
from vitrail.interrupts import Interrupted, catch_stop_signals
from vitrail.module_classifier import TorchClassifier
from vitrail.probe_documents import ProbeDocument
from vitrail.runs.folder import RunFolder
from vitrail.tasks import TASKS
from vitrail.training.curves import draw_curves
from vitrail.training.recipe import Recipe
from vitrail.training.transfer import set_head
from vitrail.weights.origin import read_origin


def probe_pretrained(classifier: Classifier, splits: Splits, recipe: Recipe) -> Probe:
    """Returns both probes of the weights before training. A signal stops them; computed features stay in the cache."""
    with catch_stop_signals() as stop:

        def raise_if_stopped() -> None:
            if stop.requested:
                raise Interrupted(
                    "stopped while computing features; the computed ones are kept", "continue with --resume"
                )

        probes = probe(
            classifier,
            splits,
            penalty=recipe.probe_l2,
            workers=recipe.workers,
            skip_unreadable=recipe.skip_unreadable,
            on_batch=raise_if_stopped,
            scale=classifier.target_scale,
        )
    for line in describe_probes(probes.to_json()):
        log(line)
    return probes


def initialize_head(classifier: Classifier, probes: Probe, recipe: Recipe) -> None:
    """Replaces a new head by the linear probe's, if the recipe sets head_init to probe."""
    if recipe.head_init != "probe":
        return
    if classifier.vit.config.head != "linear":
        log("the new head is not linear, so it starts from random weights and not from the probe")
        return
    set_head(classifier.vit, torch.from_numpy(probes.head.weight), torch.from_numpy(probes.head.bias))


def save_linear_probe(classifier: Classifier, probes: Probe, folder: RunFolder) -> None:
    """Makes the linear probe the classifier's head and saves it: the whole training of a recipe on features."""
    set_head(classifier.vit, torch.from_numpy(probes.head.weight), torch.from_numpy(probes.head.bias))
    classifier.save(folder.artifact)
    folder.write_metrics(probes.head.scores_by_penalty)
    if folder.draws:
        title = "linear probe, by the strength of its L2 penalty"
        kept = probes.head.penalty
        draw_curves(folder.load_metrics(), folder.picture("curves"), title, "penalty", log_x=True, best_x=kept)


def describe_probes(scores: ProbeDocument) -> list[str]:
    """Returns a line for the score of each probe; none if no image was held out."""
    if scores["split"] is None:
        return []
    lines = []
    descriptions = (f"{scores['knn']['k']} nearest neighbors", "a linear probe")
    for probe_scores, description in zip((scores["knn"], scores["linear"]), descriptions, strict=True):
        lines.append(
            f"{description} on the pretrained features: {scores['split']} {describe_probe_scores(probe_scores)}, "
            f"{describe_scored_images(probe_scores)}"
        )
    return lines


def compare_with_probes(
    classifier: TorchClassifier, scores: Scores, probes: ProbeDocument, best_epoch: int | None = None
) -> str | None:
    """Returns a warning if a trained model is no better than a probe, which costs next to nothing; else None.

    They are compared by the score of the task. `best_epoch` is the epoch whose weights were kept; 0 is the start.
    """
    if read_origin(classifier.origin)["recipe"]["train_on"] == "features":
        return None
    if best_epoch == 0:
        return (
            "training gained nothing: no epoch was better on validation than the weights at the start, which are kept; "
            "try a lower learning rate or more epochs, or use --recipe linear, which costs next to nothing"
        )
    score = TASKS[classifier.task].score
    ours: dict[str, Any] = {**scores}
    both: list[tuple[str, dict[str, Any]]] = [("k-NN", {**probes["knn"]}), ("the linear probe", {**probes["linear"]})]
    name, theirs = max(both, key=lambda each: each[1][score])
    if ours[score] > theirs[score]:
        return None
    if ours[score] == theirs[score]:
        return f"training gained nothing over {name}, which costs next to nothing: --recipe linear"
    intervals = [each[f"{score}_interval"] for each in (ours, theirs)]
    overlap = None not in intervals and intervals[0][1] >= intervals[1][0]
    chance = " (their intervals overlap, so that may be chance)" if overlap else ""
    of_what = "" if score == "accuracy" else f" {SCORE_TITLES[score]}"
    return (
        f"the trained model loses to {name} by {theirs[score] - ours[score]:.4f}{of_what}{chance}: "
        "use --recipe linear, or try a lower learning rate or more epochs"
    )
