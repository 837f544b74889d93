"""Teachers: a trained model whose answers a student learns, besides the labels or instead of them.

The loss of an image with a label is (1 - w) x the recipe's loss + w x the teacher's; that of an image without a label
is w x the teacher's. w is the recipe's `teacher_weight`. What is compared depends on the answer of the task and on the
recipe's `distillation`: a row of `DISTILLATION_LOSSES`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.data.unlabeled import NO_CLASS
from vitrail.model.vit import ViT
from vitrail.parts import part_name
from vitrail.target_scale import TargetScale
from vitrail.tasks import AnswerKind
from vitrail.training.losses import StepBatch, StepLoss
from vitrail.training.recipe import Recipe

PROJECTION = "teacher_projection"  # name of the student's layer that is trained to predict the teacher's features
TWO_TOKENS = "cls+dist"  # the pool of students with a distillation token


def soft_loss(student_BY: Tensor, teacher_BY: Tensor, temperature: float) -> Tensor:
    """T^2 x the KL divergence of the student's probabilities at temperature T from the teacher's.

    Hinton et al. 2015, arXiv 1503.02531, section 2: T^2 keeps the size of the gradient.
    """
    log_student_BY = F.log_softmax(student_BY / temperature, dim=1)
    log_teacher_BY = F.log_softmax(teacher_BY / temperature, dim=1)
    return F.kl_div(log_student_BY, log_teacher_BY, reduction="batchmean", log_target=True) * temperature**2


def hard_loss(student_BY: Tensor, teacher_BY: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with the teacher's most probable class as label (DeiT, arXiv 2012.12877, equation 3)."""
    return F.cross_entropy(student_BY, teacher_BY.argmax(1))


def feature_loss(student_BD: Tensor, teacher_BD: Tensor, temperature: float) -> Tensor:
    """Smooth L1 distance from the teacher's features after a norm without weights.

    Wei et al. 2022, arXiv 2205.14141, section 3, with their beta of 2.
    """
    return F.smooth_l1_loss(student_BD, F.layer_norm(teacher_BD, teacher_BD.shape[1:]), beta=2.0)


def soft_label_loss(student_BY: Tensor, teacher_BY: Tensor, temperature: float) -> Tensor:
    """T^2 x the mean over labels of the binary KL divergence at temperature T: `soft_loss` for each label alone."""
    targets_BY = (teacher_BY / temperature).sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student_BY / temperature, targets_BY)
    entropy = F.binary_cross_entropy_with_logits(teacher_BY / temperature, targets_BY)
    return (cross_entropy - entropy) * temperature**2


