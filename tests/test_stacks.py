"""Images of several files, which are columns of a table: their values, every verb on them, and errors."""

import csv
import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.cli import main
from vitrail.data.band_files import write_npy
from vitrail.data.bands import Bands, BandsError, Channels
from vitrail.data.decode import ImageError, decode
from vitrail.data.open import open_source
from vitrail.data.stacks import ImageStacks, read_stack
from vitrail.errors import VitrailError
from vitrail.prediction.entry import Entry
from vitrail.prediction.sources import read_path_columns
from vitrail.serving.decode_worker import answer_file

TINY = ["--epochs", "4", "--lr", "3e-3", "--width", "16", "--depth", "1", "--heads", "2", "--mlp-width", "32"]
TINY += ["--patch", "4", "--batch-size", "16", "--no-report"]
RANDOM = np.random.default_rng(0)


def gray(seed: int, dtype: str = "uint8", size: tuple[int, int] = (8, 9)) -> np.ndarray:
    """A channel (h, w) that uses the range of its type."""
    random = np.random.default_rng(seed)
    return (
        random.random(size, np.float32) if dtype == "float32" else random.integers(0, np.iinfo(dtype).max, size, dtype)
    )


def save(path: Path, array: np.ndarray) -> Path:
    """Writes an array as a file of the format that the name has."""
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def write_table(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


# Values

COLOR = np.stack([gray(seed) for seed in (1, 2, 3)], axis=2)
STACKS: dict[str, tuple[dict[str, np.ndarray], Channels, str]] = {  # files, what they are together, type in an .npy
    "uint16": ({"a.png": gray(1, "uint16"), "b.tif": gray(2, "uint16")}, Bands(2, "uint16"), "uint16"),
    "float": ({"a.tif": gray(1, "float32"), "b.npy": gray(2, "float32")}, Bands(2, "float32"), "float32"),
    "three of 8 bits are a color image": ({f"{k}.png": gray(k) for k in range(3)}, 3, "uint8"),
    "color and infrared": ({"color.png": COLOR, "nir.png": gray(4)}, Bands(4, "uint8"), "uint8"),
    "color and depth": ({"color.png": COLOR, "depth.png": gray(4, "uint16")}, Bands(4, "float32"), "float32"),
    "channels of .npy": ({"a.npy": gray(1, size=(5, 8, 9)), "b.png": gray(2)}, Bands(6, "uint8"), "uint8"),
}  # fmt: skip


@pytest.mark.parametrize("case", STACKS)
def test_a_stack_has_the_values_of_an_npy_file_of_its_channels(case: str, tmp_path: Path):
    files, channels, dtype = STACKS[case]
    paths = tuple(save(tmp_path / name, array) for name, array in files.items())
    parts = [
        array[None] if array.ndim == 2 else array if len(array) < 8 else np.moveaxis(array, 2, 0)
        for array in files.values()
    ]
    expected = np.concatenate([part.astype(dtype) for part in parts])
    np.save(tmp_path / "together.npy", expected)
    stack = ImageStacks([paths])
    assert stack.find_channels() == channels
    stack = stack.with_channels(channels)
    assert torch.equal(stack[0], decode(tmp_path / "together.npy", channels))
    assert stack[0].shape == (len(expected), 8, 9) and stack.read_size(0) == (8, 9)
    assert stack[0].dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert stack.location(0) == str(paths[0])


@pytest.mark.parametrize("seed", range(20))
def test_an_npy_file_that_vitrail_writes_is_read_as_the_same_image(seed: int):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 9, 3).tolist())
    values = random.integers(0, 60000, shape).astype(np.uint16)
    if shape[0] > 1 and shape[0] > shape[1] and shape[0] >= shape[2]:
        with pytest.raises(BandsError, match="more channels"):
            write_npy(values)
    else:
        pixels = decode(BytesIO(write_npy(values)), Bands(shape[0], "uint16"))
        assert np.array_equal(pixels.numpy(), values)


def test_digests_sizes_and_keys_change_with_every_file(tmp_path: Path):
    paths = tuple(save(tmp_path / f"{k}.png", gray(k)) for k in range(3))
    stack = ImageStacks([paths])
    before = stack.sha256(np.array([0])).tobytes(), stack.cache_key(0), stack.byte_sizes().tolist()
    assert before[2] == [sum(path.stat().st_size for path in paths)]
    for path in paths:
        content = path.read_bytes()
        save(path, gray(9))
        assert stack.sha256(np.array([0])).tobytes() != before[0] and stack.cache_key(0) != before[1]
        path.write_bytes(content)
    paths[2].unlink()
    assert stack.byte_sizes().tolist() == [-1]


