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
from vitrail.exporting.library_check import PACKAGES, agreement
from vitrail.exporting.model_card import model_card
from vitrail.exporting.libraries import FORMATS, given
from vitrail.files import write_json, write_text


@dataclass(frozen=True)
class Exported:
    """What was written, and how far the library's answers are from ours; None where it could not be asked."""

    folder: Path
    form: str
    loads: str
    agreed: dict[str, Any] | None
    note: str = ""  # what the library does otherwise, if it does

    @property
    def unproven(self) -> str | None:
        """Why the library was not asked, if it was not."""
        return None if self.agreed else f"{PACKAGES[self.form]} is not installed here"

    def to_json(self) -> dict[str, Any]:
        """As the command line says it."""
        nothing = {"compared_on": None, "max_difference": None, "agreement": None, "images": 0}
        agreed = self.agreed or {**nothing, "unproven": self.unproven}
        return {"file": str(self.folder), "format": self.form, "loads": self.loads, "note": self.note or None, **agreed}


def export_library(classifier: Classifier, form: str, out: str | Path) -> Exported:
    """Writes the folder `out` for timm, transformers (`hf`) or torchvision.

    Where the library is not installed the folder is written without asking it, and its card says so. Raises
    `UsageError` where `out` exists or the library has no such ViT, `VitrailError` where it does not agree.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no format {form!r}", did_you_mean(form, FORMATS))
    folder = Path(out)
    with whole_folder(folder) as inside:
        found = given(classifier, form)
        save_file(found.tensors, inside / "model.safetensors", metadata={"format": "pt"})
        for name, document in found.files.items():
            write_json(inside / name, document)
        agreed = agreement(classifier, form, inside)
        loads = found.loads.format(folder=folder)
        write_text(inside / "README.md", model_card(classifier, PACKAGES[form], loads, agreed, found.note))
    return Exported(folder, form, loads, agreed, found.note)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
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
