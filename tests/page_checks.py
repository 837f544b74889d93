"""Runs the commands and the code of the documentation: `make test-docs`. README.md has tests of its own."""

import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import vitrail
from conftest import drawing, picture
from document_blocks import ROOT, Block, has_same_words, list_blocks, list_pages, plugin_code, read_page, shell

TESTED_ELSEWHERE = {  # pages whose blocks of Python belong together
    "docs/callbacks.md": "test_callbacks",
    "docs/interplay.md": "test_interplay",
    "docs/plugins.md": "test_plugins",
}
RUNNABLE = {"sh", "python"}
TABLE = "rows of photos.csv"  # the note of a block that shows what a table has
# Small and fast: one epoch of a tiny model.
QUICK = """
case "$*" in
train*linear*) quick="--no-report --no-pictures" ;;
train*--from*) quick="--epochs 1 --no-report --no-pictures" ;;
train*) quick="--epochs 1 --width 16 --depth 1 --heads 2 --no-report --no-pictures" ;;
esac
case "$*" in *--folds*) quick="${quick% --no-pictures}" ;; esac
"""


def blocks_to_run(page: str) -> list[Block]:
    blocks = [block for block in list_blocks(page) if block.language in RUNNABLE]
    if page in TESTED_ELSEWHERE:
        blocks = [block for block in blocks if block.language == "sh"]
    return [block for block in blocks if not block.test and not block.reason]


PAGES = [page for page in list_pages() if page != "README.md" and blocks_to_run(page)]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small model on photos/."""
    folder = tmp_path_factory.mktemp("small")
    photos = make_photos(folder)
    with drawing(False):
        return vitrail.train(photos, out=folder / "run", epochs=2, width=16, depth=1, heads=2, report=False).folder


def make_photos(folder: Path, count: int = 10) -> Path:
    """A folder with `count` pictures of each of two classes."""
    for label, color in (("cats", (200, 60, 40)), ("dogs", (40, 80, 200))):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(count):
            picture(color, 100 * len(label) + i + color[0], (24, 24)).save(folder / "photos" / label / f"{i}.jpg")
    return folder / "photos"


@pytest.fixture
def folder(tmp_path: Path, small_run: Path) -> Path:
    """A folder as a reader has it: photos/, a run on them, and the project's examples/."""
    make_photos(tmp_path)
    shutil.copytree(small_run, tmp_path / "runs" / "photos")
    for name in ("new", "other", "more-photos"):
        shutil.copytree(tmp_path / "photos" / "dogs", tmp_path / name)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def write_table(folder: Path, name: str, header: str, row: Callable[[str, int], str]) -> None:
    rows = [f"photos/{label}/{i}.jpg,{row(label, i)}" for label in ("cats", "dogs") for i in range(10)]
    (folder / name).write_text("\n".join([f"path,{header}", *rows]) + "\n")


def prepare_labels(folder: Path) -> None:
    write_table(folder, "photos.csv", "label", lambda label, i: label[:-1] + (";indoor" if i % 3 == 0 else ""))


def prepare_data(folder: Path) -> None:
    """Tables of angles, images of six channels, and names of patients."""
    write_table(folder, "angles.csv", "angle", lambda label, i: f"{10 * len(label) + i + 0.5}")
    values = np.random.default_rng(0).integers(0, 4000, (20, 16, 16, 6)).astype(np.uint16)
    for name in ("fields/wheat", "fields/maize", "scans/benign", "scans/malignant"):
        (folder / name).mkdir(parents=True)
    for i in range(20):
        np.save(folder / "fields" / ("wheat", "maize")[i % 2] / f"{i}.npy", values[i])
        label = ("benign", "malignant")[i % 2]
        picture((99 * (i % 2), 90, 90), i).save(folder / "scans" / label / f"patient{i // 2:02}_{i}.png")
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(folder / "other" / "0001.tif", values[0], planarconfig="contig")


