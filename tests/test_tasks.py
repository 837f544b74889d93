"""Several labels per image: every verb on every task works, or refuses in a sentence before any work.

The images have squares of three colors, none to all of them; the colors are the labels.
"""

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from conftest import COLORS
from document_types import check_document
from serving import RunningServer
from test_user_code import results
from vitrail import documents, label_documents
from vitrail.cli.main import VERBS, main
from vitrail.data.labels import LabelSets
from vitrail.data.open import open_data, open_source
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.outcomes import EVALUATIONS, OUTCOMES, VALIDATION_SCORES, compute_any_outcome
from vitrail.evaluation.probe import open_probe_data, probe
from vitrail.evaluation.thresholds import choose_thresholds
from vitrail.loading import load_any
from vitrail.runs.fold_table import FOLD_SCORES
from vitrail.runs.folder import RunFolder
from vitrail.tasks import MULTI_LABEL, SINGLE_LABEL, TASKS
from vitrail.training.losses import losses_of_task

LABELS = tuple(sorted(COLORS))
N = 160
TINY = ["--width", "32", "--depth", "2", "--heads", "2", "--patch", "4"]


def draw(labels: list[str], random: np.random.Generator) -> np.ndarray:
    """Returns an image of 16 x 16 with a square of each color, each in a quarter of its own."""
    pixels = random.integers(0, 50, (16, 16, 3)).astype(np.uint8)
    for quarter, label in zip(random.permutation(4), labels, strict=False):
        y, x = 8 * (quarter // 2) + 1, 8 * (quarter % 2) + 1
        pixels[y : y + 6, x : x + 6] = COLORS[label]
    return pixels


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """Returns a folder of images and the labels of each."""
    folder = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    labels = [[name for name in LABELS if random.random() < 0.5] for _ in range(N)]
    for i, each in enumerate(labels):
        Image.fromarray(draw(each, random)).save(folder / f"{i:03}.png")
    return folder, labels


@pytest.fixture(scope="module")
def table(rows: tuple[Path, list[list[str]]]) -> Path:
    folder, labels = rows
    lines = [f"{i:03}.png,{';'.join(each)}\n" for i, each in enumerate(labels)]
    (folder / "squares.csv").write_text("path,label\n" + "".join(lines))
    return folder / "squares.csv"


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned the colors."""
    folder = tmp_path_factory.mktemp("runs") / "squares"
    options = ["--epochs", "12", "--lr", "3e-3", "--validation-fraction", "0.25"]
    assert main(["train", str(table), "--out", str(folder), *TINY, *options]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("exported") / "squares.onnx"
    assert main(["export", str(run), "--format", "onnx", "--out", str(path), "--map"]) == 0
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


# The tables


def test_every_table_has_every_task():
    assert TASKS.keys() == OUTCOMES.keys() == EVALUATIONS.keys() == VALIDATION_SCORES.keys() == FOLD_SCORES.keys()
    for name, task in TASKS.items():
        assert task.name == name and task.score in VALIDATION_SCORES[name] and task.score in FOLD_SCORES[name]
        assert task.default_loss in losses_of_task(name)
        logits = torch.linspace(-20, 20, 12).view(3, 4)
        assert np.allclose(task.to_probabilities(logits), task.to_probabilities_array(logits.numpy()), atol=1e-7)


# Data: every form gives the same labels


def write_forms(folder: Path, labels: list[list[str]]) -> dict[str, Any]:
    """Writes the labels in every form; returns what opens each."""
    names = [f"{i:03}.png" for i in range(len(labels))]
    hot = [[int(name in each) for name in LABELS] for each in labels]
    (folder / "columns.csv").write_text(
        f"path,{','.join(LABELS)}\n"
        + "".join(f"{n},{','.join(map(str, h))}\n" for n, h in zip(names, hot, strict=True))
    )
    (folder / "lines.jsonl").write_text(
        "".join(json.dumps({"path": n, "labels": each}) + "\n" for n, each in zip(names, labels, strict=True))
    )
    images = [np.array(Image.open(folder / name)) for name in names]
    forms: dict[str, Any] = {
        "columns": folder / "columns.csv",
        "lines": folder / "lines.jsonl",
        "lists": (images, labels),
        "arrays": (np.stack(images), np.array(hot)),
    }
    try:
        import datasets
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return forms
    parquet.write_table(pyarrow.table({"path": names, "labels": labels}), folder / "lists.parquet")
    forms["parquet"] = folder / "lists.parquet"
    features = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.Sequence(datasets.ClassLabel(names=list(LABELS)))}
    )
    numbers = [[LABELS.index(name) for name in each] for each in labels]
    forms["hf"] = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(each) for each in images], "labels": numbers}, features
    )
    return forms


def test_every_form_of_data_has_the_same_labels(rows: tuple[Path, list[list[str]]], table: Path, tmp_path: Path):
    folder, labels = rows
    expected = np.array([[name in each for name in LABELS] for each in labels])
    assert main(["shard", str(table), "--out", str(tmp_path / "shards")]) == 0
    (tmp_path / "shards" / "index.safetensors").rename(tmp_path / "index")
    forms = write_forms(folder, labels) | {"table": table, "shards without an index": tmp_path / "shards"}
    for name, data in forms.items():
        source = open_source(data)
        assert source.task == MULTI_LABEL, name
        assert any("the task is multi_label" in note for note in source.notes), name
        (listing,) = source.splits.values()
        assert isinstance(listing.labels, LabelSets)
        classes = LABELS if name != "arrays" else ("0", "1", "2")
        order = np.arange(N) if name != "shards without an index" else read_order(tmp_path / "shards")
        assert (listing.labels.encode(classes) == expected[order]).all(), name
    (tmp_path / "index").rename(tmp_path / "shards" / "index.safetensors")
    indexed, plain = open_data(tmp_path / "shards"), open_data(table)
    assert indexed.fingerprint == plain.fingerprint
    assert (indexed.train.labels == plain.train.labels).all() and list(indexed.train.names) == list(plain.train.names)


def read_order(shards: Path) -> np.ndarray:
    """Returns the row of the table of each image, in the order of the shards."""
    import tarfile

    with tarfile.open(next(shards.glob("*.tar"))) as tar:
        members = [member for member in tar if member.name.endswith(".json")]
        return np.array([int(json.load(tar.extractfile(each))["name"][:3]) for each in members])  # type: ignore[arg-type]


def test_splits_keep_the_share_of_every_label_and_do_not_depend_on_order(table: Path, tmp_path: Path):
    lines = table.read_text().splitlines()
    shuffled = table.with_name("shuffled.csv")
    shuffled.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    splits, others = open_data(table, test=0.25), open_data(shuffled, test=0.25)
    for split, images in splits.as_dict().items():
        assert sorted(images.names) == sorted(others.as_dict()[split].names)
    total = sum(images.labels.sum(0) for images in splits.as_dict().values())
    assert np.abs(splits.test.labels.sum(0) - 0.25 * total).max() <= 1
    assert len(splits.test) == pytest.approx(0.25 * N, abs=2)


def test_the_task_is_forced_or_refused(table: Path):
    names = table.with_name("names.csv")
    names.write_text("path,label\n" + "".join(f"{i:03}.png,{'a;b' if i % 2 else 'a|c'}\n" for i in range(8)))
    assert open_source(names).task == MULTI_LABEL
    single = open_source(names, task=SINGLE_LABEL)
    assert single.task == SINGLE_LABEL and set(single.splits["all"].labels) == {"a;b", "a|c"}
    names.write_text("path,label\n" + "".join(f"{i:03}.png,{'a' if i % 2 else 'a|c'}\n" for i in range(8)))
    assert open_source(names).task == SINGLE_LABEL
    assert open_data(names, test=0, validation=0).classes == ("a", "a|c")
    forced = open_source(names, task=MULTI_LABEL)
    assert set(forced.splits["all"].labels) == {"a", "a;c"}
    lines = table.with_name("some.jsonl")
    lines.write_text('{"path": "000.png", "labels": ["a"]}\n{"path": "001.png", "labels": ["a", "b"]}\n')
    with pytest.raises(VitrailError, match=r"001.png has the labels a, b, and one class per image is needed"):
        open_source(lines, task=SINGLE_LABEL)
    names.write_text("path,label\n000.png,a\n001.png,\n")
    with pytest.raises(VitrailError, match="line 3: the column 'label' is empty"):
        open_source(names)


def test_check_finds_images_without_labels_and_labels_that_always_come_together(
    rows: tuple[Path, list[list[str]]], capsys: pytest.CaptureFixture[str]
):
    folder, labels = rows
    table = folder / "together.csv"
    together = [";".join([*(["sky", "cloud"] if "red" in each else []), "thing"]) for each in labels[:30]]
    together[3] = ""
    table.write_text("path,label\n" + "".join(f"{i:03}.png,{each}\n" for i, each in enumerate(together)))
    document = answer(capsys, "check", table)
    found = {each["code"]: each for each in document["findings"]}
    assert document["task"] == MULTI_LABEL and document["classes"]["thing"] == 29
    assert found["images-without-labels"]["paths"] == ["003.png"]
    assert found["labels-always-together"]["values"]["classes"] == ["cloud", "sky"]
    assert "several-labels" not in found and "label-in-every-image" not in found
    split = folder / "unknown.csv"
    split.write_text("path,label,split\n000.png,a;b,train\n001.png,a,train\n002.png,a;zebra,test\n")
    document = answer(capsys, "check", split, code=1)
    assert any("test has classes that training lacks: zebra" in each for each in document["errors"])


# Training


def test_training_selects_by_map_and_keeps_thresholds(run: Path):
    classifier = vitrail.load(run)
    rows = RunFolder(run).load_metrics()
    assert rows[0]["validation_map"] < rows[-1]["validation_map"]
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["map"] > 0.95 and result["test"]["macro_f1"] > 0.9
    best = max(rows, key=lambda row: (row["validation_map"], -row["validation_loss"]))
    assert result["best_epoch"] == best["epoch"]
    assert classifier.task == MULTI_LABEL and classifier.origin["recipe"]["loss"] == "binary_cross_entropy"
    assert list(classifier.thresholds) == classifier.origin["calibration"]["label_thresholds"]
    assert len(set(classifier.thresholds)) > 1 and classifier.temperature != 1
    page = (run / "report.html").read_text()
    assert "False and missed labels" in page and "Labels that come together" in page and 'src="http' not in page


def test_a_resumed_run_ends_with_the_same_bits(table: Path, tmp_path: Path):
    options: dict[str, Any] = dict(
        width=16, depth=1, heads=2, epochs=2, batch_size=16, mixup=0.2, cutmix=1.0, report=False, check=False
    )
    whole = vitrail.train(table, out=tmp_path / "whole", **options)

    with pytest.raises(VitrailError, match="stopped at step"):
        vitrail.train(table, out=tmp_path / "run", callbacks=[StopAt(10)], **options)
    resumed = vitrail.train(table, out=tmp_path / "run", resume=True, report=False)
    assert resumed.classifier.thresholds == whole.classifier.thresholds
    for name, tensor in whole.classifier.vit.state_dict().items():
        assert torch.equal(tensor, resumed.classifier.vit.state_dict()[name]), name


class StopAt(vitrail.Callback):
    """Sends this process the signal of Ctrl-C after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, state: Any) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_weights_of_another_task_get_a_new_head(run: Path, table: Path, tmp_path: Path):
    labels = open_source(table).splits["all"].labels
    images = [np.array(Image.open(table.with_name(name))) for name in open_source(table).splits["all"].names]
    data = (images, ["red" if "red" in text else "blue" if "blue" in text else "green" for text in labels])
    options: dict[str, Any] = dict(epochs=1, report=False, check=False)
    single = vitrail.train(data, model=run, out=tmp_path / "single", **options)
    assert single.classifier.task == SINGLE_LABEL and single.classifier.origin["from"]["head"] == "new"
    again = vitrail.train(table, model=run, out=tmp_path / "again", **options)
    assert again.classifier.task == MULTI_LABEL and again.classifier.origin["from"]["head"] == "kept"


