"""Which images to label next: the gradients are those of autograd, and k-means++ spreads the choice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vitrail
from conftest import COLORS, picture
from document_types import check_document
from vitrail import documents
from vitrail.cli.main import main
from vitrail.evaluation.labeling import gradient_factors, rank_for_labeling
from vitrail.tasks import MULTI_LABEL, SINGLE_LABEL

RNG = np.random.default_rng(0)


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0):
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_gradients_are_those_of_autograd(task: str):
    head = torch.nn.Linear(5, 4, dtype=torch.float64)
    features = torch.randn(6, 5, dtype=torch.float64)
    logits = head(features)
    factors = gradient_factors(logits.detach().numpy(), task)
    for i in range(6):
        if task == SINGLE_LABEL:
            loss = F.cross_entropy(logits[i : i + 1], logits[i : i + 1].argmax(1))
        else:
            loss = F.binary_cross_entropy_with_logits(logits[i], (logits[i] >= 0).double(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, head.weight, retain_graph=True)
        assert np.outer(factors[i], features[i]) == pytest.approx(gradient.numpy(), abs=1e-9)


def test_the_first_has_the_longest_gradient_and_no_image_comes_twice():
    logits, features = RNG.normal(size=(50, 3)), RNG.normal(size=(50, 4))
    order = rank_for_labeling(logits, features, 100, SINGLE_LABEL)
    assert sorted(order) == list(range(50))
    lengths = np.linalg.norm(gradient_factors(logits, SINGLE_LABEL), axis=1) * np.linalg.norm(features, axis=1)
    assert order[0] == lengths.argmax()
    assert np.array_equal(rank_for_labeling(logits, features, 10, SINGLE_LABEL), order[:10])


def test_copies_are_left_for_last():
    features = np.repeat(np.eye(5), 8, axis=0)  # five different images, eight copies of each
    order = rank_for_labeling(np.zeros((40, 2)), features, 40, SINGLE_LABEL)
    assert len({i // 8 for i in order[:5]}) == 5


def test_certain_images_come_after_uncertain_ones():
    features = RNG.normal(size=(60, 4))
    logits = np.where(np.arange(60)[:, None] < 20, [0.1, 0.0], [9.0, 0.0])
    order = rank_for_labeling(logits, features, 15, SINGLE_LABEL)
    assert sum(i >= 20 for i in order) <= 1, "all certain images have almost the same gradient, which is zero"


@pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL])
def test_the_command_line_ranks_images(clf: vitrail.Classifier, task: str, tmp_path: Path, capsys):
    replace(clf, task=task).save(tmp_path / "a.safetensors")
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, color in enumerate([*COLORS.values(), (130, 55, 130), (125, 120, 55)]):
        picture(color, i).save(folder / f"{i}.png")
    (folder / "damaged.png").write_bytes(b"no image")
    document = answer(capsys, "predict", tmp_path / "a.safetensors", folder, "--rank-for-labeling", 3, code=1)
    assert document["images"] == 5 and len(document["ranking"]) == 3
    assert [Path(each["path"]).name for each in document["unreadable_files"]] == ["damaged.png"]
    for row in document["ranking"]:
        check_document(row, documents.LabelingRow)
    classifier = vitrail.load(tmp_path / "a.safetensors")
    files = [folder / f"{i}.png" for i in range(5)]
    logits, features = classifier.logits_and_features(torch.stack([classifier.read_image(path) for path in files]))
    order = rank_for_labeling(logits.numpy(), features.numpy(), 3, task)
    assert [row["path"] for row in document["ranking"]] == [str(files[i]) for i in order]
    main(["predict", str(tmp_path / "a.safetensors"), str(folder), "--rank-for-labeling", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("options", [["--out", "x"], ["--top", "3"], ["--tta", "flip"]])
def test_other_options_are_refused(run: vitrail.Run, colors: Path, options: list[str], capsys):
    document = answer(capsys, "predict", run.folder, colors, "--rank-for-labeling", 3, *options, code=2)
    assert f"has no {options[0]}" in document["error"]
