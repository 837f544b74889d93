"""Damaged and hostile shards: every unreadable image is reported, and nothing else is lost."""

import gzip
import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import vitrail
from conftest import fill, picture
from shard_files import (
    SMALL,
    count_read_and_refused,
    find_unreadable,
    locate_image,
    modify_file,
    png_bytes,
    write_set,
    write_tar,
)
from vitrail.cli.main import main
from vitrail.data.check import check_data
from vitrail.data.decode import ImageError
from vitrail.data.open import open_data, open_source
from vitrail.data.shards import images as shard_images
from vitrail.data.shards import tar_index
from vitrail.data.shards.index import INDEX_FILE
from vitrail.data.shards.index_file import METADATA_KEY, index_digest, parse_index, save_index
from vitrail.data.split import drop_images
from vitrail.errors import UsageError, VitrailError
from vitrail.runs.folder import RunFolder


def train_without_damage(address: object, out: Path) -> vitrail.Run:
    """Checks that training reports the damage and stops, then trains with `skip_unreadable`."""
    with pytest.raises(VitrailError) as caught:
        vitrail.train(str(address), out=out, epochs=1, report=False, **SMALL)
    assert "\n" not in caught.value.sentence and caught.value.hint and not out.exists()
    return vitrail.train(str(address), out=out, epochs=1, skip_unreadable=True, report=False, **SMALL)


def test_a_flipped_bit_is_reported(shards: Path, tmp_path: Path, capsys):
    check_data(shards)
    name = "train/red/3.png"
    path, offset, length = locate_image(shards, name)

    def flip(content: bytearray) -> None:
        content[offset + length - 20] ^= 1  # in the end chunk: a decoder would not notice

    modify_file(path, flip)
    sentences = find_unreadable(shards)
    assert list(sentences) == [name] and "SHA-256" in sentences[name]
    run = train_without_damage(shards, tmp_path / "run")
    assert run.result["unreadable"] == {"train": 1} and run.classifier.origin["data"]["images"]["train"] == 21
    assert main(["evaluate", str(run.folder), str(shards), "--quiet", "--json"]) == 0
    capsys.readouterr()
    path, offset, length = locate_image(shards, "test/red/3.png")
    modify_file(path, flip)
    assert main(["evaluate", str(run.folder), str(shards), "--quiet", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert str(path) in error and "test/red/3.png" in error and "SHA-256" in error
    assert main(["evaluate", str(run.folder), str(shards), "--skip-unreadable", "--quiet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images"], document["unreadable"]) == (11, 1)


def test_a_truncated_shard_is_reported_and_the_rest_is_used(shards: Path, tmp_path: Path, capsys):
    index = parse_index((shards / INDEX_FILE).read_bytes(), "")
    path = shards / "train-000001.tar"
    number = [shard.address for shard in index.shards].index(path.name)
    ends = index.columns["offset"] + index.columns["length"]
    rows = np.flatnonzero(index.columns["shard"] == number)
    cut = int(np.sort(ends[rows])[5]) - 3
    os.truncate(path, cut)
    lost = {index.names[int(row)] for row in rows if ends[row] > cut}
    assert len(lost) == 5
    sentences = find_unreadable(shards)
    assert lost < set(sentences) and len(sentences) == 6
    assert all("ends before" in sentences[name] for name in lost)
    assert any("train-000001.tar has" in sentence and "its index says" in sentence for sentence in sentences)
    assert count_read_and_refused(shards) == (36 - 5, 5)
    (shards / INDEX_FILE).unlink()  # without the index the images after the damage are unknown
    again = find_unreadable(shards)
    assert all("train-000001.tar: " in sentence for sentence in again) and any(
        ": after" in sentence for sentence in again
    )
    assert len(open_source(shards, missing_ok=True).splits["train"]) == 24 - 5


def test_a_missing_shard_is_reported_and_skipped(shards: Path, tmp_path: Path, capsys):
    (shards / "train-000002.tar").unlink()
    with pytest.raises(VitrailError, match=r"there is no shard .*train-000002\.tar, which has 4 images"):
        open_data(shards)
    assert len(find_unreadable(shards)) == 4
    run = train_without_damage(shards, tmp_path / "run")
    assert sum(run.result["unreadable"].values()) == 4
    with pytest.raises(VitrailError, match=r"train-000009\.tar"):
        open_data(f"{shards}/train-{{000000..000001}}.tar".replace("000001", "000001,000009").replace("..", ","))
    with pytest.raises(UsageError, match="no shard"):
        open_data(f"{shards}/other-{{000000..000003}}.tar")


def test_a_shard_that_vanishes_during_the_run_is_an_error(shards: Path, tmp_path: Path):
    train = open_data(shards).train
    (shards / "train-000000.tar").unlink()
    lost = 0
    for i in range(len(train)):
        try:
            train[i]
        except ImageError as error:
            lost += 1
            assert "train-000000.tar" in error.name and "does not exist" in error.reason
    assert 0 < lost < len(train)


def test_a_replaced_shard_is_detected(photos: Path, shards: Path, tmp_path: Path):
    for path in (photos / "train" / "red").iterdir():
        picture((9, 9, 9), int(path.stem) + 999).save(path)
    other = write_set(photos, tmp_path / "other", images_per_shard=10)
    shutil.copy(other / "train-000000.tar", shards / "train-000000.tar")
    assert len(find_unreadable(shards)) >= 4  # the red images; blue ones may have kept their offsets


def test_an_index_with_a_flipped_bit_anywhere_is_refused(shards: Path):
    whole, before = (shards / INDEX_FILE).read_bytes(), open_source(shards).fingerprint
    draw = random.Random(0)
    for at in [0, 7, 8, 9, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(60))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draw.randrange(8)
        (shards / INDEX_FILE).write_bytes(damaged)
        try:
            source = open_source(shards)
        except VitrailError as error:
            assert INDEX_FILE in error.sentence and "\n" not in error.sentence
        else:  # such as in the padding of the safetensors header
            assert source.fingerprint == before
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (shards / INDEX_FILE).write_bytes(whole[:cut])
        with pytest.raises(VitrailError, match="not a valid index"):
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
        {"document": {"format": 99}},
        {"document": {"channels": 7}},
        {"document": {"channels": {"count": 0, "values": "uint16"}}},
        {"document": {"channels": {"count": 5, "values": "complex"}}},
        {"document": {"number_names": ["angle"]}},
        {"document": {"classes": 5}},
        {"document": {"shards": None}},
    ],
)
def test_an_index_with_a_valid_digest_and_impossible_values_is_refused(shards: Path, change: dict):
    arrays = load_file(shards / INDEX_FILE)
    content = (shards / INDEX_FILE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    document = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])
    document |= change.pop("document", {})
    arrays |= {name: damage(arrays[name]) for name, damage in change.items()}
    document["sha256"] = index_digest(arrays, document)
    save_file(arrays, shards / INDEX_FILE, metadata={METADATA_KEY: json.dumps(document)})
    with pytest.raises(VitrailError, match="not a valid index"):
        open_source(shards)


