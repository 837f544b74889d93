"""What a recipe does about classes of unequal size: weights in the loss, balanced sampling, or shifted logits."""

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.data.balanced_order import balanced_draws, class_quotas
from vitrail.data.images import Images
from vitrail.data.randomness import epoch_permutation
from vitrail.training.recipe import Recipe

UNEQUAL = 3  # largest class over smallest, above which classes are called unequal


def class_weights(class_counts_Y: np.ndarray, strength: float = 1.0) -> Tensor:
    """Returns a weight per class, float32 (Y,), proportional to (images of the class) ** -strength.

    The mean over the images is 1. With strength 1 it is n / (Y * images of the class), as `class_weight="balanced"` in
    scikit-learn: all classes count alike. A class without images has the weight 0.
    """
    counts = torch.as_tensor(class_counts_Y, dtype=torch.float32)
    if strength == 1:
        weights = counts.sum() / (int((counts > 0).sum()) * counts)
    else:
        weights = counts.clamp(min=1) ** -strength
        weights = weights * (counts.sum() / (weights * counts).sum())
    return weights.masked_fill(counts == 0, 0.0)


def positive_weights(label_counts_Y: np.ndarray, images: int, strength: float = 1.0) -> Tensor:
    """Returns a weight of the positive answers of each label, (Y,): (images without it / images with it) ** strength.

    With strength 1, positive and negative answers of a label count alike. A label that no image has, or every one, has
    the weight 1.
    """
    counts = np.asarray(label_counts_Y, dtype=np.float64)
    is_mixed = (counts > 0) & (counts < images)
    return torch.from_numpy(np.where(is_mixed, (images - counts) / np.maximum(counts, 1), 1.0) ** strength).float()


class ShiftedLogits(nn.Module):
    """A loss on logits plus strength * log(frequency of the class): logit adjustment (Menon et al. 2021).

    The shift is only in the loss. The model learns logits without it, whose best class is that of equally frequent
    classes. A class without images counts as one image.
    """

    def __init__(self, loss: object, class_counts_Y: np.ndarray, strength: float):
        super().__init__()
        self.loss = loss
        counts = torch.as_tensor(class_counts_Y, dtype=torch.float32).clamp(min=1)
        self.register_buffer("shift_Y", strength * (counts / counts.sum()).log(), persistent=False)

    @property
    def chance_level(self) -> float | None:
        """The lowest loss of a model that ignores the image: that of the inner loss, which such a model can reach."""
        return getattr(self.loss, "chance_level", None)

    def forward(self, logits_BY: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = self.loss(logits_BY + self.shift_Y, targets)  # type: ignore[operator]
        return value


def epoch_draws(images: Images, recipe: Recipe, epoch: int) -> np.ndarray:
    """Returns the images of an epoch in order, as draws (`balanced_draws`): each once, or balanced by class."""
    if recipe.balance == "sampler":
        return balanced_draws(images.labels, len(images.classes), recipe.seed, epoch, recipe.balance_strength)
    return epoch_permutation(len(images), recipe.seed, epoch)


def seen_class_counts(class_counts_Y: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Returns the number of images of each class that an epoch has."""
    return class_quotas(class_counts_Y, recipe.balance_strength) if recipe.balance == "sampler" else class_counts_Y


def describe_label_weights(label_counts_Y: np.ndarray, images: int, recipe: Recipe) -> str | None:
    """Returns a line on the weights of positive answers, for several labels per image; None without `balance`."""
    if recipe.balance != "weights":
        return None
    weights_Y = positive_weights(label_counts_Y, images, recipe.balance_strength)
    return f"balance weights: positive answers of each label count {weights_Y.min():.3g} to {weights_Y.max():.3g} times"


def describe_balance(classes: tuple[str, ...], class_counts_Y: np.ndarray, recipe: Recipe) -> str | None:
    """Returns a line on the sizes of the classes and what is done about them; None if they are about equal."""
    counts = np.asarray(class_counts_Y)
    largest, smallest = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    is_unequal = counts[largest] > UNEQUAL * counts[smallest]
    if recipe.balance == "none" and not is_unequal:
        return None
    sizes = (
        f"the classes have {counts[smallest]:,} ({classes[smallest]}) to {counts[largest]:,} ({classes[largest]}) "
        "training images"
    )
    if recipe.balance == "none":
        return f"{sizes}; balance none: all images count alike, so large classes count more"
    return f"{sizes}; balance {describe_method(recipe, counts)}; the epoch is chosen by balanced accuracy"


def describe_method(recipe: Recipe, class_counts_Y: np.ndarray) -> str:
    """Returns the method with its figures, such as "weights: 0.2 to 20 in the loss"."""
    has_images = class_counts_Y > 0
    if recipe.balance == "weights":
        weights_Y = class_weights(class_counts_Y, recipe.balance_strength).numpy()[has_images]
        return f"weights: {weights_Y.min():.3g} to {weights_Y.max():.3g} in the loss"
    if recipe.balance == "sampler":
        quotas_Y = class_quotas(class_counts_Y, recipe.balance_strength)[has_images]
        return f"sampler: {quotas_Y.min():,} to {quotas_Y.max():,} images of each class per epoch"
    return f"logits: shifted by {recipe.balance_strength:g} times the log of the class frequency in the loss"
