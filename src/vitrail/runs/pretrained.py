"""What a run starts from when it does not start from nothing: a classifier's weights, and probes of what they know."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data import Splits
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.evaluation import describe_scored_images
from vitrail.evaluation.probe import Probe, probe
from vitrail.interrupts import Interrupted, catch_stop_signals
from vitrail.loading import load
from vitrail.model import ViT, ViTConfig
from vitrail.runs.folder import RunFolder
from vitrail.training import Recipe
from vitrail.training.curves import draw_curves
from vitrail.training.transfer import describe_head, set_head, transfer_weights
from vitrail.weights.artifact import weights_sha256

Model = str | Path | Classifier


@dataclass(frozen=True)
class Pretrained:
    """A classifier to start from, where it came from, and a digest of its weights."""

    classifier: Classifier
    address: str | None  # none where it was handed over as an object
    sha256: str

    def note(self) -> dict[str, Any]:
        """What a run folder keeps of it."""
        return {"model": self.address, "sha256": self.sha256}

    def origin(self, head: str) -> dict[str, Any]:
        """What an artefact keeps of it: what became of its head, and its own origin, so a chain can be followed."""
        kept = {"classes": len(self.classifier.classes), "head": head, "origin": self.classifier.origin}
        return {**self.note(), **kept}


def pretrained(
    model: Model | None, recipe: Recipe, place: torch.device, torch_files: bool = False
) -> Pretrained | None:
    """The weights to start from; raises `UsageError` where there are none and the recipe cannot do without."""
    if model is None:
        if recipe.needs_pretrained_weights:
            raise UsageError(
                f"recipe {recipe.name}, as it is asked for, needs weights to start from", "name them with --from MODEL"
            )
        return None
    address = None if isinstance(model, Classifier) else str(model)
    classifier = model if isinstance(model, Classifier) else load(model, device=place, torch_files=torch_files)
    weights = {name: tensor.cpu() for name, tensor in classifier.vit.state_dict().items()}
    return Pretrained(classifier, address, weights_sha256(weights))


def pretrained_again(
    folder: RunFolder, model: Model | None, recipe: Recipe, place: torch.device, torch_files: bool = False
) -> Pretrained | None:
    """The weights that a run was started from; raises `VitrailError` where they are not the same any more."""
    note = folder.start_note()
    if not note:
        if model is not None:
            raise UsageError(f"{folder.path} was started from nothing", "resume it without --from")
        return None
    if model is None and note["model"] is None:
        raise UsageError(f"{folder.path} was started from a classifier in Python", "hand it over again as model=")
    found = pretrained(model or note["model"], recipe, place, torch_files)
    if found is None or found.sha256 != note["sha256"]:
        raise VitrailError(
            f"{model or note['model']} does not hold the weights that {folder.path} was started from",
            "put them back, or start a new run",
        )
    return found


def begin(start: Pretrained, config: ViTConfig, splits: Splits, recipe: Recipe) -> tuple[ViT, str]:
    """A ViT for the data's classes with the weights to start from, and what became of the head."""
    theirs = start.classifier
    torch.manual_seed(recipe.seed)
    vit, head = transfer_weights(theirs.vit, theirs.classes, config, splits.classes)
    anew = "; it is fitted anew" if recipe.train_on == "features" and head != "new" else ""
    log(describe_head(head, theirs.classes, splits.classes) + anew)
    warn_of_seen_images(theirs, splits, recipe)
    return vit, head


def warn_of_seen_images(theirs: Classifier, splits: Splits, recipe: Recipe) -> None:
    """Says so where the weights were trained on these data, divided in another way."""
    before = theirs.origin.get("data", {})
    split = {"test": recipe.test_fraction, "validation": recipe.validation_fraction, "seed": recipe.split_seed}
    if before.get("fingerprint") == splits.fingerprint and before.get("split", split) != split:
        log(
            "the weights were trained on these data, divided in another way: images kept back now may have been "
            "trained on then, and scores will be too high"
        )


def probed(classifier: Classifier, splits: Splits, recipe: Recipe) -> Probe:
    """Both probes of the weights as they are; a signal stops them, and what they have computed is kept."""
    with catch_stop_signals() as stop:

        def go_on() -> None:
            if stop.requested:
                raise Interrupted(
                    "stopped while computing features; those that are there are kept", "go on with --resume"
                )

        found = probe(
            classifier,
            splits,
            penalty=recipe.probe_l2,
            workers=recipe.workers,
            skip_unreadable=recipe.skip_unreadable,
            on_batch=go_on,
        )
    for line in describe_probes(found.to_json()):
        log(line)
    return found


def start_head(classifier: Classifier, found: Probe, recipe: Recipe) -> None:
    """Puts the probe's head in place of a new one, if the recipe wants that."""
    if recipe.head_init != "probe":
        return
    if classifier.vit.config.head != "linear":
        log("the new head is not linear, so it starts at random and not as the probe")
        return
    set_head(classifier.vit, torch.from_numpy(found.head.weight), torch.from_numpy(found.head.bias))


def fit_head(classifier: Classifier, found: Probe, folder: RunFolder) -> None:
    """The whole training where only a head is fitted: the linear probe becomes the classifier's head."""
    set_head(classifier.vit, torch.from_numpy(found.head.weight), torch.from_numpy(found.head.bias))
    classifier.save(folder.artifact)
    folder.write_metrics(found.head.scores_by_penalty)
    draw_curves(folder.load_metrics(), folder.picture("curves"), x_key="penalty", log_x=True)


def describe_probes(figures: dict[str, Any]) -> list[str]:
    """What the probes reach, a line for each."""
    lines: list[str] = []
    if figures["split"] is None:
        return lines
    for name, how in (("knn", "{k} nearest neighbours"), ("linear", "a linear probe")):
        low, high = figures[name]["accuracy_interval"]
        lines.append(
            f"{how.format(**figures[name])} on the weights' own features: {figures['split']} accuracy "
            f"{figures[name]['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), {describe_scored_images(figures[name])}"
        )
    return lines


def compare_with_probes(classifier: Classifier, scores: dict[str, Any], figures: dict[str, Any]) -> str | None:
    """A sentence where a trained model does no better than a probe, which costs next to nothing."""
    if classifier.origin["recipe"]["train_on"] == "features":
        return None
    best = max(("knn", "linear"), key=lambda name: figures[name]["accuracy"])
    name, score = {"knn": "k-NN", "linear": "the linear probe"}[best], figures[best]
    if scores["accuracy"] > score["accuracy"]:
        return None
    if scores["accuracy"] == score["accuracy"]:
        return f"training gained nothing over {name}, which costs next to nothing: --recipe linear"
    overlap = scores["accuracy_interval"][1] >= score["accuracy_interval"][0]
    chance = " (their intervals overlap, so that may be chance)" if overlap else ""
    return (
        f"the trained model loses to {name} by {score['accuracy'] - scores['accuracy']:.4f}{chance}: "
        "keep --recipe linear, or try a lower learning rate or more epochs"
    )
