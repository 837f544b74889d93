"""Tar shards equal the folder they were made from; other libraries read them; their addresses."""

import hashlib
import json
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.readers import write_synthetic_set

import kills
import vitrail
from conftest import fill
from shard_files import SMALL, digests_and_labels, png_bytes, tar_members, write_set, write_tar
from vitrail.cli.main import main
from vitrail.data.augment import Augment, build_augmentation
from vitrail.data.decode import ImageError
from vitrail.data.labels import Categorical, factorize
from vitrail.data.loader import TrainLoader
from vitrail.data.open import open_data, open_source
from vitrail.data.preprocess import Preprocess
from vitrail.data.shards import is_shards
from vitrail.data.shards.address import expand_braces
from vitrail.data.shards.index import INDEX_FILE
from vitrail.data.shards.writer import write_shards
from vitrail.data.source import name_of_data
from vitrail.data.strings import NumberedNames, StringArray
from vitrail.errors import UsageError, VitrailError

# equality with the folder


def test_shards_equal_their_folder_in_names_labels_splits_order_bytes_and_fingerprint(photos: Path, shards: Path):
    (photos / "train" / "red" / "a.b.c.png").write_bytes((photos / "train" / "red" / "3.png").read_bytes())
    (photos / "train" / "blue" / "Größe 1.jpeg").write_bytes(b"not an image; its bytes are kept")
    shutil.rmtree(shards)
    for options in ({"images_per_shard": 7}, {"shard_mib": 0.02, "seed": 5}, {"seed": None}):
        ours, theirs = open_source(write_set(photos, shards, **options)), open_source(photos)
        assert (ours.name, ours.channels, ours.can_flip) == (theirs.name, theirs.channels, theirs.can_flip)
        assert ours.splits.keys() == theirs.splits.keys()
        for split, listing in theirs.splits.items():
            copy = ours.splits[split]
            assert list(copy.names) == list(listing.names)
            assert list(copy.labels) == list(listing.labels)
            for i in range(len(listing)):
                assert copy.pixels.read_bytes(i) == listing.pixels.read_bytes(i)
        assert ours.fingerprint == theirs.fingerprint
        shutil.rmtree(shards)


