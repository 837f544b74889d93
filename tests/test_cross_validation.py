"""k folds: stratified, by group, resumed where a process was killed; one table, and a final model on everything."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

import vitrail
from conftest import fill
from document_types import check_document
from test_groups import PATTERN, write_patients
from test_user_code import results
from vitrail import documents
from vitrail.cli import main
from vitrail.data.folds import assign_folds
from vitrail.data.labels import categorize
from vitrail.data.open import open_source
from vitrail.data.source import Listing
from vitrail.errors import UsageError

TINY: dict[str, Any] = dict(epochs=2, width=16, depth=1, heads=2, mlp_width=32, patch=4, batch_size=8)
QUICK: dict[str, Any] = {**TINY, "report": False, "check": False, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("folds") / "data", 12, ("red", "green", "blue"), (16, 16))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> vitrail.CrossValidation:
    """Three folds and a final model."""
    return vitrail.cross_validate(data, 3, final=True, out=tmp_path_factory.mktemp("runs") / "whole", **QUICK)


def listing(labels: str, groups: str | None = None) -> Listing:
    n = len(labels)
    pixels = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    return Listing(
        pixels, [f"{i:03d}" for i in range(n)], categorize(labels), None if groups is None else categorize(groups)
    )


def test_folds_are_stratified_and_do_not_depend_on_the_order():
    images = listing("a" * 23 + "b" * 10 + "c" * 7)
    fold_of = assign_folds(images, 5, seed=0)
    labels = np.array(list(images.labels))
    for name in "abc":
        sizes = np.bincount(fold_of[labels == name], minlength=5)
        assert np.ptp(sizes) <= 1
    assert np.ptp(np.bincount(fold_of)) <= 1
    order = np.random.default_rng(0).permutation(len(labels))
    assert np.array_equal(assign_folds(images.subset(order), 5, seed=0), fold_of[order])
    assert not np.array_equal(assign_folds(images, 5, seed=1), fold_of)


def test_identical_images_and_groups_are_in_one_fold(tmp_path: Path):
    images = listing("a" * 10 + "b" * 10)
    assert isinstance(images.pixels, torch.Tensor)
    images.pixels[3] = images.pixels[7]
    for seed in range(5):
        fold_of = assign_folds(images, 5, seed)
        assert fold_of[3] == fold_of[7]
    source = open_source(write_patients(tmp_path / "data", 10, 3), group_pattern=PATTERN)
    grouped = source.splits["all"]
    fold_of = assign_folds(grouped, 5, seed=0)
    assert grouped.groups is not None
    by_group = {
        group: {int(f) for g, f in zip(grouped.groups, fold_of, strict=True) if g == group} for group in grouped.groups
    }
    assert all(len(folds) == 1 for folds in by_group.values())
    assert np.bincount(fold_of).tolist() == [12] * 5


@pytest.mark.parametrize(
    ("labels", "groups", "folds", "error"),
    [
        ("aaaab", None, 3, "the class 'b' has 1 image, fewer than 3 folds"),
        ("aaabbb", "112233", 4, "fewer than 4 folds"),
        ("aaaabbbb", "11223322", 4, "there are 3 groups, fewer than 4 folds"),
        ("aaaaaabbb", "112233444", 3, "the class 'b' has images of only 1 group, all in one fold"),
        ("aabb", None, 1, "folds is 1"),
    ],
)
def test_impossible_folds_are_refused_in_a_sentence(labels: str, groups: str | None, folds: int, error: str):
    with pytest.raises(UsageError, match=error):
        assign_folds(listing(labels, groups), folds, 0)


def test_every_image_is_predicted_once_by_a_run_that_has_not_seen_it(whole: vitrail.CrossValidation, data: Path):
    with (whole.folder / "predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert sorted(row["path"] for row in rows) == sorted(map(str, data.rglob("*.png")))
    assert sorted(row["fold"] for row in rows) == ["1"] * 12 + ["2"] * 12 + ["3"] * 12
    true, predicted = ([row[name] for row in rows] for name in ("true", "predicted"))
    assert true == [Path(row["path"]).parent.name for row in rows]
    result = json.loads((whole.folder / "cross_validation.json").read_text())
    assert result["accuracy"] == pytest.approx(accuracy_score(true, predicted), abs=1e-9)
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted), abs=1e-9)
    assert result["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"), abs=1e-9)
    low, high = result["accuracy_interval"]
    assert low <= result["accuracy"] <= high
    for fold, row in enumerate(result["rows"], 1):
        of_fold = [r for r in rows if r["fold"] == str(fold)]
        assert row["accuracy"] == pytest.approx(np.mean([r["true"] == r["predicted"] for r in of_fold]))
    scores = [row["accuracy"] for row in result["rows"]]
    assert result["fold_mean"]["accuracy"] == pytest.approx(np.mean(scores))
    assert result["fold_sd"]["accuracy"] == pytest.approx(np.std(scores, ddof=1))


def test_the_final_model_is_trained_on_everything_and_calibrated_out_of_fold(whole: vitrail.CrossValidation):
    assert whole.final is not None
    check_document(whole.result, documents.CrossValidationResult)
    check_document(whole.to_json(), documents.CrossValidationDocument)
    assert results.read_cross_validation(whole) >= 0
    assert whole.final.classifier.origin["data"]["images"] == {"train": 36}
    calibration = vitrail.load(whole.folder / "final").origin["calibration"]
    assert calibration["fitted_on"] == "out-of-fold" and calibration["images"] == 36


def test_a_finished_cross_validation_is_returned_and_another_one_is_refused(whole: vitrail.CrossValidation, data: Path):
    again = vitrail.cross_validate(data, 3, resume=True, out=whole.folder, **QUICK)
    assert again.result == whole.result
    with pytest.raises(UsageError, match="another number of folds, 3"):
        vitrail.cross_validate(data, 4, resume=True, out=whole.folder, **QUICK)
    with pytest.raises(UsageError, match="another recipe: epochs is 3, before 2"):
        vitrail.cross_validate(data, 3, resume=True, out=whole.folder, **{**QUICK, "epochs": 3})
    with pytest.raises(UsageError, match="is not empty"):
        vitrail.cross_validate(data, 3, out=whole.folder, **QUICK)


def test_a_killed_cross_validation_resumes_at_its_fold_with_the_same_bits(
    whole: vitrail.CrossValidation, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "killed"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    command = ["train", str(data), "--folds", "3", "--out", str(out), "--no-report", "--no-check", "--device", "cpu"]
    process = os.fork()
    if not process:
        try:
            torch.set_num_threads(1)
            main([*command, *options, "--quiet"])
        finally:  # nothing of the child may return to pytest
            os._exit(1)
    while not (out / "fold-2" / "recipe.json").exists():
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert (out / "fold-1" / "result.json").exists() and not (out / "fold-3").exists()
    first = (out / "fold-1" / "classifier.safetensors").stat().st_mtime_ns
    assert main([*command, "--resume", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (out / "fold-1" / "classifier.safetensors").stat().st_mtime_ns == first
    for name in ("accuracy", "macro_f1", "accuracy_interval", "fold_sd"):
        assert document[name] == whole.result[name]
    assert [row["accuracy"] for row in document["rows"]] == [row["accuracy"] for row in whole.result["rows"]]


def test_given_test_images_are_in_no_fold_and_score_the_final_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = fill(tmp_path / "split", {"train": 6, "test": 4}, ("red", "blue"), (16, 16))
    command = [
        "train",
        str(data),
        "--folds",
        "2",
        "--final",
        "--out",
        str(tmp_path / "run"),
        "--no-report",
        "--no-check",
    ]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, "patience": 1}.items()]
    assert main([*command, *options]) == 0
    shown = capsys.readouterr()
    assert "8 given test images are in no fold" in shown.err
    assert "mean of 2 folds: accuracy" in shown.out and "all 12 out-of-fold predictions" in shown.out
    final = json.loads((tmp_path / "run" / "final" / "result.json").read_text())
    assert final["test"]["images"] == 8
    recipe = json.loads((tmp_path / "run" / "final" / "recipe.json").read_text())["recipe"]
    assert recipe["patience"] is None and recipe["validation_fraction"] == 0
    assert main(["train", str(data), "--final"]) == 2
    assert main(["train", str(data), "--folds", "2", "--processes", "2"]) == 2
    assert "in one process" in capsys.readouterr().err


def test_an_error_in_a_fold_says_how_to_resume_the_cross_validation(data: Path, tmp_path: Path):
    copied = shutil.copytree(data, tmp_path / "data")
    (copied / "red" / "3.png").write_bytes(b"broken")
    with pytest.raises(vitrail.VitrailError) as error:
        vitrail.cross_validate(copied, 3, out=tmp_path / "run", image_cache_gib=0, **QUICK)
    assert f"continue with: vitrail train {copied} --folds 3 --resume --out" in str(error.value.hint)
