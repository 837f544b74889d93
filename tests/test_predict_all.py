"""`predict_all`: the same rows as `predict`, complete whatever is killed, and nothing predicted twice."""

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
from PIL import Image

import vitrail
from conftest import COLORS, picture
from vitrail.cli import main
from vitrail.data.decode import ImageHeader
from vitrail.data.preprocess import Preprocess
from vitrail.data.walk import Omissions
from vitrail.errors import UsageError, VitrailError
from vitrail.prediction import external_sort, gpu_stream
from vitrail.prediction.folder import Plan
from vitrail.prediction.listing import Part, read_entries, write_listing
from vitrail.prediction.model_spec import classifier_digest
from vitrail.prediction.options import PredictOptions
from vitrail.prediction.part_job import PartJob
from vitrail.prediction.predict import working_directory
from vitrail.prediction.ray import PartActor, count_actor_slots
from vitrail.prediction.rows import predict_rows, read_batch
from vitrail.prediction.sources import stat_entry, walk_folder

IMAGES = 2000
PARTS = 32  # of 64 images
TRUNCATED = 1234


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 names for 30 images in three folders; one file is truncated."""
    root = tmp_path_factory.mktemp("many")
    originals = []
    for i in range(30):
        originals.append(root / f".{i}.png")
        picture(list(COLORS.values())[i % 3], i).save(originals[-1])
    for name in ("a", "b", "c"):
        (root / "images" / name).mkdir(parents=True)
    for i in range(IMAGES):
        os.link(originals[i % 30], root / "images" / "abc"[i % 3] / f"{i:05}.png")
    truncated = root / "images" / "abc"[TRUNCATED % 3] / f"{TRUNCATED:05}.png"
    truncated.unlink()
    truncated.write_bytes(originals[0].read_bytes()[:60])
    return root / "images"


@pytest.fixture(scope="session")
def uninterrupted(run: vitrail.Run, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of all of them, without interruption."""
    out = tmp_path_factory.mktemp("predictions") / "out"
    summary = vitrail.predict_all(run.folder, many, out, part_images=64, processes=2)
    assert (summary.images, summary.unreadable, summary.parts, summary.complete) == (IMAGES, 1, PARTS, True)
    return out


def rows_in(out: Path, format: str = "parquet") -> list[dict[str, Any]]:
    """All rows in the order of the parts; values from CSV are text."""
    rows: list[dict[str, Any]] = []
    for file in sorted(out.glob(f"part-*.{format}")):
        if format == "parquet":
            rows += pq.read_table(file).to_pylist()
        else:
            with file.open(newline="", encoding="utf-8") as lines:
                rows += list(csv.DictReader(lines))
    return rows


def part_digests(out: Path) -> dict[str, str]:
    """SHA-256 of each part, which its manifest has too."""
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in out.glob("part-*")}
    manifests = {file.stem: json.loads(file.read_text())["sha256"] for file in (out / "_vitrail").glob("part-*")}
    assert {name.split(".")[0]: digest for name, digest in digests.items()} == manifests
    return digests


def count_manifests(out: Path) -> int:
    return len(list((out / "_vitrail").glob("part-*.json")))