def prepare_unlike(folder: Path) -> None:
    """More images, since how unlike an image is needs 30 validation images."""
    shutil.rmtree(folder / "photos")
    shutil.rmtree(folder / "runs")
    run = vitrail.train(make_photos(folder, 200), out=folder / "runs" / "photos", epochs=1, width=16, depth=1, heads=2)
    assert run.folder.exists()
    shutil.copy(folder / "photos" / "cats" / "0.jpg", folder / "cat.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).save(folder / "noise.png")


def prepare_checkpoint(folder: Path) -> None:
    """A classifier of three classes, in place of a checkpoint of timm."""
    vit = vitrail.ViT(vitrail.ViTConfig(width=16, depth=1, heads=2, mlp_width=32, patch=4, image_size=16, classes=3))
    preprocess = vitrail.load("cifar10-small").preprocess
    vitrail.Classifier(vit, ("0", "1", "2"), preprocess).save(folder / "three.safetensors")


def prepare_plugin(folder: Path) -> None:
    (folder / "my_parts.py").write_text(plugin_code())


PREPARE = {
    "docs/howto/table.md": lambda folder: write_table(folder, "photos.csv", "label", lambda label, _: label),
    "docs/howto/several-labels.md": prepare_labels,
    "docs/data.md": prepare_data,
    "docs/unlike.md": prepare_unlike,
    "docs/migrating.md": prepare_checkpoint,
    "docs/plugins.md": prepare_plugin,
}


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_and_the_code_of_a_page(page: str, folder: Path, prepared_vitrail: list[str]):
    if page in PREPARE:
        PREPARE[page](folder)
    for block in list_blocks(page):
        if block.note == TABLE:
            assert set(block.text.splitlines()) <= set((folder / "photos.csv").read_text().splitlines())
    printed = ""
    for block in blocks_to_run(page):
        if block.language == "sh":
            done = shell(block.script, folder, prepared_vitrail, QUICK)
        else:
            command = [*prepared_vitrail, "-c", block.script]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{block.script}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        printed += done.stdout + done.stderr
    for block in list_blocks(page):
        if block.language == "text" and not block.note:
            for line in block.text.splitlines():
                assert has_same_words(line, printed), f"{line!r} is not in the output:\n{printed}"


def test_every_block_is_run_or_says_why_not():
    for page in list_pages():
        for block in list_blocks(page):
            kinds = RUNNABLE | {"text"}
            assert block.language in kinds or len(block.reason) > 10, f"{page}: a block of {block.language}"
            assert not block.test or f"test_{block.test}" in globals(), f"{page}: there is no test {block.test}"
        lines = re.findall(r"^    (?:vitrail|python|torchrun|make) .*", read_page(page), re.MULTILINE)
        assert not lines, f"{page}: commands in a block that is not fenced: {lines[:1]}"


def find_block(test: str, language: str) -> str:
    """Returns the only block in this language that belongs to a test."""
    blocks = [block for page in list_pages() for block in list_blocks(page)]
    (text,) = (block.text for block in blocks if block.test == test and block.language == language)
    return text


def test_public_weights(folder: Path, prepared_vitrail: list[str]):
    """With torchvision's file in the cache, made by torchvision itself; its weights are random."""
    cached = folder / "torch/hub/checkpoints/vit_b_16-c867db91.pth"
    cached.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.vit_b_16().state_dict(), cached)
    done = shell(find_block("public_weights", "sh") + "vitrail models vit_b_16\n", folder, prepared_vitrail)
    assert done.returncode == 0, done.stderr
    assert "torchvision/vit_b_16.swag_linear_v1" in done.stdout
    assert "transformers.ViTForImageClassification.from_pretrained" in done.stdout
    (folder / "use.py").write_text(find_block("public_weights", "python"))
    script = 'vitrail -c "$(cat use.py)"'  # the prepared command runs code, too
    python = shell(script, folder, prepared_vitrail)
    assert python.returncode == 0, python.stderr
    assert python.stdout.count("Prediction(label=") == 5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_serving(folder: Path, prepared_vitrail: list[str]):
    script = find_block("serving", "sh").replace("8000", str(free_port()))
    script = script.replace("serve runs", "serve --backend torch runs")
    done = shell(script + "wait\n", folder, prepared_vitrail)
    assert done.stdout.count('"predictions"') == 2, done.stderr
    assert done.stdout.count('"label"') == 6
    assert (folder / "why.png").read_bytes().startswith(b"\x89PNG")
    assert '"event": "stopped"' in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_a_server_behind_a_proxy(folder: Path, prepared_vitrail: list[str]):
    """Requests as the proxy passes them on: with its host name."""
    port = free_port()
    script = find_block("a_server_behind_a_proxy", "sh").replace("8000", str(port))
    script = script.replace("serve runs", "serve --backend torch --no-page --no-explain runs").rstrip() + " &\n"
    script += f"curl -s --retry 60 --retry-connrefused --retry-all-errors -f localhost:{port}/v2/health/ready\n"
    for host in ("photos.example.org", "elsewhere.example.org"):
        script += f"curl -s -o answer -w ' %{{http_code}} ' -H 'Host: {host}' --data-binary @photos/cats/1.jpg "
        script += f"localhost:{port}/predict\n"
    done = shell(script + "kill %1\nwait\n", folder, prepared_vitrail)
    assert done.stdout.split()[1:3] == ["200", "403"], done.stdout + done.stderr
