"""k folds of several labels, numbers and grades: balanced, by group; scores as scikit-learn computes them."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

import vitrail
from document_types import check_document
from vitrail import documents
from vitrail.cli import main
from vitrail.data.folds import MAX_BINS, assign_folds
from vitrail.data.labels import Categorical, LabelSets, Numbers, categorize
from vitrail.data.source import Listing
from vitrail.data.stratification import choose_held_out
from vitrail.errors import UsageError
from vitrail.evaluation.multi_label import MultiLabelOutcome
from vitrail.evaluation.multi_label_evaluation import MultiLabelEvaluation
from vitrail.evaluation.thresholds import calibrate_labels
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION

N, FOLDS = 60, 2
COLORS = {"blue": 2, "green": 1, "red": 0}
TINY: dict[str, Any] = dict(epochs=2, width=16, depth=1, heads=2, mlp_width=32, patch=4, batch_size=8, lr=3e-3)
QUICK: dict[str, Any] = {
    **TINY,
    "report": False,
    "pictures": False,
    "check": False,
    "device": "cpu",
    "validation_fraction": 0.3,
}
TABLES = {MULTI_LABEL: "labels.csv", REGRESSION: "numbers.csv", GRADES: "grades.csv"}
KINDS = tuple(TABLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a table for each task; the images of labels.csv and numbers.csv come in 20 groups."""
    folder = tmp_path_factory.mktemp("tasks")
    random = np.random.default_rng(0)
    lines: dict[str, list[str]] = {name: [] for name in TABLES.values()}
    for i in range(N):
        labels = [name for name in COLORS if random.random() < 0.5]
        level = int(random.integers(0, 200))
        pixels = random.integers(0, 40, (16, 16, 3)).astype(np.uint8)
        for name in labels:
            pixels[:8, :, COLORS[name]] = 220
        pixels[8:] = level
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        lines["labels.csv"].append(f"{i:02}.png,{';'.join(labels)},g{i % 20}")
        lines["numbers.csv"].append(f"{i:02}.png,{level / 100:.2f},{10 - level / 100:.2f},g{i % 20}")
        lines["grades.csv"].append(f"{i:02}.png,{level // 50}")
    headers = {"labels.csv": "path,label,group", "numbers.csv": "path,level,dark,group", "grades.csv": "path,label"}
    for name, header in headers.items():
        (folder / name).write_text("\n".join([header, *lines[name], ""]))
    return folder


@pytest.fixture(scope="module")
def crossed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, vitrail.CrossValidation]:
    """Two folds and a final model of each task."""
    out = tmp_path_factory.mktemp("runs")
    return {
        kind: vitrail.cross_validate(folder / name, FOLDS, task=kind, final=True, out=out / kind, **QUICK)
        for kind, name in TABLES.items()
    }


def listing(labels: Categorical, groups: list[str] | None = None) -> Listing:
    n = len(labels)
    pixels = torch.arange(n).view(n, 1, 1, 1).expand(n, 3, 1, 1).to(torch.int32)
    return Listing(pixels, [f"{i:04d}" for i in range(n)], labels, None if groups is None else categorize(groups))


def uneven_labels(n: int = 400) -> tuple[np.ndarray, LabelSets]:
    """Labels of half of the images to 2% of them."""
    frequencies = np.geomspace(0.5, 0.02, 12)
    multi_hot = np.random.default_rng(0).random((n, 12)) < frequencies
    return multi_hot, LabelSets.from_multi_hot(multi_hot, [f"label{k:02}" for k in range(12)])


def unevenness(multi_hot: np.ndarray, fold_of: np.ndarray) -> float:
    """Returns the mean absolute difference between the odds of a label in a fold and in all images.

    It is the measure "LD" of Sechidis et al. 2011.
    """
    odds = multi_hot.mean(0) / (1 - multi_hot.mean(0))
    folds = [multi_hot[fold_of == fold].mean(0) for fold in np.unique(fold_of)]
    return float(np.mean([np.abs(share / (1 - share) - odds).mean() for share in folds]))


# The division


