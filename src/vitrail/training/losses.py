"""The training losses, by name in a recipe.

A row of `LOSSES` is called once per run, with a `LossContext` and the arguments after the loss's name in the recipe. It
returns the loss: (logits (B, Y) float32, targets) -> mean over the batch. With one class per image the targets are (B,)
int64, or (B, Y) probabilities after mixing; with several labels they are (B, Y) float32, from 0 to 1. Numbers are
(B, Y) float32, each minus the mean of the training images and divided by their standard deviation. A class that is not
for every task has the attribute `tasks`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import UsageError, first_line
from vitrail.parts import PARTS, add_callable, make_part, part_name
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TASKS
from vitrail.training.balance import ShiftedLogits, class_weights, positive_weights, seen_class_counts
from vitrail.training.number_losses import HuberLoss, L1Loss, MseLoss, SmoothL1Loss
from vitrail.training.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossContext:
    """What a loss may depend on: recipe, classes, the training images of each class (Y,), the task and all images."""

    recipe: Recipe
    classes: tuple[str, ...]
    class_counts: np.ndarray
    task: str = SINGLE_LABEL
    images: int = 0  # training images; with several labels, not the sum of `class_counts`

    @property
    def loss(self) -> str:
        """The loss of the recipe, or the task's default if it names none."""
        return self.recipe.loss or TASKS[self.task].default_loss

    def balanced_weights(self) -> Tensor:
        """Returns a weight per class, (Y,): all classes count alike, and the mean over the images is 1.

        It is n / (Y * images of the class), as `class_weight="balanced"` in scikit-learn; 0 for a class without images.
        """
        return class_weights(self.class_counts)

    @property
    def class_weights(self) -> Tensor | None:
        """The weight of each class, (Y,), if the recipe has `balance = "weights"`; else None.

        With several labels per image it is the weight of each label's positive answers (`positive_weights`).
        """
        if self.recipe.balance != "weights":
            return None
        if self.task == MULTI_LABEL:
            return positive_weights(self.class_counts, self.images, self.recipe.balance_strength)
        return class_weights(self.class_counts, self.recipe.balance_strength)


@dataclass(frozen=True)
class StepBatch:
    """The images of a micro-batch as the model gets them, and their labels before mixing."""

    images_BCHW: Tensor
    labels_B: Tensor  # (B, Y) with several labels per image
    numbers_B: Tensor | None = None  # of the images among the training images, if there is a teacher


# what a step computes from the logits and targets of a micro-batch
StepLoss = Callable[[Tensor, Tensor, StepBatch], Tensor]


class CrossEntropy:
    """Mean cross-entropy with label smoothing, weighted if the recipe has `balance = "weights"`.

    An image's loss, with its smoothing, is multiplied by the weight of its class. Of mixed images it is the sum of both
    losses by their shares, each with its own weight. torch would weight the smoothing by class too: with a weight of
    100 for a rare class, that class would be a target of every image. `class_weights="balanced"` weights the classes
    without `balance`.
    """

    tasks = (SINGLE_LABEL, GRADES)
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


