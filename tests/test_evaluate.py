"""Metrics against their definitions and other libraries, and the verb evaluate."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from vitrail.cli import main
from vitrail.data.scoring import OPTIMISTIC_NOTE
from vitrail.evaluation.evaluation import Evaluation
from vitrail.evaluation.metrics import (
    confusion_matrix,
    expected_calibration_error,
    most_confused_pairs,
    per_class_scores,
    top_k_accuracy,
)
from vitrail.evaluation.outcome import Outcome
from vitrail.exporting.model_card import write_model_card
from vitrail.intervals import wilson_interval


@pytest.fixture
def outcome() -> Outcome:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 400)  # class 6 is never true
    logits = rng.normal(size=(400, 7))
    logits[np.arange(400), labels] += 1.2
    logits[:, 5] = -50  # class 5 is never predicted
    return Outcome([str(i) for i in range(400)], labels, logits, tuple("abcdefg"))


def test_loss_and_probabilities_equal_those_of_torch(outcome: Outcome):
    logits, labels = torch.from_numpy(outcome.logits), torch.from_numpy(outcome.labels)
    torch.testing.assert_close(torch.from_numpy(outcome.probabilities), logits.softmax(1))
    assert outcome.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())


def test_calibration_error_and_top5_equal_those_of_torchmetrics(outcome: Outcome):
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = torch.from_numpy(outcome.probabilities), torch.from_numpy(outcome.labels)
    expected = torchmetrics.multiclass_calibration_error(logits, labels, num_classes=7, n_bins=15, norm="l1")
    assert expected_calibration_error(outcome) == pytest.approx(expected.item(), abs=1e-6)
    expected = torchmetrics.multiclass_accuracy(logits, labels, num_classes=7, top_k=5, average="micro")
    assert top_k_accuracy(outcome) == pytest.approx(expected.item())


@pytest.mark.parametrize("classes", [2, 5, 6])
def test_the_top_five_exist_only_with_more_than_five_classes(classes: int):
    labels = np.zeros(1, int)
    outcome = Outcome(["x"], labels, np.arange(classes)[None, ::-1] - 1.0, tuple("abcdef"[:classes]))
    summary = Evaluation(outcome).summary()
    assert ("top5" in summary) == (classes > 5)
    assert "nll" not in summary  # it is the loss
    assert top_k_accuracy(outcome, 1) == 1
    with pytest.raises(ValueError, match=f"the top {classes} of {classes} classes"):
        top_k_accuracy(outcome, classes)


def test_undefined_per_class_scores_are_none(outcome: Outcome):
    rows = per_class_scores(outcome)
    assert rows["f"] == {"precision": None, "recall": 0.0, "f1": 0.0, "images": int((outcome.labels == 5).sum())}
    assert rows["g"]["recall"] is None
    hits = ((outcome.predicted == 0) & (outcome.labels == 0)).sum()
    assert rows["a"]["precision"] == pytest.approx(hits / (outcome.predicted == 0).sum())
    assert rows["a"]["recall"] == pytest.approx(hits / (outcome.labels == 0).sum())


def test_the_confusion_matrix_counts_every_image_once(outcome: Outcome):
    matrix = confusion_matrix(outcome)
    assert matrix.shape == (7, 7)
    assert matrix.sum() == 400
    assert np.trace(matrix) / 400 == pytest.approx(outcome.accuracy)
    assert (matrix.sum(axis=1) == np.bincount(outcome.labels, minlength=7)).all()
    pairs = most_confused_pairs(matrix, outcome.classes)
    assert [pair["images"] for pair in pairs] == sorted((p["images"] for p in pairs), reverse=True)
    first = pairs[0]
    assert first["true"] != first["predicted"]
    assert matrix[outcome.classes.index(first["true"]), outcome.classes.index(first["predicted"])] == first["images"]


def test_the_wilson_interval():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson_interval(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)
    rng = np.random.default_rng(1)
    covered = [lo <= 0.9 <= hi for lo, hi in (wilson_interval(int(rng.binomial(60, 0.9)), 60) for _ in range(2000))]
    assert 0.92 < np.mean(covered) < 0.98


def test_an_evaluation_has_all_scores(run: vitrail.Run, colors: Path):
    evaluation = vitrail.evaluate(run.classifier, colors)
    document = evaluation.to_json()
    assert document["images"] == 24  # the test split
    assert len(document["predictions"]) == 24
    right = np.mean([row["true"] == row["label"] for row in document["predictions"]])
    assert document["accuracy"] == pytest.approx(right)
    assert {"accuracy_interval", "loss", "ece_interval", "unreadable", "per_class", "confusion"} <= document.keys()
    assert "top5" not in document  # there are two or three classes
    assert document["accuracy"] == run.result["test"]["accuracy"]
    assert document["loss"] == run.result["test"]["loss"]


def test_the_batch_size_does_not_change_predictions(run: vitrail.Run, colors: Path):
    from vitrail.evaluation import evaluate, open_scored_images

    images = open_scored_images(run.classifier, colors).images
    single, batched = (evaluate(run.classifier, images, batch_size=n).outcome for n in (1, 24))
    assert (single.predicted == batched.predicted).all()
    np.testing.assert_allclose(single.logits, batched.logits, atol=1e-5)


def test_a_folder_without_splits_is_scored_on_the_test_images_of_training(make_folder):
    folder = make_folder("flat", 20)
    run = vitrail.train(folder, out=folder.parent / "run", epochs=2, width=32, depth=1, heads=2, mlp_width=32)
    again = vitrail.evaluate(run.classifier, folder)
    assert again.images == run.result["test"]["images"] == 8
    assert again.accuracy == run.result["test"]["accuracy"]
    other = make_folder("other", 5)
    assert vitrail.evaluate(run.classifier, other).images == 10


def test_scores_on_validation_are_marked_as_optimistic_everywhere(make_folder, capsys):
    folder = make_folder("both", {"train": 8, "val": 4})
    out = folder.parent / "run"
    small = ["--epochs", "1", "--width", "16", "--depth", "1", "--heads", "2", "--mlp-width", "16"]
    assert main(["train", str(folder), "--out", str(out), *small, "--quiet"]) == 0
    assert f"8 images, {OPTIMISTIC_NOTE}\n" in capsys.readouterr().out
    assert json.loads((out / "result.json").read_text())["validation"]["optimistic"] is True
    report = json.loads((out / "report.json").read_text())
    assert f"These are validation images, {OPTIMISTIC_NOTE}." in report["caveats"]
    assert report["summary"]["optimistic"] is True
    clf = vitrail.load(out)
    assert clf.origin["metrics"]["validation"]["optimistic"] is True
    assert f"The validation images are those {OPTIMISTIC_NOTE}." in write_model_card(clf, "timm", "", None)
    assert main(["inspect", str(out)]) == 0
    assert f"on 8 images, {OPTIMISTIC_NOTE}\n" in capsys.readouterr().out
    assert main(["evaluate", str(out), str(folder), "--quiet"]) == 0
    assert f"the 8 validation images of both, {OPTIMISTIC_NOTE}\n" in capsys.readouterr().out
    assert vitrail.evaluate(clf, folder).summary()["optimistic"] is True
    other = make_folder("other", {"val": 3})
    assert "optimistic" not in vitrail.evaluate(clf, other).summary()  # nothing was chosen on these
    shutil.copytree(folder / "val", folder / "test")
    assert "optimistic" not in vitrail.evaluate(clf, folder).summary()


def test_a_probe_is_optimistic_if_its_penalty_was_chosen_on_the_scored_images(run: vitrail.Run, make_folder, capsys):
    folder = make_folder("both", {"train": 8, "val": 4})
    arguments = ["probe", str(run.folder), str(folder), "--quiet"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["split"] == "validation"
    assert document["linear"]["optimistic"] is True
    assert "optimistic" not in document["knn"]  # it has nothing that is chosen
    assert main(arguments) == 0
    assert capsys.readouterr().out.count(OPTIMISTIC_NOTE) == 1
    assert main([*arguments, "--json", "--probe-l2", "0.1"]) == 0
    assert "optimistic" not in json.loads(capsys.readouterr().out)["linear"]
