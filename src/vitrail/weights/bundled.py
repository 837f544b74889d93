"""Classifiers that come with the package: artefacts of our own, each with its card, made by tools/make_box.py."""

from importlib.resources import files
from pathlib import Path


def bundled_classifiers() -> dict[str, Path]:
    """The artefacts by name."""
    folder = Path(str(files("vitrail.weights").joinpath("bundled_files")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def read_bundled_card(name: str) -> str:
    """The card of a classifier that comes with the package, in Markdown."""
    return bundled_classifiers()[name].with_suffix(".md").read_text(encoding="utf-8")
