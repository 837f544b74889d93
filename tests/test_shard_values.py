"""Shards of bands, of images of several files, and of numbers: what is read back is what was packed."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitrail
from vitrail.cli import main
from vitrail.data.bands import Bands
from vitrail.data.labels import Numbers
from vitrail.data.open import open_source
from vitrail.data.shards.writer import write_shards
from vitrail.data.source import Source
from vitrail.errors import VitrailError


def write_images(folder: Path, suffix: str, random: np.random.Generator) -> Bands:
    """Writes six images with random bands, of two classes; returns the bands."""
    count = int(random.integers(2, 8))
    dtype = str(random.choice(["uint8", "uint16", "int16", "float32"]))
    if suffix == ".png":
        count, dtype = 1, "uint16"
    for i in range(6):
        size = random.integers(8, 20, 2).tolist()
        values = (random.random((count, *size)) * 200).astype(dtype)
        path = folder / str(i % 2) / f"{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".tif":
            pytest.importorskip("tifffile").imwrite(path, values, photometric="minisblack", planarconfig="separate")
        else:
            from PIL import Image

            Image.fromarray(values[0] * 256).save(path)
    return Bands(count, dtype)  # type: ignore[arg-type]


def all_values(source: Source) -> list[list[float]]:
    """The values of each image, row by row."""
    return [each.pixels[i].flatten().tolist() for each in source.splits.values() for i in range(len(each))]


def check_equal(before: Source, folder: Path) -> None:
    """Packs a source, and checks that shards with and without their index have the same names, labels and pixels."""
    write_shards(before, folder, images_per_shard=4)
    after = open_source(folder)
    assert after.channels == before.channels and after.task == before.task
    for split, listing in before.splits.items():
        packed = after.splits[split]
        assert list(packed.names) == list(listing.names) and list(packed.labels) == list(listing.labels)
        for i in range(len(listing)):
            assert packed.pixels[i].dtype == listing.pixels[i].dtype
            assert torch.equal(packed.pixels[i], listing.pixels[i])
    (folder / "index.safetensors").unlink()
    again = open_source(folder, task=before.task)
    assert again.channels == before.channels
    assert sorted(all_values(again)) == sorted(all_values(before))


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png"])
@pytest.mark.parametrize("seed", range(3))
def test_bands_of_files(suffix: str, seed: int, tmp_path: Path):
    bands = write_images(tmp_path / "images", suffix, np.random.default_rng(seed))
    source = open_source(tmp_path / "images")
    assert source.channels == bands
    check_equal(source, tmp_path / "shards")


def test_bands_of_several_files_and_of_arrays(tmp_path: Path):
    random = np.random.default_rng(0)
    rows = ["path_red,path_nir,label"]
    for i in range(6):
        for name in ("red", "nir"):
            np.save(tmp_path / f"{name}-{i}.npy", random.integers(0, 60000, (9, 8)).astype(np.uint16))
        rows.append(f"red-{i}.npy,nir-{i}.npy,{i % 2}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    check_equal(open_source(tmp_path / "t.csv"), tmp_path / "of-files")
    with tarfile.open(tmp_path / "of-files" / "shards-000000.tar") as tar:
        assert {name.rpartition(".")[2] for name in tar.getnames()} == {"npy", "cls", "json"}
    arrays = random.integers(-3000, 3000, (6, 9, 8, 5)).astype(np.int16)
    source = open_source((arrays, ["a", "b"] * 3))
    assert source.channels == Bands(5, "int16")
    check_equal(source, tmp_path / "of-arrays")


def test_8_bit_arrays_are_packed_too(tmp_path: Path):
    for i in range(4):
        (tmp_path / "images" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "images" / str(i % 2) / f"{i}.npy", np.full((8, 9, 3), i * 20, np.uint8))
    check_equal(open_source(tmp_path / "images"), tmp_path / "shards")


def test_training_on_shards_of_bands_is_that_on_the_folder(tmp_path: Path):
    write_images(tmp_path / "images", ".npy", np.random.default_rng(1))
    options = ["--epochs", "1", "--width", "16", "--depth", "1", "--heads", "2", "--patch", "4", "--image-size", "8"]
    options += ["--no-report", "--validation-fraction", "0", "--test-fraction", "0.34", "--recipe", "small"]
    assert main(["shard", str(tmp_path / "images"), "--out", str(tmp_path / "shards")]) == 0
    for name in ("images", "shards"):
        assert main(["train", str(tmp_path / name), "--out", str(tmp_path / f"run-{name}"), *options]) == 0
    first, second = (vitrail.load(tmp_path / f"run-{name}") for name in ("images", "shards"))
    assert first.preprocess == second.preprocess
    for a, b in zip(first.vit.state_dict().values(), second.vit.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_shards_of_other_bands_do_not_mix(tmp_path: Path):
    for name, channels in (("train", 3), ("test", 4)):
        arrays = np.zeros((4, 9, 8, channels), np.uint16)
        arrays[:, 0, 0, 0] = range(4)
        write_shards(open_source((arrays, ["a", "b"] * 2)), tmp_path / name / "shards")
    with pytest.raises(VitrailError, match="3 channels of uint16, those of .* 4 channels of uint16"):
        open_source(str(tmp_path / "{train,test}" / "shards" / "shards-000000.tar"))


def number_table(folder: Path, names: tuple[str, ...]) -> Path:
    random = np.random.default_rng(0)
    rows = [",".join(["path", *names])]
    for i in range(6):
        np.save(folder / f"{i}.npy", random.integers(0, 255, (8, 8, 3)).astype(np.uint8))
        rows.append(",".join([f"{i}.npy", *(repr(float(each)) for each in random.normal(0, 1e3, len(names)))]))
    (folder / "t.csv").write_text("\n".join(rows))
    return folder / "t.csv"


@pytest.mark.parametrize("names", [("angle",), ("angle", "weight", "count")])
def test_numbers_are_read_back_exactly(names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = open_source(number_table(tmp_path, names))
    assert main(["shard", str(tmp_path / "t.csv"), "--out", str(tmp_path / "shards"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    after: Any = open_source(tmp_path / "shards")
    before, packed = source.splits["all"].labels, after.splits["all"].labels
    assert isinstance(before, Numbers) and isinstance(packed, Numbers) and packed.names == names
    assert np.array_equal(before.encode(names), packed.encode(names)) and after.task == "regression"
    with tarfile.open(tmp_path / "shards" / "shards-000000.tar") as tar:
        members = [name for name in tar.getnames() if name.endswith(".json")]
        documents = [json.loads(tar.extractfile(name).read()) for name in members]  # type: ignore[union-attr]
        assert not [name for name in tar.getnames() if name.endswith(".cls")]
    assert sorted(each["numbers"]["angle"] for each in documents) == sorted(before.encode(names)[:, 0].tolist())
    (tmp_path / "shards" / "index.safetensors").unlink()
    again = open_source(tmp_path / "shards", task="regression").splits["all"].labels
    assert sorted(map(tuple, again.encode(again.classes).tolist())) == sorted(map(tuple, before.encode(names).tolist()))
