"""Classes of unequal size: weights in the loss, balanced sampling, shifted logits; scores that count classes alike."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight

import kills
import vitrail
from conftest import fill
from kills import kill_runs
from test_loader import PREPROCESS, RANDOM_AUGMENT, files, identical
from vitrail.data.augment import build_augmentation
from vitrail.data.balanced_order import balanced_draws, class_quotas
from vitrail.data.images import Images
from vitrail.data.loader import TrainLoader
from vitrail.errors import UsageError
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.outcome import Outcome
from vitrail.runs.epochs import is_better
from vitrail.training.balance import class_weights, describe_balance
from vitrail.training.losses import LossContext, chance_level, make_loss
from vitrail.training.recipe import Recipe

COUNTS = np.array([40, 0, 8, 2])
CLASSES = ("a", "b", "c", "d")
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
TINY: dict[str, Any] = dict(epochs=2, batch_size=8, width=16, depth=1, heads=2, mlp_width=32, patch=4, report=False)


def context(**changes: Any) -> LossContext:
    return LossContext(Recipe(**changes), CLASSES, COUNTS)


def mixed_targets() -> torch.Tensor:
    """Targets of mixed images: of class 0 and 3, 2 and 2, 0 and 0."""
    targets = torch.zeros(3, 4)
    targets[0, 0], targets[0, 3], targets[1, 2], targets[2, 0] = 0.7, 0.3, 1, 1
    return targets


# sampling


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_places_of_the_classes_sum_to_the_images(strength: float):
    quotas = class_quotas(COUNTS, strength)
    assert quotas.sum() == COUNTS.sum()
    shares = np.where(COUNTS > 0, np.maximum(COUNTS, 1) ** (1 - strength), 0)
    assert abs(quotas - COUNTS.sum() * shares / shares.sum()).max() < 1


@pytest.mark.parametrize(("counts", "strength"), [((1000, 1, 1), 0.01), ((3, 1, 1, 1), 2.0), ((5, 0, 1), 2.0)])
def test_every_class_with_images_has_a_place(counts: tuple[int, ...], strength: float):
    quotas = class_quotas(np.array(counts), strength)
    assert quotas.sum() == sum(counts)
    assert (quotas > 0).tolist() == [n > 0 for n in counts]


def test_every_image_of_a_class_is_seen_equally_often_over_the_epochs():
    n, epochs = len(LABELS), 10
    seen = [balanced_draws(LABELS, 4, 3, epoch, 1.0) for epoch in range(epochs)]
    for draws in seen:
        assert len(draws) == n and len(set(draws.tolist())) == n  # the copies of an image are different draws
        assert np.bincount(LABELS[draws % n], minlength=4).tolist() == class_quotas(COUNTS, 1.0).tolist()
    times = np.bincount(np.concatenate(seen) % n, minlength=n)
    for label in (0, 2, 3):
        assert np.ptp(times[label == LABELS]) <= 1
    assert not np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[4], balanced_draws(LABELS, 4, 3, 4, 1.0))
    assert not np.array_equal(seen[4], balanced_draws(LABELS, 4, 4, 4, 1.0))


def balanced_loader(images: Images, workers: int = 0) -> TrainLoader:
    return TrainLoader(
        images,
        build_augmentation(RANDOM_AUGMENT, PREPROCESS),
        4,
        0,
        workers=workers,
        draw=lambda epoch: balanced_draws(images.labels, 2, 0, epoch, 1.0),
    )


def test_balanced_batches_are_the_same_with_workers_and_copies_are_augmented_differently(tmp_path: Path):
    images = files(tmp_path, 12)
    images = Images(images.pixels, images.names, np.array([0] * 10 + [1] * 2), ("many", "few"))
    whole = list(balanced_loader(images).epoch(1))
    assert identical(list(balanced_loader(images, workers=2).epoch(1)), whole)
    assert identical(list(balanced_loader(images).epoch(1, start=2)), whole[2:])
    pixels, labels = (torch.cat(each) for each in zip(*whole, strict=True))
    assert labels.bincount().tolist() == [6, 6]
    rare = pixels[labels == 1]  # two images, each three times
    assert len({each.numpy().tobytes() for each in rare}) == 6


@pytest.mark.timeout(300)
def test_a_run_with_the_sampler_that_is_killed_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_data = kills.make_data

    def make_uneven_data(folder: Path) -> Path:
        make_data(folder)
        for path in sorted((folder / "red").iterdir())[6:]:
            path.unlink()
        return folder

    monkeypatch.setattr(kills, "make_data", make_uneven_data)
    monkeypatch.setitem(kills.OPTIONS, "balance", "sampler")
    assert kill_runs(2, tmp_path, seed=1, new_process_every=0)["kills"] >= 2


# weights


def test_weights_are_those_of_scikit_learn():
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=LABELS)
    assert class_weights(COUNTS)[[0, 2, 3]].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert class_weights(COUNTS)[1] == 0
    root = class_weights(COUNTS, 0.5)
    assert float((root * torch.as_tensor(COUNTS)).sum()) == pytest.approx(50)
    assert float(root[3] / root[0]) == pytest.approx(20**0.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_the_loss_of_each_image_times_the_weight_of_its_class(smoothing: float):
    loss = make_loss(context(balance="weights", label_smoothing=smoothing))
    logits, targets = torch.randn(6, 4, generator=torch.manual_seed(0)), torch.tensor([0, 0, 2, 3, 3, 0])
    losses = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    assert float(loss(logits, targets)) == pytest.approx(float((class_weights(COUNTS)[targets] * losses).mean()))
    mixed = mixed_targets()  # the losses of both classes by their shares
    each = [
        F.cross_entropy(logits[:3], torch.full((3,), c), label_smoothing=smoothing, reduction="none") for c in range(4)
    ]
    expected = (mixed * class_weights(COUNTS) * torch.stack(each, dim=1)).sum(dim=1).mean()
    assert float(loss(logits[:3], mixed)) == pytest.approx(float(expected), rel=1e-5)


def test_a_loss_without_class_weights_and_double_weights_are_refused(request: pytest.FixtureRequest):
    def plain(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, targets)

    name = vitrail.training.losses.name_loss(plain)
    request.addfinalizer(lambda: vitrail.training.losses.LOSSES.pop(name))
    with pytest.raises(UsageError, match="takes no class weights") as error:
        make_loss(context(balance="weights", loss=name))
    assert "context.class_weights" in str(error.value.hint)
    assert float(make_loss(context(balance="logits", loss=name))(torch.zeros(1, 4), torch.tensor([3]))) > 3
    with pytest.raises(UsageError, match="weighted twice"):
        make_loss(context(balance="weights", loss="cross_entropy:class_weights=balanced"))
    with pytest.raises(UsageError, match="head on features is fitted without balance"):
        Recipe(balance="sampler", train_on="features")


# logits


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_logits_are_shifted_by_the_log_of_the_class_frequency(strength: float):
    loss = make_loss(context(balance="logits", balance_strength=strength, label_smoothing=0.1))
    logits, targets = torch.randn(6, 4, generator=torch.manual_seed(0)), torch.tensor([0, 0, 2, 3, 3, 0])
    prior = torch.tensor([40, 1, 8, 2]) / 51  # a class without images counts as one image
    shifted = logits + strength * prior.log()
    assert float(loss(logits, targets)) == pytest.approx(float(F.cross_entropy(shifted, targets, label_smoothing=0.1)))
    mixed = mixed_targets()
    expected = F.cross_entropy(shifted[:3], mixed, label_smoothing=0.1)
    assert float(loss(logits[:3], mixed)) == pytest.approx(float(expected))


@pytest.mark.parametrize("balance", ["weights", "sampler", "logits"])
def test_the_chance_level_is_the_loss_of_the_best_model_that_ignores_the_image(balance: str):
    loss = make_loss(context(balance=balance, label_smoothing=0.1))
    counts = class_quotas(COUNTS, 1.0) if balance == "sampler" else COUNTS
    targets = torch.repeat_interleave(torch.arange(4), torch.as_tensor(counts))
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(logits.expand(len(targets), 4), targets)
        value.backward()
        return value

    optimizer.step(closure)
    assert chance_level(loss) == pytest.approx(closure().item(), abs=1e-4)


# runs


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 training images of one class and 8 of the other."""
    folder = fill(tmp_path_factory.mktemp("uneven"), {"train": 40, "test": 8}, ("red", "blue"), (16, 16))
    for path in sorted((folder / "train" / "blue").iterdir())[8:]:
        path.unlink()
    return folder