def test_a_linear_probe_for_labels_is_a_classifier_with_thresholds(run: Path, table: Path, tmp_path: Path):
    classifier = vitrail.load(run)
    options: dict[str, Any] = dict(recipe="linear", validation_fraction=0.25, report=False, check=False)
    fitted = vitrail.train(table, model=run, out=tmp_path / "run", **options)
    scores = fitted.result["probe"]
    splits = open_probe_data(classifier, table)
    direct = probe(classifier, splits)
    assert direct.task == MULTI_LABEL and scores["linear"]["map"] == direct.to_json()["linear"]["map"]
    logits = compute_any_outcome(replace(fitted.classifier, temperature=1.0), splits.test).logits
    np.testing.assert_allclose(logits, direct.linear.outcome.logits, atol=1e-4)
    held_out = compute_any_outcome(replace(fitted.classifier, temperature=1.0), splits.validation)
    assert direct.linear.outcome.thresholds == pytest.approx(choose_thresholds(held_out), abs=1e-5)
    assert len(set(direct.linear.outcome.thresholds)) > 1
    assert len(fitted.classifier.thresholds) == 3 and fitted.result["verdict"] is None
    assert "validation_map" in RunFolder(tmp_path / "run").load_metrics()[0]
    for name, module in fitted.classifier.vit.state_dict().items():
        assert name.startswith("head.") or torch.equal(module, classifier.vit.state_dict()[name])