def test_an_index_of_format_1_is_read(shards: Path):
    """It had sentences on files that are not used, without their number."""
    before = open_source(shards)
    arrays = load_file(shards / INDEX_FILE)
    content = (shards / INDEX_FILE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    document = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])
    del document["left_out"]
    document |= {"format": 1, "notes": ["a.tar: 2 files without an image"]}
    document["sha256"] = index_digest(arrays, document)
    save_file(arrays, shards / INDEX_FILE, metadata={METADATA_KEY: json.dumps(document)})
    source = open_source(shards)
    assert [each.sentence for each in source.left_out] == ["a.tar: 2 files without an image"]
    for split, listing in before.splits.items():
        assert list(source.splits[split].names) == list(listing.names)
        assert list(source.splits[split].labels) == list(listing.labels)
        assert (source.splits[split].pixels[0] == listing.pixels[0]).all()


def test_huge_lengths_in_an_index_are_not_read(shards: Path):
    index = parse_index((shards / INDEX_FILE).read_bytes(), "")
    index.columns["length"][0] = 2**62
    index.columns["offset"][1] = 2**62
    save_index(index, shards / INDEX_FILE)
    sentences = find_unreadable(shards)
    assert len(sentences) == 2
    assert any("more than" in sentence for sentence in sentences.values())


