"""Exports tell nothing about the machine: no path, home folder or user name in any file of any format."""

import gzip
import io
import json
import re
import sys
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vitrail
from vitrail import Classifier, ViT, ViTConfig
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.weights.origin import without_paths

SECRET = "secret-user"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format, exported in a folder with a secret name from a model that was made there."""
    home = tmp_path_factory.mktemp(SECRET)
    torch.manual_seed(0)
    config = ViTConfig(width=32, depth=1, heads=2, mlp_width=64, patch=8, image_size=16, classes=3)
    origin = {
        "from": {"model": str(home / "start" / "weights.safetensors"), "origin": {"source": f"file://{home}/x"}},
        "source": str(home / "start"),
        "data": {"name": "colors"},
        "notes": [str(home / "notes"), "~/models/x", r"C:\Users\me\model", "timm/vit", "https://example.org/a/b"],
    }
    clf = Classifier(ViT(config).eval(), ("a", "b", "c"), Preprocess(image_size=(16, 16), min_size=8), 1.5, origin)
    model = home / "model.safetensors"
    clf.save(model)
    libraries = {name: name for name in ("timm", "hf", "torchvision")}
    outputs = {"onnx": "a.onnx", "torch": "a.pt2", "web": "a.html", **libraries}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for library in ("timm", "transformers"):  # the files are the same without a comparison
            patch.setitem(sys.modules, library, None)
        for format, name in outputs.items():
            options = ["--attention", "--map"] if format == "onnx" else []
            arguments = ["export", str(model), "--format", format, "--out", str(home / "out" / name), *options]
            assert main(arguments) == 0, format
    return home / "out"


def read_contents(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The bytes of a file, and of what is packed in it."""
    yield name, content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from read_contents(f"{name}:{member}", archive.read(member))
    if name.endswith(".html"):
        for i, packed in enumerate(re.findall(rb">\s*(H4sI[A-Za-z0-9+/=]+)", content)):
            yield f"{name}:{i}", gzip.decompress(b64decode(packed))


def test_no_exported_file_names_a_folder_or_a_user(exported: Path):
    installed = [str(Path(str(package.__file__)).parent) for package in (vitrail, torch)]
    secrets = {SECRET, str(Path.home()), str(Path.cwd()), r"C:\Users", *installed}
    secrets = {secret for secret in secrets if len(secret) > 4}
    read = 0
    for path in sorted(exported.rglob("*")):
        if not path.is_file():
            continue
        for name, content in read_contents(path.name, path.read_bytes()):
            read += 1
            for secret in secrets:
                assert secret.encode() not in content, (str(path), name, secret, around(content, secret.encode()))
    assert read > 25


def around(content: bytes, secret: bytes) -> bytes:
    i = content.index(secret)
    return content[max(0, i - 80) : i + 80]


def test_a_model_card_loads_from_a_neutral_folder(exported: Path):
    assert '"local-dir:path/to/folder"' in (exported / "timm" / "README.md").read_text()
    assert 'from_pretrained("path/to/folder")' in (exported / "hf" / "README.md").read_text()
    assert 'load_file("path/to/folder/model.safetensors")' in (exported / "torchvision" / "README.md").read_text()
    origin = vitrail.load(exported / "timm").origin
    assert SECRET not in json.dumps(origin)


def test_only_absolute_paths_are_shortened():
    values = [
        "/home/me/x",
        "~/x",
        "../x",
        "x/y",
        "timm/vit",
        "C:\\Users\\me",
        "https://a/b",
        "file:///home/me/x",
        3,
        None,
    ]
    assert without_paths({"a": values}) == {"a": ["x", "x", "x", "x/y", "timm/vit", "me", "https://a/b", "x", 3, None]}
