"""Predictions as COCO's JSON, as a data set of FiftyOne and as tasks of Label Studio."""

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT

CLASSES = ("green & blue", "red")


@pytest.fixture(scope="module")
def clf() -> vitrail.Classifier:
    config = ViTConfig(width=16, depth=1, heads=1, mlp_width=16, patch=4, image_size=16, classes=2)
    return vitrail.Classifier(ViT(config), CLASSES, Preprocess(image_size=(16, 16)))


@pytest.fixture(scope="module")
def model(clf: vitrail.Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "classifier.safetensors"
    clf.save(path)
    return path


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of one name in two folders, one that is turned by EXIF, and one that is damaged; named relatively."""
    monkeypatch.chdir(tmp_path)
    root = Path("my photos")
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    Image.new("RGB", (20, 30), (200, 10, 10)).save(root / "a" / "1.png")
    Image.new("RGB", (16, 16), (10, 200, 10)).save(root / "b" / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 24)).save(root / "b" / "turned.jpg", exif=exif)
    (root / "b" / "damaged.png").write_bytes((root / "a" / "1.png").read_bytes()[:40])
    return root


def predict(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    code = main(["predict", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def expected(clf: vitrail.Classifier, images: Path) -> dict[str, tuple[str, float]]:
    """The best class and its probability, by path."""
    paths = sorted(path for path in images.rglob("*.*") if path.name != "damaged.png")
    return {str(path): (clf.predict(path).label, pytest.approx(clf.predict(path).probability)) for path in paths}


def test_coco(clf: vitrail.Classifier, model: Path, images: Path, capsys):
    code, answer, _ = predict(model, images, "--out", "out/predictions.json", "--format", "coco", capsys=capsys)
    assert code == 1
    (damaged,) = answer["unreadable_files"]
    assert damaged["path"] == str(images / "b" / "damaged.png") and "not an image" in damaged["error"]
    document = json.loads(Path("out/predictions.json").read_text(encoding="utf-8"))
    assert document["unreadable"] == [damaged]
    names = {each["id"]: each["name"] for each in document["categories"]}
    assert list(names.values()) == list(CLASSES)
    paths = {each["id"]: each["file_name"] for each in document["images"]}
    found = {paths[each["image_id"]]: (names[each["category_id"]], each["score"]) for each in document["annotations"]}
    assert found == expected(clf, images)
    sizes = {each["file_name"]: (each["height"], each["width"]) for each in document["images"]}
    assert sizes[str(images / "a" / "1.png")] == (30, 20)
    assert sizes[str(images / "b" / "turned.jpg")] == (40, 24)
    assert len({each["id"] for each in document["annotations"]}) == 3


def test_fiftyone(clf: vitrail.Classifier, model: Path, images: Path, tmp_path: Path, capsys):
    code, _, _ = predict(model, images, "--out", "out.json", "--format", "fiftyone", capsys=capsys)
    assert code == 1
    document = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert document["classes"] == list(CLASSES)
    assert [each["path"] for each in document["unreadable"]] == [str(images / "b" / "damaged.png")]
    found = {path: (CLASSES[each["label"]], each["confidence"]) for path, each in document["labels"].items()}
    assert found == {str(tmp_path / path): label for path, label in expected(clf, images).items()}


def test_label_studio(clf: vitrail.Classifier, model: Path, images: Path, tmp_path: Path, capsys):
    code, _, message = predict(model, images, "--out", "out", "--format", "label-studio", capsys=capsys)
    assert code == 1
    assert f"DOCUMENT_ROOT={tmp_path}," in message and message.rstrip().endswith(f"storage {tmp_path / images}")
    config = ET.parse("out/label_config.xml").getroot()
    assert [each.get("value") for each in config.iter("Choice")] == list(CLASSES)
    image, choices = config.find("Image"), config.find("Choices")
    assert image is not None and choices is not None and choices.get("toName") == image.get("name")
    tasks = json.loads(Path("out/tasks.json").read_text(encoding="utf-8"))
    found = {}
    for task in tasks:
        address = urlparse(task["data"][str(image.get("value")).removeprefix("$")])
        assert address.path == "/data/local-files/"
        assert os.path.samefile(tmp_path / parse_qs(address.query)["d"][0], task["data"]["path"])
        ((prediction,), (result,)) = task["predictions"], task["predictions"][0]["result"]
        assert (result["from_name"], result["to_name"]) == (choices.get("name"), image.get("name"))
        assert prediction["model_version"] == "classifier" and prediction["score"] == result["score"]
        found[task["data"]["path"]] = (result["value"]["choices"][0], result["score"])
    assert found == expected(clf, images)
    (damaged,) = json.loads(Path("out/unreadable.json").read_text(encoding="utf-8"))
    assert damaged["path"] == str(images / "b" / "damaged.png")


@pytest.mark.parametrize("format", ["coco", "fiftyone", "label-studio"])
def test_nothing_is_overwritten(format: str, model: Path, images: Path, capsys):
    out = Path("mine")
    if format != "label-studio":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "tasks.json").write_text("mine")
    code, answer, _ = predict(model, images, "--out", out, "--format", format, capsys=capsys)
    assert code == 2 and answer["error"] == "mine already exists"
    assert (out / "tasks.json" if format == "label-studio" else out).read_text() == "mine"


def test_options_of_tables_are_refused(images: Path, capsys):
    for options in (["--top", "2"], ["--embedding"], ["--resume"], ["--processes", "2"], ["--slice", "1/2"]):
        code, answer, _ = predict("x", images, "--out", "out", "--format", "coco", *options, capsys=capsys)
        assert code == 2 and answer["error"].startswith(f"{options[0]} is for tables")
    code, answer, _ = predict("x", images, "--format", "coco", capsys=capsys)
    assert answer["hint"] == "add --out FOLDER"
    Path("empty").mkdir()
    code, answer, _ = predict("x", images, "--out", "empty", "--format", "coco", capsys=capsys)
    assert code == 2 and answer["error"] == "empty is a folder, and coco is a file"


def test_images_in_shards_have_no_file(model: Path, make_folder, tmp_path: Path, capsys):
    folder, shards = make_folder("few", {"train": 1}, ("red", "green")), tmp_path / "shards"
    assert main(["shard", str(folder), "--out", str(shards)]) == 0
    capsys.readouterr()
    for format in ("fiftyone", "label-studio"):
        code, answer, _ = predict("x", shards, "--out", tmp_path / "out", "--format", format, capsys=capsys)
        assert code == 2 and answer["error"].endswith(f"is not a file of its own, which {format} needs")
    code, _, _ = predict(model, shards, "--out", tmp_path / "out.json", "--format", "coco", capsys=capsys)
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert code == 0 and all(each["file_name"].startswith(str(shards)) for each in document["images"])
    assert len(document["annotations"]) == 2


def test_predictions_in_memory_are_saved(clf: vitrail.Classifier, images: Path):
    paths = sorted(images.rglob("*.*"))
    predictions = clf.predict(paths, on_error="skip")
    assert predictions.save("out.json", format="coco") == Path("out.json")
    document = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert len(document["annotations"]) == 3 and len(document["unreadable"]) == 1
    with pytest.raises(vitrail.UsageError, match="out.json already exists"):
        predictions.save("out.json", format="coco")
    with pytest.raises(vitrail.UsageError, match="there is no format 'yolo'"):
        predictions.save("other.json", format="yolo")  # type: ignore[arg-type]
    with pytest.raises(vitrail.UsageError, match=r"images\[1\] did not come from a file"):
        clf.predict([paths[0], np.zeros((16, 16, 3), np.uint8)]).save("other.json", format="coco")
    assert not Path("other.json").exists()