def test_labels_are_divided_more_evenly_than_at_random():
    multi_hot, labels = uneven_labels()
    random = np.random.default_rng(0)
    by_chance = [unevenness(multi_hot, random.permutation(len(labels)) % 5) for _ in range(50)]
    images = listing(labels)
    divisions = [assign_folds(images, 5, seed) for seed in range(10)]
    assert np.mean([unevenness(multi_hot, fold_of) for fold_of in divisions]) < min(by_chance)
    assert all(np.abs(np.bincount(fold_of) - 80).max() < 0.15 * 80 for fold_of in divisions)
    fold_of = divisions[4]
    rarest = multi_hot[:, multi_hot.sum(0).argmin()]
    assert np.ptp(np.bincount(fold_of[rarest], minlength=5)) <= 1
    order = random.permutation(len(labels))
    assert np.array_equal(assign_folds(images.subset(order.tolist()), 5, 4), fold_of[order])
    assert not np.array_equal(assign_folds(images, 5, 0), fold_of)


def test_groups_with_labels_stay_whole_and_are_divided_more_evenly_than_at_random():
    multi_hot, labels = uneven_labels()
    groups = np.random.default_rng(1).integers(0, 100, len(labels))
    fold_of = assign_folds(listing(labels, [f"g{group}" for group in groups]), 5, 0)
    assert all(len(np.unique(fold_of[groups == group])) == 1 for group in np.unique(groups))
    random = np.random.default_rng(0)
    by_chance = [unevenness(multi_hot, (random.permutation(100) % 5)[groups]) for _ in range(50)]
    assert unevenness(multi_hot, fold_of) < np.median(by_chance)


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_whole_groups_with_labels_are_held_out_in_the_fraction(fraction: float):
    multi_hot, labels = uneven_labels()
    groups = np.random.default_rng(1).integers(0, 100, len(labels))
    is_held = np.zeros(len(labels), dtype=bool)
    is_held[choose_held_out(listing(labels, [f"g{group}" for group in groups]), fraction, 0)] = True
    assert is_held.mean() == pytest.approx(fraction, abs=0.03)
    assert not set(groups[is_held]) & set(groups[~is_held])
    assert multi_hot[is_held].sum(0) == pytest.approx(fraction * multi_hot.sum(0), rel=0.3, abs=3)


def test_every_label_remains_in_training():
    labels = LabelSets.from_labels([["a", "c"]] * 3 + [["a"], ["b"]] * 10 + [["d", "a"]])
    groups = ["g0"] * 3 + [f"h{i % 4}" for i in range(20)] + ["h1"]
    for seed in range(10):
        held = choose_held_out(listing(labels, groups), 0.5, seed)
        rest = set(range(len(labels))) - set(held)
        assert {name for i in rest for name in labels.sets[labels.codes[i]]} == set("abcd")


def test_numbers_are_divided_by_their_quantiles():
    random = np.random.default_rng(0)
    numbers = np.stack([random.lognormal(0, 2, 203), random.integers(0, 2, 203)], axis=1)
    fold_of = assign_folds(listing(Numbers.from_array(["a"], numbers[:, :1])), 5, 0)
    edges = np.quantile(numbers[:, 0], np.linspace(0, 1, MAX_BINS + 1), method="inverted_cdf")
    bins = np.searchsorted(edges[1:-1], numbers[:, 0])
    for number in range(MAX_BINS):
        assert np.ptp(np.bincount(fold_of[bins == number], minlength=5)) <= 1
    assert np.ptp(np.bincount(fold_of)) <= 1
    both = assign_folds(listing(Numbers.from_array(["a", "b"], numbers)), 5, 0)
    ones = [numbers[both == fold, 1].sum() for fold in range(5)]
    assert np.ptp(ones) <= 3
    groups = [f"g{i // 4}" for i in range(203)]
    by_group = assign_folds(listing(Numbers.from_array(["a"], numbers[:, :1]), groups), 5, 0)
    assert all(len({int(f) for f, g in zip(by_group, groups, strict=True) if g == group}) == 1 for group in groups)
    assert np.ptp(np.bincount(by_group)) <= 8


@pytest.mark.parametrize(
    "labels",
    [Numbers.from_array(["a"], np.arange(20.0)[:, None]), LabelSets.from_labels([["a"], ["a", "b"]] * 10)],
    ids=["numbers", "labels"],
)
def test_identical_images_with_other_answers_stay_together(labels: Categorical):
    images = listing(labels)
    assert isinstance(images.pixels, torch.Tensor)
    pixels = images.pixels.clone()
    pixels[3] = pixels[16]
    for seed in range(5):
        fold_of = assign_folds(replace(images, pixels=pixels), 5, seed)
        assert fold_of[3] == fold_of[16]
        held = choose_held_out(replace(images, pixels=pixels), 0.3, seed)
        assert (3 in held) == (16 in held)


