"""Runs the commands and the code of README.md and docs/usage.md."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision

import vitrail
from conftest import picture

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
BLOCKS = [
    block
    for text in (README, USAGE)
    for block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    if block[0] != "text"
]


def find_block(words: str) -> str:
    """Returns the only block that has these words."""
    (block,) = (text for _, text in BLOCKS if words in text)
    return block


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the README's reader has it: photos/ with two classes, and the project's examples/."""
    for c, label in enumerate(("cats", "dogs")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            picture(((200, 60, 40), (40, 80, 200))[c], 100 * c + i, (24, 24)).save(
                tmp_path / "photos" / label / f"{i}.jpg"
            )
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def cache(folder: Path) -> dict[str, str]:
    return {**os.environ, "TORCH_HOME": str(folder / "torch")}


VITRAIL = [sys.executable, "-m", "vitrail"]


def shell(script: str, folder: Path, vitrail: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a script in which `vitrail` is this command."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "vitrail").write_text(f'#!/bin/sh\nexec {shlex.join(vitrail)} "$@"\n')
    (tools / "vitrail").chmod(0o755)
    env = {**cache(folder), "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-eu", "-c", script], cwd=folder, env=env, capture_output=True, text=True)


def test_every_block_is_of_a_kind_that_is_tested():
    assert [language for language, _ in BLOCKS] == [
        "sh",
        "sh",
        "sh",
        "python",
        "python",
        *["sh"] * 5,
        *["python"] * 2,
        "sh",
    ]


def test_the_make_commands_are_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make (\S+)", BLOCKS[0][1], re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= targets


def test_the_commands_for_the_bundled_classifier_and_their_output(folder: Path):
    (output,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    done = shell(BLOCKS[1][1], folder, VITRAIL)
    assert done.returncode == 0, done.stderr
    assert "cat.jpg: cat " in done.stdout and "85.13%" in done.stdout
    for line in output.replace("\ncenter", " center").splitlines():
        assert line in done.stdout
    assert (folder / "explanations" / "cat.libragrad.png").exists()


def test_the_commands_for_a_folder_of_photos(folder: Path, prepared_vitrail: list[str]):
    done = shell(BLOCKS[2][1] + "vitrail train photos --out runs/photos --resume\n", folder, prepared_vitrail)
    assert done.returncode == 0, done.stderr
    assert "ready to train" in done.stdout
    assert "cats" in done.stdout
    assert (folder / "runs" / "photos" / "attention.png").exists()
    assert (folder / "explanations" / "1.libragrad.png").exists()


def test_the_python(folder: Path, prepared_vitrail: list[str]):
    example, vit = BLOCKS[3][1], BLOCKS[4][1]
    assert len(example.splitlines()) <= 10
    done = subprocess.run([*prepared_vitrail, "-c", f"{example}\n{vit}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, interval, shape = done.stdout.splitlines()[-3:]
    assert shape == "torch.Size([2, 3, 97, 97])"
    assert label in map(str, range(10)) and re.fullmatch(r"\(0\.\d+, 0\.\d+\)", interval)
    assert (folder / "seven.png").exists() and (folder / "digits.pt2").exists()


def test_public_weights(folder: Path, prepared_vitrail: list[str]):
    """With torchvision's file in the cache, made by torchvision itself; its weights are random."""
    cached = folder / "torch/hub/checkpoints/vit_b_16-c867db91.pth"
    cached.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.vit_b_16().state_dict(), cached)
    done = shell(find_block("vitrail models vit_b_16"), folder, prepared_vitrail)
    assert done.returncode == 0, done.stderr
    assert "torchvision/vit_b_16.swag_linear_v1" in done.stdout
    assert "transformers.ViTForImageClassification.from_pretrained" in done.stdout
    python = subprocess.run(
        [*prepared_vitrail, "-c", find_block('torchvision/vit_b_16")')],
        cwd=folder,
        env=cache(folder),
        capture_output=True,
        text=True,
    )
    assert python.returncode == 0, python.stderr
    assert python.stdout.count("Prediction(label=") == 5


def test_predictions_in_python(folder: Path, prepared_vitrail: list[str]):
    code = find_block("to_pandas")
    done = subprocess.run([*prepared_vitrail, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cat 0.8") and "['cat', " in done.stdout and "[2 rows x 13 columns]" in done.stdout


def test_pretraining_on_images_without_labels(folder: Path, prepared_vitrail: list[str]):
    (folder / "more-photos").symlink_to(folder / "photos")
    script = find_block("vitrail pretrain").replace("--probe-data", "--epochs 2 --probe-data")
    script = script.replace("--from runs/mae", "--from runs/mae --epochs 1 --no-report")
    done = shell(script, folder, prepared_vitrail)
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "mae" / "reconstructions.png").exists()
    assert (folder / "runs" / "photos" / "classifier.safetensors").exists()


def test_the_folds(folder: Path, prepared_vitrail: list[str]):
    quick = "--folds 2 --epochs 1 --width 16 --depth 1 --heads 2 --no-report"
    done = shell(find_block("--folds 5").replace("--folds 5", quick), folder, prepared_vitrail)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all 20 out-of-fold predictions") == 2
    assert (folder / "runs" / "folds" / "final" / "classifier.safetensors").exists()


def test_the_sweep(folder: Path, prepared_vitrail: list[str]):
    done = shell(find_block("vitrail sweep"), folder, prepared_vitrail)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best on validation: trial") == 2
    assert (folder / "sweeps" / "photos" / "trials" / "003" / "classifier.safetensors").exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_serving(folder: Path, run: vitrail.Run, prepared_vitrail: list[str]):
    shutil.copytree(run.folder, folder / "runs" / "photos")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    block = next(text for text in BLOCKS if "vitrail serve" in text[1])[1]
    done = shell(
        block.replace("8000", str(port)).replace("serve runs", "serve --backend torch runs") + "wait\n",
        folder,
        prepared_vitrail,
    )
    assert done.stdout.count('"predictions"') == 2, done.stderr
    assert done.stdout.count('"label"') == 9
    assert (folder / "why.png").read_bytes().startswith(b"\x89PNG")
    assert '"event": "stopped"' in done.stderr


def test_links_point_to_existing_files():
    for text, folder in ((README, ROOT), (USAGE, ROOT / "docs")):
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (folder / target).exists(), target


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_verbs_table_names_every_verb():
    from vitrail.cli.main import VERBS

    rows = [line for line in USAGE.splitlines() if line.startswith("| `vitrail")]
    assert {verb for row in rows for verb in re.findall(r"`vitrail (\w+)", row.split("|")[1])} == set(VERBS)
