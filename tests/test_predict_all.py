"""Predictions into a folder: the rows of `predict`, whole whatever is killed, and nothing done twice."""

import csv
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlparse

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import vitrail
from conftest import COLOURS, picture
from vitrail.cli import main
from vitrail.errors import UsageError, VitrailError
from vitrail.prediction import listing, local
from vitrail.prediction.part_job import PartJob
from vitrail.prediction.predict import working_directory

IMAGES = 2000
PARTS = 32  # of 64 images
BROKEN = 1234


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 names for thirty pictures, in three folders; one is cut short."""
    root = tmp_path_factory.mktemp("many")
    pictures = []
    for i in range(30):
        pictures.append(root / f".{i}.png")
        picture(list(COLOURS.values())[i % 3], i).save(pictures[-1])
    for name in ("a", "b", "c"):
        (root / "images" / name).mkdir(parents=True)
    for i in range(IMAGES):
        os.link(pictures[i % 30], root / "images" / "abc"[i % 3] / f"{i:05}.png")
    broken = root / "images" / "abc"[BROKEN % 3] / f"{BROKEN:05}.png"
    broken.unlink()
    broken.write_bytes(pictures[0].read_bytes()[:60])
    return root / "images"


@pytest.fixture(scope="session")
def undisturbed(run: vitrail.Run, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of all of them when nobody interferes."""
    out = tmp_path_factory.mktemp("predictions") / "out"
    found = vitrail.predict_all(run.folder, many, out, part_images=64, workers=2)
    assert (found.images, found.unreadable, found.parts, found.complete) == (IMAGES, 1, PARTS, True)
    return out


def rows_in(out: Path, format: str = "parquet") -> list[dict[str, Any]]:
    """All rows in the order of the parts, as text where they come from CSV."""
    rows: list[dict[str, Any]] = []
    for file in sorted(out.glob(f"part-*.{format}")):
        if format == "parquet":
            rows += pq.read_table(file).to_pylist()
        else:
            with file.open(newline="", encoding="utf-8") as lines:
                rows += list(csv.DictReader(lines))
    return rows


def hashes(out: Path) -> dict[str, str]:
    """What each part holds, by its own bytes; and the notes agree."""
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.glob("part-*")}
    notes = {file.stem: json.loads(file.read_text())["sha256"] for file in (out / "_vitrail").glob("part-*")}
    assert {name.split(".")[0]: value for name, value in found.items()} == notes
    return found


def notes(out: Path) -> int:
    return len(list((out / "_vitrail").glob("part-*.json")))