@pytest.mark.parametrize(
    ("labels", "groups", "error"),
    [
        (LabelSets.from_labels([["a"]] * 6 + [["b", "a"]] * 2), None, "the label 'b' has 2 images, fewer than 3 folds"),
        (LabelSets.from_labels([["a"]] * 6 + [["b"]] * 3), list("123456777"), "with the label 'b' are in one fold"),
        (LabelSets.from_labels([["a"]] * 6), list("111222"), "there are 2 groups, fewer than 3 folds"),
        (Numbers.from_array(["x"], np.arange(6.0)[:, None]), list("111222"), "there are 2 groups, fewer than 3 folds"),
        (Numbers.from_array(["x"], np.arange(2.0)[:, None]), None, "there are 2 different images, fewer than 3 folds"),
    ],
)
def test_impossible_folds_are_refused_in_a_sentence(labels: Categorical, groups: list[str] | None, error: str):
    with pytest.raises(UsageError, match=error):
        assign_folds(listing(labels, groups), 3, 0)


# The scores


def read_csv(crossed: vitrail.CrossValidation) -> list[dict[str, str]]:
    with (crossed.folder / "predictions.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_scores_of_labels_are_those_of_scikit_learn(crossed: dict[str, vitrail.CrossValidation]):
    result: Any = crossed[MULTI_LABEL].result
    outcome: Any = crossed[MULTI_LABEL].evaluation.outcome
    true, predicted = outcome.labels, outcome.predicted.astype(int)
    assert result["map"] == pytest.approx(metrics.average_precision_score(true, outcome.logits), abs=1e-9)
    assert result["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro"), abs=1e-9)
    assert result["micro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="micro"), abs=1e-9)
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-9)
    assert result["loss"] == pytest.approx(
        np.mean([metrics.log_loss(true[:, k], outcome.probabilities[:, k], labels=[0, 1]) for k in range(3)]), abs=1e-9
    )
    rows = read_csv(crossed[MULTI_LABEL])
    written = np.array([[float(row[f"probability_{name}"]) for name in sorted(COLORS)] for row in rows])
    assert np.allclose(written, outcome.probabilities, rtol=1e-8)
    check_document(result, documents.LabelCrossValidation)


def test_scores_of_numbers_are_those_of_scikit_learn(crossed: dict[str, vitrail.CrossValidation]):
    result: Any = crossed[REGRESSION].result
    outcome: Any = crossed[REGRESSION].evaluation.outcome
    assert result["mae"] == pytest.approx(metrics.mean_absolute_error(outcome.labels, outcome.logits), abs=1e-9)
    assert result["r2"] == pytest.approx(metrics.r2_score(outcome.labels, outcome.logits), abs=1e-9)
    rows = read_csv(crossed[REGRESSION])
    true, predicted = (
        np.array([[float(row[f"{which}_{name}"]) for name in ("dark", "level")] for row in rows])
        for which in ("true", "predicted")
    )
    assert metrics.mean_absolute_error(true, predicted) == pytest.approx(result["mae"], rel=1e-7)
    assert np.allclose(true[:, 0], 10 - true[:, 1])
    check_document(result, documents.NumberCrossValidation)


