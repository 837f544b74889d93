"""Calibration, selective prediction, label errors and image properties, against definitions and other libraries."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import vitrail
from vitrail.data.preprocess import Preprocess
from vitrail.evaluation.calibration import (
    apply_temperature,
    calibrate,
    find_thresholds,
    fit_temperature,
    risk_coverage_curve,
    selective_accuracy,
)
from vitrail.evaluation.calibration_error import confidence_bias_interval, measure_calibration_error
from vitrail.evaluation.corruptions import CORRUPTIONS, draw_images, measure_robustness
from vitrail.evaluation.embedding import neighbor_purity, project_to_2d
from vitrail.evaluation.label_errors import confident_classes, find_label_errors
from vitrail.evaluation.metrics import average_scores, brier_score, expected_calibration_error, reliability_bins
from vitrail.evaluation.outcome import Outcome
from vitrail.evaluation.properties import accuracy_by_quantile, brightness, measure_properties, sharpness
from vitrail.report.calibration import loss_decrease_interval


def random_outcome(n: int, temperature: float, classes: int = 5, seed: int = 0) -> Outcome:
    """Returns an outcome whose labels are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, classes))
    powers = np.exp(logits / temperature)
    labels = (rng.random((n, 1)) > (powers / powers.sum(1, keepdims=True)).cumsum(1)).sum(1)
    return Outcome([str(i) for i in range(n)], labels, logits, tuple("abcdefgh"[:classes]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_true_temperature_is_recovered(temperature: float):
    outcome = random_outcome(20_000, temperature)
    fitted = fit_temperature(outcome)
    assert fitted == pytest.approx(temperature, rel=0.04)
    assert (apply_temperature(outcome, fitted).predicted == outcome.predicted).all()
    assert expected_calibration_error(apply_temperature(outcome, fitted)) < 0.012


def test_the_temperature_equals_that_of_lbfgs_in_torch():
    outcome = random_outcome(600, 1.7, seed=3)
    logits, labels = torch.from_numpy(outcome.logits), torch.from_numpy(outcome.labels)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits / log_t.exp(), labels)
        value.backward()
        return value

    optimizer.step(loss)
    assert fit_temperature(outcome) == pytest.approx(math.exp(log_t.item()), rel=1e-4)


def test_no_temperature_is_fitted_on_few_images_or_without_mistakes():
    few = calibrate(random_outcome(29, 2.0))
    assert few.temperature == 1
    assert "too few" in few.reason
    perfect = Outcome(["x"] * 40, np.zeros(40, dtype=int), np.tile([3.0, 1.0], (40, 1)), ("a", "b"))
    assert calibrate(perfect).temperature == 1
    assert "all images are classified correctly" in calibrate(perfect).reason
    fitted = calibrate(random_outcome(500, 2.0))
    assert fitted.reason is None
    assert fitted.nll_after < fitted.nll_before


def test_the_brier_score_and_the_bins_of_the_calibration_error_equal_their_definitions():
    outcome = random_outcome(400, 2.0)
    truth = np.eye(5)[outcome.labels]
    assert brier_score(outcome) == pytest.approx(np.mean(((outcome.probabilities - truth) ** 2).sum(1)))
    rows = reliability_bins(outcome)
    assert sum(row["images"] for row in rows) == 400
    gap = sum(row["images"] / 400 * abs(row["confidence"] - row["accuracy"]) for row in rows)
    assert gap == pytest.approx(expected_calibration_error(outcome))
    assert all(row["interval"][0] <= row["accuracy"] <= row["interval"][1] for row in rows)


def test_risk_and_thresholds_equal_those_of_counting():
    outcome = random_outcome(500, 1.5, seed=5)
    confidence = outcome.probabilities.max(1)
    wrong = outcome.predicted != outcome.labels
    curve = risk_coverage_curve(outcome)
    for coverage, risk in zip(curve["coverage"], curve["risk"], strict=True):
        answered = np.argsort(-confidence)[: round(coverage * 500)]
        assert risk == pytest.approx(wrong[answered].mean())
    assert curve["risk"][-1] == pytest.approx(1 - outcome.accuracy)
    assert curve["coverage"][0] == pytest.approx(20 / 500)  # of fewer images an error rate says nothing
    rows = {row["target_accuracy"]: row for row in find_thresholds(outcome)}
    assert rows
    for row in rows.values():
        answered = confidence >= row["threshold"]
        errors = int(wrong[answered].sum())
        bound = binomtest(errors, int(answered.sum()), alternative="less").proportion_ci(1 - 0.05 / 20).high
        assert row["guaranteed_accuracy"] == pytest.approx(1 - bound)
        assert row["target_accuracy"] <= row["guaranteed_accuracy"] < row["accuracy"]
        scores = selective_accuracy(outcome, row["threshold"])
        assert scores["accuracy"] == pytest.approx(row["accuracy"])
        assert scores["coverage"] == pytest.approx(row["coverage"])
        assert scores["images"] == row["images"]


def test_the_risk_of_equally_confident_images_does_not_depend_on_their_order():
    """An overconfident model gives many images a confidence of exactly 1."""
    logits = np.tile([50.0, 0.0], (60, 1))
    labels = np.repeat([1, 0], [6, 54])
    curves = [risk_coverage_curve(Outcome([""] * 60, each, logits, ("a", "b"))) for each in (labels, labels[::-1])]
    assert curves[0] == curves[1]
    assert curves[0]["aurc"] == pytest.approx(0.1)
    assert curves[0]["risk"] == pytest.approx([0.1] * len(curves[0]["risk"]))


@pytest.mark.parametrize("right", [0, 12])
def test_no_interval_of_all_or_nothing_has_no_width(right: int):
    logits = np.tile([8.0, 0.0], (12, 1))
    outcome = Outcome([""] * 12, np.where(np.arange(12) < right, 0, 1), logits, ("a", "b"))
    scores, error, bias = average_scores(outcome), measure_calibration_error(outcome), confidence_bias_interval(outcome)
    assert bias is not None
    intervals = [scores["macro_f1_interval"], scores["balanced_accuracy_interval"], error.interval, bias]
    assert all(0.15 < high - low < 0.6 for low, high in intervals)
    truth = 1 - right / 12
    assert error.interval[0] <= truth <= error.interval[1] + 1e-3
    assert bias[0] <= truth <= bias[1] + 1e-3


def test_without_a_mistake_the_rare_class_decides_the_interval_of_an_average():
    labels = np.repeat([0, 1], [1000, 5])
    scores = average_scores(Outcome([""] * 1005, labels, 9.0 * np.eye(2)[labels], ("common", "rare")))
    for name in ("balanced_accuracy", "macro_f1"):
        low, high = scores[f"{name}_interval"]
        assert 0.75 < low < 0.9 and high == pytest.approx(1)


def test_a_temperature_has_no_verdict_with_few_mistakes():
    """Without a mistake, every temperature above 1 would raise the loss, although it was fitted on mistakes."""
    logits = np.tile([4.0, 0.0], (400, 1))
    for mistakes, is_known in ((0, False), (19, False), (20, True)):
        outcome = Outcome([""] * 400, (np.arange(400) < mistakes).astype(int), logits, ("a", "b"))
        interval = loss_decrease_interval(outcome, apply_temperature(outcome, 1.5))
        assert (interval is not None) is is_known


def test_images_of_equal_confidence_are_answered_together():
    logits = np.tile([1.0, 0.0], (60, 1))
    outcome = Outcome(["x"] * 60, np.array([0] * 40 + [1] * 20), logits, ("a", "b"))
    assert find_thresholds(outcome) == []  # no threshold separates the 40 from the 20
    correct = Outcome(["x"] * 60, np.zeros(60, int), logits, ("a", "b"))
    rows = find_thresholds(correct)
    assert [row["coverage"] for row in rows] == [1] * len(rows)
    assert max(row["target_accuracy"] for row in rows) == 0.9  # 60 correct of 60 do not guarantee 95%


def test_an_outcome_computes_its_arrays_once():
    logits = np.random.default_rng(0).normal(size=(20, 3))
    outcome = Outcome([""] * 20, np.zeros(20, int), logits, ("a", "b", "c"))
    for name in ("probabilities", "confidence", "predicted", "correct", "losses"):
        assert getattr(outcome, name) is getattr(outcome, name), name


def test_averages_equal_those_of_scikit_learn_and_are_in_their_intervals():
    from sklearn.metrics import balanced_accuracy_score, f1_score

    outcome = random_outcome(300, 1.0)
    scores = average_scores(outcome)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(outcome.labels, outcome.predicted))
    assert scores["macro_f1"] == pytest.approx(f1_score(outcome.labels, outcome.predicted, average="macro"))
    each = f1_score(outcome.labels, outcome.predicted, average=None)
    for name in ("balanced_accuracy", "macro_f1"):
        low, high = scores[f"{name}_interval"]
        assert low < scores[name] < high
        assert 0.05 < high - low < 0.2  # about four standard errors of 300 images
    for name, f1 in zip(outcome.classes, each, strict=True):
        low, high = scores["f1_intervals"][name]
        assert low < f1 < high
    assert average_scores(outcome) == scores


