"""The model as an ONNX file of the server's own, so that ONNX Runtime can be tried beside torch; kept in the cache."""

import hashlib
import json
from pathlib import Path

import torch

import vitrail
from vitrail.classifier import Classifier
from vitrail.errors import VitrailError
from vitrail.export.graph import Extras
from vitrail.export.onnx_file import describe, onnx_model
from vitrail.export.running import OnnxClassifier
from vitrail.files import cache_home, write_atomically

TOLERANCE = 1e-3  # largest difference of a logit on noise: beyond it the file is not used


def graph_folder() -> Path:
    """Where such files lie."""
    return cache_home() / "graphs"


def graph_name(classifier: Classifier) -> str:
    """What the file of exactly this classifier is called."""
    digest = hashlib.sha256(f"{vitrail.__version__} {torch.__version__} {classifier.temperature}\n".encode())
    digest.update(json.dumps([classifier.vit.config.to_json(), classifier.preprocess.to_json()]).encode())
    for name, tensor in classifier.vit.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return f"{digest.hexdigest()[:40]}.onnx"


def write_graph(classifier: Classifier, path: Path) -> None:
    """Writes the file; raises `VitrailError`, and leaves none, where its answers are not the classifier's."""
    model = onnx_model(classifier, Extras())
    describe(model, classifier, vars(Extras()))
    data = model.SerializeToString()

    def write(aside: Path) -> None:
        aside.write_bytes(data)
        generator = torch.Generator().manual_seed(0)
        shape = (8, classifier.preprocess.channels, *classifier.preprocess.image_size)
        pixels_BCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        other = OnnxClassifier.load(aside, threads=torch.get_num_threads())
        difference = float((other.logits(pixels_BCHW) - classifier.logits(pixels_BCHW).cpu()).abs().max())
        if difference > TOLERANCE:
            raise VitrailError(f"ONNX Runtime's logits differ by {difference:.1e}, so it is not used")

    write_atomically(path, write)