# Every verb on every task. A row is (verb, what it is called with, a check of its answer); a text is a refusal.

Check = Callable[[Any], object]


def is_sweep_by(score: str) -> Check:
    """Returns a check that a sweep has compared its trials by a score."""
    lower_is_better = score == "mae"

    def check(document: Any) -> bool:
        scores = [row[score] for row in document["rows"]]
        low, high = document["best"][f"{score}_interval"]
        is_sorted = scores == sorted(scores, reverse=not lower_is_better)
        return document["metric"] == f"validation {score}" and is_sorted and low <= scores[0] <= high

    return check


def verbs(run: Path, table: Path, tmp: Path) -> dict[str, list[tuple[list[object], Check | str]]]:
    image = table.with_name("001.png")
    out = tmp / "out"
    export = ["export", run, "--out", out, "--format"]
    return {
        "check": [(["check", table], lambda d: d["task"] == MULTI_LABEL)],
        "shard": [(["shard", table, "--out", out], lambda d: d["classes"] == 3)],
        "train": [
            (
                ["train", table, "--out", out, "--epochs", 1, "--loss", "asymmetric", *TINY],
                lambda d: d["test"]["task"] == MULTI_LABEL,
            ),
            (["train", table, "--out", out, "--loss", "cross_entropy"], "the loss 'cross_entropy' is not for"),
            (
                ["train", table, "--folds", 2, "--out", out, "--epochs", 1, "--no-report", "--no-pictures", *TINY],
                lambda d: d["task"] == MULTI_LABEL and 0 <= d["fold_mean"]["map"] <= 1,
            ),
            (
                ["train", table, "--balance", "weights", "--out", out, "--epochs", 1, *TINY],
                lambda d: d["test"]["task"] == MULTI_LABEL,
            ),
            (["train", table, "--balance", "weights", "--loss", "focal", "--out", out], "takes no class weights"),
            (["train", table, "--balance", "sampler", "--out", out], "balance sampler draws images by their class"),
            (["train", table, "--balance", "logits", "--out", out], "balance logits shifts a softmax"),
            (["train", table, "--from", run, "--recipe", "linear", "--out", out], lambda d: d["test"]["map"] > 0.9),
            (
                ["train", table, "--teacher", run, "--out", out, "--epochs", 1, *TINY],
                lambda d: d["teaching"][0]["map"] > 0.9,
            ),
        ],
        "sweep": [
            (["sweep", table, "--vary", "lr=1e-4,1e-2", "--out", out, "--epochs", 1, *TINY], is_sweep_by("map")),
            (["sweep", table, "--vary", "lr=1e-4,1e-2", "--metric", "mae", "--out", out], "the metric mae is not"),
        ],
        "evaluate": [
            (["evaluate", run, table, "--report", "--out", out], lambda d: d["map"] > 0.9),
            (["evaluate", run, table, "--report", "--corruptions", "--out", out], "corruptions are scored for images"),
            (["evaluate", run, table, "--tta", "flip"], lambda d: d["augmentation"]["forwards"] == 2),
            (["evaluate", run, table, "--unlike", image], lambda d: "energy" in d["unlike"]["scores"]),
            (["evaluate", run, table, "--metric", "macro_f1"], "named metrics are for images with one class"),
        ],
        "probe": [(["probe", run, table], lambda d: d["linear"]["map"] > 0.9 and d["knn"]["macro_f1"] > 0.8)],
        "predict": [
            (["predict", run, image], lambda d: "labels" not in d and len(d["predictions"]) == 1),
            (["predict", run, image, "--tta", "flip"], lambda d: len(d["predictions"]) == 1),
            (["predict", run, image, "--rank-for-labeling", 1], lambda d: len(d["ranking"]) == 1),
            (["predict", run, image, "--out", out], lambda d: d["images"] == 1),
            (["predict", run, image, "--top", 2], "--top counts the most probable classes"),
            (["predict", run, image, "--out", out, "--top", 2], "--top counts the most probable classes"),
            (["predict", run, image, "--out", out, "--format", "coco"], "files for COCO, FiftyOne and Label Studio"),
        ],
        "similar": [(["similar", run, image, table], lambda d: len(d["images"][0]["similar"]) == 8)],
        "explain": [(["explain", run, image, "--out", out], lambda d: d["explanations"])],
        "faithfulness": [(["faithfulness", run, table], "faithfulness is scored for images with one class")],
        "export": [
            ([*export[:3], f"{out}.pt2", "--format", "torch"], lambda d: d["max_difference"] < 1e-4),
            ([*export, "triton"], lambda d: d["max_difference"] < 1e-4),
            ([*export[:3], f"{out}.html", "--format", "web"], lambda d: d["agreement"] == 1 and d["examples"] == 8),
        ],
        "inspect": [(["inspect", run], lambda d: d["task"] == MULTI_LABEL and len(d["thresholds"]) == 3)],
    }


