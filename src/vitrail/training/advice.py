"""Sentences on a training: whether to start from pretrained weights, whether it has stopped or overfitted early."""

import shlex
from typing import Any

from vitrail.data.addresses import PYTHON_PREFIX
from vitrail.documents import EarlyStop

FEW_IMAGES = (
    5000  # below, pretrained weights are advised: at 4,000 a linear probe beat training from scratch (docs/log.md)
)
ADVISED_CARD = "timm/vit_small_patch14_dinov2.lvd142m"
MIN_EPOCHS = 4  # of a run whose curves are judged
EARLY = 0.5  # fraction of the epochs up to which the best one is early
GAP = 0.15  # training accuracy above validation accuracy at the end that counts as overfitting


def advise_pretrained_weights(train_images: int, data: str) -> str | None:
    """Returns the advice to start from pretrained weights if there are few training images, else None."""
    if train_images >= FEW_IMAGES:
        return None
    command = (
        f"vitrail.train(data, model={ADVISED_CARD!r})"
        if data.startswith(PYTHON_PREFIX)
        else shlex.join(["vitrail", "train", data, "--from", ADVISED_CARD])
    )
    return (
        f"{train_images:,} training images are few (under {FEW_IMAGES:,}): pretrained weights are usually far better "
        f"than training from scratch; for example: {command}"
    )


def describe_early_stop(stopped: EarlyStop) -> str:
    """Returns a sentence, without its full stop, on when and why training stopped early."""
    return f"Training stopped early, after epoch {stopped['epoch']} of {stopped['epochs']}: {stopped['reason']}"


def describe_overfitting(rows: list[dict[str, Any]], metric: str = "accuracy") -> str | None:
    """Returns a sentence if validation was best early and training accuracy then left it behind, else None.

    `rows` are the rows of a run's metrics; `metric` selects the weights.
    """
    rows = [row for row in rows if "validation_accuracy" in row and "epoch" in row]
    if any("validation_map" in row for row in rows):  # accuracy is not the score that selects the weights
        return None
    if not rows or rows[-1]["epoch"] < MIN_EPOCHS or "train_accuracy" not in rows[-1]:
        return None
    best = max(rows, key=lambda row: (row[f"validation_{metric}"], -row["validation_loss"]))
    last = rows[-1]
    if best["epoch"] > EARLY * last["epoch"] or last["train_accuracy"] - last["validation_accuracy"] < GAP:
        return None
    return (
        f"Early overfitting: the best epoch on validation was {best['epoch']} of {last['epoch']}, and the later ones "
        f"gained nothing; at the end training accuracy is {last['train_accuracy']:.1%} and validation accuracy "
        f"{last['validation_accuracy']:.1%}. More images, pretrained weights or fewer epochs may help."
    )
