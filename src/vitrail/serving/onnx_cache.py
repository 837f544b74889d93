"""ONNX files in the cache: the server makes one per model to compare ONNX Runtime with torch."""

import hashlib
import json
from pathlib import Path

import torch

from vitrail.classifier import Classifier
from vitrail.exporting.formats import export_program
from vitrail.exporting.probes import load_probes
from vitrail.exporting.program import ProgramOptions
from vitrail.files import cache_folder, make_room
from vitrail.parts import hash_code
from vitrail.version import __version__
from vitrail.weights.artifact import weights_sha256
from vitrail.weights.config_json import config_to_json, model_parts


def onnx_cache_folder() -> Path:
    """Returns the folder of the cached ONNX files."""
    return cache_folder() / "graphs"


def onnx_cache_name(classifier: Classifier) -> str:
    """Returns the file name for a classifier: a hash of weights, config, preprocessing and versions."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {classifier.temperature}\n".encode())
    config = classifier.vit.config
    digest.update(
        json.dumps([config_to_json(config), classifier.preprocess.to_json(), *hash_code(model_parts(config))]).encode()
    )
    weights = {name: tensor.cpu() for name, tensor in classifier.vit.state_dict().items()}
    if classifier.unlike is not None:
        weights |= classifier.unlike.to_tensors()
        digest.update(repr(classifier.unlike.facts).encode())
    digest.update(weights_sha256(weights).encode())
    return f"{digest.hexdigest()[:40]}.onnx"


def write_onnx(classifier: Classifier, path: Path) -> None:
    """Writes the file as `vitrail export` does, with a comparison on sample images.

    The files used longest ago make room for it. Raises `VitrailError` and writes no file if its outputs differ from
    those of the classifier.
    """
    make_room(path.parent, "*.onnx", sum(4 * parameter.numel() for parameter in classifier.vit.parameters()))
    export_program(
        classifier, "onnx", path, ProgramOptions(unlike=classifier.unlike is not None), load_probes(classifier, None)
    )