ELSEWHERE = {  # verb -> why it has no row: it gets no task, or the test that has it
    "pretrain": "it learns from images without labels",
    "push": "it uploads a folder",
    "serve": "test_the_server_answers_with_labels",
    "recipe": "it prints settings",
    "models": "it prints a list",
    "cache": "it shows and removes files",
    "bench": "it measures speed, on random pixels",
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb(verb: str, run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if verb in ELSEWHERE:
        assert ELSEWHERE[verb].startswith("it ") or ELSEWHERE[verb] in globals()
        return
    for number, (arguments, check) in enumerate(verbs(run, table, tmp_path / "0")[verb]):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = [str(each).replace(str(tmp_path / "0"), str(folder)) for each in arguments]
        document = answer(capsys, *arguments, code=2 if isinstance(check, str) else 0)
        if isinstance(check, str):
            assert check in document["error"], document
            assert not any(folder.iterdir()), "it refuses before any work"
        else:
            assert check(document), document


# Answers: the same in memory, in files, over HTTP, and by other libraries


def test_predict_lists_the_labels_above_their_thresholds(run: Path, table: Path, tmp_path: Path, capsys: Any):
    classifier = vitrail.load(run)
    files = [str(table.with_name(f"{i:03}.png")) for i in range(40)]
    predictions = classifier.predict(files)
    probabilities = predictions.logits.double().sigmoid().numpy()
    above = probabilities >= np.array(classifier.thresholds)
    for each, row, p in zip(predictions, above, probabilities, strict=True):
        assert set(each.labels) == {LABELS[k] for k in np.flatnonzero(row)}
        assert [x.probability for x in each] == sorted((p[k] for k in np.flatnonzero(row)), reverse=True)
    assert any(len(each) > 1 for each in predictions) and any(len(each) == 0 for each in predictions)
    assert predictions.label_lists == [each.labels for each in predictions]
    with pytest.raises(UsageError, match="an image may have several labels"):
        _ = predictions.labels
    with pytest.raises(UsageError, match="an image may have several labels"):
        _ = predictions[0].label
    columns = predictions.to_columns()
    assert columns["labels"] == [";".join(each.labels) for each in predictions]
    assert predictions.to_pandas()["labels"].tolist() == columns["labels"]
    for kind in ("csv", "parquet"):
        answer(capsys, "predict", run, *files, "--out", tmp_path / kind, "--format", kind)
    with next((tmp_path / "csv").glob("*.csv")).open() as file:
        written = list(csv.DictReader(file))
    assert [each["labels"] for each in written] == columns["labels"]
    assert [each["probabilities"] for each in written] == columns["probabilities"]
    pyarrow = pytest.importorskip("pyarrow.parquet")
    frame = pyarrow.read_table(next((tmp_path / "parquet").glob("*.parquet"))).to_pydict()
    assert frame["labels"] == columns["labels"]
    main(["predict", str(run), *files])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": no label") for line in lines) == sum(not each.labels for each in predictions)


