"""Tar shards: the same images, order, splits and weights as from the folder; every damage named; peers read them."""

import gzip
import hashlib
import http.server
import io
import json
import math
import os
import random
import re
import shutil
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.readers import made_up_set
from PIL import Image
from safetensors.numpy import load_file, save_file

import kills
import vitrail
from conftest import fill, picture
from vitrail.cli.main import main
from vitrail.data.augment import Augment, build_augmentation
from vitrail.data.check import check_data
from vitrail.data.decode import ImageError
from vitrail.data.loader import training_batches
from vitrail.data.open import compute_fingerprint, open_data, open_source
from vitrail.data.preprocess import Preprocess
from vitrail.data.shards import cache, is_shards, storage, tar_index
from vitrail.data.shards import images as shard_images
from vitrail.data.shards.address import expand_braces, shard_set_name
from vitrail.data.shards.cache import cache_limit, open_shard
from vitrail.data.shards.index import INDEX_FILE
from vitrail.data.shards.index_file import METADATA_KEY, index_digest, parse_index, save_index
from vitrail.data.shards.writer import write_shards
from vitrail.data.strings import Categorical, NumberedNames, StringArray, factorize
from vitrail.errors import UsageError, VitrailError
from vitrail.runs.data import drop_unreadable
from vitrail.runs.folder import RunFolder

SMALL = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}


def sharded(data: Path | str, out: Path, **options) -> Path:
    write_shards(open_source(data), out, **options)
    return out


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A divided folder of two classes, 24 to train and 12 to test."""
    return fill(tmp_path / "photos", {"train": 12, "test": 6}, ("red", "blue"), (16, 16))


@pytest.fixture
def shards(photos: Path, tmp_path: Path) -> Path:
    return sharded(photos, tmp_path / "shards", images_per_shard=10)


def rewritten(path: Path, change: Callable[[bytearray], object]) -> None:
    """Changes a file's bytes; its time moves on."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


def place_of(address: Path, name: str) -> tuple[Path, int, int]:
    """(shard, offset, length) of an image in shards with an index of ours."""
    index = parse_index((address / INDEX_FILE).read_bytes(), "index")
    row = list(index.names).index(name)
    c = index.columns
    return address / index.shards[c["shard"][row]].address, int(c["offset"][row]), int(c["length"][row])


# the same as the folder


def test_names_labels_splits_order_bytes_and_fingerprint_are_those_of_the_folder(photos: Path, shards: Path):
    (photos / "train" / "red" / "a.b.c.png").write_bytes((photos / "train" / "red" / "3.png").read_bytes())
    (photos / "train" / "blue" / "Größe 1.jpeg").write_bytes(b"no image, and kept as it is")
    shutil.rmtree(shards)
    for options in ({"images_per_shard": 7}, {"shard_mib": 0.02, "seed": 5}, {"seed": None}):
        ours, theirs = open_source(sharded(photos, shards, **options)), open_source(photos)
        assert (ours.name, ours.channels, ours.can_flip) == (theirs.name, theirs.channels, theirs.can_flip)
        assert ours.splits.keys() == theirs.splits.keys()
        for split, listing in theirs.splits.items():
            there = ours.splits[split]
            assert list(there.names) == list(listing.names)
            assert list(there.labels) == list(listing.labels)
            for i in range(len(listing)):
                assert there.pixels.read_bytes(i) == listing.pixels.read_bytes(i)
        assert compute_fingerprint(ours) == compute_fingerprint(theirs)
        shutil.rmtree(shards)


