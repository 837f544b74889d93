"""Coverage-guided fuzzing, until it is stopped or a time is over (pip install 'vitrail[fuzz]').

    python tests/fuzz.py decoder|artifact|table [-max_total_time=600] [CORPUS...]

Options and corpora are libFuzzer's. It stops at the first exception that is not one of vitrail's.
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
    from vitrail.data.check import check_data
    from vitrail.data.decode import ImageError, decode
    from vitrail.data.open import open_source
    from vitrail.data.preprocess import Preprocess
    from vitrail.errors import VitrailError
    from vitrail.loading import load
    from vitrail.model.config import ViTConfig
    from vitrail.model.vit import ViT

FOLDER = Path(tempfile.mkdtemp())
CONFIG = ViTConfig(width=8, depth=1, heads=2, mlp_width=16, image_size=8, patch=4, classes=2)
Classifier(ViT(CONFIG), ("a", "b"), Preprocess(image_size=(8, 8))).save(FOLDER / "valid.safetensors")
ARTIFACT = (FOLDER / "valid.safetensors").read_bytes()
LENGTH = 8 + struct.unpack("<Q", ARTIFACT[:8])[0]
HEADER, TENSORS = json.loads(ARTIFACT[8:LENGTH]), ARTIFACT[LENGTH:]


def decoder(data: bytes) -> None:
    """Any bytes give an image or an `ImageError`."""
    with contextlib.suppress(ImageError):
        decode(io.BytesIO(data))


def artifact(data: bytes) -> None:
    """Any metadata beside valid weights give a classifier or a `VitrailError`."""
    header = {**HEADER, "__metadata__": {"vitrail": data.decode(errors="replace")}}
    text = json.dumps(header).encode()
    path = FOLDER / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + TENSORS)
    with contextlib.suppress(VitrailError):
        classifier = load(path)
        classifier.predict(torch.zeros(classifier.preprocess.channels, 7, 30, dtype=torch.uint8))


def table(data: bytes) -> None:
    """Any bytes give a table or a `VitrailError`, and a check of them raises nothing."""
    path = FOLDER / "list.csv"
    path.write_bytes(data)
    with contextlib.suppress(VitrailError):
        open_source(path)
    check_data(path, fresh=True)


TARGETS = {"decoder": decoder, "artifact": artifact, "table": table}

if __name__ == "__main__":
    Image.new("RGB", (8, 8), "red").save(FOLDER / "a.png")
    (FOLDER / "seeds").mkdir()
    (FOLDER / "seeds" / "description").write_text(HEADER.pop("__metadata__")["vitrail"])
    (FOLDER / "seeds" / "table").write_text("path,label,split\na.png,x,train\na.png,y,test\n")
    (FOLDER / "seeds" / "image").write_bytes((FOLDER / "a.png").read_bytes())
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(FOLDER / "seeds")], TARGETS[sys.argv[1]])
    atheris.Fuzz()
