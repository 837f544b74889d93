"""The training losses beside those of timm and torchvision."""

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from timm.loss import BinaryCrossEntropy as TimmBinaryCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from vitrail.data.augment import Augment, mix_batch
from vitrail.errors import UsageError
from vitrail.tasks import MULTI_LABEL, SINGLE_LABEL, TASKS, has_one_class
from vitrail.training.losses import LOSSES, LossContext, chance_level, losses_of_task, make_loss
from vitrail.training.recipe import Recipe

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def context(task: str, **fields: object) -> LossContext:
    return LossContext(Recipe(**fields), CLASSES, np.array([10, 20, 30, 5, 35]), task, 100)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return 3 * torch.randn(64, len(CLASSES), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return (torch.rand(64, len(CLASSES), generator=torch.Generator().manual_seed(1)) < 0.3).float()


def compare(ours: object, theirs: object, logits: Tensor, *targets: Tensor) -> None:
    """Compares values and gradients."""
    values, gradients = [], []
    for loss in (ours, theirs):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, *targets)  # type: ignore[operator]
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_cross_entropy_equals_timms(logits: Tensor, labels: Tensor, smoothing: float):
    several = make_loss(context(MULTI_LABEL, label_smoothing=smoothing))
    compare(several, TimmBinaryCrossEntropy(smoothing=smoothing, smooth_dense=True), logits, labels)
    classes = torch.arange(64) % len(CLASSES)
    one = make_loss(context(SINGLE_LABEL, loss="binary_cross_entropy", label_smoothing=smoothing))
    compare(one, TimmBinaryCrossEntropy(smoothing=smoothing), logits, classes)


def test_a_target_threshold_is_timms(logits: Tensor, labels: Tensor):
    loss = make_loss(context(SINGLE_LABEL, loss="binary_cross_entropy:target_threshold=0.2"))
    soft = 0.7 * labels + 0.3 * labels.roll(1, 0)
    compare(loss, TimmBinaryCrossEntropy(smoothing=0, target_threshold=0.2), logits, soft)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1, 1.5), (0.6, 0.0)])
def test_focal_equals_torchvisions(logits: Tensor, labels: Tensor, alpha: float, gamma: float):
    loss = make_loss(context(MULTI_LABEL, loss=f"focal:alpha={alpha}:gamma={gamma}"))
    compare(loss, lambda x, y: sigmoid_focal_loss(x, y, alpha, gamma, "mean"), logits, labels)


@pytest.mark.parametrize("arguments", [(4.0, 1.0, 0.05), (2.0, 0.0, 0.0), (3.0, 2.0, 0.2)])
def test_asymmetric_equals_timms(logits: Tensor, labels: Tensor, arguments: tuple[float, float, float]):
    gamma_neg, gamma_pos, clip = arguments
    text = f"asymmetric:gamma_neg={gamma_neg}:gamma_pos={gamma_pos}:clip={clip}"
    loss = make_loss(context(MULTI_LABEL, loss=text))
    compare(loss, AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip), logits, labels)


def test_the_chance_level_is_the_loss_of_the_class_frequencies():
    for task, text, frequencies in (
        (MULTI_LABEL, None, torch.tensor([0.1, 0.2, 0.3, 0.05, 0.35])),
        (MULTI_LABEL, "binary_cross_entropy", torch.tensor([0.1, 0.2, 0.3, 0.05, 0.35])),
    ):
        loss = make_loss(context(task, loss=text))
        rows = torch.zeros(100, len(CLASSES))
        for i, count in enumerate((10, 20, 30, 5, 35)):
            rows[:count, i] = 1
        assert chance_level(loss) == pytest.approx(loss(frequencies.logit().expand(100, -1), rows).item(), abs=1e-6)


def test_cross_entropy_needs_one_class_and_the_asymmetric_loss_several_labels():
    assert "cross_entropy" not in losses_of_task(MULTI_LABEL) and "asymmetric" not in losses_of_task(SINGLE_LABEL)
    assert "cross_entropy" in losses_of_task(SINGLE_LABEL) and "asymmetric" in losses_of_task(MULTI_LABEL)


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASKS for name in LOSSES])
def test_a_loss_is_for_its_tasks(task: str, name: str, logits: Tensor, labels: Tensor):
    if task not in getattr(LOSSES[name], "tasks", TASKS):
        assert name not in losses_of_task(task)
        with pytest.raises(UsageError, match=f"the loss '{name}' is not for"):
            make_loss(context(task, loss=name))
        return
    assert name in losses_of_task(task)
    loss = make_loss(context(task, loss=name))
    targets = torch.arange(64) % len(CLASSES) if has_one_class(task) else labels.to(logits.dtype)
    assert loss(logits, targets).isfinite()


@pytest.mark.parametrize("augment", [Augment(mixup=0.8), Augment(cutmix=1.0)])
@pytest.mark.parametrize("overlap", [0, 1])
def test_mixing_mixes_the_labels_of_images_with_several(augment: Augment, overlap: int):
    """CutMix pastes a box of the previous image, MixUp blends it in: the labels get the same share."""
    torch.manual_seed(3)
    labels = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1]])
    images = torch.arange(4.0)[:, None, None, None].expand(4, 1, 16, 16).clone()
    mixed, targets = mix_batch(augment, images, labels, 3, overlap)
    assert targets.shape == (4 - overlap, 3) and targets.dtype == torch.float32
    own = range(overlap, 4)
    for row, i in enumerate(own):
        mean, before = mixed[row].mean().item(), (i - 1) % 4
        share = (mean - before) / (i - before)  # of the own image
        torch.testing.assert_close(targets[row], share * labels[i] + (1 - share) * labels[before], atol=1e-5, rtol=0)
    if augment.mixup:
        assert ((targets > 0) & (targets < 1)).any()


def test_positive_weights_make_the_answers_of_each_label_count_alike():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(40, 5, generator=generator), torch.rand(40, 5, generator=generator).round()
    for strength in (1.0, 0.5):
        weighted = context(MULTI_LABEL, balance="weights", balance_strength=strength)
        weights = torch.tensor([90 / 10, 80 / 20, 70 / 30, 95 / 5, 65 / 35]) ** strength
        loss = make_loss(weighted)
        expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, targets)
        assert loss(logits, targets).item() == pytest.approx(expected.item(), abs=1e-6)
        counts = torch.tensor([10, 20, 30, 5, 35])
        constants = (weights * counts / (100 - counts)).log()  # the best logits without an image
        labels = (torch.arange(100)[:, None] < counts).float()
        assert chance_level(loss) == pytest.approx(loss(constants.expand(100, 5), labels).item(), abs=1e-6)
    with pytest.raises(UsageError, match="takes no class weights"):
        make_loss(context(MULTI_LABEL, balance="weights", loss="focal"))
    with pytest.raises(UsageError, match="takes no class weights"):
        make_loss(context(SINGLE_LABEL, balance="weights", loss="binary_cross_entropy"))