@pytest.mark.parametrize("divided", [True, False], ids=["divided", "undivided"])
def test_training_from_shards_gives_the_folders_artefact_to_the_last_bit(divided: bool, tmp_path: Path):
    folder = fill(tmp_path / "photos", {"train": 12, "test": 6} if divided else 14, ("red", "green"), (16, 16))
    shutil.copy(sorted(folder.rglob("0.png"))[0], sorted(folder.rglob("red"))[-1] / "copy.png")  # copies stay together
    shards = sharded(folder, tmp_path / "shards", images_per_shard=5)
    pattern = (
        f"{shards}/{'{train-{000000..000004},test-{000000..000002}}' if divided else 'shards-{000000..000005}'}.tar"
    )
    options = {"epochs": 2, "batch_size": 8, "policy": "randaugment", "crop": "resized", "report": False, **SMALL}
    reading = {"image_cache_gib": 0.0, "workers": 2} if divided else {}
    runs = [
        vitrail.train(folder, out=tmp_path / "a", **options),
        vitrail.train(pattern if divided else shards, out=tmp_path / "b", **reading, **options),
    ]
    artefacts = {run.folder.joinpath("classifier.safetensors").read_bytes() for run in runs}
    assert len(artefacts) == 1
    rows = [[json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in runs]
    ours, theirs = ([{k: v for k, v in row.items() if "second" not in k} for row in each] for each in rows)
    assert ours == theirs
    # shards of a source that training divided are scored on what was kept back, whoever asks
    said = {
        vitrail.evaluate(runs[0].classifier, address).description.replace(str(tmp_path), "")
        for address in (folder, shards)
    }
    scores = {vitrail.evaluate(runs[0].classifier, address).accuracy for address in (folder, shards, pattern)}
    assert len(said) == len(scores) == 1
    assert divided or "that training kept back" in said.pop()


def test_batches_from_any_step_on_are_those_of_the_folder(photos: Path, shards: Path):
    transform = build_augmentation(
        Augment(crop="resized", policy="randaugment", random_erasing=0.5), Preprocess(image_size=(8, 8))
    )
    ask = {"batch_size": 5, "seed": 3, "epoch": 1}
    whole = list(training_batches(open_data(photos).train, transform, workers=0, **ask))
    for start, workers in ((0, 0), (0, 2), (2, 0), (3, 1)):
        found = list(training_batches(open_data(shards).train, transform, workers=workers, start=start, **ask))
        assert len(found) == len(whole) - start
        for (x, y), (u, v) in zip(whole[start:], found, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


@pytest.mark.scale
def test_a_run_on_shards_that_is_killed_at_random_ends_as_the_folders_run_undisturbed(tmp_path: Path):
    folder = kills.make_data(tmp_path / "photos")
    shards = sharded(folder, tmp_path / "shards", images_per_shard=7)
    whole = vitrail.train(folder, out=tmp_path / "whole", **kills.OPTIONS)
    draw = random.Random(1)
    deaths = resumes = 0
    out = tmp_path / "run"
    for _ in range(60):
        resume = (out / "recipe.json").exists()
        resumes += resume
        process = kills.forked(shards, out, resume, draw, die_at=draw.randrange(5, 40) if deaths < 2 else None)
        code = kills.ended(process, None)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
    assert deaths >= 2 and resumes >= 1
    ours, theirs = (p / "classifier.safetensors" for p in (out, whole.folder))
    assert ours.read_bytes() == theirs.read_bytes()


def test_digits_from_shards_train_to_the_same_weights(tmp_path: Path):
    shards = sharded("digits", tmp_path / "digits")
    found = open_source(shards)
    assert (found.name, found.channels, found.can_flip) == ("digits", 1, False)
    ours, theirs = open_data(shards), open_data("digits")
    for split, images in theirs.as_dict().items():
        there = ours.as_dict()[split]
        assert list(there.names) == list(images.names)
        assert there.labels.tolist() == images.labels.tolist()
        assert all(torch.equal(there[i], images[i]) for i in range(0, len(images), 50))


def test_every_verb_takes_shards(run: vitrail.Run, colours: Path, tmp_path: Path, capsys, own_cache: Path):
    shards = sharded(colours, tmp_path / "colours", images_per_shard=20)

    def said(*words: object) -> dict:
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    from_folder, from_shards = (said("evaluate", run.folder, data) for data in (colours, shards))
    paths = [Path(row.pop("path").rpartition(":")[2]) for row in from_shards["predictions"]]
    assert [Path(row.pop("path")).relative_to(colours) for row in from_folder["predictions"]] == paths
    assert from_folder == from_shards
    first, again = said("check", shards, "--out", tmp_path / "looked"), said("check", shards)
    assert {k: v for k, v in first.items() if k != "data"} == {k: v for k, v in again.items() if k != "data"}
    assert (tmp_path / "looked" / "classes.png").exists()
    theirs = said("check", colours)
    assert (first["classes"], first["copies"], first["sizes"]) == (theirs["classes"], theirs["copies"], theirs["sizes"])
    probed = [said("probe", run.folder, data) for data in (colours, shards)]
    assert probed[0]["knn"] == probed[1]["knn"] and probed[0]["linear"] == probed[1]["linear"]
    assert main(["check", str(shards), "--fix", str(tmp_path / "clean.csv")]) == 2
    assert "not files of their own" in capsys.readouterr().err


def test_a_report_on_shards(run: vitrail.Run, colours: Path, tmp_path: Path):
    shards = sharded(colours, tmp_path / "colours")
    assert (
        main(["evaluate", str(run.folder), str(shards), "--report", "--out", str(tmp_path / "report"), "--quiet"]) == 0
    )
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


# what is written


def test_the_same_data_give_the_same_shards_and_another_seed_another_order(photos: Path, tmp_path: Path):
    def all_bytes(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    first, again = (all_bytes(sharded(photos, tmp_path / name, images_per_shard=10)) for name in ("a", "b"))
    assert first == again
    assert list(first) == [INDEX_FILE, "test-000000.tar", "test-000001.tar", *(f"train-{i:06d}.tar" for i in range(3))]
    other = all_bytes(sharded(photos, tmp_path / "c", images_per_shard=10, seed=1))
    assert other.keys() == first.keys() and other != first
    labels = [json.loads(text)["label"] for text in members(tmp_path / "a" / "train-000000.tar", ".json")]
    assert len(set(labels)) == 2  # a stream sees mixed classes
    in_order = sharded(photos, tmp_path / "d", images_per_shard=12, seed=None)
    kept = [json.loads(text)["name"] for text in members(in_order / "train-000000.tar", ".json")]
    assert kept == list(open_source(photos).splits["train"].names)[:12]
    tarred = sharded(photos, tmp_path / "e", shard_mib=0.03)
    assert all(path.stat().st_size <= 0.03 * 2**20 + 10240 for path in tarred.glob("*.tar"))
    assert len(list(tarred.glob("train-*.tar"))) > 1


def members(path: Path, ending: str) -> list[bytes]:
    with tarfile.open(path) as file:
        return [file.extractfile(m).read() for m in file if m.name.endswith(ending)]  # type: ignore[union-attr]


def test_the_command_says_what_it_wrote_and_refuses_what_is_there(photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main(["shard", str(photos), str(out), "--images", "10", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["splits"], document["shards"]) == (
        36, {"test": 12, "train": 24}, {"test": 2, "train": 3},
    )  # fmt: skip
    assert document["bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))
    assert (document["classes"], document["formats"], document["unreadable"]) == (2, {"png": 36}, [])
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["shard", str(photos), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    assert main(["shard", str(photos), "s3://bucket/out"]) == 2
    assert main(["shard", str(photos), str(tmp_path / "x"), "--images", "0"]) == 2
    assert main(["shard", str(tmp_path / "nowhere"), str(tmp_path / "x")]) == 2
    assert main(["shard", str(out), str(tmp_path / "again"), "--images", "10", "--quiet"]) == 0  # shards of shards
    assert all((tmp_path / "again" / path.name).read_bytes() == content for path, content in before.items())
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out", "again"}


def test_a_file_that_goes_away_meanwhile_leaves_nothing_or_is_counted(photos: Path, tmp_path: Path):
    found = open_source(photos)
    (photos / "train" / "red" / "3.png").unlink()
    with pytest.raises(ImageError, match=r"red/3\.png: there is no such file"):
        write_shards(found, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}
    written = write_shards(found, tmp_path / "out", skip_unreadable=True)
    assert (written.images, len(written.unreadable)) == (35, 1)
    ours, theirs = open_source(tmp_path / "out"), open_source(photos)
    assert list(ours.splits["train"].names) == list(theirs.splits["train"].names)
    assert compute_fingerprint(ours) == compute_fingerprint(theirs)


def test_a_table_is_sharded_with_missing_files_counted(photos: Path, tmp_path: Path, capsys):
    rows = [f"{photos}/train/red/{i}.png,red" for i in range(4)] + [
        f"{photos}/train/blue/{i}.png,blue" for i in range(4)
    ]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join([*rows, "gone.png,red"]) + "\n")
    assert main(["shard", str(tmp_path / "list.csv"), str(tmp_path / "out")]) == 1
    assert main(["shard", str(tmp_path / "list.csv"), str(tmp_path / "out"), "--skip-unreadable", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 8


def test_a_full_disk_is_said_before_and_leaves_nothing(photos: Path, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(VitrailError, match="needs .* GB and"):
        write_shards(open_source(photos), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


# other readers


def contents(photos: Path, split: str) -> list[tuple[str, str]]:
    return sorted(
        (hashlib.sha256(path.read_bytes()).hexdigest(), path.parent.name) for path in (photos / split).rglob("*.png")
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves shards open
def test_webdataset_reads_the_same_bytes_and_labels(photos: Path, shards: Path):
    webdataset = pytest.importorskip("webdataset")
    for split, pattern in (("train", "train-{000000..000002}.tar"), ("test", "test-{000000..000001}.tar")):
        rows = list(webdataset.WebDataset(str(shards / pattern), shardshuffle=False))
        found = [(row["png"], json.loads(row["json"])["label"], int(row["cls"])) for row in rows]
        assert sorted((hashlib.sha256(png).hexdigest(), label) for png, label, _ in found) == contents(photos, split)
        assert {(label, number) for _, label, number in found} == {("blue", 0), ("red", 1)}
        assert [json.loads(row["json"])["name"].split("/")[0] for row in rows] == [split] * len(rows)


def test_hugging_face_datasets_reads_the_same_bytes_and_labels(photos: Path, shards: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset("webdataset", data_dir=str(shards), cache_dir=str(tmp_path / "hf"))
    assert set(found) == {"train", "test"}
    for split in found:
        rows = found[split].cast_column("png", datasets.Image(decode=False))
        seen = [(hashlib.sha256(row["png"]["bytes"]).hexdigest(), row["json"]["label"]) for row in rows]
        assert sorted(seen) == contents(photos, split)
        assert {(row["json"]["label"], row["cls"]) for row in rows} == {("blue", 0), ("red", 1)}


def test_shards_that_webdataset_wrote_are_read(photos: Path, tmp_path: Path, own_cache: Path):
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "theirs"
    out.mkdir()
    for split in ("train", "test"):
        with webdataset.ShardWriter(str(out / f"{split}-%06d.tar"), maxcount=9, verbose=0) as writer:
            for i, path in enumerate(sorted((photos / split).rglob("*.png"))):
                label = {"cls": 7 + (path.parent.name == "red")}
                writer.write({"__key__": f"sample{i:04d}", "png": path.read_bytes(), **label})
    for _ in range(2):  # the second time from the index that was kept
        found = open_source(out)
        for split, listing in found.splits.items():
            seen = [
                (hashlib.sha256(listing.pixels.read_bytes(i)).hexdigest(), {"7": "blue", "8": "red"}[listing.labels[i]])
                for i in range(len(listing))
            ]
            assert sorted(seen) == contents(photos, split)
    assert not found.damaged and not list(out.glob("*.safetensors"))
    assert len(list((own_cache / "shards").glob("*.safetensors"))) == 5
    assert open_data(out).classes == ("7", "8")


def test_shards_without_their_index_are_still_all_there(photos: Path, shards: Path, own_cache: Path):
    (shards / INDEX_FILE).unlink()
    found = open_source(shards)
    for split in ("train", "test"):
        listing = found.splits[split]
        seen = [hashlib.sha256(listing.pixels.read_bytes(i)).hexdigest() for i in range(len(listing))]
        assert sorted(zip(seen, listing.labels, strict=True)) == contents(photos, split)
    first = next(iter(found.splits["train"].names))
    assert re.fullmatch(r"train-000000/\d{9}\.png", first)


# damage


def unreadable(address: object) -> dict[str, str]:
    """What a check says of each image that it cannot read, and what else is lost."""
    report = check_data(str(address))
    named = {f.files[0] if f.files else f.sentence: f.sentence for f in report.findings if f.kind == "unreadable"}
    assert report.unreadable == [name for name in named if named[name] != name]
    return named


def trained(address: object, out: Path, capsys, **options) -> vitrail.Run:
    """Training stops and names the damage; told to, it goes on without what is damaged."""
    with pytest.raises(VitrailError) as caught:
        vitrail.train(str(address), out=out, epochs=1, report=False, **SMALL)
    assert "\n" not in caught.value.sentence and caught.value.hint and not out.exists()
    return vitrail.train(str(address), out=out, epochs=1, skip_unreadable=True, report=False, **SMALL)


def read_and_refused(address: object) -> tuple[int, int]:
    """How many images of all splits come in batches, and how many are refused."""
    transform = build_augmentation(Augment(), Preprocess(image_size=(8, 8)))
    refused: list[ImageError] = []
    read = 0
    for images in open_data(str(address), missing_ok=True).as_dict().values():
        for x, _ in training_batches(
            images, transform, batch_size=5, seed=0, epoch=0, workers=0, on_error=refused.append
        ):
            read += len(x)
    return read, len(refused)


def test_a_flipped_bit_is_named(shards: Path, tmp_path: Path, capsys):
    check_data(shards)
    victim = "train/red/3.png"
    path, offset, length = place_of(shards, victim)

    def flip(content: bytearray) -> None:
        content[offset + length - 20] ^= 1  # in the end chunk: a decoder would not notice

    rewritten(path, flip)
    named = unreadable(shards)
    assert list(named) == [victim] and "SHA-256" in named[victim]
    run = trained(shards, tmp_path / "run", capsys)
    assert run.result["unreadable"] == {"train": 1} and run.classifier.origin["data"]["images"]["train"] == 21
    assert main(["evaluate", str(run.folder), str(shards), "--quiet", "--json"]) == 0
    capsys.readouterr()
    path, offset, length = place_of(shards, "test/red/3.png")
    rewritten(path, flip)
    assert main(["evaluate", str(run.folder), str(shards), "--quiet", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)["error"]
    assert str(path) in said and "test/red/3.png" in said and "SHA-256" in said
    assert main(["evaluate", str(run.folder), str(shards), "--skip-unreadable", "--quiet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (11, 1)


def test_a_shard_that_is_cut_short_is_named_and_what_is_left_is_used(shards: Path, tmp_path: Path, capsys):
    index = parse_index((shards / INDEX_FILE).read_bytes(), "")
    path = shards / "train-000001.tar"
    number = [shard.address for shard in index.shards].index(path.name)
    ends = index.columns["offset"] + index.columns["length"]
    mine = np.flatnonzero(index.columns["shard"] == number)
    cut = int(np.sort(ends[mine])[5]) - 3
    os.truncate(path, cut)
    gone = {index.names[int(row)] for row in mine if ends[row] > cut}
    assert len(gone) == 5
    named = unreadable(shards)
    assert gone < set(named) and len(named) == 6
    assert all("ends before" in named[name] for name in gone)
    assert any("train-000001.tar has" in sentence and "its index says" in sentence for sentence in named)
    assert read_and_refused(shards) == (36 - 5, 5)
    (shards / INDEX_FILE).unlink()  # the same without the index: what follows the tear is unknown
    again = unreadable(shards)
    assert all("train-000001.tar: " in said for said in again) and any(": after" in said for said in again)
    assert len(open_source(shards, missing_ok=True).splits["train"]) == 24 - 5


def test_a_shard_that_is_missing_is_named_and_left_out(shards: Path, tmp_path: Path, capsys):
    (shards / "train-000002.tar").unlink()
    with pytest.raises(VitrailError, match=r"there is no shard .*train-000002\.tar, which holds 4 images"):
        open_data(shards)
    assert len(unreadable(shards)) == 4
    run = trained(shards, tmp_path / "run", capsys)
    assert sum(run.result["unreadable"].values()) == 4
    with pytest.raises(VitrailError, match=r"train-000009\.tar"):
        open_data(f"{shards}/train-{{000000..000001}}.tar".replace("000001", "000001,000009").replace("..", ","))
    with pytest.raises(UsageError, match="no shard"):
        open_data(f"{shards}/other-{{000000..000003}}.tar")


def test_a_shard_that_goes_away_during_the_run_stops_it(shards: Path, tmp_path: Path):
    train = open_data(shards).train
    (shards / "train-000000.tar").unlink()
    lost = 0
    for i in range(len(train)):
        try:
            train[i]
        except ImageError as error:
            lost += 1
            assert "train-000000.tar" in error.name and "not there" in error.reason
    assert 0 < lost < len(train)


def test_a_shard_that_is_another_is_found_out(photos: Path, shards: Path, tmp_path: Path):
    for path in (photos / "train" / "red").iterdir():
        picture((9, 9, 9), int(path.stem) + 999).save(path)
    other = sharded(photos, tmp_path / "other", images_per_shard=10)
    shutil.copy(other / "train-000000.tar", shards / "train-000000.tar")
    assert len(unreadable(shards)) >= 4  # images of red, for blue ones may lie where they lay


def test_an_index_that_is_damaged_anywhere_is_refused(shards: Path):
    whole, before = (shards / INDEX_FILE).read_bytes(), compute_fingerprint(open_source(shards))
    draw = random.Random(0)
    for at in [0, 7, 8, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(60))]:
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << draw.randrange(8)
        (shards / INDEX_FILE).write_bytes(spoilt)
        try:
            found = open_source(shards)
        except VitrailError as error:
            assert INDEX_FILE in error.sentence and "\n" not in error.sentence
        else:  # in the padding of safetensors' header, say
            assert compute_fingerprint(found) == before
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (shards / INDEX_FILE).write_bytes(whole[:cut])
        with pytest.raises(VitrailError, match="not a whole index"):
            open_source(shards)


@pytest.mark.parametrize(
    "change",
    [
        {"shard": lambda a: a + 9},
        {"shard": lambda a: a - 9},
        {"label": lambda a: a + 2},
        {"split": lambda a: a + 4},
        {"fault": lambda a: a + 99},
        {"offset": lambda a: a - 10**9},
        {"length": lambda a: -a},
        {"sha256": lambda a: a[:, :5].copy()},
        {"length": lambda a: a.astype(np.float64)},
        {"label": lambda a: a[:-1].copy()},
        {"bounds": lambda a: a[::-1].copy()},
        {"bounds": lambda a: a + 1},
        {"names": lambda a: a[:-1].copy()},
        {"document": {"shards": [{"file": "../../etc/passwd", "bytes": 10}] * 5}},
        {"document": {"shards": [{"file": "/etc/passwd", "bytes": 10}] * 5}},
        {"document": {"shards": [{"file": "http://far/away.tar", "bytes": 10}] * 5}},
        {"document": {"format": 2}},
        {"document": {"channels": 7}},
        {"document": {"classes": 5}},
        {"document": {"shards": None}},
    ],
)
def test_an_index_that_verifies_and_makes_no_sense_is_refused(shards: Path, change: dict):
    arrays = load_file(shards / INDEX_FILE)
    content = (shards / INDEX_FILE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    document = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])
    document |= change.pop("document", {})
    arrays |= {name: spoil(arrays[name]) for name, spoil in change.items()}
    document["sha256"] = index_digest(arrays, document)
    save_file(arrays, shards / INDEX_FILE, metadata={METADATA_KEY: json.dumps(document)})
    with pytest.raises(VitrailError, match="not a whole index"):
        open_source(shards)


def test_lengths_without_end_in_an_index_are_not_read(shards: Path):
    index = parse_index((shards / INDEX_FILE).read_bytes(), "")
    index.columns["length"][0] = 2**62
    index.columns["offset"][1] = 2**62
    save_index(index, shards / INDEX_FILE)
    named = unreadable(shards)
    assert len(named) == 2
    assert any("more than" in said for said in named.values())


def pack(path: Path, *rows: tuple[tarfile.TarInfo | str, bytes], end: bool = True) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for member, content in rows:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content) if info.isreg() else 0
            file.addfile(info, io.BytesIO(content))
    return path


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    picture((value, 10, 90), value).save(file, "PNG")
    return file.getvalue()


def test_a_damaged_member_takes_none_of_its_name_in_another_split_with_it(tmp_path: Path, own_cache: Path):
    rows = [(f"{label}/{i}.png", png(i + 100 * (label == "b"))) for label in "ab" for i in range(6)]
    pack(tmp_path / "set" / "train" / "00000.tar", ("a/0.png", b"no image"), *rows[1:])
    pack(tmp_path / "set" / "val" / "00000.tar", *rows)
    options = {"epochs": 1, "report": False, "skip_unreadable": True, **SMALL}
    run = vitrail.train(tmp_path / "set", out=tmp_path / "run", **options)
    origin = run.classifier.origin["data"]
    assert origin["images"] == {"train": 11, "validation": 12} and origin["unreadable"] == {"train": 1}
    noted = json.loads((run.folder / "recipe.json").read_text())
    assert noted["unreadable"] == {"train": ["00000/a/0.png"]}
    vitrail.train(tmp_path / "set", out=run.folder, resume=True, report=False)
    (run.folder / "recipe.json").write_text(json.dumps({**noted, "unreadable": ["00000/a/0.png"]}))
    left = drop_unreadable(open_data(tmp_path / "set"), RunFolder(run.folder).load_unreadable())
    assert left.unreadable == {"train": 1, "validation": 1}


def test_a_split_that_is_divided_off_loses_what_its_source_lost(tmp_path: Path, own_cache: Path):
    for split in ("train", "all"):
        splits = open_data(
            fill(tmp_path / split, {"train": 20, "test": 4} if split == "train" else 24, ("a", "b"), (16, 16))
        )
        validation = splits.as_dict()["validation"].names[0]
        assert splits.source_splits["validation"] == split
        left = drop_unreadable(splits, {split: [validation]})
        assert left.unreadable == {"validation": 1} and len(left.train) == len(splits.train)
        assert drop_unreadable(splits, {"validation": [validation]}) is splits


@pytest.mark.parametrize("check_data", [True, False])
def test_a_member_smaller_than_a_patch_is_named_and_little_is_read_for_it(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, check_data: bool
):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    large, dot = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise).save(large, "PNG")
    Image.new("RGB", (2, 2)).save(dot, "PNG")
    assert len(large.getvalue()) > 2 * shard_images.HEADER_BYTES
    rows = [(f"{label}/{i}.png", large.getvalue()) for label in "ab" for i in range(4)]
    shard = pack(tmp_path / "set" / "0.tar", *rows, ("b/dot.png", dot.getvalue()), end=True)
    splits = open_source(shard.parent).splits["all"]
    lengths: list[int] = []
    real = shard_images.read_range

    def seen(shard, start: int, length: int) -> bytes:
        lengths.append(length)
        return real(shard, start, length)

    monkeypatch.setattr(shard_images, "read_range", seen)
    assert [splits.pixels.size(i) for i in range(len(splits))] == [(256, 256)] * 8 + [(2, 2)]
    assert max(lengths) == shard_images.HEADER_BYTES
    with pytest.raises(ImageError, match=r"0\.tar:0/b/dot\.png: 2x2 pixels are fewer than a patch"):
        vitrail.train(
            shard.parent,
            out=tmp_path / "run",
            epochs=1,
            image_cache_gib=0.0,
            check=check_data,
            normalize="half",
            **SMALL,
        )
    assert not (tmp_path / "run").exists()


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_members_are_named_and_never_followed(tmp_path: Path, own_cache: Path, capsys):
    good = [(f"{label}/{i}.png", png(i + 40 * (label == "b"))) for label in ("a", "b") for i in range(8)]
    hostile = {
        "a/../../../b/escape.png": "points outside",
        "/etc/a/absolute.png": "points outside",
        "a/symbolic.png": "a link",
        "a/hard.png": "a link",
        "a/device.png": "a link",
    }
    kinds = {"a/symbolic.png": tarfile.SYMTYPE, "a/hard.png": tarfile.LNKTYPE, "a/device.png": tarfile.CHRTYPE}
    rows = [(link(name, kinds[name]) if name in kinds else name, png(200)) for name in hostile]
    pack(tmp_path / "set" / "shards-000000.tar", *good[:8], *rows, *good[8:])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "cache" not in str(path)}
    named = unreadable(tmp_path / "set")
    assert len(named) == len(hostile)
    for member, reason in hostile.items():
        assert reason in named[f"shards-000000/{member}"]
    assert read_and_refused(tmp_path / "set") == (len(good), len(hostile))
    assert {p: p.stat().st_mtime_ns for p in before} == before and not (tmp_path / "escape.png").exists()


def test_members_of_enormous_size_are_named_and_not_read(tmp_path: Path, own_cache: Path, monkeypatch):
    good = [(f"{label}/{i}.png", png(i)) for label in ("a", "b") for i in range(3)]
    monkeypatch.setattr(tar_index, "MAX_IMAGE_BYTES", 5000)
    pack(tmp_path / "big" / "x.tar", *good, ("a/big.png", png(1) + b"\0" * 6000))
    named = unreadable(tmp_path / "big")
    assert list(named) == ["x/a/big.png"] and "more than" in named["x/a/big.png"]
    # a header that lies: 8 EiB, of which nothing is there
    path = pack(tmp_path / "liar" / "x.tar", *good, ("a/liar.png", png(1)))
    info = tarfile.TarInfo("a/liar.png")
    info.size = 2**62
    content = path.read_bytes()
    at = content.index(b"a/liar.png\0")
    path.write_bytes(content[:at] + info.tobuf(tarfile.GNU_FORMAT) + content[at + 512 :])
    named = unreadable(tmp_path / "liar")
    assert any("a/liar.png" in sentence and "ends before" in sentence for sentence in named.values())
    assert len(open_source(tmp_path / "liar", missing_ok=True).splits["all"]) == 7
    # an extended header that would fill the memory
    bomb = tarfile.TarInfo("PaxHeaders/a")
    bomb.type, bomb.size = tarfile.XHDTYPE, 2 << 20
    whole = pack(tmp_path / "bomb" / "x.tar", *good).read_bytes().rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512)
    (tmp_path / "bomb" / "x.tar").write_bytes(whole + bomb.tobuf() + b"1" * (2 << 20) + b"\0" * 1024)
    named = unreadable(tmp_path / "bomb")
    assert len(named) == 1 and "a header of" in next(iter(named))


def test_names_that_are_not_utf8_labels_in_every_form_and_samples_without(tmp_path: Path, own_cache: Path):
    pack(
        tmp_path / "set" / "shard.tar",
        ("0.png", png(0)), ("0.json", b'{"label": "cat", "more": [1]}'),
        ("1.JPG", png(1)), ("1.cls", b"12\n"),
        ("dog/2.png", png(2)),
        ("3.json", b'{"class_name": "cat"}'), ("3.seg.png", png(3)),
        ("cat/4.png", png(4)), ("cat/4.json", b"{no json"),
        ("__meta__.png", png(9)),
        ("5.txt", b"a text alone"),
        ("6.png", png(6)),
        (b"cat/\xff7.png".decode(errors="surrogateescape"), png(7)),
    )  # fmt: skip
    found = open_source(tmp_path / "set", missing_ok=True)
    listing = found.splits["all"]
    assert list(listing.labels) == ["cat", "12", "dog", "cat", "cat", "cat"]
    assert [name.removeprefix("shard/") for name in listing.names[:5]] == [
        "0.png", "1.JPG", "dog/2.png", "3.seg.png", "cat/4.png",
    ]  # fmt: skip
    assert any("1 samples without an image" in note for note in found.notes)
    assert len(found.damaged) == 1 and "6.png has no label" in found.damaged[0]
    assert "not UTF-8" in next(iter(v for k, v in unreadable(tmp_path / "set").items() if "7.png" in k))
    with pytest.raises(VitrailError, match=r"6\.png has no label"):
        open_data(tmp_path / "set")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no tar file"),
        (b"no tar" * 500, "no tar file"),
        (gzip.compress(b"x" * 2000), "compressed by gzip"),
        (b"\0" * 10240, "has no images"),
    ],
    ids=["empty", "text", "gzip", "zeros"],
)
def test_what_is_no_shard_is_said(tmp_path: Path, own_cache: Path, content: bytes, said: str):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(VitrailError, match=said):
        open_source(tmp_path / "x.tar")


def test_a_shard_torn_anywhere_is_never_taken_for_whole(tmp_path: Path, own_cache: Path):
    whole = pack(tmp_path / "x.tar", *((f"{label}/{i}.png", png(i)) for label in "ab" for i in range(3))).read_bytes()
    useful = len(whole.rstrip(b"\0"))
    draw = random.Random(3)
    for cut in (512, 1024, useful - useful % 512, *(draw.randrange(600, useful) for _ in range(40))):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        try:
            found = open_source(tmp_path / "x.tar", missing_ok=True)
        except VitrailError:
            continue
        assert found.damaged
    broken = bytearray(whole)
    broken[whole.index(b"b/0.png") + 3] ^= 64  # in a header: its checksum is wrong
    (tmp_path / "x.tar").write_bytes(broken)
    found = open_source(tmp_path / "x.tar", missing_ok=True)
    assert len(found.splits["all"]) == 3 and "damaged" in found.damaged[0]


# addresses


def test_braces_mean_what_a_shell_makes_of_them():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("a-{9..11}.tar") == ["a-9.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}-{1..0}.tar") == ["x-1.tar", "x-0.tar", "y-1.tar", "y-0.tar"]
    assert expand_braces("{x-{1..2},y}.tar") == ["x-1.tar", "x-2.tar", "y.tar"]
    with pytest.raises(UsageError, match="more than 1,000,000 shards"):
        expand_braces("x-{0..999999999}.tar")
    with pytest.raises(UsageError, match="more than"):
        expand_braces("x-{0..9999}{0..9999}.tar")
    with pytest.raises(UsageError, match="neither a range nor a list"):
        expand_braces("x-{abc}.tar")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("s3://bucket/imagenet/train-{0000..1023}.tar", "imagenet"),
        ("https://host/cats-000000.tar", "cats"),
        ("http://host/photos", "photos"),
        ("data/shards-{00..03}.tar", "data"),
        ("shards-00.tar", "shards"),
    ],
)
def test_a_set_is_called_by_what_it_is(address: str, name: str):
    assert shard_set_name(address) == name


def test_a_folder_with_classes_is_one_of_images_whatever_archive_lies_beside(photos: Path, tmp_path: Path):
    pack(photos / "train.tar", ("a/0.png", png()))
    assert not is_shards(photos)
    assert open_source(photos).splits["train"].names[0] == "train/blue/0.png"
    for split in ("train", "test"):
        pack(tmp_path / "nested" / split / "0.tar", ("a/0.png", png()), ("b/0.png", png(1)))
    assert is_shards(tmp_path / "nested")
    assert set(open_source(tmp_path / "nested").splits) == {"train", "test"}
    assert not is_shards(tmp_path / "nowhere") and not is_shards("digits")


def test_stars_a_part_of_the_shards_and_strangers_beside(shards: Path, own_cache: Path):
    part = open_source(f"{shards}/train-00000[01].tar")
    assert len(part.splits["train"]) == 20 and part.splits.keys() == {"train"}
    assert list(part.splits["train"].names) == sorted(part.splits["train"].names)
    pack(shards / "train-other.tar", ("red/x.png", png()))
    found = open_source(shards)
    assert len(found.splits["train"]) == 24
    assert any("1 tar files are not in its index and left out, train-other.tar" in note for note in found.notes)
    both = open_source(f"{shards}/{{test-000000,train-other}}.tar")  # one by our index, one by a new one
    assert {split: len(listing) for split, listing in both.splits.items()} == {"test": 10, "train": 1}


# elsewhere


def test_shards_in_fsspecs_memory(photos: Path, shards: Path, own_cache: Path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/far", recursive=True)
    try:
        for address in ("memory://far", "memory://far/{train-{000000..000002},test-{000000..000001}}.tar"):
            found = open_source(address)
            assert compute_fingerprint(found) == compute_fingerprint(open_source(photos))
            train = open_data(address).train
            assert torch.equal(train[3], open_data(photos).train[3])
            assert train.paths[0].startswith("memory://") and "train-" in train.paths[0]
        assert open_source("memory://far/train-*.tar").splits["train"].names[0] == "train/blue/0.png"
        with pytest.raises(UsageError, match="no shard"):
            open_source("memory://far/none-{0..1}.tar")
    finally:
        memory.rm("/far", recursive=True)


class Server(http.server.ThreadingHTTPServer):
    """Files over HTTP, in ranges where `ranges` is set; counts what it gave."""

    daemon_threads = True

    def __init__(self, root: Path, ranges: bool = True):
        self.ranges, self.given, self.failing, self.asked = ranges, 0, 0, []
        self.last = math.inf  # how many answers there will be before it fails for good
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(root)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        if self.server.failing > 0 or len(self.server.asked) >= self.server.last:
            self.server.failing -= 1
            self.send_error(503)
            return
        try:
            content = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        part = content[int(asked[1]) : int(asked[2] or len(content)) + 1] if asked else content
        if body:
            self.server.given += len(part)
            self.server.asked.append(self.path)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    pytest.importorskip("aiohttp")
    running: list[Server] = []

    def start(root: Path, **options: bool) -> Server:
        running.append(Server(root, **options))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_over_http_is_training_from_the_folder(photos, shards, serve, tmp_path, own_cache, workers: int):
    server = serve(shards)
    options = {"epochs": 1, "batch_size": 8, "image_cache_gib": 0.0, "report": False, "check": False, **SMALL}
    address = f"{server.address}/{{train-{{000000..000002}},test-{{000000..000001}}}}.tar"
    runs = [
        vitrail.train(photos, out=tmp_path / "a", workers=0, **options),
        vitrail.train(address, out=tmp_path / "b", workers=workers, **options),
    ]
    ours, theirs = ((run.folder / "classifier.safetensors").read_bytes() for run in runs)
    assert ours == theirs
    asked = [path for path in server.asked if path.endswith(".tar")]
    assert len(asked) == len(set(asked)) == 5  # every shard once, whoever reads it


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_without_room_in_the_cache_each_image_is_asked_for(photos, shards, serve, own_cache, monkeypatch, ranges: bool):
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "0")
    server = serve(shards, ranges=ranges)
    train = open_data(server.address).train
    theirs = open_data(photos).train
    before = server.given
    assert all(torch.equal(train[i], theirs[i]) for i in range(4))
    if ranges:
        assert server.given - before == sum(theirs.pixels.byte_sizes()[:4])
    assert not list((own_cache / "shards").glob("*.tar")) if own_cache.exists() else True


def test_the_cache_stays_within_its_limit_and_keeps_the_first_shards(photos, shards, serve, own_cache, monkeypatch):
    size = (shards / "train-000000.tar").stat().st_size
    limit = 2 * size + 100
    monkeypatch.setenv("VITRAIL_CACHE_GIB", str(limit / 2**30))
    server = serve(shards)
    for _ in range(2):
        for images in open_data(server.address).as_dict().values():
            for i in range(len(images)):
                images[i]
        kept = list((own_cache / "shards").glob("*.tar"))
        assert kept and sum(path.stat().st_size for path in kept) <= limit
    other = serve(sharded(photos, shards.parent / "other", images_per_shard=10, seed=4))  # another set takes the room
    train = open_data(other.address).train
    for i in range(len(train)):
        train[i]
    assert sum(path.stat().st_size for path in (own_cache / "shards").glob("*.tar")) <= limit
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "much")
    with pytest.raises(UsageError, match="VITRAIL_CACHE_GIB"):
        cache_limit()


def test_a_copy_in_the_cache_that_is_damaged_is_dropped_and_a_changed_shard_is_found(shards, serve, own_cache):
    server = serve(shards)
    train = open_data(server.address).train
    pixels = [train[i] for i in range(len(train))]
    copies = list((own_cache / "shards").glob("*.tar"))
    assert len(copies) == 3
    for path in copies:
        rewritten(path, lambda content: content.__setitem__(slice(0, None), bytes(len(content))))
    storage.open_files.files.clear()
    assert all(torch.equal(train[i], pixels[i]) for i in range(len(train)))
    path, offset, _ = place_of(shards, "train/red/3.png")
    rewritten(path, lambda content: content.__setitem__(offset + 60, content[offset + 60] ^ 1))
    fresh = open_source(server.address).splits["train"]
    with pytest.raises(ImageError, match="SHA-256"):
        fresh.pixels.read_bytes(list(fresh.names).index("train/red/3.png"))


def test_a_damaged_copy_that_another_process_drops_first_is_let_go(shards, serve, own_cache, monkeypatch):
    train = open_data(serve(shards).address).train
    pixels = [train[i] for i in range(len(train))]
    for path in (own_cache / "shards").glob("*.tar"):
        rewritten(path, lambda content: content.__setitem__(slice(0, None), bytes(len(content))))
    really = shard_images.read_range

    def and_another_drops_it(*place):
        found = really(*place)
        for path in (own_cache / "shards").glob("*.tar"):
            path.unlink()
        return found

    monkeypatch.setattr(shard_images, "read_range", and_another_drops_it)
    assert all(torch.equal(train[i], pixels[i]) for i in range(len(train)))


def test_a_copy_that_another_process_makes_room_of_is_done_without(shards, serve, own_cache, monkeypatch):
    train = open_data(serve(shards).address).train
    really = cache.fetch_copy

    def and_another_makes_room(shard):
        path = really(shard)
        path.unlink()
        return path

    monkeypatch.setattr(cache, "fetch_copy", and_another_makes_room)
    assert train[0].shape == (3, 16, 16)
    shard = train.pixels.where.shards[0]
    with open_shard(shard) as file:
        assert len(file.read()) == shard.size


def test_an_address_that_fails_for_a_moment_is_asked_again_and_one_that_stays_away_is_said(
    shards, serve, own_cache, monkeypatch
):
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.01, 0.01))
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "0")
    server = serve(shards)
    train = open_data(server.address).train
    server.failing = 2
    assert train[0].shape == (3, 16, 16)
    server.failing = 99
    with pytest.raises(ImageError, match="does not answer"):
        train[0]
    server.failing = 0
    with pytest.raises(VitrailError, match=r"http://127\.0\.0\.1:1/x"):
        open_source("http://127.0.0.1:1/x-{0..1}.tar")
    with pytest.raises(UsageError, match="is not a protocol"):
        open_source("htp://somewhere/x.tar")


def test_predictions_stop_at_an_outage_and_go_on_after_it(
    run: vitrail.Run, shards, serve, own_cache, monkeypatch, tmp_path: Path, capsys
):
    """No image has a row that says of it what is true of the address alone."""
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.01,))
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "0")
    server = serve(shards)
    words = (run.folder, [server.address, server.address])  # 72 images: a part of 64, and one of 8
    found = vitrail.predict_all(*words, tmp_path / "undisturbed", part_images=64, processes=1)
    assert (found.images, found.unreadable, found.parts) == (72, 0, 2)
    server.last = 2 * len(server.asked) - 1  # the last shard of the second part is out of reach
    with pytest.raises(VitrailError, match="does not answer") as caught:
        vitrail.predict_all(*words, tmp_path / "out", part_images=64, processes=1)
    assert "--resume" in caught.value.hint
    assert "1 of 2 parts are done and kept" in capsys.readouterr().err
    server.last = len(server.asked) + 1  # the index alone
    with pytest.raises(VitrailError, match=r"http://127.*cannot be read: .* does not answer"):
        vitrail.predict_all(*words, tmp_path / "out", part_images=64, resume=True)
    server.last = math.inf
    again = vitrail.predict_all(*words, tmp_path / "out", part_images=64, processes=1, resume=True)
    assert (again.images, again.unreadable, again.resumed) == (72, 0, 1)
    for part in sorted((tmp_path / "undisturbed").glob("part-*")):
        assert (tmp_path / "out" / part.name).read_bytes() == part.read_bytes()


