"""`vitrail cache`: every cache is listed, and only the named caches and old files are removed."""

import json
import os
import time
from pathlib import Path

import pytest

import vitrail
from vitrail.caches import CACHES
from vitrail.cli import main
from vitrail.data.facts import open_database
from vitrail.data.images import Images
from vitrail.data.open import open_data
from vitrail.data.shards.cache import copies_folder
from vitrail.evaluation.features import extract_features
from vitrail.serving.onnx_cache import onnx_cache_folder


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["cache", *arguments, "--json"]) == 0
    document: dict = json.loads(capsys.readouterr().out)
    return document


def fill_caches(run: vitrail.Run, images: Images) -> None:
    """Fills each cache: features and facts as vitrail does, the others with files of the names that it gives."""
    extract_features(run.classifier, images)
    database = open_database()
    assert database is not None
    database.close()
    for path, size in (
        (copies_folder() / "a.tar", 30),
        (copies_folder() / "a.lock", 0),
        (onnx_cache_folder() / "b.onnx", 50),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        os.utime(path, (time.time() - 40 * 86400,) * 2)


def test_every_cache_is_shown_and_removed_by_name_and_age(run: vitrail.Run, colors: Path, own_cache: Path, capsys):
    assert [row["files"] for row in ask(capsys)["caches"]] == [0, 0, 0, 0]
    fill_caches(run, open_data(colors).train)
    (own_cache / "note.txt").write_text("mine")
    document = ask(capsys)
    assert document["folder"] == str(own_cache) and document["removed"] == {"files": 0, "bytes": 0}
    rows = {row["cache"]: row for row in document["caches"]}
    assert set(rows) == set(CACHES) and all(row["files"] == 1 and row["bytes"] > 0 for row in rows.values())
    assert rows["shards"]["bytes"] == 30 and rows["shards"]["oldest_days"] == 40
    assert rows["features"]["oldest_days"] < 1
    before = {str(path.relative_to(own_cache)) for path in own_cache.rglob("*") if path.is_file()}

    assert ask(capsys, "--remove", "all", "--unused-days", "30")["removed"] == {"files": 2, "bytes": 80}
    left = {str(path.relative_to(own_cache)) for path in own_cache.rglob("*") if path.is_file()}
    assert before - left == {"shards/a.tar", "graphs/b.onnx"}
    assert ask(capsys, "--remove", "features")["removed"]["files"] == 1
    assert main(["cache", "--remove", "image-facts", "--remove", "shards"]) == 0
    assert "removed 1 files" in capsys.readouterr().out
    assert {str(path.relative_to(own_cache)) for path in own_cache.rglob("*") if path.is_file()} == {
        "note.txt",
        "shards/a.lock",
    }


def test_days_without_remove_are_refused(own_cache: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cache", "--unused-days", "30"]) == 2
    assert "--unused-days chooses what --remove removes" in capsys.readouterr().err


def test_an_unknown_cache_is_refused_before_anything_is_removed(own_cache: Path, capsys: pytest.CaptureFixture[str]):
    (own_cache / "shards").mkdir(parents=True)
    (own_cache / "shards" / "a.tar").write_bytes(b"x")
    assert main(["cache", "--remove", "shards", "--remove", "feature"]) == 2
    error = capsys.readouterr().err
    assert "there is no cache 'feature'" in error and "did you mean features?" in error
    assert (own_cache / "shards" / "a.tar").exists()