def test_no_interval_of_an_average_has_zero_width_without_mistakes():
    labels = np.repeat([0, 1, 2], 4)
    scores = average_scores(Outcome(["x"] * 12, labels, 9.0 * np.eye(3)[labels], tuple("abc")))
    for low, high in (
        scores["balanced_accuracy_interval"],
        scores["macro_f1_interval"],
        *scores["f1_intervals"].values(),
    ):
        assert low < 0.9 < high == pytest.approx(1)


def test_confident_classes_follow_the_paper():
    outcome = random_outcome(400, 1.0, seed=2)
    p = outcome.probabilities
    thresholds = [np.mean([p[i, j] for i in range(400) if outcome.labels[i] == j]) for j in range(5)]
    for i, suggested in enumerate(confident_classes(outcome)):
        above = [j for j in range(5) if p[i, j] >= thresholds[j]]
        assert suggested == (max(above, key=lambda j: p[i, j]) if above else -1)


def test_planted_label_errors_rank_first():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 500)
    logits = rng.normal(size=(500, 4))
    logits[np.arange(500), truth] += 6
    labels = truth.copy()
    planted = rng.permutation(500)[:25]
    labels[planted] = (truth[planted] + 1) % 4
    rows = find_label_errors(Outcome([str(i) for i in range(500)], labels, logits, tuple("abcd")))
    first = {row["image"] for row in rows[:25]}
    assert len(first & set(planted.tolist())) >= 22
    for row in rows[:10]:
        assert row["label"] == "abcd"[labels[row["image"]]] != row["suggested"]
        assert row["label_probability"] < row["suggested_probability"]
    certain = np.where(np.eye(4)[truth] > 0, 9.0, 0.0)
    assert find_label_errors(Outcome(["x"] * 500, truth, certain, tuple("abcd"))) == []


