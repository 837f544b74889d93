"""Fuzzing guided by coverage, for as long as one likes (pip install 'vitrail[fuzz]').

    python tests/fuzz.py decoder|artefact|table [-max_total_time=600] [CORPUS...]

Options and corpora are libFuzzer's. It stops at the first exception that is not of vitrail's own kinds.
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vitrail", "PIL"]):
    from PIL import Image

    from vitrail.classifier import load
    from vitrail.data.check import check
    from vitrail.data.decode import ImageError, decode
    from vitrail.data.sources import find
    from vitrail.errors import VitrailError

PLACE = Path(tempfile.mkdtemp())


def decoder(data: bytes) -> None:
    """Any bytes are an image or an `ImageError`."""
    with contextlib.suppress(ImageError):
        decode(io.BytesIO(data))


def artefact(data: bytes) -> None:
    """Any bytes are a classifier or a `VitrailError`."""
    path = PLACE / "a.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(VitrailError):
        load(path)


def table(data: bytes) -> None:
    """Any bytes are a table or a `VitrailError`, and a check of them raises nothing."""
    path = PLACE / "list.csv"
    path.write_bytes(data)
    with contextlib.suppress(VitrailError):
        find(path)
    check(path, fresh=True)


TARGETS = {"decoder": decoder, "artefact": artefact, "table": table}

if __name__ == "__main__":
    Image.new("RGB", (8, 8), "red").save(PLACE / "a.png")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
