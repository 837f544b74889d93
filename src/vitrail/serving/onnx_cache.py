"""The model as an ONNX file of the server's own, so that ONNX Runtime can be tried beside torch; kept in the cache."""

import hashlib
import json
from pathlib import Path

import torch

from vitrail.classifier import Classifier
from vitrail.exporting.formats import export_program
from vitrail.exporting.probes import load_probes
from vitrail.exporting.program import ProgramOptions
from vitrail.files import cache_folder
from vitrail.version import __version__
from vitrail.weights.artifact import weights_sha256 as digest_of
from vitrail.weights.config_json import config_to_json


def onnx_cache_folder() -> Path:
    """Where such files lie."""
    return cache_folder() / "graphs"


def onnx_cache_name(classifier: Classifier) -> str:
    """What the file of exactly this classifier is called."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {classifier.temperature}\n".encode())
    digest.update(json.dumps([config_to_json(classifier.vit.config), classifier.preprocess.to_json()]).encode())
    weights = {name: tensor.cpu() for name, tensor in classifier.vit.state_dict().items()}
    digest.update(digest_of(weights).encode())
    return f"{digest.hexdigest()[:40]}.onnx"


def write_onnx(classifier: Classifier, path: Path) -> None:
    """Writes the file as `vitrail export` does: compared on real images first.

    Raises `VitrailError`, and leaves none, where its answers are not the classifier's.
    """
    export_program(classifier, "onnx", path, ProgramOptions(), load_probes(classifier, None))