def test_scores_of_grades_are_those_of_scikit_learn(crossed: dict[str, vitrail.CrossValidation]):
    result: Any = crossed[GRADES].result
    rows = read_csv(crossed[GRADES])
    true, predicted = ([row[name] for row in rows] for name in ("true", "predicted"))
    kappa = metrics.cohen_kappa_score(true, predicted, labels=list("0123"), weights="quadratic")
    assert result["quadratic_kappa"] == pytest.approx(kappa, abs=1e-9)
    error = metrics.mean_absolute_error(np.array(true, int), np.array(predicted, int))
    assert result["grade_mae"] == pytest.approx(error, abs=1e-9)
    assert result["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted), abs=1e-9)
    assert result["interval_units"] == "images"
    check_document(result, documents.CrossValidationResult)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_predicted_once_and_the_table_is_that_of_the_runs(
    kind: str, crossed: dict[str, vitrail.CrossValidation], folder: Path
):
    cross = crossed[kind]
    result: Any = cross.result
    rows = read_csv(cross)
    assert sorted(Path(row["path"]).name for row in rows) == sorted(path.name for path in folder.glob("*.png"))
    for fold, (row, run) in enumerate(zip(result["rows"], cross.runs, strict=True), 1):
        scores: Any = run.result["test"]
        assert row["images"] == sum(each["fold"] == str(fold) for each in rows)
        assert {name: scores[name] for name in result["fold_mean"]} == {name: row[name] for name in result["fold_mean"]}
    for name, mean in result["fold_mean"].items():
        values = [row[name] for row in result["rows"]]
        assert mean == pytest.approx(np.mean(values)) and result["fold_sd"][name] == pytest.approx(
            np.std(values, ddof=1)
        )
    if kind != GRADES:
        by_group = {row["group"]: row["fold"] for row in rows}
        assert all(row["fold"] == by_group[row["group"]] for row in rows) and len(by_group) == 20


def test_intervals_are_of_groups(crossed: dict[str, vitrail.CrossValidation]):
    for kind, name in ((MULTI_LABEL, "map"), (REGRESSION, "mae")):
        cross = crossed[kind]
        result: Any = cross.result
        outcome: Any = cross.evaluation.outcome
        assert result["interval_units"] == "groups" and len(set(outcome.groups)) == 20
        again: Any = type(cross.evaluation)(outcome).summary()
        alone: Any = type(cross.evaluation)(replace(outcome, groups=None)).summary()
        assert result[f"{name}_interval"] == again[f"{name}_interval"] != alone[f"{name}_interval"]


def test_labels_are_predicted_by_the_thresholds_of_their_fold(crossed: dict[str, vitrail.CrossValidation]):
    cross = crossed[MULTI_LABEL]
    rows = read_csv(cross)
    thresholds = [run.classifier.thresholds for run in cross.runs]
    assert thresholds[0] != thresholds[1] and all(len(each) == 3 for each in thresholds)
    for fold, run in enumerate(cross.runs, 1):
        of_fold = [row for row in rows if row["fold"] == str(fold)]
        for row, prediction in zip(of_fold, run.classifier.predict([row["path"] for row in of_fold]), strict=True):
            assert row["predicted"].split(";") == (sorted(each.label for each in prediction) or [""])
    assert isinstance(cross.evaluation, MultiLabelEvaluation)
    for k, scores in enumerate(cross.evaluation.per_class.values()):
        first, second = (each[k] for each in thresholds)
        assert scores["threshold"] == (first if first == second else None)


# The final model


def test_the_final_model_is_calibrated_out_of_fold(crossed: dict[str, vitrail.CrossValidation]):
    for kind in (MULTI_LABEL, GRADES):
        cross = crossed[kind]
        assert cross.final is not None and cross.final.classifier.origin["data"]["images"] == {"train": N}
        stored = vitrail.load(cross.final.folder)
        assert stored.origin["calibration"]["fitted_on"] == "out-of-fold"
        assert stored.origin["calibration"]["images"] == N
    final: Any = crossed[MULTI_LABEL].final
    outcome: Any = crossed[MULTI_LABEL].evaluation.outcome
    temperatures = np.repeat(
        [run.classifier.temperature for run in crossed[MULTI_LABEL].runs],
        [row["images"] for row in crossed[MULTI_LABEL].result["rows"]],
    )
    plain = MultiLabelOutcome(outcome.paths, outcome.labels, outcome.logits * temperatures[:, None], outcome.classes)
    fitted = calibrate_labels(plain)
    assert final.classifier.thresholds == pytest.approx(fitted.label_thresholds)
    assert final.classifier.temperature == pytest.approx(fitted.temperature)
    assert crossed[REGRESSION].final is not None
    assert "calibration" not in crossed[REGRESSION].final.classifier.origin


def test_given_test_images_are_scored_with_the_thresholds_of_the_final_model(folder: Path, tmp_path: Path, capsys: Any):
    lines = [line.rsplit(",", 1)[0] for line in (folder / "labels.csv").read_text().splitlines()]
    splits = ["split", *["train"] * 40, *["test"] * 20]
    table = folder / "split.csv"
    table.write_text("\n".join(map(",".join, zip(lines, splits, strict=True))))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "validation_fraction": 0.3}.items()]
    out = tmp_path / "run"
    command = ["train", str(table), "--folds", "2", "--final", "--out", str(out), "--no-report", "--no-pictures"]
    assert main([*command, *options]) == 0
    shown = capsys.readouterr()
    assert "calibrated on the 40 out-of-fold predictions" in shown.err
    assert "mean of 2 folds: mAP" in shown.out and "all 40 out-of-fold predictions: mAP" in shown.out
    assert "of other images; not of other trainings" in shown.out
    stored = json.loads((out / "final" / "result.json").read_text())["test"]
    scored: Any = vitrail.evaluate(out / "final", table).summary()
    assert stored["images"] == 20
    for name in ("map", "macro_f1", "accuracy", "loss", "temperature"):
        assert stored[name] == pytest.approx(scored[name], abs=1e-6)
