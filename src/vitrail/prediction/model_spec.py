"""Where a model comes from and how it is run: what a process needs in order to open it for itself."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError
from vitrail.loading import is_onnx, load
from vitrail.machine import parse_device, pick_device
from vitrail.weights.artifact import weights_sha256
from vitrail.weights.config_json import config_to_json


@dataclass(frozen=True)
class ModelSpec:
    """A model as it is named, with how it is run; it travels to other processes without the model."""

    model: str
    device: str | None = None
    threads: int | None = None
    torch_files: bool = False
    fast: bool = False

    @property
    def is_onnx(self) -> bool:
        """Whether this is an ONNX file, which ONNX Runtime runs."""
        return is_onnx(self.model)

    @property
    def device_type(self) -> str:
        """The device's type: cpu, cuda, mps."""
        return (parse_device(self.device or "cpu") if self.is_onnx else pick_device(self.device)).type

    @cached_property
    def _opened(self) -> tuple[BaseClassifier, str]:
        classifier: BaseClassifier
        if self.is_onnx:
            from vitrail.exporting.onnx_classifier import OnnxClassifier

            if self.fast:
                raise UsageError("--fast is for vitrail's own runtime, not for an .onnx file", "leave it out")
            classifier = OnnxClassifier.load(self.model, threads=1, device=self.device or "cpu")
            return classifier, hashlib.sha256(Path(self.model).read_bytes()).hexdigest()
        classifier = load(self.model, device=pick_device(self.device), torch_files=self.torch_files)
        key = classifier_digest(classifier)
        return (classifier.fast() if self.fast else classifier), key

    def load(self) -> BaseClassifier:
        """The classifier, opened once in a process; raises as loading does.

        It has no threads of its own, for these would not live on in a process that is forked.
        """
        return self._opened[0]

    def load_with_threads(self) -> BaseClassifier:
        """The classifier for a process that forks no other: a session of ONNX Runtime has all its threads."""
        if self.is_onnx and (self.threads or 1) > 1:
            from vitrail.exporting.onnx_classifier import OnnxClassifier

            return OnnxClassifier.load(self.model, threads=self.threads, device=self.device or "cpu")
        return self.load()

    @property
    def digest(self) -> str:
        """A digest of everything in the model that decides an answer."""
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


def classifier_digest(classifier: Classifier) -> str:
    """A digest of a classifier's weights, config, preprocessing, classes and temperature."""
    weights = {name: tensor.cpu() for name, tensor in classifier.vit.state_dict().items()}
    said = [config_to_json(classifier.vit.config), classifier.preprocess.to_json(), classifier.classes]
    described = json.dumps([weights_sha256(weights), *said, classifier.temperature], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()