@pytest.mark.parametrize("balance", ["none", "weights", "sampler", "logits"])
def test_a_run_says_what_it_does_and_scores_all_classes_alike(balance: str, uneven: Path, tmp_path: Path, capsys):
    run = vitrail.train(uneven, out=tmp_path / "run", check=False, balance=balance, **TINY)
    printed = capsys.readouterr().err
    assert "the classes have 7 (blue) to 36 (red) training images; balance " + balance in printed
    scores = run.result["test"]
    low, high = scores["macro_f1_interval"]
    assert low <= scores["macro_f1"] <= high
    assert f"balanced accuracy {scores['balanced_accuracy']:.4f}" in printed
    rows = vitrail.runs.folder.RunFolder(run.folder).load_metrics()
    metric = "accuracy" if balance == "none" else "balanced_accuracy"
    best = max(rows, key=lambda row: (row[f"validation_{metric}"], -row["validation_loss"]))
    assert run.result["best_epoch"] == best["epoch"]


def test_the_best_epoch_of_a_balanced_run_has_the_best_balanced_accuracy():
    better, worse = ({"validation_accuracy": a, "validation_balanced_accuracy": b} for a, b in ((0.7, 0.6), (0.8, 0.5)))
    assert is_better(better, worse, "balanced_accuracy") and not is_better(better, worse)


def test_equal_classes_are_not_mentioned():
    assert describe_balance(("a", "b"), np.array([10, 12]), Recipe()) is None


def test_averages_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    for classes in (2, 5, 12):
        labels = rng.choice(classes - 1, 60, p=rng.dirichlet(np.ones(classes - 1)))  # no image of the last class
        logits = rng.normal(size=(60, classes)) + 1.5 * np.eye(classes)[labels]
        outcome = Outcome([""] * 60, labels, logits, tuple(map(str, range(classes))))
        summary = Evaluation(outcome).summary()
        expected = f1_score(labels, outcome.predicted, average="macro")
        assert summary["macro_f1"] == pytest.approx(expected, abs=1e-9)
        with (
            pytest.warns(UserWarning, match="y_pred contains classes")
            if set(outcome.predicted) - set(labels)
            else nullcontext()
        ):
            expected = balanced_accuracy_score(labels, outcome.predicted)
        assert summary["balanced_accuracy"] == pytest.approx(expected, abs=1e-9)