def test_a_damaged_member_does_not_remove_one_of_the_same_name_in_another_split(tmp_path: Path, own_cache: Path):
    rows = [(f"{label}/{i}.png", png_bytes(i + 100 * (label == "b"))) for label in "ab" for i in range(6)]
    write_tar(tmp_path / "set" / "train" / "00000.tar", ("a/0.png", b"no image"), *rows[1:])
    write_tar(tmp_path / "set" / "val" / "00000.tar", *rows)
    options = {"epochs": 1, "report": False, "skip_unreadable": True, **SMALL}
    run = vitrail.train(tmp_path / "set", out=tmp_path / "run", **options)
    origin = run.classifier.origin["data"]
    assert origin["images"] == {"train": 11, "validation": 12} and origin["unreadable"] == {"train": 1}
    document = json.loads((run.folder / "recipe.json").read_text())
    assert document["unreadable"] == {"train": ["00000/a/0.png"]}
    vitrail.train(tmp_path / "set", out=run.folder, resume=True, report=False)
    (run.folder / "recipe.json").write_text(json.dumps({**document, "unreadable": ["00000/a/0.png"]}))
    splits = drop_images(open_data(tmp_path / "set"), RunFolder(run.folder).load_config().unreadable)
    assert splits.unreadable == {"train": 1, "validation": 1}


def test_an_unreadable_image_is_removed_from_the_split_that_was_held_out(tmp_path: Path, own_cache: Path):
    for split in ("train", "all"):
        splits = open_data(
            fill(tmp_path / split, {"train": 20, "test": 4} if split == "train" else 24, ("a", "b"), (16, 16))
        )
        validation = splits.as_dict()["validation"].names[0]
        assert splits.source_splits["validation"] == split
        remaining = drop_images(splits, {split: [validation]})
        assert remaining.unreadable == {"validation": 1} and len(remaining.train) == len(splits.train)
        assert drop_images(splits, {"validation": [validation]}) is splits


@pytest.mark.parametrize("check_data", [True, False])
def test_a_member_smaller_than_a_patch_is_reported_after_reading_its_header_only(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, check_data: bool
):
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    large, tiny = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise).save(large, "PNG")
    Image.new("RGB", (2, 2)).save(tiny, "PNG")
    assert len(large.getvalue()) > 2 * shard_images.HEADER_BYTES
    rows = [(f"{label}/{i}.png", large.getvalue()) for label in "ab" for i in range(4)]
    shard = write_tar(tmp_path / "set" / "0.tar", *rows, ("b/tiny.png", tiny.getvalue()))
    splits = open_source(shard.parent).splits["all"]
    lengths: list[int] = []
    read_range = shard_images.read_range

    def record_length(shard, start: int, length: int) -> bytes:
        lengths.append(length)
        return read_range(shard, start, length)

    monkeypatch.setattr(shard_images, "read_range", record_length)
    assert [splits.pixels.read_size(i) for i in range(len(splits))] == [(256, 256)] * 8 + [(2, 2)]
    assert max(lengths) == shard_images.HEADER_BYTES
    with pytest.raises(ImageError, match=r"0\.tar:0/b/tiny\.png: 2x2 pixels are fewer than a patch"):
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


def special_member(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_members_are_reported_and_never_followed(tmp_path: Path, own_cache: Path, capsys):
    good = [(f"{label}/{i}.png", png_bytes(i + 40 * (label == "b"))) for label in ("a", "b") for i in range(8)]
    hostile = {
        "a/../../../b/escape.png": "points outside",
        "/etc/a/absolute.png": "points outside",
        "a/symbolic.png": "a link",
        "a/hard.png": "a link",
        "a/device.png": "a link",
    }
    kinds = {"a/symbolic.png": tarfile.SYMTYPE, "a/hard.png": tarfile.LNKTYPE, "a/device.png": tarfile.CHRTYPE}
    rows = [(special_member(name, kinds[name]) if name in kinds else name, png_bytes(200)) for name in hostile]
    write_tar(tmp_path / "set" / "shards-000000.tar", *good[:8], *rows, *good[8:])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "cache" not in str(path)}
    sentences = find_unreadable(tmp_path / "set")
    assert len(sentences) == len(hostile)
    for member, reason in hostile.items():
        assert reason in sentences[f"shards-000000/{member}"]
    assert count_read_and_refused(tmp_path / "set") == (len(good), len(hostile))
    assert {p: p.stat().st_mtime_ns for p in before} == before and not (tmp_path / "escape.png").exists()