def test_the_temperature_and_thresholds_are_fitted_again(run: Path, table: Path, tmp_path: Path, capsys: Any):
    classifier = vitrail.load(run)
    path = tmp_path / "copy.safetensors"
    replace(classifier, temperature=1.0, thresholds=()).save(path)
    assert vitrail.load(path).thresholds == ()
    answer(capsys, "evaluate", path, table, "--fit-temperature")
    assert vitrail.load(path).thresholds == pytest.approx(classifier.thresholds)
    assert vitrail.load(path).temperature == pytest.approx(classifier.temperature, rel=1e-4)


def test_scores_are_what_their_types_say(run: Path, table: Path):
    evaluation = vitrail.evaluate(run, table)
    check_document(evaluation.summary(), label_documents.MultiLabelScores)
    check_document(evaluation.to_json(), label_documents.MultiLabelDocument)
    check_document(json.loads((run / "result.json").read_text())["test"], documents.HookScores)
    wrong = np.flatnonzero(~evaluation.outcome.correct)
    assert results.read_label_evaluation(evaluation) == [evaluation.outcome.paths[i] for i in wrong]


def test_onnx_answers_with_the_same_labels(run: Path, exported: Path, table: Path):
    classifier, onnx = vitrail.load(run), load_any(exported)
    assert (onnx.task, onnx.thresholds) == (classifier.task, classifier.thresholds)
    files = [table.with_name(f"{i:03}.png") for i in range(20)]
    assert onnx.predict(files).label_lists == classifier.predict(files).label_lists
    scores = vitrail.evaluate(onnx, table)
    assert scores.summary()["map"] == pytest.approx(vitrail.evaluate(classifier, table).summary()["map"])