class Command:
    """`vitrail predict --json` in its own process: a fork of this one, which starts faster, or a fresh interpreter."""

    def __init__(self, args: tuple[object, ...], folder: Path, fresh: bool):
        self.out, self.err = folder / "out", folder / "err"
        self.code: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        arguments = ["predict", *map(str, args), "--json"]
        with self.out.open("w") as out, self.err.open("w") as err:
            if fresh:
                command, environment = (
                    [sys.executable, "-m", "vitrail", *arguments],
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
                code = main(arguments)
                out.flush()
            finally:
                os._exit(code)

    def is_running(self) -> bool:
        if self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
            if self.process:
                self.process.returncode = self.code
        return self.code is None

    def wait_until(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        """Waits for a condition while the command runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.is_running(), f"it ended: {self.code} {self.out.read_text()} {self.err.read_text()}"
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def wait(self, seconds: float = 250) -> tuple[int, dict[str, Any], str]:
        """Returns the exit code, the JSON document and stderr."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert self.code is not None
        return self.code, json.loads(self.out.read_text() or "{}"), self.err.read_text()

    def kill(self) -> None:
        if self.is_running():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def workers(self) -> list[int]:
        return [int(word) for word in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


@pytest.fixture
def start_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """start_command(MODEL, SOURCE, ...) starts the command; it is killed at the end of the test if it still runs."""
    commands: list[Command] = []

    def start(*args: object, fresh: bool = False) -> Command:
        commands.append(Command(args, tmp_path_factory.mktemp("output"), fresh))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# rows


@pytest.mark.newest
@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_rows_equal_those_of_predict_without_a_folder(
    run: vitrail.Run, colors: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "truncated.png").write_bytes((colors / "test/red/0.png").read_bytes()[:50])
    sources = [str(colors / "test"), str(tmp_path / "truncated.png"), str(tmp_path / "gone.png")]
    assert main(["predict", str(run.folder), *sources, "--top", "2", "--json"]) == 1
    expected = json.loads(capsys.readouterr().out)["predictions"]
    args = [*sources, "--top", "2", "--out", str(tmp_path / "out"), "--format", format, "--processes", "2", "--json"]
    assert main(["predict", str(run.folder), *args]) == 1
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
def test_an_embedding_equals_features(
    run: vitrail.Run, clf: vitrail.Classifier, colors: Path, tmp_path: Path, format: str
):
    (images := tmp_path / "in").mkdir()
    for i, path in enumerate(sorted((colors / "test").rglob("*.png"))[::4]):
        os.link(path, images / f"{i}.png")
    (images / "9.png").write_bytes(b"no image")
    vitrail.predict_all(run.folder, images, tmp_path / "out", embedding=True, format=format, processes=1)
    rows = rows_in(tmp_path / "out", format)
    assert len(rows) == 7
    for row in rows[:-1]:
        vector = row["embedding"] if format == "parquet" else json.loads(row["embedding"])
        np.testing.assert_allclose(vector, clf.features(row["path"])[0], atol=1e-5)
        assert row["label"] == clf.predict(row["path"])[0].label
    assert not rows[-1]["embedding"] and "not an image" in rows[-1]["error"]


def test_a_model_without_classes_has_embeddings_only(clf: vitrail.Classifier, colors: Path, tmp_path: Path):
    config = vitrail.ViTConfig(width=32, depth=1, heads=2, mlp_width=32, patch=4, image_size=16, classes=0)
    classless = vitrail.Classifier(vitrail.ViT(config), (), clf.preprocess)
    classless.save(tmp_path / "features.safetensors")
    with pytest.raises(UsageError, match="has no classes"):
        vitrail.predict_all(tmp_path / "features.safetensors", colors / "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    vitrail.predict_all(tmp_path / "features.safetensors", colors / "test", tmp_path / "out", embedding=True)
    rows = rows_in(tmp_path / "out")
    assert len(rows) == 24
    assert all(row["label"] is None and row["error"] is None for row in rows)
    np.testing.assert_allclose(rows[5]["embedding"], classless.features(rows[5]["path"])[0], atol=1e-5)


def test_an_onnx_file_predicts_into_a_folder_and_has_no_embedding(run: vitrail.Run, colors: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    graph = tmp_path / "colors.onnx"
    assert main(["export", str(run.folder), "--format", "onnx", "--out", str(graph), "--quiet"]) == 0
    vitrail.predict_all(graph, colors / "test", tmp_path / "graph", processes=2)
    vitrail.predict_all(run.folder, colors / "test", tmp_path / "torch", processes=2)
    for ours, theirs in zip(rows_in(tmp_path / "graph"), rows_in(tmp_path / "torch"), strict=True):
        assert (ours["path"], ours["label"]) == (theirs["path"], theirs["label"])
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    vitrail.predict_all(graph, colors / "test", tmp_path / "threads", processes=2, threads=2)
    for ours, theirs in zip(rows_in(tmp_path / "threads"), rows_in(tmp_path / "graph"), strict=True):
        assert (ours["path"], ours["label"]) == (theirs["path"], theirs["label"])
    with pytest.raises(UsageError, match="no embedding, only logits"):
        vitrail.predict_all(graph, colors / "test", tmp_path / "none", embedding=True)


def test_processes_of_several_threads(start_command: Callable[..., Command], colors: Path, tmp_path: Path):
    """A process that has started threads must not fork: the children would wait for these threads for ever."""
    (tmp_path / "list.csv").write_text("path\n" + f"{colors / 'test/red/0.png'}\n" * 65)
    args = ("--out", tmp_path / "out", "--processes", 2, "--threads", 2, "--images-per-part", 33)
    code, document, _ = start_command("cifar10-small", tmp_path / "list.csv", *args).wait(100)
    assert (code, document["images"], document["parts"], len(document["labels"])) == (0, 65, 2, 1)


def test_relative_paths_work_in_processes_with_another_working_directory(
    run: vitrail.Run, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As those of Ray on other machines."""

    jobs: list[PartJob] = []

    def engine(
        job: PartJob, parts: Sequence[Part], options: PredictOptions, on_images: Callable[[int], object]
    ) -> None:
        jobs.append(pickle.loads(pickle.dumps(job)))
        monkeypatch.chdir(tmp_path)
        actor = PartActor(jobs[0])
        for part in parts:
            result = actor({name: np.array([value]) for name, value in vars(part).items()})
            assert not result["error"][0]

    monkeypatch.setattr("vitrail.prediction.predict.resolve_engine", lambda options: engine)
    monkeypatch.chdir(colors)
    model = os.path.relpath(run.folder)
    summary = vitrail.predict_all(model, "test", colors / "test" / "out")
    assert (summary.images, summary.unreadable) == (24, 0)
    rows = rows_in(colors / "test" / "out")
    shutil.rmtree(colors / "test" / "out")
    assert rows[0]["path"] == "test/blue/0.png"  # as the user typed it
    elsewhere = PartActor(replace(jobs[0], working_directory=str(tmp_path / "gone")))
    assert elsewhere.startup_error and "relative paths start at" in elsewhere.startup_error.sentence
    monkeypatch.chdir(colors)
    assert (
        working_directory(["test"])
        == working_directory(["x-{0..9}.tar"])
        == working_directory(["card@test"])
        == str(colors)
    )
    assert working_directory([colors, "cifar10-small", "timm/vit", "s3://x/y.tar"]) is None


def test_a_non_finite_output_is_an_error_of_one_row_only(run: vitrail.Run, tmp_path: Path):
    clf = vitrail.load(run.folder)
    color = torch.tensor([255, 0, 255]).reshape(3, 1, 1)

    def logits(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        if (pixels_BCHW == color).all(dim=(1, 2, 3)).any():
            raise vitrail.classifier.NonFiniteOutput("the model's answers are not finite numbers")
        return vitrail.Classifier.logits(clf, pixels_BCHW)

    clf.logits = logits  # type: ignore[method-assign]
    from PIL import Image

    for i in range(3):
        picture(COLORS["red"], i).save(tmp_path / f"{i}.png")
    Image.new("RGB", (16, 16), (255, 0, 255)).save(tmp_path / "1.png")

    entries = [stat_entry(str(tmp_path / f"{i}.png")) for i in range(3)]
    rows = predict_rows(clf, entries, read_batch(entries, clf.preprocess), 1, False)
    assert rows.errors == [None, "the model's output is not a finite number", None]
    assert [clf.classes[i] for i in rows.labels[[0, 2], 0]] == ["red", "red"]


def test_running_out_of_memory_is_an_error_and_not_a_row(run: vitrail.Run, tmp_path: Path):
    clf = vitrail.load(run.folder)

    def logits(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")  # as on a GPU that is too small

    clf.logits = logits  # type: ignore[method-assign]
    picture(COLORS["red"], 0).save(tmp_path / "0.png")

    entries = [stat_entry(str(tmp_path / "0.png"))]
    with pytest.raises(
        VitrailError, match=r"not enough memory for a batch of 1 \(.*smaller --batch-size, then --resume\)"
    ):
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
def test_hostile_file_names_are_preserved_byte_for_byte(
    run: vitrail.Run, tmp_path: Path, format: str, relative: bool, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    for i, name in enumerate(HOSTILE):
        with open(name, "wb") as file:
            picture(COLORS["red"], i).save(file, "PNG")
    vitrail.predict_all(run.folder, "." if relative else tmp_path / "in", tmp_path / "out", format=format, processes=1)
    rows = rows_in(tmp_path / "out", format)
    names = set()
    for row in rows:
        path = row["path"]
        assert not path.startswith(("=", "+", "-", "@", "\t", "\r"))  # no spreadsheet takes it for a formula
        path.encode()
        name = unquote_to_bytes(urlparse(path).path) if path.startswith("file://") else os.fsencode(path)
        assert os.path.isfile(name)
        names.add(os.path.basename(name))
        assert row["label"] == "red" and not row["error"]
    assert names == set(HOSTILE)


def test_a_class_name_that_is_a_formula_needs_parquet(clf: vitrail.Classifier, colors: Path, tmp_path: Path):
    vitrail.Classifier(clf.vit, ("=1+1", "b", "c"), clf.preprocess).save(tmp_path / "evil.safetensors")
    with pytest.raises(UsageError, match="spreadsheet would run the class"):
        vitrail.predict_all(tmp_path / "evil.safetensors", colors / "test", tmp_path / "out", format="csv")
    vitrail.predict_all(tmp_path / "evil.safetensors", colors / "test", tmp_path / "out")
    assert {row["label"] for row in rows_in(tmp_path / "out")} == {"=1+1", "b", "c"}


# listing


def test_large_folders_are_sorted_through_files(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(external_sort, "RUN_LENGTH", 10)  # 200 sorted files, merged 64 at a time
    listing = write_listing([str(many)], tmp_path / "listing")
    entries = [entry for part in listing.parts(64) for entry in read_entries(listing.file, part)]
    assert [entry.path for entry in entries] == [str(path) for path in sorted(many.rglob("*.png"))]
    assert [part.images for part in listing.parts(128)] == [128] * 15 + [80]
    again = write_listing([str(many)], tmp_path / "again")
    assert again.fingerprint == listing.fingerprint
    assert not list(tmp_path.glob(".sorting-*"))


def test_a_table_lists_paths_and_may_repeat_them(run: vitrail.Run, colors: Path, tmp_path: Path):
    import pyarrow as pa

    names = ["red/0.png", "blue/1.png", "red/0.png", "gone.png"]
    (colors / "test" / "list.csv").write_text("id,Path\n" + "".join(f"{i},{n}\n" for i, n in enumerate(names)))
    pq.write_table(pa.table({"image": names}), colors / "test" / "list.parquet")
    try:
        for table in ("list.csv", "list.parquet"):
            vitrail.predict_all(run.folder, colors / "test" / table, tmp_path / table, processes=1)
            rows = rows_in(tmp_path / table)
            assert [row["path"] for row in rows] == [str(colors / "test" / name) for name in names]
            assert [row["label"] for row in rows] == ["red", "blue", "red", None]
        (tmp_path / "bad.csv").write_text("title\nx.png\n")
        with pytest.raises(VitrailError, match="has no column 'path'"):
            vitrail.predict_all(run.folder, tmp_path / "bad.csv", tmp_path / "bad")
    finally:
        (colors / "test" / "list.csv").unlink()
        (colors / "test" / "list.parquet").unlink()


def peak_of_listing(folder: Path, out: Path, n: int) -> int:
    """Returns the peak of allocated bytes, also of other threads: the smaller of two measurements is the listing's."""
    tracemalloc.start()
    try:
        assert write_listing([str(folder)], out).images == n
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_of_listing_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(external_sort, "RUN_LENGTH", 100)
    monkeypatch.setattr(external_sort, "MAX_RUNS", 4)
    picture(COLORS["red"], 0).save(tmp_path / "one.png")
    peaks = []
    for n in (500, 5000):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        for i in range(n):
            os.link(tmp_path / "one.png", folder / f"{i}.png")
        peaks.append(min(peak_of_listing(folder, tmp_path / f"listing-{n}-{i}", n) for i in range(2)))
    assert peaks[1] < 1.5 * peaks[0] + 8 * 5000 / 64


def test_links_are_followed_once_and_hidden_files_are_skipped(tmp_path: Path):
    picture(COLORS["red"], 0).save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "sub" / "b.PNG").symlink_to(tmp_path / "a.png")
    (tmp_path / "sub" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    for hidden in (".c.png", "notes.txt"):
        (tmp_path / hidden).write_bytes(b"")
    paths = sorted(entry.path for entry in walk_folder(str(tmp_path), Omissions()))
    assert paths == [str(tmp_path / name) for name in ("a.png", "sub/b.PNG", "sub/dangling.jpg")]


def test_a_folder_keeps_its_own_path_whatever_links_lead_to_it(tmp_path: Path):
    for i in range(8):
        (tmp_path / "in" / f"{i}-real").mkdir(parents=True)
        picture(COLORS["red"], i).save(tmp_path / "in" / f"{i}-real" / "x.png")
        (tmp_path / "in" / f"{i}-link").symlink_to(f"{i}-real")
    (tmp_path / "out" / "sub").mkdir(parents=True)
    picture(COLORS["red"], 9).save(tmp_path / "out" / "sub" / "x.png")
    for name in "cab":
        (tmp_path / "in" / name).symlink_to(tmp_path / "out")
    paths = sorted(entry.path for entry in walk_folder(str(tmp_path / "in"), Omissions()))
    real = [str(tmp_path / "in" / f"{i}-real" / "x.png") for i in range(8)]
    assert paths == [*real, str(tmp_path / "in" / "a" / "sub" / "x.png")]


def test_tar_shards_give_the_rows_of_the_folder_they_were_made_from(run: vitrail.Run, colors: Path, tmp_path: Path):
    assert main(["shard", str(colors), "--out", str(tmp_path / "shards"), "--images-per-shard", "15", "--quiet"]) == 0
    vitrail.predict_all(run.folder, tmp_path / "shards", tmp_path / "out", processes=2)
    shards = sorted((tmp_path / "shards").rglob("*.tar"))
    assert len(shards) > 2
    expected = {}
    for path in colors.rglob("*.png"):
        best = run.classifier.predict(path, top=1)[0]
        expected[path.relative_to(colors).with_suffix("").as_posix()] = (best.label, best.probability)
    rows = rows_in(tmp_path / "out")
    assert len(rows) == len(expected) == 84
    read_order = [shard for shard, _ in groupby(row["path"].rsplit(":", 1)[0] for row in rows)]
    assert sorted(read_order) == list(map(str, shards))  # each is read in one go
    for row in rows:
        name = row["path"].rsplit(":", 1)[1].removesuffix(".png")
        label, probability = next(expected[key] for key in expected if name.endswith(key) or key.endswith(name))
        assert row["label"] == label and row["probability"] == pytest.approx(probability, abs=1e-6)
    content = bytearray(shards[0].read_bytes())
    at = content.index(b"IDAT")
    content[at + 10] ^= 1
    shards[0].write_bytes(content)
    shards[1].unlink()
    summary = vitrail.predict_all(run.folder, tmp_path / "shards", tmp_path / "damaged", processes=1)
    errors = {row["error"] for row in rows_in(tmp_path / "damaged")}
    assert errors == {None, "its bytes are not those that were indexed (SHA-256)", "the shard does not exist"}
    assert (summary.images, summary.unreadable) == (84, 1 + sum(str(shards[1]) in row["path"] for row in rows))


# kills


@pytest.mark.newest
def test_a_killed_worker_loses_nothing(
    start_command: Callable[..., Command], run: vitrail.Run, many: Path, uninterrupted: Path, tmp_path: Path
):
    args = (run.folder, many, "--out", tmp_path / "out", "--images-per-part", 64, "--processes", 2)
    command = start_command(*args, fresh=True)
    for parts in (2, 10, 20):
        command.wait_until(lambda parts=parts: count_manifests(tmp_path / "out") >= parts)
        os.kill(random.Random(parts).choice(command.workers), signal.SIGKILL)
    code, document, _ = command.wait()
    assert (code, document["images"], document["unreadable"], document["parts"]) == (1, IMAGES, 1, PARTS)
    assert part_digests(tmp_path / "out") == part_digests(uninterrupted)


@pytest.mark.newest
def test_a_killed_command_resumes(
    start_command: Callable[..., Command], run: vitrail.Run, many: Path, uninterrupted: Path, tmp_path: Path
):
    out = tmp_path / "out"
    args = (run.folder, many, "--out", out, "--images-per-part", 64, "--processes", 2)
    finished: dict[Path, int] = {}
    for parts in (1, 12):
        command = start_command(*args, "--resume")
        command.wait_until(lambda parts=parts: count_manifests(out) >= parts)
        workers = command.workers
        command.kill()
        deadline = time.monotonic() + 120
        while any(map(is_alive, workers)):  # they notice that their parent is gone
            assert time.monotonic() < deadline
            time.sleep(0.05)
        now = {file: file.stat().st_mtime_ns for file in out.glob("part-*") if has_manifest(out, file)}
        assert all(now[file] == changed for file, changed in finished.items())  # finished parts are not predicted again
        finished = now
    code, document, _ = start_command(*args, "--resume").wait()
    assert (code, document["images"], document["resumed"]) == (1, IMAGES, len(finished))
    assert all(file.stat().st_mtime_ns == changed for file, changed in finished.items())
    assert part_digests(out) == part_digests(uninterrupted)
    assert len({row["path"] for row in rows_in(out)}) == len(rows_in(out)) == IMAGES
    assert not (list(out.rglob(".*")) or list(out.rglob("listing*")))  # no temporary files remain
    code, document, _ = start_command(*args, "--resume").wait()
    assert (document["resumed"], document["images_per_second"]) == (PARTS, 0)


def has_manifest(out: Path, file: Path) -> bool:
    return (out / "_vitrail" / f"{file.stem}.json").exists()


@pytest.mark.newest
def test_ctrl_c_keeps_finished_parts_and_explains_how_to_resume(
    start_command: Callable[..., Command], run: vitrail.Run, many: Path, tmp_path: Path
):
    command = start_command(run.folder, many, "--out", tmp_path / "out", "--images-per-part", 64, "--processes", 2)
    command.wait_until(lambda: count_manifests(tmp_path / "out") >= 2)
    workers = command.workers
    command.send(signal.SIGINT)
    code, document, _ = command.wait()
    assert code == 130
    assert document["error"].startswith("stopped; ") and f"of {PARTS} parts are done" in document["error"]
    assert "--resume" in document["hint"]
    assert not any(map(is_alive, workers))


def test_a_part_without_manifest_or_bytes_is_predicted_again(
    run: vitrail.Run, many: Path, uninterrupted: Path, tmp_path: Path
):
    out = tmp_path / "out"
    options = {"part_images": 448, "processes": 2}
    vitrail.predict_all(run.folder, many, out, **options)
    before = part_digests(out)
    (out / "_vitrail/part-000001.json").unlink()
    (out / "part-000002.parquet").write_bytes((out / "part-000002.parquet").read_bytes()[:-1])
    (out / "part-000003.parquet").unlink()
    (out / "_vitrail/part-000004.json").write_text("{")
    summary = vitrail.predict_all(run.folder, many, out, resume=True, **options)
    assert (summary.parts, summary.resumed) == (5, 1)
    assert part_digests(out) == before


@pytest.mark.newest
def test_an_image_that_kills_processes_is_named(
    run: vitrail.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decode = vitrail.prediction.rows.decode_with_header

    def decode_or_die(path: str, channels: int) -> tuple[torch.Tensor, ImageHeader]:
        if path.endswith("01100.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, channels)

    monkeypatch.setattr("vitrail.prediction.rows.decode_with_header", decode_or_die)
    message = r"a process died 3 times on the images from .*/01\d+.png to .*/01\d+.png: killed by SIGKILL"
    with pytest.raises(VitrailError, match=message):
        vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=64, processes=2, batch_size=16)
    monkeypatch.undo()
    finished = count_manifests(tmp_path / "out")
    summary = vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=64, processes=2, resume=True)
    assert summary.resumed == finished > 0


def test_a_part_that_kills_processes_during_writing_is_named(
    run: vitrail.Run, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kill = lambda *content: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    monkeypatch.setattr("vitrail.prediction.part_job.part_manifest", kill)
    with pytest.raises(VitrailError, match="a process died 3 times while it wrote part 0: killed by SIGKILL"):
        vitrail.predict_all(run.folder, colors / "test", tmp_path / "out", batch_size=24, processes=1)


def test_the_part_of_a_dead_process_goes_to_an_idle_one(
    run: vitrail.Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    decode, once = vitrail.prediction.rows.decode_with_header, tmp_path / "once"

    def decode_or_die(path: str, channels: int) -> tuple[torch.Tensor, ImageHeader]:
        if path.endswith("01999.png") and not once.exists():
            once.touch()
            time.sleep(3)  # the other one has finished all other parts by now
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, channels)

    monkeypatch.setattr("vitrail.prediction.rows.decode_with_header", decode_or_die)
    summary = vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=500, processes=2, batch_size=250)
    assert once.exists()
    assert summary.images == IMAGES


# refusals


def test_other_options_are_refused_and_nothing_is_lost(
    run: vitrail.Run, clf: vitrail.Classifier, make_folder: Callable[..., Path], tmp_path: Path
):
    photos, out = make_folder("photos", 4), tmp_path / "out"
    vitrail.predict_all(run.folder, photos, out, processes=1)
    before = part_digests(out)
    with pytest.raises(UsageError, match="already has predictions"):
        vitrail.predict_all(run.folder, photos, out)
    other = vitrail.Classifier(clf.vit, clf.classes, clf.preprocess, clf.temperature * 2)
    other.save(tmp_path / "other.safetensors")
    for change, message in (
        ({"model": tmp_path / "other.safetensors"}, "the model is another"),
        ({"top": 2}, "top is 2, before 1"),
        ({"format": "csv"}, "format is csv, before parquet"),
        ({"embedding": True}, "embedding is True, before False"),
        ({"part_images": 100}, "part-images is 128, before 512"),
        ({"precision": "bf16"}, "precision is bf16, before fp32"),
        ({"sources": [photos, photos]}, "there are 16 images, before 8"),
    ):
        arguments = {"model": run.folder, "sources": photos, "out": out, "resume": True, **change}
        with pytest.raises(UsageError, match=message):
            vitrail.predict_all(**arguments)
    picture(COLORS["blue"], 99, (20, 20)).save(photos / "red" / "1.png")
    with pytest.raises(UsageError, match="some images have another path, size or time"):
        vitrail.predict_all(run.folder, photos, out, resume=True)
    assert part_digests(out) == before
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
    summary = vitrail.predict_all(run.folder, photos, tmp_path / "new", processes=1)  # the failed attempt left nothing
    assert summary.images == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xlsx"}, "format 'xlsx' is not known"),
        ({"top": 0}, "top is 0"),
        ({"slice": (3, 2)}, "slice is 3/2"),
        ({"slice": (0, 2)}, "slice is 0/2"),
        ({"processes": 0}, "processes is 0"),
        ({"part_images": 0}, "part_images is 0"),
        ({"ray_address": "auto"}, "needs --engine ray"),
        ({"workers": 2}, "use --processes"),
        ({"workers": 2, "engine": "ray"}, "not for Ray"),
        ({"engine": "spark"}, "engine 'spark' is not known"),
    ],
)
def test_options_out_of_bounds_are_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        vitrail.predict_all("nowhere", tmp_path, tmp_path / "out", **options)


def test_options_for_a_folder_need_one(capsys: pytest.CaptureFixture[str]):
    for args in (["--resume"], ["--format", "csv"], ["--slice", "1/2"], ["--engine", "ray"], ["--embedding"]):
        assert main(["predict", "cifar10-small", "a.png", *args, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["hint"] == "add --out FOLDER"
    assert main(["predict", "cifar10-small", "a.png", "--out", "x", "--slice", "two", "--json"]) == 2
    assert "I/N" in json.loads(capsys.readouterr().out)["error"]


def test_two_commands_at_once_are_refused(
    start_command: Callable[..., Command], run: vitrail.Run, many: Path, tmp_path: Path
):
    args = (run.folder, many, "--out", tmp_path / "out", "--images-per-part", 64, "--processes", 1, "--resume")
    first = start_command(*args)
    first.wait_until(lambda: count_manifests(tmp_path / "out") >= 1)
    first.send(signal.SIGSTOP)
    code, document, _ = start_command(*args).wait()
    assert code == 2 and "another process is predicting into" in document["error"]


def test_machines_share_the_parts_by_slices(run: vitrail.Run, many: Path, uninterrupted: Path, tmp_path: Path):
    out, summaries = tmp_path / "out", []
    for i in (3, 1, 2):
        summaries.append(vitrail.predict_all(run.folder, many, out, part_images=64, processes=2, slice=(i, 3)))
    assert [each.parts_done for each in summaries] == [10, 11, 11]
    assert [each.complete for each in summaries] == [False, False, True]
    assert sum(each.images for each in summaries) == IMAGES
    assert part_digests(out) == part_digests(uninterrupted)
    with pytest.raises(UsageError, match="slice 2/3 of .* already has predictions"):
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


def test_a_full_disk_keeps_finished_parts(
    run: vitrail.Run, colors: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
):
    table = small_disk / "list.csv"
    table.write_text("path\n" + f"{colors / 'test/red/0.png'}\n" * 1000)
    out, options = small_disk / "out", {"part_images": 64, "processes": 2, "embedding": True}
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * 40_000)
    with pytest.raises(VitrailError, match="cannot be written: No space left on device"):
        vitrail.predict_all(run.folder, table, out, **options)
    finished = count_manifests(out)
    message = f"{finished} of 16 parts are done; run the same command with --resume"
    assert message in capsys.readouterr().err
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=3m", small_disk], check=True)
    summary = vitrail.predict_all(run.folder, table, out, resume=True, **options)
    assert (summary.images, summary.resumed) == (1000, finished)
    assert len(rows_in(out)) == 1000
    part_digests(out)


def test_a_read_only_folder_is_an_error_of_one_sentence(run: vitrail.Run, colors: Path, small_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(VitrailError, match="out cannot be written: Read-only file system"):
        vitrail.predict_all(run.folder, colors / "test", small_disk / "out")


@pytest.fixture
def stream_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicts as on a GPU: in one process, with data-loading workers."""

    def engine(
        job: PartJob, parts: Sequence[Part], options: PredictOptions, on_images: Callable[[int], object]
    ) -> None:
        gpu_stream.predict_in_stream(job, parts, 2, on_images)

    monkeypatch.setattr("vitrail.prediction.predict.resolve_engine", lambda options: engine)


@pytest.mark.newest
@pytest.mark.usefixtures("stream_engine")
@pytest.mark.parametrize("batch_size", [64, 50])
def test_a_stream_with_data_loading_workers_gives_the_same(
    run: vitrail.Run, many: Path, uninterrupted: Path, tmp_path: Path, batch_size: int
):
    summary = vitrail.predict_all(run.folder, many, tmp_path / "out", part_images=64, batch_size=batch_size)
    assert (summary.images, summary.unreadable) == (IMAGES, 1)
    if batch_size == 64:  # another size may change the last bit of a probability
        assert part_digests(tmp_path / "out") == part_digests(uninterrupted)
    ours, theirs = rows_in(tmp_path / "out"), rows_in(uninterrupted)
    assert [(row["path"], row["label"], row["error"]) for row in ours] == [
        (row["path"], row["label"], row["error"]) for row in theirs
    ]


@pytest.mark.usefixtures("stream_engine")
def test_an_error_in_a_data_loading_worker_is_not_reported_as_its_death(
    run: vitrail.Run, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(path: str, channels: int) -> tuple[torch.Tensor, ImageHeader]:
        raise RuntimeError("an error of ours")

    monkeypatch.setattr("vitrail.prediction.rows.decode_with_header", fail)
    with pytest.raises(RuntimeError, match="an error of ours"):
        vitrail.predict_all(run.folder, colors / "test", tmp_path / "out")


@pytest.mark.newest
@pytest.mark.usefixtures("stream_engine")
def test_a_data_loading_worker_that_dies_is_an_error_of_one_sentence(
    run: vitrail.Run, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kill = lambda path, channels: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    monkeypatch.setattr("vitrail.prediction.rows.decode_with_header", kill)
    with pytest.raises(VitrailError, match="a data-loading worker died"):
        vitrail.predict_all(run.folder, colors / "test", tmp_path / "out")


@pytest.mark.parametrize("engine", ["processes", "stream"])
def test_images_of_more_than_8_bits_are_counted(
    run: vitrail.Run, tmp_path: Path, engine: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    if engine == "stream":
        request.getfixturevalue("stream_engine")
    (tmp_path / "images").mkdir()
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "images" / "float.tiff")
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "images" / "gray.png")
    picture(COLORS["red"], 0).save(tmp_path / "images" / "red.png")
    command = ["predict", str(run.folder), str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--json"]
    line = f"warning: 2 images in 16 bits or floats, first {tmp_path / 'images' / 'float.tiff'}: their bit depth gives"
    for more in ([], ["--resume"]):  # the count is kept in the folder
        assert main([*command, *more]) == 0
        printed = capsys.readouterr()
        assert line in printed.err and json.loads(printed.out)["over_8_bits"] == 2
    for manifest in (tmp_path / "out" / "_vitrail").glob("part-*.json"):  # of a version that did not count them
        document = json.loads(manifest.read_text())
        del document["over_8_bits"], document["over_8_bits_example"]
        manifest.write_text(json.dumps(document))
    assert main([*command, "--resume"]) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err and json.loads(printed.out)["resumed"] == 1


FEW_HANDLES = """
import os, resource, sys, time
import vitrail
from vitrail.prediction import gpu_stream, rows

model, images, out = sys.argv[1:]
first, decode = min(os.listdir(images)), rows.decode_with_header


def decode_first_slowly(path, channels):  # meanwhile the batches of the other workers wait in the main process
    time.sleep(2 * path.endswith(first))
    return decode(path, channels)


rows.decode_with_header = decode_first_slowly
engine = lambda job, parts, options, on_images: gpu_stream.predict_in_stream(job, parts, 3, on_images)
vitrail.prediction.predict.resolve_engine = lambda options: engine
handles = len(os.listdir("/proc/self/fd")) + 60
resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))
summary = vitrail.predict_all(model, images, out, format="csv", part_images=1000, batch_size=64)
print(summary.images, summary.unreadable)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files in /proc")
def test_a_stream_needs_few_open_files(run: vitrail.Run, many: Path, tmp_path: Path):
    """Data-loading workers send a batch as one tensor: an image each would be a file handle each."""
    images = many / "a"
    command = [sys.executable, "-c", FEW_HANDLES, run.folder, images, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(list(images.iterdir()))), "0"]


# folders of earlier versions


def test_a_plan_of_version_1_is_read():
    old = {
        "model": "m",
        "images": 1,
        "fingerprint": "f",
        "part_images": 64,
        "format": "csv",
        "top": 1,
        "embedding": False,
    }
    assert [Plan.from_json({**old, "fast": fast}).precision for fast in (False, True)] == ["fp32", "bf16"]
    plan = Plan.from_json({**old, "fast": True})
    assert Plan.from_json(plan.to_json()) == plan
    for document in (old, {**old, "precision": "fp32", "version": 99}, {**plan.to_json(), "fast": True}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            Plan.from_json(document)


def test_predictions_of_version_1_resume(run: vitrail.Run, colors: Path, tmp_path: Path):
    vitrail.predict_all(run.folder, colors / "test", tmp_path / "out", processes=1)
    plan_path = tmp_path / "out" / "_vitrail" / "plan.json"
    plan = json.loads(plan_path.read_text())
    assert (plan.pop("version"), plan.pop("precision")) == (2, "fp32")
    plan_path.write_text(json.dumps({**plan, "fast": False}))
    summary = vitrail.predict_all(run.folder, colors / "test", tmp_path / "out", resume=True)
    assert (summary.resumed, summary.images) == (1, 24)
    with pytest.raises(UsageError, match="precision is bf16, before fp32"):
        vitrail.predict_all(run.folder, colors / "test", tmp_path / "out", resume=True, precision="bf16")


def test_the_digest_of_a_model_does_not_change_from_version_to_version():
    config = vitrail.ViTConfig(width=32, depth=1, heads=2, mlp_width=64, patch=8, image_size=16, classes=2)
    vit = vitrail.ViT(config)
    with torch.no_grad():
        for tensor in vit.state_dict().values():
            tensor.fill_(0.25)
    classifier = vitrail.Classifier(vit, ("a", "b"), Preprocess(image_size=(16, 16)), 1.5)
    assert classifier_digest(classifier) == "4935ca5aa3d61a87e14e4ec1eb314cf4618bd2b6a1cba34ac708a954e07e80bf"
    preprocess = Preprocess(image_size=(16, 16), fit="stretch", min_size=4)
    classifier = vitrail.Classifier(vit, ("a", "b"), preprocess, 1.5)
    assert classifier_digest(classifier) == "d8915dbd1123bc1e6702aab93698a00ff42bd5cd205bfc7b0fee9eb68a050d31"


# Ray


def test_without_ray_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(UsageError, match="ray.* is not installed"):
        vitrail.predict_all("cifar10-small", tmp_path, tmp_path / "out", engine="ray")


def test_more_threads_than_any_node_has_cores_are_refused():

    nodes = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert [count_actor_slots(nodes, threads, use_gpu=False) for threads in (1, 2, 3, 4)] == [6, 3, 1, 1]
    assert count_actor_slots(nodes, 2, use_gpu=True) == 1
    for threads, use_gpu in ((5, False), (3, True)):
        with pytest.raises(UsageError, match=f"no node of the Ray cluster has {threads} cores"):
            count_actor_slots(nodes, threads, use_gpu)
    assert count_actor_slots([{"memory": 1.0}], 8, use_gpu=False) == 0  # nodes with cores may join later


def test_csv_works_without_pyarrow(run: vitrail.Run, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow"):
        vitrail.predict_all(run.folder, colors / "test", tmp_path / "out")
    summary = vitrail.predict_all(run.folder, colors / "test", tmp_path / "out", format="csv", processes=1)
    assert summary.images == len(rows_in(tmp_path / "out", "csv")) == 24


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    pids = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            pids += [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
    return pids + [below for child in pids for below in descendants(child)]


def actor_pids(pid: int) -> list[int]:
    """The Ray actors among the descendants of a process."""
    pids = []
    for each in descendants(pid):
        try:
            if b"MapWorker" in Path(f"/proc/{each}/cmdline").read_bytes():
                pids.append(each)
        except OSError:
            continue
    return pids


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_ray_loses_nothing_when_a_process_or_a_node_is_killed(
    start_command: Callable[..., Command],
    run: vitrail.Run,
    many: Path,
    uninterrupted: Path,
    tmp_path: Path,
):
    pytest.importorskip("ray.data")
    import tempfile

    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-")
    options = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False, "temp_dir": folder})
    nodes = [cluster.add_node(**options) for _ in range(2)]
    args = ("--images-per-part", 64, "--engine", "ray", "--ray-address", cluster.address)
    try:
        code, document, _ = start_command(
            run.folder, many, "--out", tmp_path / "none", *args, "--threads", 2, fresh=True
        ).wait()
        assert (code, document["error"]) == (2, "no node of the Ray cluster has 2 cores for a process")

        out = tmp_path / "worker"
        command = start_command(run.folder, many, "--out", out, *args, fresh=True)
        command.wait_until(lambda: count_manifests(out) >= 2 and len(actor_pids(os.getpid())) >= 2)
        os.kill(actor_pids(os.getpid())[0], signal.SIGKILL)
        code, document, err = command.wait()
        assert "error" not in document, document
        assert (code, document["images"], document["unreadable"], document["complete"]) == (1, IMAGES, 1, True), err
        assert part_digests(out) == part_digests(uninterrupted)

        out = tmp_path / "node"
        command = start_command(run.folder, many, "--out", out, *args, fresh=True)
        command.wait_until(lambda: count_manifests(out) >= 2 and len(actor_pids(os.getpid())) >= 3)
        cluster.remove_node(nodes[0], allow_graceful=False)
        code, document, err = command.wait()
        assert "error" not in document, document
        assert (code, document["images"], document["unreadable"], document["complete"]) == (1, IMAGES, 1, True), err
        assert part_digests(out) == part_digests(uninterrupted)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_ray_reports_a_failure_and_another_engine_resumes(
    start_command: Callable[..., Command],
    run: vitrail.Run,
    many: Path,
    uninterrupted: Path,
    small_disk: Path,
    tmp_path: Path,
):
    pytest.importorskip("ray.data")
    out = small_disk / "out"
    args = (run.folder, many, "--out", out, "--images-per-part", 64)
    code, document, err = start_command(*args, "--engine", "ray", "--processes", 1, fresh=True).wait()
    assert (code, document["error"].rsplit(": ")[-1]) == (1, "No space left on device"), err
    finished = count_manifests(out)
    assert f"{finished} of {PARTS} parts are done" in err
    subprocess.run(["mount", "-o", "remount,size=5m", small_disk], check=True)
    code, document, _ = start_command(*args, "--resume", "--processes", 2).wait()
    assert (code, document["images"], document["resumed"]) == (1, IMAGES, finished)
    assert part_digests(out) == part_digests(uninterrupted)
