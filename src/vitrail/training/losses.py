"""The training losses, by name in a recipe.

A row of `LOSSES` is called once per run, with a `LossContext` and the arguments after the loss's name in the recipe. It
returns the loss: (logits (B, Y) float32, targets (B,) int64 or (B, Y) probabilities) -> mean over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UsageError, first_line
from vitrail.parts import PARTS, add_callable, make_part, part_name
from vitrail.training.balance import ShiftedLogits, class_weights, seen_class_counts
from vitrail.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossContext:
    """What a loss may depend on: the recipe, the classes, and the number of training images of each class (Y,)."""

    recipe: Recipe
    classes: tuple[str, ...]
    class_counts: np.ndarray

    def balanced_weights(self) -> Tensor:
        """Returns a weight per class, (Y,): all classes count alike, and the mean over the images is 1.

        It is n / (Y * images of the class), as `class_weight="balanced"` in scikit-learn; 0 for a class without images.
        """
        return class_weights(self.class_counts)

    @property
    def class_weights(self) -> Tensor | None:
        """The weight of each class, (Y,), if the recipe has `balance = "weights"`; else None."""
        if self.recipe.balance != "weights":
            return None
        return class_weights(self.class_counts, self.recipe.balance_strength)


@dataclass(frozen=True)
class StepBatch:
    """The images of a micro-batch as the model gets them, and their labels before mixing."""

    images_BCHW: Tensor
    labels_B: Tensor


# what a step computes from the logits and targets of a micro-batch
StepLoss = Callable[[Tensor, Tensor, StepBatch], Tensor]


class CrossEntropy:
    """Mean cross-entropy with label smoothing, weighted if the recipe has `balance = "weights"`.

    An image's loss, with its smoothing, is multiplied by the weight of its class. Of mixed images it is the sum of both
    losses by their shares, each with its own weight. torch would weight the smoothing by class too: with a weight of
    100 for a rare class, that class would be a target of every image. `class_weights="balanced"` weights the classes
    without `balance`.
    """

    takes_class_weights = True

    def __init__(self, context: LossContext, class_weights: str | None = None):
        if class_weights not in (None, "balanced"):
            raise UsageError(f"class_weights is {class_weights!r}", "known: balanced, none")
        if class_weights and context.recipe.balance != "none":
            raise UsageError(
                f"the classes are weighted twice: by class_weights and by balance {context.recipe.balance}",
                "leave out one of them",
            )
        self.smoothing = context.recipe.label_smoothing
        self.weights_Y = context.balanced_weights() if class_weights else context.class_weights
        seen = seen_class_counts(context.class_counts, context.recipe)
        counts = seen if self.weights_Y is None else seen * self.weights_Y.numpy()
        self.chance_level = class_entropy(counts, self.smoothing)

    def __call__(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        if self.weights_Y is None:
            return F.cross_entropy(logits_BY, targets, label_smoothing=self.smoothing)
        weights_Y = self.weights_Y.to(logits_BY.device)
        losses_B = F.cross_entropy(logits_BY, targets, weights_Y, reduction="none")
        if self.smoothing:
            weights_B = targets @ weights_Y if targets.is_floating_point() else weights_Y[targets]
            uniform_B = -F.log_softmax(logits_BY, dim=1).mean(dim=1)
            losses_B = (1 - self.smoothing) * losses_B + self.smoothing * weights_B * uniform_B
        return losses_B.mean()  # over images, not over weights: micro-batches then add up to the batch


def class_entropy(class_counts_Y: np.ndarray, smoothing: float) -> float:
    """Entropy of the smoothed class frequencies, in nats: the lowest loss of a model that ignores the image."""
    frequencies = class_counts_Y / class_counts_Y.sum() * (1 - smoothing) + smoothing / len(class_counts_Y)
    frequencies = frequencies[frequencies > 0]
    return float(-(frequencies * np.log(frequencies)).sum())


LOSSES: dict[str, Callable[..., Loss]] = {"cross_entropy": CrossEntropy}


def make_loss(context: LossContext) -> Loss:
    """Returns the loss of a recipe; raises `UsageError` for wrong arguments and for a loss that cannot be trained."""
    recipe = context.recipe
    name = part_name(recipe.loss)
    if recipe.balance == "weights" and not getattr(LOSSES.get(name), "takes_class_weights", False):
        raise UsageError(
            f"the loss {name!r} takes no class weights, which balance = weights needs",
            "use balance sampler or logits; a class of your own reads context.class_weights and has "
            "takes_class_weights = True",
        )
    loss = make_part(LOSSES, recipe.loss, context)
    if ("loss", name) in PARTS:
        check_loss(name, loss, context)
    if recipe.balance == "logits":
        return ShiftedLogits(loss, context.class_counts, recipe.balance_strength)
    return loss


def check_loss(name: str, loss: Loss, context: LossContext) -> None:
    """Raises `UsageError` unless a loss returns a scalar with a gradient, and has no parameters of its own."""
    if not callable(loss):
        raise UsageError(f"the loss {name!r} makes a {type(loss).__name__} instead of a loss", "see docs/plugins.md")
    if isinstance(loss, nn.Module) and any(each.requires_grad for each in loss.parameters()):
        raise UsageError(f"the loss {name!r} has parameters, which no optimizer trains", "make them buffers")
    logits_BY = torch.zeros(len(context.classes) + 1, len(context.classes), requires_grad=True)
    targets, kind = torch.zeros(len(logits_BY), dtype=torch.int64), "class indices (B,)"
    if context.recipe.augment.is_mixing:
        targets, kind = F.one_hot(targets, len(context.classes)).float(), "probabilities (B, Y)"
    try:
        value = loss(logits_BY, targets)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"the loss {name!r} fails: {reason}", f"it gets logits (B, Y) and {kind}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        shape = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UsageError(f"the loss {name!r} returns {shape}", "it must return a scalar that depends on the logits")


def make_step_loss(loss: Loss) -> StepLoss:
    """Returns a loss as a step calls it. The buffers of a module follow the logits to their device."""

    def compute(logits_BY: Tensor, targets: Tensor, batch: StepBatch) -> Tensor:
        if isinstance(loss, nn.Module):
            loss.to(logits_BY.device)
        return loss(logits_BY, targets)

    return compute


def chance_level(loss: Loss) -> float | None:
    """Returns the lowest loss of a model that ignores the image; None for a loss that does not tell."""
    level: float | None = getattr(loss, "chance_level", None)
    return level


def name_loss(loss: Callable[..., object]) -> str:
    """Lets recipes of this process name a callable by its qualified name, which it returns.

    A class makes the loss from a `LossContext`; anything else is a loss itself, `loss(logits, targets)`.
    """
    if not callable(loss):
        raise UsageError(f"loss is a {type(loss).__name__}", "give a name or a callable loss(logits, targets)")
    name = add_callable("loss", loss)
    LOSSES[name] = cast("Callable[..., Loss]", loss) if isinstance(loss, type) else lambda context: cast("Loss", loss)
    return name
