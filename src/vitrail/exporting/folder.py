"""A classifier -> a folder for another library, written whole or not at all, and only if it agrees."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vitrail.classifier import Classifier
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.exporting.libraries import LIBRARIES, given
from vitrail.exporting.library_check import PACKAGES, compare_with_library
from vitrail.exporting.model_card import write_model_card
from vitrail.files import write_json, write_text


@dataclass(frozen=True)
class ExportedLibrary:
    """What was written, and how far the library's answers are from ours; None where it could not be asked."""

    folder: Path
    format: str
    load_code: str
    comparison: dict[str, Any] | None
    note: str = ""  # what the library does otherwise, if it does

    @property
    def reason_not_compared(self) -> str | None:
        """Why the library was not asked, if it was not."""
        return None if self.comparison else f"{PACKAGES[self.format]} is not installed here"

    def to_json(self) -> dict[str, Any]:
        """As the command line says it."""
        nothing = {"compared_on": None, "max_difference": None, "agreement": None, "images": 0}
        agreed = self.comparison or {**nothing, "unproven": self.reason_not_compared}
        return {
            "file": str(self.folder),
            "format": self.format,
            "loads": self.load_code,
            "note": self.note or None,
            **agreed,
        }


def export_library(classifier: Classifier, format: str, out: str | Path) -> ExportedLibrary:
    """Writes the folder `out` for timm, transformers (`hf`) or torchvision.

    Where the library is not installed the folder is written without asking it, and its card says so. Raises
    `UsageError` where `out` exists or the library has no such ViT, `VitrailError` where it does not agree.
    """
    if format not in LIBRARIES:
        raise UsageError(f"there is no format {format!r}", did_you_mean(format, LIBRARIES))
    folder = Path(out)
    with atomic_folder(folder) as inside:
        found = given(classifier, format)
        save_file(found.tensors, inside / "model.safetensors", metadata={"format": "pt"})
        for name, document in found.files.items():
            write_json(inside / name, document)
        agreed = compare_with_library(classifier, format, inside)
        loads = found.loads.format(folder=folder)
        write_text(inside / "README.md", write_model_card(classifier, PACKAGES[format], loads, agreed, found.note))
    return ExportedLibrary(folder, format, loads, agreed, found.note)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder aside to write into, put in place when all is written; after an error nothing remains of it.

    Raises `UsageError` where the folder has something in it, `VitrailError` where it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already", "choose another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
            inside = Path(aside, "folder")
            inside.mkdir()
            yield inside
            if folder.is_dir():
                folder.rmdir()
            os.replace(inside, folder)
    except OSError as error:
        raise VitrailError(f"{folder} cannot be written: {error.strerror or error}", "choose another place") from None
