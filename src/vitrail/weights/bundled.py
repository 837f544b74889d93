"""Classifiers that come with the package: artifacts with their model cards, written by tools/make_bundled.py."""

from importlib.resources import files
from pathlib import Path


def bundled_classifiers() -> dict[str, Path]:
    """Returns the artifacts by name."""
    folder = Path(str(files("vitrail.weights").joinpath("bundled_files")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def read_bundled_card(name: str) -> str:
    """Returns a bundled classifier's model card, in Markdown."""
    return bundled_classifiers()[name].with_suffix(".md").read_text(encoding="utf-8")