def test_foreign_shards_over_http_are_indexed_once(tmp_path: Path, serve, own_cache: Path):
    pack(tmp_path / "far" / "x-0.tar", *((f"{label}/{i}.png", png(i)) for label in "ab" for i in range(5)))
    server = serve(tmp_path / "far")
    first = open_source(f"{server.address}/x-0.tar")
    again = open_source(f"{server.address}/x-0.tar")
    assert list(first.splits["all"].labels) == list(again.splits["all"].labels) == ["a"] * 5 + ["b"] * 5
    assert server.asked.count("/x-0.tar") == 1


# memory


def test_an_index_takes_few_bytes_an_image_and_so_do_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import tracemalloc

    n = 8_000
    made_up_set(tmp_path / "set", n)
    open_data(made_up_set(tmp_path / "few", 100))  # what is imported now is not counted
    tracemalloc.start()
    splits = open_data(tmp_path / "set")
    batches = training_batches(splits.train, lambda x: x, batch_size=256, seed=0, epoch=0, workers=0)  # type: ignore[arg-type]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert batches is not None
    assert sum(map(len, splits.as_dict().values())) == n
    assert held / n < 300 and peak / n < 900
    images = splits.train
    assert isinstance(images.names, StringArray) and not isinstance(images.paths, list)