@pytest.mark.parametrize("divided", [True, False], ids=["divided", "undivided"])
def test_training_from_shards_gives_the_artifact_of_the_folder_to_the_last_bit(divided: bool, tmp_path: Path):
    folder = fill(tmp_path / "photos", {"train": 12, "test": 6} if divided else 14, ("red", "green"), (16, 16))
    shutil.copy(sorted(folder.rglob("0.png"))[0], sorted(folder.rglob("red"))[-1] / "copy.png")  # copies stay together
    shards = write_set(folder, tmp_path / "shards", images_per_shard=5)
    pattern = (
        f"{shards}/{'{train-{000000..000004},test-{000000..000002}}' if divided else 'shards-{000000..000005}'}.tar"
    )
    options = {"epochs": 2, "batch_size": 8, "policy": "randaugment", "crop": "resized", "report": False, **SMALL}
    reading_options = {"image_cache_gib": 0.0, "workers": 2} if divided else {}
    runs = [
        vitrail.train(folder, out=tmp_path / "a", **options),
        vitrail.train(pattern if divided else shards, out=tmp_path / "b", **reading_options, **options),
    ]
    artifacts = {run.folder.joinpath("classifier.safetensors").read_bytes() for run in runs}
    assert len(artifacts) == 1
    rows = [[json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in runs]
    ours, theirs = ([{k: v for k, v in row.items() if "second" not in k} for row in each] for each in rows)
    assert ours == theirs
    # shards of a source that training divided are scored on the images that it held out
    descriptions = {
        vitrail.evaluate(runs[0].classifier, address).description.replace(str(tmp_path), "")
        for address in (folder, shards)
    }
    scores = {vitrail.evaluate(runs[0].classifier, address).accuracy for address in (folder, shards, pattern)}
    assert len(descriptions) == len(scores) == 1
    assert divided or "held-out" in descriptions.pop()


def test_batches_from_any_step_equal_those_of_the_folder(photos: Path, shards: Path):
    transform = build_augmentation(
        Augment(crop="resized", policy="randaugment", random_erasing=0.5), Preprocess(image_size=(8, 8))
    )
    whole = list(TrainLoader(open_data(photos).train, transform, batch_size=5, seed=3, workers=0).epoch(1))
    for start, workers in ((0, 0), (0, 2), (2, 0), (3, 1)):
        loader = TrainLoader(open_data(shards).train, transform, batch_size=5, seed=3, workers=workers)
        batches = list(loader.epoch(1, start))
        assert len(batches) == len(whole) - start
        for (x, y), (u, v) in zip(whole[start:], batches, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


@pytest.mark.scale
def test_a_run_on_shards_that_is_killed_at_random_ends_as_an_uninterrupted_run_on_the_folder(tmp_path: Path):
    folder = kills.make_data(tmp_path / "photos")
    shards = write_set(folder, tmp_path / "shards", images_per_shard=7)
    whole = vitrail.train(folder, out=tmp_path / "whole", **kills.OPTIONS)
    draw = random.Random(1)
    deaths = resumes = 0
    out = tmp_path / "run"
    for _ in range(60):
        resume = (out / "recipe.json").exists()
        resumes += resume
        process = kills.train_in_fork(shards, out, resume, draw, die_at=draw.randrange(5, 40) if deaths < 2 else None)
        code = kills.wait_for_exit(process, None)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
    assert deaths >= 2 and resumes >= 1
    ours, theirs = (p / "classifier.safetensors" for p in (out, whole.folder))
    assert ours.read_bytes() == theirs.read_bytes()


def test_digits_from_shards_train_to_the_same_weights(tmp_path: Path):
    shards = write_set("digits", tmp_path / "digits")
    source = open_source(shards)
    assert (source.name, source.channels, source.can_flip) == ("digits", 1, False)
    ours, theirs = open_data(shards), open_data("digits")
    for split, images in theirs.as_dict().items():
        copy = ours.as_dict()[split]
        assert list(copy.names) == list(images.names)
        assert copy.labels.tolist() == images.labels.tolist()
        assert all(torch.equal(copy[i], images[i]) for i in range(0, len(images), 50))


def test_every_verb_takes_shards(run: vitrail.Run, colors: Path, tmp_path: Path, capsys, own_cache: Path):
    shards = write_set(colors, tmp_path / "colors", images_per_shard=20)

    def run_verb(*arguments: object) -> dict:
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    from_folder, from_shards = (run_verb("evaluate", run.folder, data) for data in (colors, shards))
    paths = [Path(row.pop("path").rpartition(":")[2]) for row in from_shards["predictions"]]
    assert [Path(row.pop("path")).relative_to(colors) for row in from_folder["predictions"]] == paths
    assert from_folder == from_shards
    first, again = run_verb("check", shards, "--out", tmp_path / "checked"), run_verb("check", shards)
    assert {k: v for k, v in first.items() if k != "data"} == {k: v for k, v in again.items() if k != "data"}
    assert (tmp_path / "checked" / "classes.png").exists()
    theirs = run_verb("check", colors)
    assert (first["classes"], first["duplicates"], first["sizes"]) == (
        theirs["classes"],
        theirs["duplicates"],
        theirs["sizes"],
    )
    probes = [run_verb("probe", run.folder, data) for data in (colors, shards)]
    assert probes[0]["knn"] == probes[1]["knn"] and probes[0]["linear"] == probes[1]["linear"]
    assert main(["check", str(shards), "--fix", str(tmp_path / "clean.csv")]) == 2
    assert "not files of their own" in capsys.readouterr().err


def test_a_report_on_shards(run: vitrail.Run, colors: Path, tmp_path: Path):
    shards = write_set(colors, tmp_path / "colors")
    assert (
        main(["evaluate", str(run.folder), str(shards), "--report", "--out", str(tmp_path / "report"), "--quiet"]) == 0
    )
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


# writing


def test_the_same_data_give_the_same_shards_and_another_seed_gives_another_order(photos: Path, tmp_path: Path):
    def all_bytes(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    first, again = (all_bytes(write_set(photos, tmp_path / name, images_per_shard=10)) for name in ("a", "b"))
    assert first == again
    assert list(first) == [INDEX_FILE, "test-000000.tar", "test-000001.tar", *(f"train-{i:06d}.tar" for i in range(3))]
    other = all_bytes(write_set(photos, tmp_path / "c", images_per_shard=10, seed=1))
    assert other.keys() == first.keys() and other != first
    labels = [json.loads(text)["label"] for text in tar_members(tmp_path / "a" / "train-000000.tar", ".json")]
    assert len(set(labels)) == 2  # a stream sees mixed classes
    in_order = write_set(photos, tmp_path / "d", images_per_shard=12, seed=None)
    names = [json.loads(text)["name"] for text in tar_members(in_order / "train-000000.tar", ".json")]
    assert names == list(open_source(photos).splits["train"].names)[:12]
    by_size = write_set(photos, tmp_path / "e", shard_mib=0.03)
    assert all(path.stat().st_size <= 0.03 * 2**20 + 10240 for path in by_size.glob("*.tar"))
    assert len(list(by_size.glob("train-*.tar"))) > 1


def test_the_command_reports_what_it_wrote_and_refuses_to_overwrite(photos: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert main(["shard", str(photos), "--out", str(out), "--images-per-shard", "10", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["splits"], document["shards"]) == (
        36, {"test": 12, "train": 24}, {"test": 2, "train": 3},
    )  # fmt: skip
    assert document["bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))
    assert (document["classes"], document["formats"], document["unreadable"]) == (2, {"png": 36}, [])
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["shard", str(photos), "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    assert main(["shard", str(photos), "--out", "s3://bucket/out"]) == 2
    assert main(["shard", str(photos), "--out", str(tmp_path / "x"), "--images-per-shard", "0"]) == 2
    assert main(["shard", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert (
        main(["shard", str(out), "--out", str(tmp_path / "again"), "--images-per-shard", "10", "--quiet"]) == 0
    )  # shards of shards
    assert all((tmp_path / "again" / path.name).read_bytes() == content for path, content in before.items())
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "out", "again"}


def test_a_file_that_vanishes_during_writing_stops_it_or_is_skipped(photos: Path, tmp_path: Path):
    source = open_source(photos)
    (photos / "train" / "red" / "3.png").unlink()
    with pytest.raises(ImageError, match=r"red/3\.png: there is no such file"):
        write_shards(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}
    summary = write_shards(source, tmp_path / "out", skip_unreadable=True)
    assert (summary.images, len(summary.unreadable)) == (35, 1)
    ours, theirs = open_source(tmp_path / "out"), open_source(photos)
    assert list(ours.splits["train"].names) == list(theirs.splits["train"].names)
    assert ours.fingerprint == theirs.fingerprint


def test_a_table_with_a_missing_file_is_written_without_it(photos: Path, tmp_path: Path, capsys):
    rows = [f"{photos}/train/red/{i}.png,red" for i in range(4)] + [
        f"{photos}/train/blue/{i}.png,blue" for i in range(4)
    ]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join([*rows, "gone.png,red"]) + "\n")
    assert main(["shard", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]) == 1
    assert (
        main(["shard", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out"), "--skip-unreadable", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 8


def test_a_full_disk_is_reported_before_writing(photos: Path, tmp_path: Path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(VitrailError, match="needs .* MB and"):
        write_shards(open_source(photos), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


# other libraries


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # WebDataset leaves shards open
def test_webdataset_reads_the_same_bytes_and_labels(photos: Path, shards: Path):
    webdataset = pytest.importorskip("webdataset")
    for split, pattern in (("train", "train-{000000..000002}.tar"), ("test", "test-{000000..000001}.tar")):
        rows = list(webdataset.WebDataset(str(shards / pattern), shardshuffle=False))
        samples = [(row["png"], json.loads(row["json"])["label"], int(row["cls"])) for row in rows]
        assert sorted((hashlib.sha256(png).hexdigest(), label) for png, label, _ in samples) == digests_and_labels(
            photos, split
        )
        assert {(label, number) for _, label, number in samples} == {("blue", 0), ("red", 1)}
        assert [json.loads(row["json"])["name"].split("/")[0] for row in rows] == [split] * len(rows)


def test_hugging_face_datasets_reads_the_same_bytes_and_labels(photos: Path, shards: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    data_sets = datasets.load_dataset("webdataset", data_dir=str(shards), cache_dir=str(tmp_path / "hf"))
    assert set(data_sets) == {"train", "test"}
    for split in data_sets:
        rows = data_sets[split].cast_column("png", datasets.Image(decode=False))
        digests = [(hashlib.sha256(row["png"]["bytes"]).hexdigest(), row["json"]["label"]) for row in rows]
        assert sorted(digests) == digests_and_labels(photos, split)
        assert {(row["json"]["label"], row["cls"]) for row in rows} == {("blue", 0), ("red", 1)}


def test_shards_written_by_webdataset_are_read(photos: Path, tmp_path: Path, own_cache: Path):
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "theirs"
    out.mkdir()
    for split in ("train", "test"):
        with webdataset.ShardWriter(str(out / f"{split}-%06d.tar"), maxcount=9, verbose=0) as writer:
            for i, path in enumerate(sorted((photos / split).rglob("*.png"))):
                label = {"cls": 7 + (path.parent.name == "red")}
                writer.write({"__key__": f"sample{i:04d}", "png": path.read_bytes(), **label})
    for _ in range(2):  # the second time with the cached index
        source = open_source(out)
        for split, listing in source.splits.items():
            digests = [
                (hashlib.sha256(listing.pixels.read_bytes(i)).hexdigest(), {"7": "blue", "8": "red"}[listing.labels[i]])
                for i in range(len(listing))
            ]
            assert sorted(digests) == digests_and_labels(photos, split)
    assert not source.damaged and not list(out.glob("*.safetensors"))
    assert len(list((own_cache / "shards").glob("*.safetensors"))) == 5
    assert open_data(out).classes == ("7", "8")


def test_shards_without_their_index_still_have_all_images(photos: Path, shards: Path, own_cache: Path):
    (shards / INDEX_FILE).unlink()
    source = open_source(shards)
    for split in ("train", "test"):
        listing = source.splits[split]
        digests = [hashlib.sha256(listing.pixels.read_bytes(i)).hexdigest() for i in range(len(listing))]
        assert sorted(zip(digests, listing.labels, strict=True)) == digests_and_labels(photos, split)
    first = next(iter(source.splits["train"].names))
    assert re.fullmatch(r"train-000000/\d{9}\.png", first)


# addresses


def test_braces_expand_as_in_a_shell():
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
def test_the_name_of_a_set_of_shards(address: str, name: str):
    assert name_of_data(address) == name


def test_a_folder_with_class_folders_is_a_folder_of_images_whatever_archives_it_has(photos: Path, tmp_path: Path):
    write_tar(photos / "train.tar", ("a/0.png", png_bytes()))
    assert not is_shards(photos)
    assert open_source(photos).splits["train"].names[0] == "train/blue/0.png"
    for split in ("train", "test"):
        write_tar(tmp_path / "nested" / split / "0.tar", ("a/0.png", png_bytes()), ("b/0.png", png_bytes(1)))
    assert is_shards(tmp_path / "nested")
    assert set(open_source(tmp_path / "nested").splits) == {"train", "test"}
    assert not is_shards(tmp_path / "nowhere") and not is_shards("digits")


def test_wildcards_some_of_the_shards_and_unindexed_shards(shards: Path, own_cache: Path):
    part = open_source(f"{shards}/train-00000[01].tar")
    assert len(part.splits["train"]) == 20 and part.splits.keys() == {"train"}
    assert list(part.splits["train"].names) == sorted(part.splits["train"].names)
    write_tar(shards / "train-other.tar", ("red/x.png", png_bytes()))
    source = open_source(shards)
    assert len(source.splits["train"]) == 24
    assert any("1 tar file not in its index, first train-other.tar" in each.sentence for each in source.left_out)
    both = open_source(f"{shards}/{{test-000000,train-other}}.tar")  # one by our index, one by a new one
    assert {split: len(listing) for split, listing in both.splits.items()} == {"test": 10, "train": 1}


# memory


def test_an_index_and_its_splits_take_few_bytes_per_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import tracemalloc

    n = 8_000
    write_synthetic_set(tmp_path / "set", n)
    open_data(write_synthetic_set(tmp_path / "few", 100))  # so that imports do not count
    tracemalloc.start()
    splits = open_data(tmp_path / "set")
    batches = TrainLoader(splits.train, lambda x: x, batch_size=256, seed=0, workers=0).epoch(0)  # type: ignore[arg-type]
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert batches is not None
    assert sum(map(len, splits.as_dict().values())) == n
    assert current / n < 300 and peak / n < 900
    images = splits.train
    assert isinstance(images.names, StringArray) and not isinstance(images.paths, list)


def test_string_arrays_return_their_strings():
    strings = ["train/ä.png", "", "b", "漢字" * 3]
    names = StringArray.from_strings(strings)
    assert list(names) == strings and names[-1] == strings[-1] and names[1:3] == strings[1:3]
    assert list(names.take(np.array([3, 0]))) == [strings[3], strings[0]]
    assert list(names.take(np.array([3, 0])).take(np.array([1]))) == [strings[0]]
    numbered = NumberedNames("x-", np.arange(5), 3).take(np.array([4, 1]))
    assert list(numbered) == ["x-004", "x-001"] and numbered[:1] == ["x-004"]
    labels = Categorical(("b", "a", "c"), np.array([0, 1, 0]))
    assert list(labels) == ["b", "a", "b"]
    table, codes = factorize(labels)
    assert (table, codes.tolist()) == (["a", "b"], [1, 0, 1])
    assert factorize(["b", "a", "b"])[0] == table and factorize(["b", "a", "b"])[1].tolist() == codes.tolist()