@pytest.mark.parametrize("format", ["timm", "hf", "torchvision"])
def test_other_libraries_get_the_logits(format: str, table: Path, tmp_path: Path):
    pytest.importorskip({"hf": "transformers"}.get(format, format))
    config = vitrail.ViTConfig(
        image_size=32, patch=8, width=32, depth=2, heads=2, mlp_width=64, classes=3, channels=3, pool="cls"
    )
    torch.manual_seed(0)
    preprocess = vitrail.Preprocess(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, fit="stretch")
    classifier = vitrail.Classifier(
        vitrail.ViT(config).eval(), LABELS, preprocess, task=MULTI_LABEL, thresholds=(0.3, 0.5, 0.7)
    )
    result = vitrail.export(classifier, tmp_path / format, format=format)  # type: ignore[call-overload]
    assert result.comparison["max_difference"] < 1e-4
    card = (tmp_path / format / "README.md").read_text()
    assert "A sigmoid turns the outputs into probabilities" in card and "softmax" not in card and "| 0.7000 |" in card
    if format == "hf":
        document = json.loads((tmp_path / format / "config.json").read_text())
        assert document["problem_type"] == "multi_label_classification"
        assert vitrail.load(tmp_path / format).task == MULTI_LABEL


def test_explanations_are_for_each_label(run: Path, table: Path, tmp_path: Path, capsys: Any):
    classifier = vitrail.load(run)
    path, labels = next(
        (path, labels)
        for path in sorted(table.parent.glob("*.png"))
        if len(labels := classifier.predict(path).labels) == 2  # type: ignore[union-attr]
    )
    explained = answer(capsys, "explain", run, path, "--out", tmp_path)["explanations"]
    assert {each["label"] for each in explained} == set(labels)
    assert all(set(each["predicted"].split(";")) == set(labels) for each in explained)
    assert len({each["files"][0] for each in explained}) == 2
    probabilities = classifier.predict(path).probabilities  # type: ignore[union-attr]
    for each in explained:
        assert each["probability"] == pytest.approx(probabilities[each["label"]], abs=1e-5)
    for method in ("integrated_gradients", "occlusion"):
        explanation = vitrail.explain(classifier, path, method=method, target=labels[0])
        assert np.isfinite(explanation.map).all()