def hard_label_loss(student_BY: Tensor, teacher_BY: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy with the labels that the teacher predicts: those with a positive answer."""
    return F.binary_cross_entropy_with_logits(student_BY, (teacher_BY >= 0).to(student_BY.dtype))


def number_loss(student_BY: Tensor, teacher_BY: Tensor, temperature: float) -> Tensor:
    """Mean squared error of the student's numbers from the teacher's, both standardized; they have no temperature."""
    return F.mse_loss(student_BY, teacher_BY)


DistillationLoss = Callable[[Tensor, Tensor, float], Tensor]
DISTILLATION_LOSSES: dict[AnswerKind, dict[str, DistillationLoss]] = {
    "class": {"soft": soft_loss, "hard": hard_loss, "features": feature_loss},
    "labels": {"soft": soft_label_loss, "hard": hard_label_loss, "features": feature_loss},
    "numbers": {"soft": number_loss, "features": feature_loss},
}


@dataclass(frozen=True)
class Teacher:
    """The answers of a teacher for the images of a training.

    With a teacher, the loaders give each image its number among the training images in place of its label.
    """

    answer: Callable[[StepBatch], Tensor]  # logits (B, Y) or features (B, D) of a batch, on its device
    labels_N: Tensor  # of the training images by number: int64 or float32 (N, Y); `has_label` tells those without
    distillation: str  # a key of `DISTILLATION_LOSSES`
    width: int  # of an answer: Y or D
    answer_kind: AnswerKind = "class"

    def find_labels(self, numbers_B: Tensor) -> Tensor:
        """Returns the labels of images by their numbers."""
        return self.labels_N.to(numbers_B.device)[numbers_B]

    def count_unlabeled(self, numbers_B: Tensor) -> int:
        """Returns how many of these images have no label."""
        return int((~has_label(self.find_labels(numbers_B))).sum())


def has_label(labels_B: Tensor) -> Tensor:
    """Returns which images have a label, bool (B,): `NO_CLASS` stands for none, in float labels NaN."""
    first_B = labels_B if labels_B.ndim == 1 else labels_B[:, 0]
    return ~first_B.isnan() if first_B.is_floating_point() else first_B != NO_CLASS


def prepare_labels(labels_N: np.ndarray, scale: TargetScale | None) -> Tensor:
    """Returns the labels of training images as the loss needs them: numbers standardized, several labels as floats."""
    if labels_N.ndim == 1:
        return torch.from_numpy(labels_N.astype(np.int64))
    labels = torch.from_numpy(labels_N.astype(np.float64))
    if scale is not None:
        return scale.standardize(labels)
    return torch.where(labels == NO_CLASS, float("nan"), labels).float()


def look_up(answers_NY: Tensor) -> Callable[[StepBatch], Tensor]:
    """Returns the `answer` of a teacher whose answers for all training images are known."""

    def answer(batch: StepBatch) -> Tensor:
        assert batch.numbers_B is not None
        return answers_NY[batch.numbers_B.cpu()].to(batch.images_BCHW.device)

    return answer


def add_projection(student: nn.Module, teacher: Teacher, seed: int) -> None:
    """Adds the layer that predicts the teacher's features, if the student learns these.

    `without_projection` drops it.
    """
    if teacher.distillation == "features" and isinstance(student, ViT):
        torch.manual_seed(seed)
        projection = nn.Linear(student.config.pooled_width, teacher.width)
        nn.init.trunc_normal_(projection.weight, std=0.02)
        nn.init.zeros_(projection.bias)
        student.add_module(PROJECTION, projection.to(student.prefix.device))


def without_projection(student: nn.Module) -> nn.Module:
    """Returns the student without the layer of `add_projection`; it shares all other weights."""
    if PROJECTION not in dict(student.named_children()):
        return student
    bare = copy.copy(student)
    bare._modules = {name: module for name, module in student._modules.items() if name != PROJECTION}
    return bare


def make_distillation_loss(label_loss: StepLoss, teacher: Teacher, student: nn.Module, recipe: Recipe) -> StepLoss:
    """Returns the loss of a student with a teacher: that of the labels and that of the teacher's answers."""
    compare, weight = DISTILLATION_LOSSES[teacher.answer_kind][teacher.distillation], recipe.teacher_weight
    split = make_splitter(student, teacher.distillation)

    def compute(logits_BY: Tensor, targets: Tensor, batch: StepBatch) -> Tensor:
        by_labels_BY, by_teacher = split(logits_BY)
        if not len(targets):  # an empty shard: all weights still take part in the collectives of the backward pass
            return by_labels_BY.sum() + by_teacher.sum()
        loss = weight * compare(by_teacher, teacher.answer(batch), recipe.teacher_temperature)
        has_label_B = has_label(batch.labels_B)
        if weight == 1 or not has_label_B.any():
            return loss + 0 * by_labels_BY.sum()
        share = has_label_B.float().mean()  # the loss of the labels is a mean over those images that have one
        labeled = StepBatch(batch.images_BCHW[has_label_B], batch.labels_B[has_label_B])
        return loss + (1 - weight) * share * label_loss(by_labels_BY[has_label_B], targets[has_label_B], labeled)

    return compute


def make_splitter(student: nn.Module, kind: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns a function from the student's logits to what its labels and what its teacher train.

    Both are the logits, unless features are learned, or the student has a distillation token: then the labels train
    the logits of the class token, the teacher those of the distillation token.
    """
    has_two_tokens = isinstance(student, ViT) and part_name(student.config.pool) == TWO_TOKENS
    is_split = has_two_tokens and isinstance(student.head, nn.Linear)
    if kind != "features" and not is_split:
        return lambda logits_BY: (logits_BY, logits_BY)
    assert isinstance(student, ViT)
    pooled: list[Tensor] = []

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        if module.training:
            pooled[:] = [output]

    student.pool.register_forward_hook(record)
    if kind == "features":
        projection = cast(nn.Module, getattr(student, PROJECTION))
        return lambda logits_BY: (logits_BY, projection(pooled.pop().float()))
    head = cast(nn.Linear, student.head)
    return lambda logits_BY: split_logits(head, pooled.pop().float())


def split_logits(head: nn.Linear, pooled_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits of class token and distillation token, whose mean the head of DeiT returns."""
    weights, tokens = head.weight.chunk(2, dim=1), pooled_BD.chunk(2, dim=1)
    by_class_BY, by_distillation_BY = (
        F.linear(token_BD, 2 * weight_YD, head.bias) for token_BD, weight_YD in zip(tokens, weights, strict=True)
    )
    return by_class_BY, by_distillation_BY
