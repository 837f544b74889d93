"""Which model predicts and how it runs: what a process needs to load it for itself."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrail.classifier import BaseClassifier, Classifier
from vitrail.errors import UsageError
from vitrail.loading import is_program, load_program, load_torch
from vitrail.machine import parse_device, pick_device
from vitrail.module_classifier import ModuleClassifier, refuse_module
from vitrail.parts import hash_code, needed_parts
from vitrail.tasks import SINGLE_LABEL
from vitrail.weights.artifact import weights_sha256
from vitrail.weights.config_json import config_to_json, model_parts
from vitrail.weights.upgrade import FIT_VALUES, PREPROCESS_KEYS

FORMAT_1_KEYS = {new: old for old, new in PREPROCESS_KEYS.items()}
FORMAT_1_FITS = {new: old for old, new in FIT_VALUES.items()}


@dataclass(frozen=True)
class ModelSpec:
    """A model by name or path, and how to run it. Pickling leaves the loaded model behind."""

    model: str
    device: str | None = None
    threads: int | None = None
    torch_files: bool = False
    precision: str = "fp32"  # or bf16

    @property
    def is_program(self) -> bool:
        """Whether this is an ONNX file or an OpenVINO model, which a runtime runs."""
        return is_program(self.model)

    @property
    def device_type(self) -> str:
        """cpu, cuda or mps; raises `UsageError` for a device that is not available."""
        return (parse_device(self.device or "cpu") if self.is_program else pick_device(self.device)).type

    @cached_property
    def _loaded(self) -> tuple[BaseClassifier, str]:
        classifier: BaseClassifier
        if self.is_program:
            if self.precision != "fp32":
                raise UsageError("--precision is for PyTorch models, not for an exported file", "leave it out")
            classifier = load_program(self.model, self.device or "cpu", threads=1)
            return classifier, hashlib.sha256(Path(self.model).read_bytes()).hexdigest()  # .xml has that of its .bin
        loaded = load_torch(self.model, device=pick_device(self.device), torch_files=self.torch_files)
        if isinstance(loaded, ModuleClassifier):
            if self.precision != "fp32":
                raise refuse_module(self.model)
            return loaded, module_digest(loaded)
        return (loaded.fast() if self.precision == "bf16" else loaded), classifier_digest(loaded)

    def load(self) -> BaseClassifier:
        """Returns the classifier, loaded once per process, without threads of its own; raises as `vitrail.load` does.

        A process that forks others needs it so: threads do not survive a fork.
        """
        return self._loaded[0]

    def load_with_threads(self) -> BaseClassifier:
        """Returns the classifier for a process that forks no others: a runtime gets all its threads."""
        if self.is_program and (self.threads or 1) > 1:
            return load_program(self.model, self.device or "cpu", self.threads)
        return self.load()

    @property
    def digest(self) -> str:
        """SHA-256 of everything in the model that decides its output."""
        return self._loaded[1]

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


def classifier_digest(classifier: Classifier) -> str:
    """SHA-256 of a classifier's weights, config, preprocessing, classes and temperature.

    Prediction folders hold it, so it must not change from version to version: it is taken over the keys of format 1.
    """
    weights = {name: tensor.cpu() for name, tensor in classifier.vit.state_dict().items()}
    document: Mapping[str, Any] = classifier.preprocess.to_json()
    preprocess = {FORMAT_1_KEYS.get(key, key): value for key, value in document.items()}
    preprocess["fit"] = FORMAT_1_FITS.get(preprocess["fit"], preprocess["fit"])
    code = hash_code(model_parts(classifier.vit.config))
    answers: list[Any] = [] if classifier.task == SINGLE_LABEL else [classifier.task, classifier.thresholds]
    if classifier.unlike is not None:
        answers += [classifier.unlike.facts.to_json(), weights_sha256(classifier.unlike.to_tensors())]
    answers += [classifier.target_scale.to_json()] if classifier.target_scale else []
    documents = [config_to_json(classifier.vit.config), preprocess, classifier.classes, *code, *answers]
    text = json.dumps([weights_sha256(weights), *documents, classifier.temperature], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def module_digest(classifier: ModuleClassifier) -> str:
    """SHA-256 of everything in a classifier that is not a ViT that decides its output; the builder's code counts."""
    weights = {name: tensor.cpu() for name, tensor in classifier.module.state_dict().items()}
    code = hash_code(needed_parts({"model": str(classifier.architecture)}))
    documents = [classifier.architecture, classifier.preprocess.to_json(), classifier.classes, *code]
    text = json.dumps([weights_sha256(weights), *documents, classifier.temperature], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
