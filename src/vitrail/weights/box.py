"""Classifiers that come with the package: artefacts of our own, each with its card, made by tools/make_box.py."""

from importlib.resources import files
from pathlib import Path


def boxed() -> dict[str, Path]:
    """The artefacts by name."""
    folder = Path(str(files("vitrail.weights").joinpath("boxed")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def card_of(name: str) -> str:
    """The card of a classifier that comes with the package, in Markdown."""
    return boxed()[name].with_suffix(".md").read_text(encoding="utf-8")