def test_huge_members_are_reported_and_not_read(tmp_path: Path, own_cache: Path, monkeypatch):
    good = [(f"{label}/{i}.png", png_bytes(i)) for label in ("a", "b") for i in range(3)]
    monkeypatch.setattr(tar_index, "MAX_IMAGE_BYTES", 5000)
    write_tar(tmp_path / "big" / "x.tar", *good, ("a/big.png", png_bytes(1) + b"\0" * 6000))
    sentences = find_unreadable(tmp_path / "big")
    assert list(sentences) == ["x/a/big.png"] and "more than" in sentences["x/a/big.png"]
    # a header that claims 4 EiB, of which nothing exists
    path = write_tar(tmp_path / "liar" / "x.tar", *good, ("a/liar.png", png_bytes(1)))
    info = tarfile.TarInfo("a/liar.png")
    info.size = 2**62
    content = path.read_bytes()
    at = content.index(b"a/liar.png\0")
    path.write_bytes(content[:at] + info.tobuf(tarfile.GNU_FORMAT) + content[at + 512 :])
    sentences = find_unreadable(tmp_path / "liar")
    assert any("a/liar.png" in sentence and "ends before" in sentence for sentence in sentences.values())
    assert len(open_source(tmp_path / "liar", missing_ok=True).splits["all"]) == 7
    # an extended header that would fill the memory
    bomb = tarfile.TarInfo("PaxHeaders/a")
    bomb.type, bomb.size = tarfile.XHDTYPE, 2 << 20
    whole = write_tar(tmp_path / "bomb" / "x.tar", *good).read_bytes().rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512)
    (tmp_path / "bomb" / "x.tar").write_bytes(whole + bomb.tobuf() + b"1" * (2 << 20) + b"\0" * 1024)
    sentences = find_unreadable(tmp_path / "bomb")
    assert len(sentences) == 1 and "a header of" in next(iter(sentences))


def test_labels_in_every_form_names_that_are_not_utf8_and_samples_without_image_or_label(
    tmp_path: Path, own_cache: Path
):
    write_tar(
        tmp_path / "set" / "shard.tar",
        ("0.png", png_bytes(0)), ("0.json", b'{"label": "cat", "more": [1]}'),
        ("1.JPG", png_bytes(1)), ("1.cls", b"12\n"),
        ("dog/2.png", png_bytes(2)),
        ("3.json", b'{"class_name": "cat"}'), ("3.seg.png", png_bytes(3)),
        ("cat/4.png", png_bytes(4)), ("cat/4.json", b"{no json"),
        ("__meta__.png", png_bytes(9)),
        ("5.txt", b"a text without an image"),
        ("6.png", png_bytes(6)),
        (b"cat/\xff7.png".decode(errors="surrogateescape"), png_bytes(7)),
    )  # fmt: skip
    source = open_source(tmp_path / "set", missing_ok=True)
    listing = source.splits["all"]
    assert list(listing.labels) == ["cat", "12", "dog", "cat", "cat", "cat"]
    assert [name.removeprefix("shard/") for name in listing.names[:5]] == [
        "0.png", "1.JPG", "dog/2.png", "3.seg.png", "cat/4.png",
    ]  # fmt: skip
    assert any("1 file not named like an image" in each.sentence for each in source.left_out)
    assert ["__meta__.png has no label" in source.damaged[0], "6.png has no label" in source.damaged[1]] == [True] * 2
    assert "not UTF-8" in next(iter(v for k, v in find_unreadable(tmp_path / "set").items() if "7.png" in k))
    with pytest.raises(VitrailError, match=r"\.png has no label"):
        open_data(tmp_path / "set")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a tar file"),
        (b"no tar" * 500, "not a tar file"),
        (gzip.compress(b"x" * 2000), "compressed by gzip"),
        (b"\0" * 10240, "has no images"),
    ],
    ids=["empty", "text", "gzip", "zeros"],
)
def test_a_file_that_is_not_a_shard_is_refused(tmp_path: Path, own_cache: Path, content: bytes, message: str):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(VitrailError, match=message):
        open_source(tmp_path / "x.tar")


def test_a_shard_truncated_anywhere_is_never_taken_for_complete(tmp_path: Path, own_cache: Path):
    whole = write_tar(
        tmp_path / "x.tar", *((f"{label}/{i}.png", png_bytes(i)) for label in "ab" for i in range(3))
    ).read_bytes()
    used_bytes = len(whole.rstrip(b"\0"))
    draw = random.Random(3)
    for cut in (512, 1024, used_bytes - used_bytes % 512, *(draw.randrange(600, used_bytes) for _ in range(40))):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        try:
            source = open_source(tmp_path / "x.tar", missing_ok=True)
        except VitrailError:
            continue
        assert source.damaged
    damaged = bytearray(whole)
    damaged[whole.index(b"b/0.png") + 3] ^= 64  # in a header: its checksum is wrong
    (tmp_path / "x.tar").write_bytes(damaged)
    source = open_source(tmp_path / "x.tar", missing_ok=True)
    assert len(source.splits["all"]) == 3 and "damaged" in source.damaged[0]