def test_brightness_and_sharpness_of_simple_images():
    dark, light = torch.full((3, 8, 8), 20, dtype=torch.uint8), torch.full((1, 8, 8), 220, dtype=torch.uint8)
    assert brightness(dark) == pytest.approx(20 / 255, abs=1e-3)
    assert brightness(light) == pytest.approx(220 / 255, abs=1e-3)
    board = (torch.arange(64).view(1, 8, 8).sum(0, keepdim=True) % 2 * 255).to(torch.uint8)
    assert sharpness(board) > sharpness(light) == 0
    assert sharpness(torch.zeros(3, 1, 5, dtype=torch.uint8)) == 0


def test_accuracy_by_a_property_counts_each_image_once():
    values = np.random.default_rng(0).normal(size=101)
    correct = values > 0
    rows = accuracy_by_quantile(values, correct)
    assert len(rows) == 5
    assert sum(row["images"] for row in rows) == 101
    assert rows[0]["accuracy"] == 0
    assert rows[-1]["accuracy"] == 1
    assert sum(row["images"] * row["accuracy"] for row in rows) == pytest.approx(correct.sum())
    assert len(accuracy_by_quantile(np.full(10, 3.0), np.ones(10, dtype=bool))) == 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_strength(name: str):
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(rng.integers(0, 256, (2, 3, 4, 4)).astype(np.float32))
    pixels = torch.nn.functional.interpolate(smooth, (24, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)
    corruption = CORRUPTIONS[name]
    distances = []
    for strength in corruption.strengths:
        corrupted = corruption.apply(pixels, strength, torch.Generator().manual_seed(0))
        assert corrupted.shape == pixels.shape
        assert corrupted.dtype == torch.uint8
        distances.append((corrupted.float() - pixels.float()).square().mean().item())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_robustness_is_reproducible(run: vitrail.Run, colors):
    from vitrail.evaluation import open_scored_images

    images = open_scored_images(run.classifier, colors).images
    indices = draw_images(len(images), 12)
    pixels, labels = images.load_batch(run.classifier.preprocess, indices), images.labels[indices]
    first, second = (measure_robustness(run.classifier, pixels, labels) for _ in range(2))
    assert first == second
    assert first["images"] == 12
    assert set(first["corruptions"]) == set(CORRUPTIONS)
    assert all(len(row["levels"]) == 3 for row in first["corruptions"].values())


def test_gray_images_can_be_corrupted():
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    for corruption in CORRUPTIONS.values():
        assert corruption.apply(pixels, corruption.strengths[2], torch.Generator()).shape == pixels.shape


def test_the_2d_projection_separates_groups_and_purity_counts_neighbors():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    vectors = np.eye(3)[labels] @ rng.normal(size=(3, 16)) * 5 + rng.normal(size=(120, 16)) * 0.3
    positions, method = project_to_2d(vectors)
    assert "t-SNE" in method
    assert positions.min() == 0
    assert positions.max() == 1
    nearest = np.argsort(((positions[:, None] - positions[None]) ** 2).sum(2), axis=1)[:, 1:6]
    assert (labels[nearest] == labels[:, None]).mean() > 0.98
    rows = neighbor_purity(vectors, labels, ("a", "b", "c"))
    assert [row["same_class"] for row in rows] == [1, 1, 1]
    assert rows[0]["next_class"] is None
    for n in (1, 2, 3, 10):
        positions, _ = project_to_2d(vectors[:n])
        assert positions.shape == (n, 2)
        assert np.isfinite(positions).all()
    assert project_to_2d(np.ones((5, 4)))[1].startswith("on a line")


def test_a_run_fits_its_temperature_on_validation_and_stores_it(run: vitrail.Run, make_folder):
    stored = run.classifier.origin["calibration"]
    assert stored["fitted_on"] == "validation"
    assert stored["images"] == 6  # ten percent of 60
    assert stored["reason"]
    assert run.classifier.temperature == 1


def test_logits_are_divided_by_the_temperature_and_labels_do_not_change(run: vitrail.Run):
    from dataclasses import replace

    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    plain, calibrated = (replace(run.classifier, temperature=t).logits(pixels) for t in (1.0, 2.0))
    torch.testing.assert_close(plain, 2 * calibrated)
    assert (plain.argmax(1) == calibrated.argmax(1)).all()


def test_properties_of_images_of_any_shape():
    preprocess = Preprocess(image_size=(16, 16))
    images = torch.zeros(3, 10, 40, dtype=torch.uint8), torch.full((3, 20, 20), 255, dtype=torch.uint8)
    wide, square = (measure_properties(image, preprocess.fit_image(image)) for image in images)
    assert (wide[2], square[2]) == (20, 20)
    assert (wide[0], square[0]) == pytest.approx((0, 1))
