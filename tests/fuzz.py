"""Fuzzing guided by coverage, for as long as one likes (pip install 'vitrail[fuzz]').

    python tests/fuzz.py decoder|artefact|table [-max_total_time=600] [CORPUS...]

Options and corpora are libFuzzer's. It stops at the first exception that is not of vitrail's own kinds.
"""

import contextlib
import io
import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["vitrail", "PIL"]):
    from PIL import Image

    from vitrail.classifier import Classifier
    from vitrail.data import Preprocess
    from vitrail.data.check import check_data
    from vitrail.data.decode import ImageError, decode
    from vitrail.data.open import open_source
    from vitrail.errors import VitrailError
    from vitrail.loading import load
    from vitrail.model import ViT, ViTConfig

PLACE = Path(tempfile.mkdtemp())
CONFIG = ViTConfig(width=8, depth=1, heads=2, mlp_width=16, image_size=8, patch=4, classes=2)
Classifier(ViT(CONFIG), ("a", "b"), Preprocess(image_size=(8, 8))).save(PLACE / "whole.safetensors")
WHOLE = (PLACE / "whole.safetensors").read_bytes()
LENGTH = 8 + struct.unpack("<Q", WHOLE[:8])[0]
HEADER, TENSORS = json.loads(WHOLE[8:LENGTH]), WHOLE[LENGTH:]


def decoder(data: bytes) -> None:
    """Any bytes are an image or an `ImageError`."""
    with contextlib.suppress(ImageError):
        decode(io.BytesIO(data))


def artefact(data: bytes) -> None:
    """Any description beside sound weights is a classifier or a `VitrailError`."""
    header = {**HEADER, "__metadata__": {"vitrail": data.decode(errors="replace")}}
    text = json.dumps(header).encode()
    path = PLACE / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + TENSORS)
    with contextlib.suppress(VitrailError):
        classifier = load(path)
        classifier.predict(torch.zeros(classifier.preprocess.channels, 7, 30, dtype=torch.uint8))


def table(data: bytes) -> None:
    """Any bytes are a table or a `VitrailError`, and a check of them raises nothing."""
    path = PLACE / "list.csv"
    path.write_bytes(data)
    with contextlib.suppress(VitrailError):
        open_source(path)
    check_data(path, fresh=True)


TARGETS = {"decoder": decoder, "artefact": artefact, "table": table}

if __name__ == "__main__":
    Image.new("RGB", (8, 8), "red").save(PLACE / "a.png")
    (PLACE / "seeds").mkdir()
    (PLACE / "seeds" / "description").write_text(HEADER.pop("__metadata__")["vitrail"])
    (PLACE / "seeds" / "table").write_text("path,label,split\na.png,x,train\na.png,y,test\n")
    (PLACE / "seeds" / "image").write_bytes((PLACE / "a.png").read_bytes())
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(PLACE / "seeds")], TARGETS[sys.argv[1]])
    atheris.Fuzz()
