"""Similar images: by the cosine of the features, as scikit-learn finds them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

import vitrail
from document_types import check_document
from vitrail import image_documents
from vitrail.cli.main import main


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0):
    assert main(["similar", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_similar_images_are_the_nearest_of_scikit_learn(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    queries = sorted((colors / "test" / "red").iterdir())[:3]
    document = answer(capsys, run.folder, *queries, colors, "--top", 5, "--out", tmp_path / "similar.png")
    assert document["searched"] == 84
    classifier = vitrail.load(run.folder)
    files = sorted(colors.rglob("*.png"))
    features = classifier.embed(files).numpy()
    neighbors = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features)
    distances, indices = neighbors.kneighbors(classifier.embed(queries).numpy())
    for query, row, distance, nearest in zip(queries, document["images"], distances, indices, strict=True):
        check_document(row, image_documents.SimilarDocument)
        assert row["path"] == str(query) and files[nearest[0]] == query, "an image is nearest to itself"
        assert [each["similarity"] for each in row["similar"]] == pytest.approx(1 - distance[1:], abs=1e-5)
        assert {each["path"] for each in row["similar"]} <= {str(each) for each in files} - {str(query)}
        assert {each["label"] for each in row["similar"]} == {"red"}
        assert all(f"/{each['split']}/" in each["path"] for each in row["similar"])
    with Image.open(tmp_path / "similar.png") as drawn:
        assert drawn.size[0] > 600
    again = answer(capsys, run.folder, *queries, colors, "--top", 5)
    assert again["images"] == document["images"], "cached features are the same"


def test_similar_images_of_a_table_with_several_labels(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    files = sorted(colors.rglob("*.png"))[:6]
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"{file},one;two\n" for file in files))
    document = answer(capsys, run.folder, files[0], tmp_path / "table.csv", "--top", 2)
    assert [each["label"] for each in document["images"][0]["similar"]] == ["one;two"] * 2


def test_bad_input_is_named(run: vitrail.Run, colors: Path, tmp_path: Path, capsys):
    image = next(colors.rglob("*.png"))
    assert "is not a picture" in answer(capsys, run.folder, image, colors, "--out", "similar.txt", code=2)["error"]
    (tmp_path / "there.png").write_bytes(b"mine")
    assert "exists" in answer(capsys, run.folder, image, colors, "--out", tmp_path / "there.png", code=2)["error"]
    assert (tmp_path / "there.png").read_bytes() == b"mine"
    damaged = tmp_path / "data" / "a" / "damaged.png"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no image")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "data" / "a" / "black.png")
    assert "damaged.png" in answer(capsys, run.folder, image, tmp_path / "data", code=1)["error"]
    document = answer(capsys, run.folder, image, tmp_path / "data", "--skip-unreadable")
    assert document["searched"] == 1 and document["unreadable_files"][0]["path"] == str(damaged)
