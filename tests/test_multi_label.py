"""Scores of images with several labels, beside scikit-learn's; thresholds, label errors and intervals."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from vitrail.evaluation.multi_label import MultiLabelOutcome, average_precisions, average_scores, co_occurrence
from vitrail.evaluation.multi_label_errors import find_label_errors
from vitrail.evaluation.multi_label_evaluation import MultiLabelEvaluation
from vitrail.evaluation.thresholds import calibrate_labels, choose_threshold

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def make_outcome(n: int = 300, seed: int = 0, rounded: bool = False, groups: bool = False) -> MultiLabelOutcome:
    """Returns an outcome whose logits are informative; with `rounded`, many are equal."""
    random = np.random.default_rng(seed)
    labels = (random.random((n, len(CLASSES))) < [0.5, 0.3, 0.1, 0.7, 0.2]).astype(np.uint8)
    logits = 2.0 * labels - 1 + random.normal(0, 1.5, labels.shape)
    paths = [f"{i}.png" for i in range(n)]
    names = tuple(f"g{i // 5}" for i in range(n)) if groups else None
    logits = logits.round() if rounded else logits
    return MultiLabelOutcome(paths, labels, logits, CLASSES, groups=names, thresholds=(0.3, 0.5, 0.4, 0.6, 0.5))


@pytest.mark.parametrize("rounded", [False, True])
def test_scores_equal_scikit_learns(rounded: bool):
    outcome = make_outcome(rounded=rounded)
    y, p, hat = outcome.labels, outcome.probabilities, outcome.predicted
    expected = metrics.average_precision_score(y, outcome.logits, average=None)
    assert average_precisions(outcome) == pytest.approx(expected, abs=1e-9)
    summary = MultiLabelEvaluation(outcome).summary()
    close = {"abs": 1e-9}
    assert summary["map"] == pytest.approx(metrics.average_precision_score(y, outcome.logits), **close)
    assert summary["macro_f1"] == pytest.approx(metrics.f1_score(y, hat, average="macro"), **close)
    assert summary["micro_f1"] == pytest.approx(metrics.f1_score(y, hat, average="micro"), **close)
    assert summary["accuracy"] == pytest.approx(metrics.accuracy_score(y, hat), **close)
    losses = [metrics.log_loss(y[:, k], p[:, k], labels=[0, 1]) for k in range(len(CLASSES))]
    assert summary["loss"] == pytest.approx(np.mean(losses), **close)
    per_class = MultiLabelEvaluation(outcome).per_class
    scores = metrics.precision_recall_fscore_support(y, hat)
    for k, name in enumerate(CLASSES):
        row = [per_class[name][key] for key in ("precision", "recall", "f1", "images")]
        assert row == pytest.approx([each[k] for each in scores], **close)
    matrices = metrics.multilabel_confusion_matrix(y, hat)
    assert [per_class[name]["predicted"] for name in CLASSES] == [int(each[:, 1].sum()) for each in matrices]


def test_classes_without_images_have_no_scores():
    outcome = make_outcome()
    labels = outcome.labels.copy()
    labels[:, 2] = 0
    outcome = replace(outcome, labels=labels)
    kept = [0, 1, 3, 4]
    summary = MultiLabelEvaluation(outcome).summary()
    assert summary["map"] == pytest.approx(
        np.mean([metrics.average_precision_score(labels[:, k], outcome.logits[:, k]) for k in kept])
    )
    assert summary["macro_f1"] == pytest.approx(
        metrics.f1_score(labels, outcome.predicted, labels=kept, average="macro")
    )
    row = MultiLabelEvaluation(outcome).per_class["cat"]
    assert (row["ap"], row["recall"], row["images"]) == (None, None, 0)


@pytest.mark.parametrize("groups", [False, True])
def test_intervals_hold_the_scores_and_repeat(groups: bool):
    outcome = make_outcome(groups=groups)
    scores = average_scores(outcome)
    for name in ("map", "macro_f1", "micro_f1"):
        low, high = scores[f"{name}_interval"]
        assert low < scores[name] < high < low + 0.2
    again = average_scores(outcome)
    assert again["map_interval"] == scores["map_interval"]
    perfect = replace(outcome, logits=20.0 * (2 * outcome.labels.astype(float) - 1))
    low, high = average_scores(perfect)["map_interval"]
    assert (0.93 if groups else 0.98) < low < 0.99 and high == pytest.approx(1)


def test_groups_widen_the_intervals():
    """Five copies of each image tell no more than one."""
    plain = make_outcome(60)
    rows = np.repeat(np.arange(60), 5)
    copies = replace(
        plain, paths=[plain.paths[i] for i in rows], labels=plain.labels[rows], logits=plain.logits[rows],
        groups=tuple(map(str, rows)),
    )  # fmt: skip

    def width(outcome: MultiLabelOutcome) -> float:
        low, high = average_scores(outcome)["macro_f1_interval"]
        return high - low

    assert width(copies) == pytest.approx(width(plain), rel=0.15)
    assert width(replace(copies, groups=None)) < 0.6 * width(copies)


def test_thresholds_have_the_best_f1_of_all():
    outcome = make_outcome(80, seed=3)
    for k in range(len(CLASSES)):
        p, y = outcome.probabilities[:, k], outcome.labels[:, k]
        chosen = metrics.f1_score(y, p >= choose_threshold(p, y))
        candidates = [metrics.f1_score(y, p >= t) for t in [*np.unique(p), 0.0]]
        assert chosen == pytest.approx(max(candidates), abs=1e-12)


def test_temperature_is_the_one_that_gave_the_logits():
    random = np.random.default_rng(0)
    true_logits = random.normal(0, 2, (4000, len(CLASSES)))
    labels = (random.random(true_logits.shape) < 1 / (1 + np.exp(-true_logits))).astype(np.uint8)
    outcome = MultiLabelOutcome([str(i) for i in range(4000)], labels, 3 * true_logits, CLASSES)
    fitted = calibrate_labels(outcome)
    assert fitted.temperature == pytest.approx(3, rel=0.05) and fitted.nll_after < fitted.nll_before
    assert all(0 < each < 1 for each in fitted.label_thresholds)
    few = MultiLabelOutcome(outcome.paths[:20], labels[:20], outcome.logits[:20], CLASSES)
    assert calibrate_labels(few).temperature == 1 and "too few" in (calibrate_labels(few).reason or "")
    rare = labels.copy()
    rare[4:, 1] = 0
    assert calibrate_labels(replace(outcome, labels=rare)).too_rare == ("bee",)


def test_planted_label_errors_are_found_first():
    outcome = make_outcome(400, seed=1)
    logits = 5.0 * (2 * outcome.labels.astype(float) - 1) + np.random.default_rng(2).normal(0, 1, outcome.labels.shape)
    labels = outcome.labels.copy()
    planted = {(7, 0), (50, 1), (99, 3), (120, 4)}
    for i, k in planted:
        logits[i, k] = 9 if labels[i, k] else -9
        labels[i, k] = 1 - labels[i, k]
    suspects = find_label_errors(replace(outcome, labels=labels, logits=logits))
    found = [each for each in suspects if (each["image"], each["class"]) in planted]
    assert len(found) == 4 and suspects.index(found[-1]) < 8
    for each in found:
        assert each["kind"] == ("missing" if labels[each["image"], each["class"]] == 0 else "wrong")


def test_co_occurrence_counts_pairs():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], np.uint8)
    assert co_occurrence(labels).tolist() == [[3, 2, 1], [2, 2, 1], [1, 1, 1]]