class BinaryCrossEntropy:
    """Mean binary cross-entropy over images and classes: each class is a question of its own.

    For one class per image it is the loss of Wightman et al. 2021 (arXiv 2110.00476) and of DeiT III. Mixed targets
    above `target_threshold` count as 1, the others as 0; without it they are used as they are. With several labels per
    image and `balance = "weights"`, positive answers are weighted.
    """

    tasks = (SINGLE_LABEL, MULTI_LABEL)
    takes_class_weights = (MULTI_LABEL,)

    def __init__(self, context: LossContext, target_threshold: float | None = None):
        self.to_targets = DenseTargets(context)
        self.target_threshold = target_threshold
        self.weights_Y = context.class_weights
        frequencies = self.to_targets.smooth(context.class_counts / max(context.images, 1))
        weights_Y = 1.0 if self.weights_Y is None else self.weights_Y.numpy()
        self.chance_level = mean_binary_entropy(frequencies, weights_Y) if context.images else None

    def __call__(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        targets_BY = self.to_targets(logits_BY, targets)
        if self.target_threshold is not None:
            targets_BY = (targets_BY > self.target_threshold).to(targets_BY.dtype)
        weights_Y = None if self.weights_Y is None else self.weights_Y.to(logits_BY)
        return F.binary_cross_entropy_with_logits(logits_BY, targets_BY, pos_weight=weights_Y)


class Focal:
    """Mean focal loss over images and classes (Lin et al. 2017, arXiv 1708.02002): labels that are easy count less.

    `gamma` says how much less; `alpha` is the weight of the positive labels, 1 - `alpha` that of the others, and -1
    weights all alike.
    """

    tasks = (SINGLE_LABEL, MULTI_LABEL)

    def __init__(self, context: LossContext, alpha: float = 0.25, gamma: float = 2.0):
        if not (0 <= alpha <= 1 or alpha == -1):
            raise UsageError(f"alpha is {alpha!r}", "give a number from 0 to 1, or -1 to weight all labels alike")
        self.to_targets = DenseTargets(context)
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        targets_BY = self.to_targets(logits_BY, targets)
        losses_BY = F.binary_cross_entropy_with_logits(logits_BY, targets_BY, reduction="none")
        p_BY = logits_BY.sigmoid()
        p_target_BY = p_BY * targets_BY + (1 - p_BY) * (1 - targets_BY)
        losses_BY = losses_BY * (1 - p_target_BY) ** self.gamma
        if self.alpha >= 0:
            losses_BY = losses_BY * (self.alpha * targets_BY + (1 - self.alpha) * (1 - targets_BY))
        return losses_BY.mean()


class Asymmetric:
    """Asymmetric loss (Ridnik et al. 2021, arXiv 2009.14119), summed over classes: absent labels that are easy count
    less than present ones, and those with a probability below `clip` not at all.
    """

    tasks = (MULTI_LABEL,)

    def __init__(self, context: LossContext, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05):
        self.to_targets = DenseTargets(context)
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def __call__(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        targets_BY = self.to_targets(logits_BY, targets)
        present_BY = logits_BY.sigmoid()
        absent_BY = (1 - present_BY + self.clip).clamp(max=1)
        log_BY = (
            targets_BY * present_BY.clamp(min=LOG_EPS).log() + (1 - targets_BY) * absent_BY.clamp(min=LOG_EPS).log()
        )
        p_target_BY = present_BY * targets_BY + absent_BY * (1 - targets_BY)
        gamma_BY = self.gamma_pos * targets_BY + self.gamma_neg * (1 - targets_BY)
        return -(log_BY * (1 - p_target_BY) ** gamma_BY).sum(1).mean()


LOG_EPS = 1e-8


class Cumulative:
    """Mean over images and borders of the binary cross-entropy of "the grade is above this border", for ordered grades.

    The extended binary classification of Li & Lin 2007 and Niu et al. 2016, which CORAL (Cao et al. 2020, arXiv
    1901.07884) trains too. The probability of a border is the sum of the softmax over the grades above it, so these
    probabilities never rise from border to border. An error of two grades crosses two borders and costs more than one.
    """

    tasks = (GRADES,)

    def __init__(self, context: LossContext):
        self.smoothing = context.recipe.label_smoothing
        counts = context.class_counts / context.class_counts.sum()
        above = counts[::-1].cumsum()[::-1][1:] * (1 - self.smoothing) + self.smoothing * above_uniform(len(counts))
        self.chance_level = mean_binary_entropy(above)

    def __call__(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        grades = logits_BY.shape[1]
        targets_BY = F.one_hot(targets, grades) if targets.ndim == 1 else targets
        above_BK = targets_BY.to(logits_BY.dtype).flip(1).cumsum(1).flip(1)[:, 1:]
        if self.smoothing:
            uniform_K = torch.from_numpy(above_uniform(grades)).to(above_BK)
            above_BK = above_BK * (1 - self.smoothing) + self.smoothing * uniform_K
        return F.binary_cross_entropy_with_logits(border_logits(logits_BY), above_BK)


def above_uniform(grades: int) -> np.ndarray:
    """Returns the probability that a grade is above each border, (grades - 1,), if all grades are equally probable."""
    return np.arange(grades - 1, 0, -1) / grades


def border_logits(logits_BY: Tensor) -> Tensor:
    """Returns the log-odds that the grade is above each border, (B, Y - 1), of a softmax over the grades."""
    above_BK = logits_BY.flip(1).logcumsumexp(1).flip(1)[:, 1:]
    return above_BK - logits_BY.logcumsumexp(1)[:, :-1]


class DenseTargets:
    """Makes the targets of losses that ask a question per class: (B, Y) from 0 to 1, with the recipe's smoothing."""

    def __init__(self, context: LossContext):
        self.smoothing = context.recipe.label_smoothing
        # smoothing moves one class towards all classes, and a label of several towards its opposite
        self.smoothed_value = 0.5 if context.task == MULTI_LABEL else 1 / len(context.classes)

    def __call__(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        targets_BY = F.one_hot(targets, logits_BY.shape[1]) if targets.ndim == 1 else targets
        smoothed: Tensor = self.smooth(targets_BY.to(logits_BY.dtype))
        return smoothed

    def smooth(self, targets: Any) -> Any:
        """Returns targets, or their frequencies, with label smoothing."""
        return targets * (1 - self.smoothing) + self.smoothing * self.smoothed_value if self.smoothing else targets


def mean_binary_entropy(frequencies_Y: np.ndarray, weights_Y: np.ndarray | float = 1.0) -> float:
    """Mean entropy of the labels' frequencies, in nats: the lowest binary loss of a model that ignores the image.

    `weights_Y` are those of positive answers.
    """
    both = np.stack([weights_Y * frequencies_Y, 1 - frequencies_Y])
    best = both / both.sum(0)
    logs = np.log(best, out=np.zeros_like(best), where=best > 0)
    return float(-(both * logs).sum(0).mean())


LOSSES: dict[str, Callable[..., Loss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "focal": Focal,
    "asymmetric": Asymmetric,
    "cumulative": Cumulative,
    "mse_loss": MseLoss,
    "l1_loss": L1Loss,
    "smooth_l1_loss": SmoothL1Loss,
    "huber_loss": HuberLoss,
}


def losses_of_task(task: str) -> list[str]:
    """Returns the names of the built-in losses for a task. A loss without the attribute `tasks` is for every task."""
    built_in = {name: kind for name, kind in LOSSES.items() if ("loss", name) not in PARTS}
    return [name for name, kind in built_in.items() if task in getattr(kind, "tasks", TASKS)]


def check_loss_fits(context: LossContext) -> None:
    """Raises `UsageError` for a built-in loss that is for another task."""
    name, names = part_name(context.loss), losses_of_task(context.task)
    if ("loss", name) not in PARTS and name not in names:
        description = TASKS[context.task].description
        raise UsageError(
            f"the loss {name!r} is not for images of which each has {description}",
            f"use {', '.join(names[:-1])} or {names[-1]}",
        )


def takes_weights(name: str, task: str) -> bool:
    """Returns whether a loss uses the weights of `balance`: its `takes_class_weights` is True, or has the task."""
    taken: bool | tuple[str, ...] = getattr(LOSSES.get(name), "takes_class_weights", False)
    return task in taken if isinstance(taken, tuple) else taken


def make_loss(context: LossContext) -> Loss:
    """Returns the loss of a recipe; raises `UsageError` for wrong arguments and for a loss that cannot be trained."""
    recipe = context.recipe
    name = part_name(context.loss)
    check_loss_fits(context)
    if recipe.balance == "weights" and not takes_weights(name, context.task):
        alternative = "binary_cross_entropy" if context.task == MULTI_LABEL else "balance sampler or logits"
        raise UsageError(
            f"the loss {name!r} takes no class weights, which balance = weights needs",
            f"use {alternative}; a class of your own reads context.class_weights and has takes_class_weights = True",
        )
    loss = make_part(LOSSES, context.loss, context)
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
    if context.task == MULTI_LABEL:
        targets, kind = torch.zeros_like(logits_BY), "labels (B, Y) from 0 to 1"
    elif context.task == REGRESSION:
        targets, kind = torch.zeros_like(logits_BY), "standardized numbers (B, Y)"
    elif context.recipe.augment.is_mixing:
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
        # if this process's shard of a small batch is empty, its backward still takes part in the collectives
        return loss(logits_BY, targets) if len(targets) else logits_BY.sum()

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
