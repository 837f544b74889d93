"""Which images to label next: the least certain ones, spread over the features."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from conftest import COLORS, picture
from document_types import check_document
from vitrail import image_documents
from vitrail.cli.main import main
from vitrail.evaluation.labeling import measure_margins, rank_for_labeling
from vitrail.tasks import MULTI_LABEL, SINGLE_LABEL

RNG = np.random.default_rng(0)


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0):
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_margins_are_small_where_the_answer_is_uncertain():
    logits = np.log([[0.5, 0.4, 0.1], [0.8, 0.1, 0.1], [0.34, 0.33, 0.33]])
    assert measure_margins(logits, SINGLE_LABEL) == pytest.approx([0.1, 0.7, 0.01])
    assert measure_margins(np.array([[4.0, -3.0], [9.0, 0.5]]), MULTI_LABEL) == pytest.approx([3.0, 0.5])


def test_the_least_certain_is_first_and_no_image_comes_twice():
    logits, features = RNG.normal(size=(50, 3)), RNG.normal(size=(50, 4))
    order = rank_for_labeling(logits, features, 100, SINGLE_LABEL)
    assert sorted(order) == list(range(50))
    margins = measure_margins(logits, SINGLE_LABEL)
    assert order[0] == margins.argmin()
    few = rank_for_labeling(logits, features, 10, SINGLE_LABEL)
    assert set(few) <= set(np.argsort(margins)[:20]), "only uncertain images are candidates"


def test_copies_are_left_for_last():
    features = np.repeat(np.eye(5), 8, axis=0)  # five different images, eight copies of each
    order = rank_for_labeling(np.zeros((40, 2)), features, 40, SINGLE_LABEL)
    assert len({i // 8 for i in order[:5]}) == 5 and sorted(order) == list(range(40))


def test_each_image_is_the_farthest_from_those_before_it():
    logits, features = np.zeros((30, 2)), RNG.normal(size=(30, 6))
    order = rank_for_labeling(logits, features, 15, SINGLE_LABEL)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for k in range(1, 15):
        nearest = (1 - unit @ unit[order[:k]].T).min(axis=1)
        assert nearest[order[k]] == pytest.approx(nearest.max())


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
        check_document(row, image_documents.LabelingRow)
    classifier = vitrail.load(tmp_path / "a.safetensors")
    files = [folder / f"{i}.png" for i in range(5)]
    logits, features = classifier.logits_and_features(torch.stack([classifier.read_image(path) for path in files]))
    order = rank_for_labeling(logits.numpy(), features.numpy(), 3, task)
    assert [row["path"] for row in document["ranking"]] == [str(files[i]) for i in order]
    main(["predict", str(tmp_path / "a.safetensors"), str(folder), "--rank-for-labeling", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_precision_is_that_of_the_option(run: vitrail.Run, colors: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    fast, copies = vitrail.Classifier.fast, []
    monkeypatch.setattr(vitrail.Classifier, "fast", lambda self: copies.append(fast(self)) or copies[0])
    answer(capsys, "predict", run.folder, colors, "--rank-for-labeling", 3, "--precision", "bf16")
    assert len(copies) == 1 and copies[0].is_fast


@pytest.mark.parametrize("options", [["--out", "x"], ["--top", "3"], ["--tta", "flip"]])
def test_other_options_are_refused(run: vitrail.Run, colors: Path, options: list[str], capsys):
    document = answer(capsys, "predict", run.folder, colors, "--rank-for-labeling", 3, *options, code=2)
    assert f"has no {options[0]}" in document["error"]
