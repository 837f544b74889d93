"""Readers of files answer any bytes with a result or one of vitrail's errors."""

import contextlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from test_battery import FILES
from test_decode import VICTIMS
from vitrail.data.check import check_data
from vitrail.data.decode import ImageError, decode
from vitrail.data.open import open_source
from vitrail.errors import VitrailError
from vitrail.loading import load
from vitrail.training.checkpoint import CHECKPOINT_FILES, find_damage
from vitrail.training.recipes import find_recipe

MANY = settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@st.composite
def mutate(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Draws one of the originals with some bytes changed, deleted, inserted, or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(("set", "delete", "insert", "truncate", "number")))
        if change == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif change == "delete":
            del data[at : at + draw(st.integers(1, 40))]
        elif change == "insert":
            data[at:at] = draw(st.binary(max_size=40))
        elif change == "number":  # sizes and offsets
            number = draw(st.sampled_from((0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)))
            data[at : at + 4] = struct.pack(draw(st.sampled_from(("<I", ">I"))), number)
        elif draw(st.booleans()):
            del data[at:]
    return bytes(data)


IMAGES = [*VICTIMS.values(), *(content for content, _ in FILES.values() if 0 < len(content) < 20_000)]


@pytest.mark.filterwarnings("ignore")
@settings(MANY, max_examples=1500)
@given(mutate(IMAGES))
def test_the_decoder(data: bytes):
    try:
        image = decode(io.BytesIO(data), name="victim")
    except ImageError as error:
        assert error.sentence.startswith("victim: ")
    else:
        assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3


@pytest.fixture(scope="module")
def artifact(run) -> bytes:
    return (run.folder / "classifier.safetensors").read_bytes()


@MANY
@given(data=st.data())
def test_the_artifact_reader_with_any_bytes_changed(artifact: bytes, tmp_path: Path, data: st.DataObject):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data.draw(mutate([artifact, artifact[: struct.unpack("<Q", artifact[:8])[0] + 8]])))
    try:
        load(path)
    except VitrailError as error:
        assert str(path) in error.sentence


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=8,
)


@MANY
@given(data=st.data())
def test_the_artifact_reader_with_any_metadata(artifact: bytes, tmp_path: Path, data: st.DataObject):
    """The weights are valid; one value of the JSON beside them is replaced."""
    length = struct.unpack("<Q", artifact[:8])[0]
    header = json.loads(artifact[8 : 8 + length])
    document = json.loads(header["__metadata__"]["vitrail"])
    parent, key = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(parent[key], dict) and parent[key] and data.draw(st.booleans()):
        parent, key = parent[key], data.draw(st.sampled_from(sorted(parent[key])))
    parent[key] = data.draw(JSON)
    header["__metadata__"]["vitrail"] = json.dumps(document)
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + artifact[8 + length :])
    try:
        classifier = load(path)
        for size in ((16, 16), (7, 30)):
            classifier.predict(torch.zeros(classifier.preprocess.channels, *size, dtype=torch.uint8))
    except VitrailError:
        pass


CELLS = st.text(max_size=12) | st.sampled_from(("path", "label", "split", "a.png", "b.png", "train", "test", '"', "\n"))
ROWS = st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=8).map("\n".join)


@pytest.mark.filterwarnings("ignore")
@MANY
@given(
    text=ROWS.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=200), end=st.sampled_from("ct")
)
@example(text=b"path,label\na.png,x\na.png\0,y\n", end="c")
@example(text=b"path,label\n" + b"../" * 3000 + b"a.png,x\n", end="c")
@example(text=b'path,label\n"' + b"x" * 200_000 + b'",x\n', end="c")
@example(text=b"path,label\n/dev/zero,x\n/dev/stdin,y\n", end="c")
@example(text=b"path,label,label\na.png,x,y\n", end="c")
@example(text=b"path,label\na.png,x,too,many\n", end="c")
def test_the_table_reader(tmp_path: Path, text: bytes, end: str):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    table = tmp_path / f"list.{end}sv"
    table.write_bytes(text)
    with contextlib.suppress(VitrailError):
        open_source(table)
    check_data(table)  # raises no error, whatever is in the table


@MANY
@given(text=st.text(max_size=200) | JSON.map(json.dumps), end=st.sampled_from((".toml", ".json")))
def test_the_recipe_reader(tmp_path: Path, text: str, end: str):
    path = tmp_path / f"recipe{end}"
    path.write_text(text, encoding="utf-8", errors="replace")
    with contextlib.suppress(VitrailError):
        find_recipe(path)


@MANY
@given(manifest=JSON.map(json.dumps).map(str.encode) | st.binary(max_size=100))
def test_the_manifest_reader(tmp_path: Path, manifest: bytes):
    for name in CHECKPOINT_FILES:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "manifest.json").write_bytes(manifest)
    assert find_damage(tmp_path)