def test_words_are_the_strings_that_were_given():
    words = ["train/ä.png", "", "b", "漢字" * 3]
    names = StringArray.from_strings(words)
    assert list(names) == words and names[-1] == words[-1] and names[1:3] == words[1:3]
    assert list(names.take(np.array([3, 0]))) == [words[3], words[0]]
    assert list(names.take(np.array([3, 0])).take(np.array([1]))) == [words[0]]
    numbered = NumberedNames("x-", np.arange(5), 3).take(np.array([4, 1]))
    assert list(numbered) == ["x-004", "x-001"] and numbered[:1] == ["x-004"]
    labels = Categorical(("b", "a", "c"), np.array([0, 1, 0]))
    assert list(labels) == ["b", "a", "b"]
    table, codes = factorize(labels)
    assert (table, codes.tolist()) == (["a", "b"], [1, 0, 1])
    assert factorize(["b", "a", "b"])[0] == table and factorize(["b", "a", "b"])[1].tolist() == codes.tolist()


# Hugging Face datasets


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return datasets


def test_a_folder_a_parquet_set_and_a_saved_set_of_datasets_are_read(photos: Path, tmp_path: Path, hub):
    tables = hub.load_dataset("imagefolder", data_dir=str(photos))
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for split in tables:
        tables[split].to_parquet(str(data / f"{split}-00000-of-00001.parquet"))
    tables.save_to_disk(str(tmp_path / "saved"))
    for address in (f"hf:{photos}", f"hf:{tmp_path}/set", f"hf:{tmp_path}/saved"):
        found = open_source(address)
        for split, listing in found.splits.items():
            seen = [hashlib.sha256(listing.pixels.read_bytes(i)).hexdigest() for i in range(len(listing))]
            assert sorted(zip(seen, listing.labels, strict=True)) == contents(photos, split)
            assert len(set(listing.names)) == len(listing)
        assert check_data(address).errors == []
        assert open_source(address, channels=1).splits["train"].pixels[0].shape == (1, 16, 16)
    assert compute_fingerprint(open_source(f"hf:{photos}")) == compute_fingerprint(open_source(photos))
    lone = open_source(f"hf:{data}/train-00000-of-00001.parquet")
    assert lone.splits.keys() == {"all"} and len(lone.splits["all"]) == 24
    options = {"epochs": 1, "report": False, "image_cache_gib": 0.0, **SMALL}
    bits = {
        vitrail.train(address, out=tmp_path / f"run{i}", workers=i % 2, **options)
        .folder.joinpath("classifier.safetensors")
        .read_bytes()
        for i, address in enumerate((photos, f"hf:{photos}"))
    }
    assert len(bits) == 1
    assert main(["shard", f"hf:{tmp_path}/set", str(tmp_path / "out"), "--quiet"]) == 0


