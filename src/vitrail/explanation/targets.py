"""The explained class of each image: class names -> class indices -> the weight of each logit in the score."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitrail.errors import UsageError, did_you_mean

Target = str | tuple[str, str] | None  # a class; one class rather than another; the predicted class
ClassTarget = tuple[int, int | None]  # index of the explained class, and of the class that it is compared with
TargetRule = Callable[
    [Tensor], Tensor
]  # logits of the intact images (B, Y) -> weight of each logit in the score (B, Y)


def parse_targets(classes: tuple[str, ...], target: Target | Sequence[Target], images: int) -> list[ClassTarget | None]:
    """One target for each image, from a target for all of them or a list with one for each.

    Raises `UsageError` for a list of another length, and as `parse_target` does.
    """
    if not isinstance(target, list):
        return [parse_target(classes, target)] * images  # type: ignore[arg-type]
    if len(target) != images:
        raise UsageError(f"there are {len(target)} targets for {images} images")
    return [parse_target(classes, each) for each in target]


def parse_target(classes: tuple[str, ...], target: Target) -> ClassTarget | None:
    """Class names -> class indices; None for the predicted class. Raises `UsageError` for an unknown class."""
    if target is None:
        return None
    label, against = (target, None) if isinstance(target, str) else target
    if label == against:
        raise UsageError(f"{label!r} is compared with itself", "name two classes")
    return find_class_index(classes, label), None if against is None else find_class_index(classes, against)


def find_class_index(classes: tuple[str, ...], label: str) -> int:
    """Returns the index of a class; raises `UsageError` for a class that the model does not have."""
    if label not in classes:
        raise UsageError(f"the model has no class {label!r}", did_you_mean(label, classes))
    return classes.index(label)


def make_target_rule(targets: Sequence[ClassTarget | None]) -> TargetRule:
    """Returns the rule that weighs the logits: 1 for the explained class, -1 for the compared class, else 0.

    For a target of None the explained class is the one with the largest logit.
    """

    def weigh_logits(logits_BY: Tensor) -> Tensor:
        target_BY = torch.zeros_like(logits_BY)
        for i, (target, predicted) in enumerate(zip(targets, logits_BY.argmax(dim=1).tolist(), strict=True)):
            label, against = target or (predicted, None)
            target_BY[i, label] = 1
            if against is not None:
                target_BY[i, against] -= 1
        return target_BY

    return weigh_logits