BAD: dict[str, tuple[dict[str, np.ndarray | bytes], Channels, str]] = {
    "sizes": ({"a.png": gray(1), "b.png": gray(2, size=(4, 6))}, 3, "9x8 pixels, and .*b.png, .* has 6x4"),
    "damaged": ({"a.png": gray(1), "b.png": b"nothing"}, 3, "a.png: .*b.png, of the same image: not an image"),
    "types": ({"a.png": gray(1, "uint16"), "b.png": gray(2)}, Bands(2, "uint16"), "uint16, and .*b.png.* has uint8"),
    "reduced": ({"a.pgm": gray(1, "uint16"), "b.pgm": gray(2, "uint16")}, 3, "a.pgm: its values of more than 8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_stack_that_cannot_be_read_names_the_files(case: str, tmp_path: Path):
    files, channels, sentence = BAD[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content) if isinstance(content, bytes) else save(tmp_path / name, content)
    paths = [tmp_path / name for name in files]
    with pytest.raises(ImageError, match=sentence) as caught:
        read_stack(paths, channels)
    assert caught.value.name == str(paths[0])


# Columns

HEADERS = {
    "path_red,path_nir": 2,
    "image_1,image_2": 2,
    "image1,image2": 2,
    "FileName_DNA,FileName_ER": 2,  # of CellProfiler
    "red_path,nir_path": 2,
    "left_file_name,right_file_name": 2,  # of Hugging Face
    "image,image_mask": 1,
    "path_red,path": 1,
    "name,thumbnail": 1,
}


@pytest.mark.parametrize("header", HEADERS)
def test_columns_that_are_named_as_paths_are_stacked(header: str, tmp_path: Path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, gray(1))
    columns = header.split(",")
    table = write_table(
        tmp_path / "t.csv", [[*columns, "image_id", "label"], *[["a.png", "b.png", "17", x] for x in "xy"]]
    )
    source = open_source(table)
    count = HEADERS[header]
    files = ("a.png", "b.png") if count == 2 or columns[0] != "path_red" else ("b.png",)
    assert [files[:count] for _ in "xy"] == [tuple(Path(file).name for file in row) for row in read_path_columns(table)]
    assert isinstance(source.splits["all"].pixels, ImageStacks) == (count == 2)
    assert list(source.splits["all"].names) == [files[0]] * 2
    assert bool(source.notes and "the channels of an image are those of" in source.notes[0]) == (count == 2)
    [unused] = source.left_out
    assert "image_id" in unused.sentence and ("columns such as path_red" in unused.sentence) == (count == 1)


def test_a_table_that_does_not_say_which_images_names_the_way(tmp_path: Path):
    table = write_table(tmp_path / "t.csv", [["red", "green", "nir", "label"], ["a.tif", "b.tif", "c.tif", "x"]])
    with pytest.raises(VitrailError, match=r"several columns of image files \(red, green, nir\)") as caught:
        open_source(table)
    assert "name them path_red, path_green, path_nir if" in (caught.value.hint or "")


def test_an_empty_or_missing_file_of_an_image_is_named(tmp_path: Path):
    save(tmp_path / "a.png", gray(1))
    rows = [["path_1", "path_2", "label"], ["a.png", "a.png", "x"], ["a.png", "none.png", "y"]]
    with pytest.raises(VitrailError, match="line 3: there is no file .*none.png"):
        open_source(write_table(tmp_path / "t.csv", rows))
    rows[2][1] = ""
    with pytest.raises(VitrailError, match="line 3: the column 'path_2' is empty"):
        open_source(write_table(tmp_path / "t.csv", rows))


def test_no_channel_is_lost_if_the_first_row_lacks_its_file(tmp_path: Path):
    save(tmp_path / "a.png", gray(1))
    rows = [["path_1", "path_2", "path_3", "label"], ["a.png", "a.png", "", "x"], ["a.png", "a.png", "a.png", "y"]]
    table = write_table(tmp_path / "t.csv", rows)
    for read in (open_source, lambda file: list(read_path_columns(file))):
        with pytest.raises(VitrailError, match="line 3: the column 'path_3' has an image, and the first row has none"):
            read(table)


def test_json_lines_and_parquet_have_the_same_images(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [{"path_red": "a.npy", "path_nir": "b.npy", "label": label} for label in "xy"]
    for name in ("a.npy", "b.npy"):
        save(tmp_path / name, gray(1, "uint16"))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        source = open_source(tmp_path / name)
        assert source.channels == Bands(2, "uint16") and len(source.splits["all"]) == 2


def test_a_listed_image_keeps_its_files():
    entry = Entry("a.tif", 3, 4, None, ("b.tif", "c.tif"))
    assert Entry.from_line(entry.to_line()) == entry
    assert Entry.from_line('["a.tif", 3, 4]\n') == Entry("a.tif", 3, 4)


# Every verb


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stack.csv (three files per image) and npy.csv (one) of the same 90 images."""
    root = tmp_path_factory.mktemp("tables")
    random = np.random.default_rng(0)
    stack, single = [["path_red", "path_green", "path_nir", "label", "split"]], [["path", "label", "split"]]
    for i in range(90):
        label, split = ("bare", "field", "water")[i % 3], ("test" if i % 10 > 7 else "val" if i % 10 == 7 else "train")
        values = random.integers(1000, 2000, (3, 8, 8)).astype(np.uint16)
        values[2] += 1000 * (i % 3)
        names = [f"{i:02}-{channel}.png" for channel in ("red", "green", "nir")]
        for name, channel in zip(names, values, strict=True):
            save(root / name, channel)
        np.save(root / f"{i:02}.npy", values)
        stack.append([*names, label, split])
        single.append([f"{i:02}.npy", label, split])
    write_table(root / "stack.csv", stack)
    write_table(root / "npy.csv", single)
    return root


@pytest.fixture(scope="module")
def stack_run(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stack"
    assert main(["train", str(tables / "stack.csv"), "--out", str(out), *TINY]) == 0
    return out


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_training_is_that_on_npy_files(stack_run: Path, tables: Path, tmp_path: Path):
    assert main(["train", str(tables / "npy.csv"), "--out", str(tmp_path / "npy"), *TINY]) == 0
    stack, npy = (json.loads((folder / "result.json").read_text()) for folder in (stack_run, tmp_path / "npy"))
    assert stack["test"]["accuracy"] == npy["test"]["accuracy"] > 0.6  # chance: 1/3
    first, second = (vitrail.load(folder) for folder in (stack_run, tmp_path / "npy"))
    for a, b in zip(first.vit.state_dict().values(), second.vit.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_predict_evaluate_explain_and_similar(
    stack_run: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    parquet = pytest.importorskip("pyarrow.parquet")
    stack, npy = (
        answer(capsys, "predict", stack_run, tables / f"{name}.csv")["predictions"] for name in ("stack", "npy")
    )
    assert [row["top"] for row in stack] == [row["top"] for row in npy]
    assert stack[3]["path"] == str(tables / "03-red.png")
    assert main(["predict", str(stack_run), str(tables / "stack.csv"), "--out", str(tmp_path / "rows")]) == 0
    rows = parquet.read_table(tmp_path / "rows" / "part-000000.parquet").to_pylist()
    assert [row["path"] for row in rows] == [row["path"] for row in stack]
    evaluated = answer(capsys, "evaluate", stack_run, tables / "stack.csv")
    assert evaluated["accuracy"] == answer(capsys, "evaluate", stack_run, tables / "npy.csv")["accuracy"]
    few = write_table(
        tables / "few.csv", [row.split(",") for row in (tables / "stack.csv").read_text().splitlines()[:3]]
    )
    explained = answer(capsys, "explain", stack_run, few, "--out", tmp_path / "maps")["explanations"]
    assert [row["path"] for row in explained] == [row["path"] for row in stack[:2]]
    similar = answer(capsys, "similar", stack_run, few, tables / "stack.csv", "--top", "1")
    assert str(tables / "00-red.png") in json.dumps(similar)


def test_check_and_skip_unreadable(tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        [str(tables / cell) if "." in cell else cell for cell in row]
        for row in csv.reader((tables / "stack.csv").read_text().splitlines())
    ]
    save(tmp_path / "small.png", gray(1, "uint16", (3, 4)))
    rows[5][2] = str(tmp_path / "small.png")
    rows.append(rows[1])
    table = write_table(tmp_path / "t.csv", rows)
    report = answer(capsys, "check", table, code=1)
    [error] = report["errors"]
    assert "it has 8x8 pixels, and" in error and "small.png, of the same image, has 4x3" in error
    assert report["color_types"] == {"3 channels of uint16": 90}
    assert any("listed" in warning and "00-red.png" in warning for warning in report["warnings"])
    assert main(["train", str(table), "--out", str(tmp_path / "run"), *TINY]) == 1
    assert "small.png, of the same image" in capsys.readouterr().err
    assert main(["train", str(table), "--out", str(tmp_path / "run"), *TINY, "--epochs", "1", "--skip-unreadable"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["unreadable"] == {"train": 1}
    assert main(["check", str(table), "--fix", str(tmp_path / "clean.csv")]) == 1
    clean = open_source(tmp_path / "clean.csv")
    assert clean.channels == Bands(3, "uint16") and sum(map(len, clean.splits.values())) == 89


def test_the_server_says_that_a_request_is_one_file(stack_run: Path, tables: Path):
    preprocess = vitrail.load(stack_run).preprocess.to_json()
    request = {"preprocess": preprocess, "max_megapixels": 1, "decode_large": True}
    document, _ = answer_file(request, (tables / "00-red.png").read_bytes())
    assert "1 channel of uint16, and not 3" in document["unreadable"] and "one file: a TIFF" in document["unreadable"]
    document, [pixels] = answer_file(request, (tables / "00.npy").read_bytes())
    assert math.prod(document["pixels"]) == pixels.size