def test_columns_splits_and_labels_as_they_come(tmp_path: Path, hub, capsys):
    def rows(n: int, **columns) -> dict:
        return {"picture": [{"bytes": png(i), "path": None} for i in range(n)], **columns}

    features = {"picture": hub.Image()}
    folder = tmp_path / "set"
    folder.mkdir()

    def save(split: str, data: dict, kinds: dict) -> None:
        hub.Dataset.from_dict(data, features=hub.Features({**features, **kinds})).to_parquet(
            f"{folder}/{split}.parquet"
        )

    kinds = {"coarse": hub.ClassLabel(names=["x", "y"]), "fine_label": hub.ClassLabel(names=["d", "c", "b", "a"])}
    save("train", rows(8, coarse=[0] * 8, fine_label=[3, 2, 1, 0] * 2), kinds)
    save("validation", rows(4, coarse=[0] * 4, fine_label=[0, -1, 1, None]), kinds)
    found = open_source(f"hf:{folder}")
    assert list(found.splits["train"].labels) == ["a", "b", "c", "d"] * 2
    assert list(found.splits["validation"].labels) == ["d", "c"]
    assert list(found.splits["train"].names[:2]) == ["train-0000000", "train-0000001"]
    assert list(found.splits["validation"].names) == ["validation-0000000", "validation-0000002"]
    assert any("2 images of validation have no label" in note for note in found.notes)
    assert any("fine_label says, not coarse" in note for note in found.notes)
    words = tmp_path / "words.parquet"
    hub.Dataset.from_dict(
        rows(3, label=["cat", "dog", "cat"]), features=hub.Features({**features, "label": hub.Value("string")})
    ).to_parquet(str(words))
    assert list(open_source(f"hf:{words}").splits["all"].labels) == ["cat", "dog", "cat"]
    hub.Dataset.from_dict({"label": [1, 2]}).to_parquet(str(tmp_path / "bare.parquet"))
    with pytest.raises(UsageError, match="no column of images"):
        open_source(f"hf:{tmp_path}/bare.parquet")
    hub.Dataset.from_dict(rows(2), features=hub.Features(features)).to_parquet(str(tmp_path / "mute.parquet"))
    with pytest.raises(UsageError, match="no column of classes"):
        open_source(f"hf:{tmp_path}/mute.parquet")


def test_a_damaged_row_is_an_image_that_cannot_be_read(tmp_path: Path, hub, capsys):
    pictures = [{"bytes": png(i), "path": f"{i}.png"} for i in range(24)]
    pictures[3]["bytes"] = pictures[3]["bytes"][:70]
    pictures[5] = None
    features = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["a", "b"])})
    table = hub.Dataset.from_dict({"image": pictures, "label": [0, 1] * 12}, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    address = f"hf:{tmp_path}/saved"
    named = unreadable(address)
    assert len(named) == 2 and any("the row has no image" in said for said in named.values())
    assert read_and_refused(address) == (22, 2)


def test_the_hub_out_of_reach_is_said_in_a_sentence(hub, capsys, monkeypatch, tmp_path: Path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["train", "hf:nobody/nothing", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "hf:nobody/nothing is not here and the hub cannot be reached" in said and "Traceback" not in said
    assert main(["check", "hf:./nowhere"]) == 2
    (tmp_path / "notes.txt").write_text("x")
    assert main(["check", f"hf:{tmp_path}/notes.txt"]) == 2
