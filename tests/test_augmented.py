"""Test-time augmentation: means over views, used in scores only where they pay on validation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from conftest import COLORS, fill
from document_types import check_document
from vitrail import image_documents
from vitrail.cli.augmentation import VIEWS as VIEW_NAMES
from vitrail.cli.main import main
from vitrail.evaluation.augmented import VIEWS, AugmentedClassifier, describe_change
from vitrail.evaluation.outcome import Outcome
from vitrail.tasks import MULTI_LABEL


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(
        tmp_path_factory.mktemp("augmented") / "data", {"train": 1, "val": 3, "test": 2}, tuple(COLORS), (16, 16)
    )


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0):
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_views_are_the_image_and_moved_or_mirrored_copies():
    assert tuple(VIEWS) == VIEW_NAMES
    pixels = torch.arange(32 * 32, dtype=torch.int64).remainder(251).byte().view(1, 1, 32, 32)
    assert torch.equal(VIEWS["flip"](pixels)[1], pixels.flip(-1))
    image, *corners = VIEWS["crops"](pixels)
    assert torch.equal(image, pixels) and len(corners) == 4
    assert torch.equal(corners[0][..., 2:, 2:], pixels[..., :-2, :-2]), "moved by a sixteenth of the size"
    assert torch.equal(corners[3][..., :-2, :-2], pixels[..., 2:, 2:])
    assert torch.equal(corners[0][..., 0, 2:], pixels[..., 0, :-2]), "the border repeats its pixels"
    assert len(VIEWS["flip+crops"](pixels)) == 10


@pytest.mark.parametrize("task", ["single_label", MULTI_LABEL])
def test_the_answer_is_the_mean_probability(clf: vitrail.Classifier, task: str):
    from dataclasses import replace

    classifier = replace(clf, task=task)
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    augmented = AugmentedClassifier(classifier, "flip+crops")
    activate = torch.sigmoid if task == MULTI_LABEL else lambda logits: logits.softmax(-1)
    expected = torch.stack([activate(classifier.logits(view)) for view in VIEWS["flip+crops"](pixels)]).mean(0)
    assert torch.allclose(activate(augmented.logits(pixels)), expected, atol=1e-6)
    assert augmented.answers == classifier.answers


def test_it_pays_only_above_the_interval():
    labels = np.zeros(400, dtype=int)
    right, wrong = np.array([2.0, 0.0]), np.array([0.0, 2.0])

    def outcome(correct: int) -> Outcome:
        logits = np.where(np.arange(400)[:, None] < correct, right, wrong)
        return Outcome([str(i) for i in range(400)], labels, logits, ("a", "b"))

    clear = describe_change(outcome(300), outcome(330), "flip")
    check_document(clear, image_documents.AugmentationDocument)
    assert clear["pays"] and clear["forwards"] == 2 and clear["change"] == pytest.approx(0.075)
    assert not describe_change(outcome(300), outcome(302), "flip")["pays"]
    assert not describe_change(outcome(330), outcome(300), "flip")["pays"]


def test_scores_are_without_it_where_it_does_not_pay(run: vitrail.Run, data: Path, capsys):
    plain = answer(capsys, "evaluate", run.folder, data)
    tried = answer(capsys, "evaluate", run.folder, data, "--tta", "flip")
    assert not tried["augmentation"]["pays"] and tried["augmentation"]["images"] == 9
    assert tried["predictions"] == plain["predictions"]
    main(["evaluate", str(run.folder), str(data), "--tta", "flip"])
    assert "it does not pay" in capsys.readouterr().out


def test_predictions_with_it(run: vitrail.Run, data: Path, tmp_path: Path, capsys):
    files = sorted(data.rglob("*.png"))[:3]
    rows = answer(capsys, "predict", run.folder, *files, "--tta", "crops")["predictions"]
    expected = AugmentedClassifier(vitrail.load(run.folder), "crops").predict(files)
    for row, each in zip(rows, expected, strict=True):
        assert [p["probability"] for p in row["top"]] == pytest.approx([p.probability for p in each], abs=1e-5)
    arguments = ["predict", run.folder, *files, "--tta", "flip", "--out", tmp_path / "out"]
    assert "printed" in answer(capsys, *arguments, code=2)["error"] and not (tmp_path / "out").exists()


def test_it_needs_validation_images(run: vitrail.Run, make_folder, capsys):
    folder = make_folder("test-only", {"test": 2}, classes=tuple(COLORS))
    assert "no validation images" in answer(capsys, "evaluate", run.folder, folder, "--tta", "flip", code=2)["error"]
    arguments = ["evaluate", run.folder, folder, "--tta", "flip", "--report"]
    assert "without --tta" in answer(capsys, *arguments, code=2)["error"]


@pytest.mark.parametrize("splits", [("val",), ("test",)])
@pytest.mark.parametrize("option", [("--tta", "flip"), ("--fit-temperature",), ("--fit-unlike",)])
def test_choices_need_validation_images_that_are_not_scored(
    run: vitrail.Run, tmp_path: Path, option: tuple[str, ...], splits: tuple[str, ...], capsys
):
    folder = fill(tmp_path / "data", dict.fromkeys(splits, 1), tuple(COLORS), (16, 16))
    document = answer(capsys, "evaluate", run.folder, folder, *option, code=2)
    assert "has no validation images besides those that are scored" in document["error"]