def test_the_server_answers_with_labels(run: Path, exported: Path, table: Path):
    classifier = vitrail.load(run)
    files = [table.with_name(f"{i:03}.png") for i in range(12)]
    expected = classifier.predict(files)
    with RunningServer([run, exported, "--name", "labels", "--name", "onnx", "--backend", "torch"]) as server:
        for model in ("labels", "onnx"):
            for file, prediction in zip(files, expected, strict=True):
                reply = server.post(f"/predict?model={model}", file.read_bytes()).json
                (row,) = reply["predictions"]
                answered = {each["label"]: each["probability"] for each in row["top"]}
                assert answered == pytest.approx({each.label: each.probability for each in prediction}, abs=1e-4)
        pixels = [np.array(Image.open(file)).tolist() for file in files]
        body = {"inputs": [{"name": "pixels", "shape": [len(files), 16, 16, 3], "datatype": "UINT8", "data": pixels}]}
        outputs = server.post("/v2/models/labels/infer", json.dumps(body)).json["outputs"]
        by_name = {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in outputs}
        assert by_name["probabilities"] == pytest.approx(expected.probabilities.numpy(), abs=1e-4)
        explained = server.post("/explain?model=labels&class=red", files[0].read_bytes()).json["explanation"]
        assert explained["label"] == "red"
        assert explained["probability"] == pytest.approx(expected[0].probabilities["red"], abs=1e-4)
        page = server.get("/?model=labels").body.decode()
        assert "finds 3 labels in images" in page and 'id="weights"' in page  # the full page
