"""Runs the commands and the code of README.md; page_checks.py those of docs/."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import picture
from document_blocks import ROOT, list_blocks, list_pages, read_page, shell

README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
BLOCKS = [block for block in list_blocks("README.md") if block.language != "text"]


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


VITRAIL = [sys.executable, "-m", "vitrail"]


def test_every_block_is_of_a_kind_that_is_tested():
    assert [block.language for block in BLOCKS] == ["sh", "sh", "sh", "python", "python"]


def test_the_make_commands_are_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make (\S+)", BLOCKS[0].text, re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= targets


def test_the_commands_for_the_bundled_classifier_and_their_output(folder: Path):
    (output,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    done = shell(BLOCKS[1].text, folder, VITRAIL)
    assert done.returncode == 0, done.stderr
    assert "cat.jpg: cat " in done.stdout and "85.13%" in done.stdout
    for line in output.replace("\ncenter", " center").splitlines():
        assert line in done.stdout
    assert (folder / "explanations" / "cat.libragrad.png").exists()


def test_the_commands_for_a_folder_of_photos(folder: Path, prepared_vitrail: list[str]):
    done = shell(BLOCKS[2].text + "vitrail train photos --out runs/photos --resume\n", folder, prepared_vitrail)
    assert done.returncode == 0, done.stderr
    assert "ready to train" in done.stdout
    assert "cats" in done.stdout
    assert (folder / "runs" / "photos" / "attention.png").exists()
    assert (folder / "explanations" / "1.libragrad.png").exists()


def test_the_python(folder: Path, prepared_vitrail: list[str]):
    example, vit = BLOCKS[3].text, BLOCKS[4].text
    assert len(example.splitlines()) <= 10
    done = subprocess.run([*prepared_vitrail, "-c", f"{example}\n{vit}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label, interval, shape = done.stdout.splitlines()[-3:]
    assert shape == "torch.Size([2, 3, 97, 97])"
    assert label in map(str, range(10)) and re.fullmatch(r"\(0\.\d+, 0\.\d+\)", interval)
    assert (folder / "seven.png").exists() and (folder / "digits.pt2").exists()


def list_anchors(text: str) -> set[str]:
    """Returns the anchors of the headings of a Markdown text, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_point_to_existing_files_and_headings():
    for page in list_pages():
        text = re.sub(r"^```.*?^```$", "", read_page(page), flags=re.DOTALL | re.MULTILINE)
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
            if ":" in target:
                continue
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), f"{page}: {target}"
            text_there = path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
            if anchor and text_there and "```{" not in text_there:  # `make test-docs` checks made pages
                assert anchor in list_anchors(text_there), f"{page}: {target}#{anchor}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_verbs_table_names_every_verb():
    from vitrail.cli.main import VERBS

    rows = [line for line in USAGE.splitlines() if line.startswith("| `vitrail")]
    assert {verb for row in rows for verb in re.findall(r"`vitrail (\w+)", row.split("|")[1])} == set(VERBS)