class Command:
    """`vitrail predict --json` in a process of its own: a fork of this one, which is quick to start, or a fresh one."""

    def __init__(self, words: tuple[object, ...], place: Path, fresh: bool):
        self.out, self.err = place / "out", place / "err"
        self.code: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        everything = ["predict", *map(str, words), "--json"]
        with self.out.open("w") as out, self.err.open("w") as err:
            if fresh:
                command, environment = (
                    [sys.executable, "-m", "vitrail", *everything],
                    {**os.environ, "OMP_NUM_THREADS": "1"},
                )
                self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
                self.pid = self.process.pid
                return
            self.pid = os.fork()
            if self.pid:
                return
            code = 70
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = out, err
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = main(everything)
                out.flush()
            finally:
                os._exit(code)

    def running(self) -> bool:
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
            if self.process:
                self.process.returncode = self.code
        return self.code is None

    def until(self, true: Callable[[], bool], seconds: float = 200) -> None:
        """Waits for something to become true while the command is at work."""
        stop = time.monotonic() + seconds
        while not true():
            assert self.running(), f"it ended: {self.code} {self.out.read_text()} {self.err.read_text()}"
            assert time.monotonic() < stop
            time.sleep(0.005)

    def ended(self, seconds: float = 250) -> tuple[int, dict[str, Any], str]:
        """The exit code, the document and the talk."""
        stop = time.monotonic() + seconds
        while self.running():
            assert time.monotonic() < stop
            time.sleep(0.02)
        assert self.code is not None
        return self.code, json.loads(self.out.read_text() or "{}"), self.err.read_text()

    def kill(self) -> None:
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
            self.ended()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def workers(self) -> list[int]:
        return [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


@pytest.fixture
def begin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """begin(MODEL, SOURCE, ...) starts the command; whatever a test leaves running ends with it."""
    begun: list[Command] = []

    def start(*words: object, fresh: bool = False) -> Command:
        begun.append(Command(words, tmp_path_factory.mktemp("talk"), fresh))
        return begun[-1]

    yield start
    for command in begun:
        command.kill()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# what the rows are


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_the_same_rows_as_predict_says_one_by_one(
    run: vitrail.Run, colours: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "cut.png").write_bytes((colours / "test/red/0.png").read_bytes()[:50])
    sources = [str(colours / "test"), str(tmp_path / "cut.png"), str(tmp_path / "gone.png")]
    assert main(["predict", str(run.folder), *sources, "--top", "2", "--json"]) == 1
    expected = json.loads(capsys.readouterr().out)["predictions"]
    words = [*sources, "--top", "2", "--out", str(tmp_path / "out"), "--format", format, "--workers", "2", "--json"]
    assert main(["predict", str(run.folder), *words]) == 1
    document = json.loads(capsys.readouterr().out)
    rows = rows_in(tmp_path / "out", format)
    assert [row["path"] for row in rows] == [row["path"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert list(row) == ["path", "label", "probability", "label_2", "probability_2", "error"]
        assert (row["error"] or None) == other["error"]
        for suffix, best in zip(("", "_2"), other["top"], strict=False):
            assert row[f"label{suffix}"] == best["label"]
            assert float(row[f"probability{suffix}"]) == pytest.approx(best["probability"], abs=1e-6)
        if other["error"]:
            assert not row["label"] and not row["probability"]
    assert (document["images"], document["unreadable"], document["complete"]) == (26, 2, True)
    assert sum(document["labels"].values()) == 24
    assert json.loads((tmp_path / "out/_summary.json").read_text()) == document
    assert document["unreadable_files"][1] == {"path": str(tmp_path / "gone.png"), "error": "there is no such file"}


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_an_embedding_is_what_features_gives(
    run: vitrail.Run, clf: vitrail.Classifier, colours: Path, tmp_path: Path, format: str
):
    (colours_and_broken := tmp_path / "in").mkdir()
    for i, path in enumerate(sorted((colours / "test").rglob("*.png"))[::4]):
        os.link(path, colours_and_broken / f"{i}.png")
    (colours_and_broken / "9.png").write_bytes(b"no image")
    vitrail.predict_all(run.folder, colours_and_broken, tmp_path / "out", embedding=True, format=format, workers=1)
    rows = rows_in(tmp_path / "out", format)
    assert len(rows) == 7
    for row in rows[:-1]:
        vector = row["embedding"] if format == "parquet" else json.loads(row["embedding"])
        np.testing.assert_allclose(vector, clf.features(row["path"])[0], atol=1e-5)
        assert row["label"] == clf.predict(row["path"])[0].label
    assert not rows[-1]["embedding"] and "not an image" in rows[-1]["error"]


def test_a_model_without_classes_gives_embeddings_alone(clf: vitrail.Classifier, colours: Path, tmp_path: Path):
    config = vitrail.ViTConfig(width=32, depth=1, heads=2, mlp_width=32, patch=4, image_size=16, classes=0)
    nameless = vitrail.Classifier(vitrail.ViT(config), (), clf.preprocess)
    nameless.save(tmp_path / "features.safetensors")
    with pytest.raises(UsageError, match="knows no classes"):
        vitrail.predict_all(tmp_path / "features.safetensors", colours / "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    vitrail.predict_all(tmp_path / "features.safetensors", colours / "test", tmp_path / "out", embedding=True)
    rows = rows_in(tmp_path / "out")
    assert len(rows) == 24
    assert all(row["label"] is None and row["error"] is None for row in rows)
    np.testing.assert_allclose(rows[5]["embedding"], nameless.features(rows[5]["path"])[0], atol=1e-5)


def test_an_onnx_file_predicts_into_a_folder_and_has_no_embedding(run: vitrail.Run, colours: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    graph = tmp_path / "colours.onnx"
    assert main(["export", str(run.folder), "--format", "onnx", "--out", str(graph), "--quiet"]) == 0
    vitrail.predict_all(graph, colours / "test", tmp_path / "graph", workers=2)
    vitrail.predict_all(run.folder, colours / "test", tmp_path / "torch", workers=2)
    for ours, theirs in zip(rows_in(tmp_path / "graph"), rows_in(tmp_path / "torch"), strict=True):
        assert (ours["path"], ours["label"]) == (theirs["path"], theirs["label"])
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    vitrail.predict_all(graph, colours / "test", tmp_path / "threads", workers=2, threads=2)
    for ours, theirs in zip(rows_in(tmp_path / "threads"), rows_in(tmp_path / "graph"), strict=True):
        assert (ours["path"], ours["label"]) == (theirs["path"], theirs["label"])
    with pytest.raises(UsageError, match="answers alone"):
        vitrail.predict_all(graph, colours / "test", tmp_path / "none", embedding=True)


def test_processes_of_several_threads(begin: Callable[..., Command], colours: Path, tmp_path: Path):
    """A process that has had threads forks others in which these are missing, and would be waited for in vain."""
    (tmp_path / "list.csv").write_text("path\n" + f"{colours / 'test/red/0.png'}\n" * 65)
    words = ("--out", tmp_path / "out", "--workers", 2, "--threads", 2)
    code, document, _ = begin("cifar10-small", tmp_path / "list.csv", *words).ended(100)
    assert (code, document["images"], document["parts"], len(document["labels"])) == (0, 65, 2, 1)


def test_relative_paths_are_found_by_processes_that_run_elsewhere(
    run: vitrail.Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Ray's do, whose processes on other machines begin in a folder of their own."""
    from vitrail.prediction.ray import PartActor

    given: list[PartJob] = []

    def engine(task: PartJob, pieces: Sequence[listing.Part], workers: int | None, tell: local.Tell) -> None:
        given.append(pickle.loads(pickle.dumps(task)))
        monkeypatch.chdir(tmp_path)
        actor = PartActor(given[0])
        for piece in pieces:
            said = actor({name: np.array([value]) for name, value in vars(piece).items()})
            assert not said["sentence"][0]

    monkeypatch.setattr("vitrail.prediction.predict.predict_locally", engine)
    monkeypatch.chdir(colours)
    model = os.path.relpath(run.folder)
    found = vitrail.predict_all(model, "test", colours / "test" / "out")
    assert (found.images, found.unreadable) == (24, 0)
    rows = rows_in(colours / "test" / "out")
    shutil.rmtree(colours / "test" / "out")
    assert rows[0]["path"] == "test/blue/0.png"  # as it was typed
    gone = PartActor(replace(given[0], working_directory=str(tmp_path / "gone")))
    assert gone.startup_error and "relative paths start at" in gone.startup_error.sentence
    monkeypatch.chdir(colours)
    assert (
        working_directory(["test"])
        == working_directory(["x-{0..9}.tar"])
        == working_directory(["card@test"])
        == str(colours)
    )
    assert working_directory([colours, "cifar10-small", "timm/vit", "s3://x/y.tar"]) is None


def test_an_answer_that_is_no_number_is_one_row_and_no_other(run: vitrail.Run, tmp_path: Path):
    clf = vitrail.load(run.folder)
    colour = torch.tensor([255, 0, 255]).reshape(3, 1, 1)

    def logits(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        if (pixels_BCHW == colour).all(dim=(1, 2, 3)).any():
            raise vitrail.classifier.NotFinite("the model's answers are not finite numbers")
        return vitrail.Classifier.logits(clf, pixels_BCHW)

    clf.logits = logits  # type: ignore[method-assign]
    from PIL import Image

    for i in range(3):
        picture(COLOURS["red"], i).save(tmp_path / f"{i}.png")
    Image.new("RGB", (16, 16), (255, 0, 255)).save(tmp_path / "1.png")
    from vitrail.prediction.rows import predict_rows, read_batch

    entries = [listing.stat_entry(str(tmp_path / f"{i}.png")) for i in range(3)]
    rows = predict_rows(clf, entries, read_batch(entries, clf.preprocess), 1, False)
    assert rows.errors == [None, "the model's answer is not a finite number", None]
    assert [clf.classes[i] for i in rows.labels[[0, 2], 0]] == ["red", "red"]


def test_a_batch_that_the_memory_does_not_suffice_for_is_said_and_has_no_rows(run: vitrail.Run, tmp_path: Path):
    clf = vitrail.load(run.folder)

    def logits(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")  # a GPU that is too small is not at hand

    clf.logits = logits  # type: ignore[method-assign]
    picture(COLOURS["red"], 0).save(tmp_path / "0.png")
    from vitrail.prediction.rows import predict_rows, read_batch

    entries = [listing.stat_entry(str(tmp_path / "0.png"))]
    with pytest.raises(VitrailError, match=r"for 1 images at a time \(.*smaller --batch, then --resume\)"):
        predict_rows(clf, entries, read_batch(entries, clf.preprocess), 1, False)


HOSTILE = [
    b"=HYPERLINK(1).png",
    b"+1.png",
    b"-dash.png",
    b"@at.png",
    b"\ttab.png",
    b"\rreturn.png",
    b"new\nline.png",
    b"new\r\nline.png",
    b'"quoted", with comma.png',
    b"'single'.png",
    b" space .png",
    b"not utf-8 \xff\xfe.png",
    b"100%25 \xe9\n.png",
    b"back\\slash.png",
    "ünïcode 猫 \u202e.png".encode(),
    b"semi;colon\x01\x7f.png",
]


@pytest.mark.parametrize("format", ["parquet", "csv"])
@pytest.mark.parametrize("relative", [True, False])
def test_hostile_names_come_back_byte_for_byte(
    run: vitrail.Run, tmp_path: Path, format: str, relative: bool, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    for i, name in enumerate(HOSTILE):
        with open(name, "wb") as file:
            picture(COLOURS["red"], i).save(file, "PNG")
    vitrail.predict_all(run.folder, "." if relative else tmp_path / "in", tmp_path / "out", format=format, workers=1)
    rows = rows_in(tmp_path / "out", format)
    found = set()
    for row in rows:
        path = row["path"]
        assert not path.startswith(("=", "+", "-", "@", "\t", "\r"))  # no spreadsheet computes it
        path.encode()
        name = unquote_to_bytes(urlparse(path).path) if path.startswith("file://") else os.fsencode(path)
        assert os.path.isfile(name)
        found.add(os.path.basename(name))
        assert row["label"] == "red" and not row["error"]
    assert found == set(HOSTILE)


def test_a_class_that_a_spreadsheet_would_compute_is_for_parquet(
    clf: vitrail.Classifier, colours: Path, tmp_path: Path
):
    vitrail.Classifier(clf.vit, ("=1+1", "b", "c"), clf.preprocess).save(tmp_path / "evil.safetensors")
    with pytest.raises(UsageError, match="spreadsheet would compute"):
        vitrail.predict_all(tmp_path / "evil.safetensors", colours / "test", tmp_path / "out", format="csv")
    vitrail.predict_all(tmp_path / "evil.safetensors", colours / "test", tmp_path / "out")
    assert {row["label"] for row in rows_in(tmp_path / "out")} == {"=1+1", "b", "c"}


# what is listed


def test_folders_are_listed_in_order_through_files(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listing, "RUN", 10)  # 200 sorted files, merged 64 at a time
    found = listing.write_listing([str(many)], tmp_path / "listing")
    entries = [e for piece in found.parts(64) for e in listing.read_entries(found.file, piece)]
    assert [entry.path for entry in entries] == [str(path) for path in sorted(many.rglob("*.png"))]
    assert [piece.images for piece in found.parts(128)] == [128] * 15 + [80]
    again = listing.write_listing([str(many)], tmp_path / "again")
    assert again.fingerprint == found.fingerprint
    assert not list(tmp_path.glob(".sorting-*"))


def test_a_table_lists_paths_and_may_repeat_them(run: vitrail.Run, colours: Path, tmp_path: Path):
    import pyarrow as pa

    names = ["red/0.png", "blue/1.png", "red/0.png", "gone.png"]
    (colours / "test" / "list.csv").write_text("id,Path\n" + "".join(f"{i},{n}\n" for i, n in enumerate(names)))
    pq.write_table(pa.table({"image": names}), colours / "test" / "list.parquet")
    try:
        for table in ("list.csv", "list.parquet"):
            vitrail.predict_all(run.folder, colours / "test" / table, tmp_path / table, workers=1)
            rows = rows_in(tmp_path / table)
            assert [row["path"] for row in rows] == [str(colours / "test" / name) for name in names]
            assert [row["label"] for row in rows] == ["red", "blue", "red", None]
        (tmp_path / "bad.csv").write_text("name\nx.png\n")
        with pytest.raises(VitrailError, match="has no column 'path'"):
            vitrail.predict_all(run.folder, tmp_path / "bad.csv", tmp_path / "bad")
    finally:
        (colours / "test" / "list.csv").unlink()
        (colours / "test" / "list.parquet").unlink()


def test_listing_takes_no_more_memory_for_more_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listing, "RUN", 200)
    monkeypatch.setattr(listing, "RUNS", 4)
    picture(COLOURS["red"], 0).save(tmp_path / "one.png")
    peaks = []
    for n in (1000, 10_000):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        for i in range(n):
            os.link(tmp_path / "one.png", folder / f"{i}.png")
        tracemalloc.start()
        assert listing.write_listing([str(folder)], tmp_path / f"listing-{n}").images == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 8 * 10_000 / 64


def test_links_are_followed_once_and_hidden_things_left_out(tmp_path: Path):
    picture(COLOURS["red"], 0).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "sub" / "b.PNG").symlink_to(tmp_path / "a.png")
    (tmp_path / "sub" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    for hidden in (".c.png", "notes.txt"):
        (tmp_path / hidden).write_bytes(b"")
    found = sorted(entry.path for entry in listing.walk_folder(str(tmp_path)))
    assert found == [str(tmp_path / name) for name in ("a.png", "sub/b.PNG", "sub/dangling.jpg")]


def test_a_folder_has_its_own_path_however_many_links_lead_to_it(tmp_path: Path):
    for i in range(8):
        (tmp_path / "in" / f"{i}-real").mkdir(parents=True)
        picture(COLOURS["red"], i).save(tmp_path / "in" / f"{i}-real" / "x.png")
        (tmp_path / "in" / f"{i}-link").symlink_to(f"{i}-real")
    (tmp_path / "out" / "sub").mkdir(parents=True)
    picture(COLOURS["red"], 9).save(tmp_path / "out" / "sub" / "x.png")
    for name in "cab":
        (tmp_path / "in" / name).symlink_to(tmp_path / "out")
    found = sorted(entry.path for entry in listing.walk_folder(str(tmp_path / "in")))
    real = [str(tmp_path / "in" / f"{i}-real" / "x.png") for i in range(8)]
    assert found == [*real, str(tmp_path / "in" / "a" / "sub" / "x.png")]


def test_tar_shards_give_the_rows_of_the_folder_they_hold(run: vitrail.Run, colours: Path, tmp_path: Path):
    assert main(["shard", str(colours), str(tmp_path / "shards"), "--images", "15", "--quiet"]) == 0
    vitrail.predict_all(run.folder, tmp_path / "shards", tmp_path / "out", workers=2)
    shards = sorted((tmp_path / "shards").rglob("*.tar"))
    assert len(shards) > 2
    expected = {}
    for path in colours.rglob("*.png"):
        best = run.classifier.predict(path, top=1)[0]
        expected[path.relative_to(colours).with_suffix("").as_posix()] = (best.label, best.probability)
    rows = rows_in(tmp_path / "out")
    assert len(rows) == len(expected) == 84
    in_turn = [shard for shard, _ in groupby(row["path"].rsplit(":", 1)[0] for row in rows)]
    assert sorted(in_turn) == list(map(str, shards))  # each is read from its begin to its end
    for row in rows:
        name = row["path"].rsplit(":", 1)[1].removesuffix(".png")
        label, probability = next(expected[key] for key in expected if name.endswith(key) or key.endswith(name))
        assert row["label"] == label and row["probability"] == pytest.approx(probability, abs=1e-6)
    content = bytearray(shards[0].read_bytes())
    at = content.index(b"IDAT")
    content[at + 10] ^= 1
    shards[0].write_bytes(content)
    shards[1].unlink()
    found = vitrail.predict_all(run.folder, tmp_path / "shards", tmp_path / "damaged", workers=1)
    errors = {row["error"] for row in rows_in(tmp_path / "damaged")}
    assert errors == {None, "its bytes are not those that were indexed (SHA-256)", "the shard is not there"}
    assert (found.images, found.unreadable) == (84, 1 + sum(str(shards[1]) in row["path"] for row in rows))


# what is killed


def test_a_killed_worker_costs_nothing(
    begin: Callable[..., Command], run: vitrail.Run, many: Path, undisturbed: Path, tmp_path: Path
):
    words = (run.folder, many, "--out", tmp_path / "out", "--part-images", 64, "--workers", 2)
    command = begin(*words, fresh=True)
    for parts in (2, 10, 20):
        command.until(lambda parts=parts: notes(tmp_path / "out") >= parts)
        os.kill(random.Random(parts).choice(command.workers), signal.SIGKILL)
    code, document, _ = command.ended()
    assert (code, document["images"], document["unreadable"], document["parts"]) == (1, IMAGES, 1, PARTS)
    assert hashes(tmp_path / "out") == hashes(undisturbed)


def test_a_killed_command_goes_on_where_it_was(
    begin: Callable[..., Command], run: vitrail.Run, many: Path, undisturbed: Path, tmp_path: Path
):
    out = tmp_path / "out"
    words = (run.folder, many, "--out", out, "--part-images", 64, "--workers", 2)
    kept: dict[Path, int] = {}
    for parts in (1, 12):
        command = begin(*words, "--resume")
        command.until(lambda parts=parts: notes(out) >= parts)
        workers = command.workers
        command.kill()
        command_left = time.monotonic() + 30
        while any(map(alive, workers)):  # they notice that nobody wants their parts any more
            assert time.monotonic() < command_left
            time.sleep(0.05)
        now = {file: file.stat().st_mtime_ns for file in out.glob("part-*") if has_note(out, file)}
        assert all(now[file] == changed for file, changed in kept.items())  # what was done was not done again
        kept = now
    code, document, _ = begin(*words, "--resume").ended()
    assert (code, document["images"], document["resumed"]) == (1, IMAGES, len(kept))
    assert all(file.stat().st_mtime_ns == changed for file, changed in kept.items())
    assert hashes(out) == hashes(undisturbed)
    assert len({row["path"] for row in rows_in(out)}) == len(rows_in(out)) == IMAGES
    assert not (list(out.rglob(".*")) or list(out.rglob("listing*")))  # nothing is left lying about
    code, document, _ = begin(*words, "--resume").ended()
    assert (document["resumed"], document["images_per_second"]) == (PARTS, 0)


def has_note(out: Path, file: Path) -> bool:
    return (out / "_vitrail" / f"{file.stem}.json").exists()


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    begin: Callable[..., Command], run: vitrail.Run, many: Path, tmp_path: Path
):
    command = begin(run.folder, many, "--out", tmp_path / "out", "--part-images", 64, "--workers", 2)
    command.until(lambda: notes(tmp_path / "out") >= 2)
    workers = command.workers
    command.send(signal.SIGINT)
    code, document, _ = command.ended()
    assert code == 130
    assert document["error"].startswith("stopped; ") and f"of {PARTS} parts are done and kept" in document["error"]
    assert "--resume" in document["hint"]
    assert not any(map(alive, workers))


def test_a_part_without_its_note_or_its_bytes_is_done_again(
    run: vitrail.Run, many: Path, undisturbed: Path, tmp_path: Path
):
    out = tmp_path / "out"
    options = {"part_images": 448, "workers": 2}
    vitrail.predict_all(run.folder, many, out, **options)
    before = hashes(out)
    (out / "_vitrail/part-000001.json").unlink()
    (out / "part-000002.parquet").write_bytes((out / "part-000002.parquet").read_bytes()[:-1])
    (out / "part-000003.parquet").unlink()
    (out / "_vitrail/part-000004.json").write_text("{")
    found = vitrail.predict_all(run.folder, many, out, resume=True, **options)
    assert (found.parts, found.resumed) == (5, 1)
    assert hashes(out) == before


def test_an_image_that_kills_processes_is_named(
    run: vitrail.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decode = vitrail.prediction.rows.decode

    def deadly(path: str, channels: int) -> torch.Tensor:
        if path.endswith("01100.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, channels)

    monkeypatch.setattr("vitrail.prediction.rows.decode", deadly)
    words = r"a process died 3 times with images from .*/01\d+.png to .*/01\d+.png: killed by SIGKILL"
    with pytest.raises(VitrailError, match=words):
        vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=64, workers=2, batch=16)
    monkeypatch.undo()
    kept = notes(tmp_path / "out")
    found = vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=64, workers=2, resume=True)
    assert found.resumed == kept > 0


def test_a_part_that_kills_processes_as_they_write_it_is_named(
    run: vitrail.Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kill = lambda *content: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    monkeypatch.setattr("vitrail.prediction.part_job.part_manifest", kill)
    with pytest.raises(VitrailError, match="a process died 3 times while it wrote part 0: killed by SIGKILL"):
        vitrail.predict_all(run.folder, colours / "test", tmp_path / "out", batch=24, workers=1)


def test_what_a_dead_process_had_in_hand_goes_to_one_that_has_nothing_to_do(
    run: vitrail.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decode, once = vitrail.prediction.rows.decode, tmp_path / "once"

    def deadly(path: str, channels: int) -> torch.Tensor:
        if path.endswith("01999.png") and not once.exists():
            once.touch()
            time.sleep(3)  # the other one has done all the rest by now
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, channels)

    monkeypatch.setattr("vitrail.prediction.rows.decode", deadly)
    found = vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=500, workers=2, batch=250)
    assert once.exists()
    assert found.images == IMAGES


# what is refused


def test_what_was_asked_for_otherwise_is_refused_and_nothing_is_lost(
    run: vitrail.Run, clf: vitrail.Classifier, make_folder: Callable[..., Path], tmp_path: Path
):
    photos, out = make_folder("photos", 4), tmp_path / "out"
    vitrail.predict_all(run.folder, photos, out, workers=1)
    before = hashes(out)
    with pytest.raises(UsageError, match="has predictions already"):
        vitrail.predict_all(run.folder, photos, out)
    other = vitrail.Classifier(clf.vit, clf.classes, clf.preprocess, clf.temperature * 2)
    other.save(tmp_path / "other.safetensors")
    for words, said in (
        ({"model": tmp_path / "other.safetensors"}, "the model is another"),
        ({"top": 2}, "top is 2, and was 1"),
        ({"format": "csv"}, "format is csv, and was parquet"),
        ({"embedding": True}, "embedding is True, and was False"),
        ({"part_images": 100}, "part-images is 128, and was 64"),
        ({"fast": True}, "fast is True"),
        ({"sources": [photos, photos]}, "there are 16 images, and were 8"),
    ):
        asked = {"model": run.folder, "sources": photos, "out": out, "resume": True, **words}
        with pytest.raises(UsageError, match=said):
            vitrail.predict_all(**asked)
    picture(COLOURS["blue"], 99, (20, 20)).save(photos / "red" / "1.png")
    with pytest.raises(UsageError, match="some images have another path, size or time"):
        vitrail.predict_all(run.folder, photos, out, resume=True)
    assert hashes(out) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        vitrail.predict_all(run.folder, photos, tmp_path / "full", resume=True)
    with pytest.raises(UsageError, match="is not a folder"):
        vitrail.predict_all(run.folder, photos, tmp_path / "full" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no images"):
        vitrail.predict_all(run.folder, tmp_path / "empty", tmp_path / "new")
    with pytest.raises(UsageError, match="there is no folder, table or file"):
        vitrail.predict_all(run.folder, tmp_path / "fotos", tmp_path / "new")
    found = vitrail.predict_all(run.folder, photos, tmp_path / "new", workers=1)  # the mistake took no place
    assert found.images == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "xlsx"}, "format 'xlsx' is not known"),
        ({"top": 0}, "top is 0"),
        ({"slice": (3, 2)}, "slice is 3/2"),
        ({"slice": (0, 2)}, "slice is 0/2"),
        ({"workers": 0}, "workers is 0"),
        ({"part_images": 0}, "part_images is 0"),
        ({"ray_address": "auto"}, "is for --engine ray"),
        ({"engine": "spark"}, "engine 'spark' is not known"),
    ],
)
def test_options_out_of_bounds_are_refused(tmp_path: Path, options: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        vitrail.predict_all("nowhere", tmp_path, tmp_path / "out", **options)


def test_options_for_a_folder_need_one(capsys: pytest.CaptureFixture[str]):
    for words in (["--resume"], ["--format", "csv"], ["--slice", "1/2"], ["--engine", "ray"], ["--embedding"]):
        assert main(["predict", "cifar10-small", "a.png", *words, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["hint"] == "add --out FOLDER"
    assert main(["predict", "cifar10-small", "a.png", "--out", "x", "--slice", "two", "--json"]) == 2
    assert "I/N" in json.loads(capsys.readouterr().out)["error"]


def test_two_at_once_are_refused(begin: Callable[..., Command], run: vitrail.Run, many: Path, tmp_path: Path):
    words = (run.folder, many, "--out", tmp_path / "out", "--part-images", 64, "--workers", 1, "--resume")
    first = begin(*words)
    first.until(lambda: notes(tmp_path / "out") >= 1)
    first.send(signal.SIGSTOP)
    code, document, _ = begin(*words).ended()
    assert code == 2 and "another process is at work" in document["error"]


def test_machines_share_the_parts(run: vitrail.Run, many: Path, undisturbed: Path, tmp_path: Path):
    out, found = tmp_path / "out", []
    for i in (3, 1, 2):
        found.append(vitrail.predict_all(run.folder, many, out, part_images=64, workers=2, slice=(i, 3)))
    assert [each.parts_done for each in found] == [10, 11, 11]
    assert [each.complete for each in found] == [False, False, True]
    assert sum(each.images for each in found) == IMAGES
    assert hashes(out) == hashes(undisturbed)
    with pytest.raises(UsageError, match="slice 2/3 of .* has predictions already"):
        vitrail.predict_all(run.folder, many, out, part_images=64, slice=(2, 3))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk]).returncode:
        pytest.skip("this machine may not mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_keeps_what_is_done(
    run: vitrail.Run, colours: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
):
    table = small_disk / "list.csv"
    table.write_text("path\n" + f"{colours / 'test/red/0.png'}\n" * 1000)
    out, options = small_disk / "out", {"part_images": 64, "workers": 2, "embedding": True}
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * 40_000)
    with pytest.raises(VitrailError, match="cannot be written: No space left on device"):
        vitrail.predict_all(run.folder, table, out, **options)
    said = capsys.readouterr().err
    kept = notes(out)
    assert f"{kept} of 16 parts are done and kept; the same command with --resume goes on" in said
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=3m", small_disk], check=True)
    found = vitrail.predict_all(run.folder, table, out, resume=True, **options)
    assert (found.images, found.resumed) == (1000, kept)
    assert len(rows_in(out)) == 1000
    hashes(out)


def test_a_folder_that_may_not_be_written_is_said_in_a_sentence(run: vitrail.Run, colours: Path, small_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(VitrailError, match="out cannot be written: Read-only file system"):
        vitrail.predict_all(run.folder, colours / "test", small_disk / "out")


def test_reading_processes_beside_one_that_predicts_give_the_same(
    run: vitrail.Run, many: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As it is done on a GPU."""

    def with_readers(task: Any, pieces: Any, workers: Any, tell: Any) -> None:
        local.stream_to_gpu(task, pieces, 2, tell)

    monkeypatch.setattr("vitrail.prediction.predict.predict_locally", with_readers)
    found = vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=64)
    assert (found.images, found.unreadable) == (IMAGES, 1)
    assert hashes(tmp_path / "out") == hashes(undisturbed)


def test_a_fault_of_ours_in_a_reading_process_is_not_called_its_death(
    run: vitrail.Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def faulty(path: str, channels: int) -> torch.Tensor:
        raise RuntimeError("a fault of ours")

    def with_readers(task: Any, pieces: Any, workers: Any, tell: Any) -> None:
        local.stream_to_gpu(task, pieces, 1, tell)

    monkeypatch.setattr("vitrail.prediction.rows.decode", faulty)
    monkeypatch.setattr("vitrail.prediction.predict.predict_locally", with_readers)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        vitrail.predict_all(run.folder, colours / "test", tmp_path / "out")


# Ray


def test_without_ray_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(UsageError, match="ray.* is not installed"):
        vitrail.predict_all("cifar10-small", tmp_path, tmp_path / "out", engine="ray")


def test_threads_that_no_node_has_cores_for_are_refused():
    from vitrail.prediction.ray import count_actor_slots

    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert [count_actor_slots(nodes, threads, on_gpu=False) for threads in (1, 2, 3, 4)] == [6, 3, 1, 1]
    assert count_actor_slots(nodes, 2, on_gpu=True) == 1
    for threads, on_gpu in ((5, False), (3, True)):
        with pytest.raises(UsageError, match=f"no node of the Ray cluster has {threads} cores"):
            count_actor_slots(nodes, threads, on_gpu)
    assert count_actor_slots([{"memory": 1.0}], 8, on_gpu=False) == 0  # nodes that have cores may come


def test_without_pyarrow_csv_is_left(run: vitrail.Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow"):
        vitrail.predict_all(run.folder, colours / "test", tmp_path / "out")
    found = vitrail.predict_all(run.folder, colours / "test", tmp_path / "out", format="csv", workers=1)
    assert found.images == len(rows_in(tmp_path / "out", "csv")) == 24


def processes_below(pid: int) -> list[int]:
    """A process's children, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            found += [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
    return found + [below for child in found for below in processes_below(child)]


def actors(pid: int) -> list[int]:
    """Ray's processes below this one that hold a model."""
    found = []
    for each in processes_below(pid):
        try:
            if b"MapWorker" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(each)
        except OSError:
            continue
    return found


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_ray_loses_nothing_when_a_process_or_a_node_is_killed(
    begin: Callable[..., Command],
    run: vitrail.Run,
    many: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("ray.data")
    import tempfile

    from ray.cluster_utils import Cluster

    place = tempfile.mkdtemp(prefix="ray-")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else its processes stand behind all others of a busy machine
    options = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False, "temp_dir": place})
    nodes = [cluster.add_node(**options) for _ in range(2)]
    words = ("--part-images", 64, "--engine", "ray", "--ray-address", cluster.address)
    try:
        code, document, _ = begin(
            run.folder, many, "--out", tmp_path / "none", *words, "--threads", 2, fresh=True
        ).ended()
        assert (code, document["error"]) == (2, "no node of the Ray cluster has 2 cores for a process")

        out = tmp_path / "worker"
        command = begin(run.folder, many, "--out", out, *words, fresh=True)
        command.until(lambda: notes(out) >= 2 and len(actors(os.getpid())) >= 2)
        os.kill(actors(os.getpid())[0], signal.SIGKILL)
        code, document, said = command.ended()
        assert "error" not in document, document
        assert (code, document["images"], document["unreadable"], document["complete"]) == (1, IMAGES, 1, True), said
        assert hashes(out) == hashes(undisturbed)

        out = tmp_path / "node"
        command = begin(run.folder, many, "--out", out, *words, fresh=True)
        command.until(lambda: notes(out) >= 2 and len(actors(os.getpid())) >= 3)
        cluster.remove_node(nodes[0], allow_graceful=False)
        code, document, said = command.ended()
        assert "error" not in document, document
        assert (code, document["images"], document["unreadable"], document["complete"]) == (1, IMAGES, 1, True), said
        assert hashes(out) == hashes(undisturbed)
    finally:
        cluster.shutdown()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_ray_says_what_is_wrong_and_another_engine_goes_on(
    begin: Callable[..., Command], run: vitrail.Run, many: Path, undisturbed: Path, small_disk: Path, tmp_path: Path
):
    pytest.importorskip("ray.data")
    out = small_disk / "out"
    words = (run.folder, many, "--out", out, "--part-images", 64)
    code, document, said = begin(*words, "--engine", "ray", "--workers", 1, fresh=True).ended()
    assert (code, document["error"].rsplit(": ")[-1]) == (1, "No space left on device"), said
    kept = notes(out)
    assert f"{kept} of {PARTS} parts are done and kept" in said
    subprocess.run(["mount", "-o", "remount,size=5m", small_disk], check=True)
    code, document, _ = begin(*words, "--resume", "--workers", 2).ended()
    assert (code, document["images"], document["resumed"]) == (1, IMAGES, kept)
    assert hashes(out) == hashes(undisturbed)
