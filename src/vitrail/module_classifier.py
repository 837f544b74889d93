"""A classifier whose model is any module from images to logits, and its artifact."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.classifier import BaseClassifier, Classifier, check_finite, eval_mode
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.files import write_atomically
from vitrail.json_types import JsonObject
from vitrail.model.vit import ViT
from vitrail.parts import needed_parts, require_parts
from vitrail.tasks import SINGLE_LABEL, TaskName
from vitrail.weights.artifact import MODULE_FORMAT, read_safetensors, weights_sha256
from vitrail.weights.builders import NOT_A_VIT, ModuleConfig, build_module
from vitrail.weights.origin import check_origin


@dataclass
class ModuleClassifier(BaseClassifier):
    """A model that is not a ViT, with its classes and its preprocessing, for `predict`, `evaluate` and training.

    `module` maps normalized images (B, C, H, W) to logits (B, Y). `architecture` names the registered builder that
    makes it, with which it can be saved.
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    origin: JsonObject = field(default_factory=dict)
    architecture: str | None = None
    task: TaskName = SINGLE_LABEL
    thresholds: tuple[float, ...] = ()

    def __repr__(self) -> str:
        """A line: a notebook would show every module of the model."""
        size = "x".join(map(str, self.preprocess.image_size))
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        shape = f"{self.architecture or type(self.module).__name__}, {size} px"
        return f"ModuleClassifier({len(self.classes)} classes, {shape}, {parameters:,} parameters on {self.device})"

    @property
    def device(self) -> torch.device:
        return next((each.device for each in self.module.parameters()), torch.device("cpu"))

    @property
    def config(self) -> ModuleConfig:
        """What the builder gets; raises `UsageError` if no builder is named."""
        if self.architecture is None:
            raise UsageError(
                f"a {type(self.module).__name__} in memory cannot be saved: no file could say how to build it",
                'register its builder, vitrail.register("model", "mine", build), and give architecture="mine"',
            )
        preprocess, classes = self.preprocess, len(self.classes)
        return ModuleConfig(
            architecture=self.architecture,
            image_size=preprocess.image_size,
            channels=preprocess.channels,
            classes=classes,
        )

    def to(self, device: str | torch.device) -> ModuleClassifier:
        """Returns this classifier if it is on the device, else a copy there; the original stays where it is."""
        if torch.empty(0, device=device).device == self.device:
            return self
        return replace(self, module=copy.deepcopy(self.module).to(device))

    def normalize(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns the module's input for uint8 pixels of the model's size, on its device."""
        return self.preprocess.normalize(pixels_BCHW.to(self.device))

    @torch.inference_mode()
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns logits as described in `BaseClassifier`, computed in eval mode."""
        with eval_mode(self.module):
            return check_finite(self.module(self.normalize(pixels_BCHW))) / self.temperature

    def save(self, path: str | Path) -> None:
        """Writes the artifact atomically; raises `UsageError` if no registered builder is named."""
        if self.task != SINGLE_LABEL:
            raise UsageError(
                "a model that is not a ViT is saved for one class per image, and this one has several labels",
                "use a ViT",
            )
        check_origin(self.origin)
        architecture = self.config.architecture
        weights = {name: each.detach().cpu().contiguous() for name, each in self.module.state_dict().items()}
        document = {
            "format": MODULE_FORMAT,
            "parts": needed_parts({"model": architecture}),
            "architecture": architecture,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_json(),
            "temperature": self.temperature,
            "origin": self.origin,
            "sha256": weights_sha256(weights),
        }
        metadata = {"vitrail": json.dumps(document, ensure_ascii=False, allow_nan=False)}
        write_atomically(Path(path), lambda temporary: save_file(weights, temporary, metadata=metadata))


TorchClassifier = Classifier | ModuleClassifier


def load_module_artifact(path: Path) -> ModuleClassifier | None:
    """Returns the classifier of the artifact of a module; None if the file is anything else.

    Raises `VitrailError` for a damaged file, and if the builder that it names is missing or makes another model.
    """
    document, weights = read_safetensors(path)
    if document is None or document.get("format") != MODULE_FORMAT:
        return None
    require_parts(document.get("parts"), str(path))
    try:
        classifier = ModuleClassifier(
            nn.Module(),
            tuple(map(str, document["classes"])),
            Preprocess.from_json(document["preprocess"]),
            float(document["temperature"]),
            dict(document["origin"]),
            str(document["architecture"]),
        )
        config = classifier.config
    except (KeyError, TypeError, ValueError, AttributeError, VitrailError) as error:
        raise VitrailError(f"{path} is not a complete artifact: {error}", "write it again with vitrail") from None
    if document.get("sha256") != weights_sha256(weights):
        raise VitrailError(f"{path} is damaged: its weights do not match their checksum", "copy the file again")
    module = build_module(config)
    load_weights(module, weights, f"{path} does not fit the model {config.architecture!r}")
    return replace(classifier, module=module.eval().requires_grad_(False))


def load_weights(module: nn.Module, weights: dict[str, Tensor], sentence: str) -> None:
    """Loads a state dict; raises `VitrailError`, which begins with the sentence, if it does not fit."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else first_line(error)
        raise VitrailError(f"{sentence}: {reason}", "the builder must make the same tensors again") from None


def module_of(classifier: TorchClassifier) -> nn.Module:
    """Returns the ViT or module of a classifier."""
    return classifier.module if isinstance(classifier, ModuleClassifier) else classifier.vit


def with_module(classifier: TorchClassifier, module: nn.Module) -> TorchClassifier:
    """Returns the classifier with another ViT or module."""
    if isinstance(classifier, ModuleClassifier):
        return replace(classifier, module=module)
    assert isinstance(module, ViT)
    return replace(classifier, vit=module)


def refuse_module(subject: str) -> UsageError:
    """Returns the error for a model that is not a ViT where one is needed; `subject` names the model."""
    return UsageError(
        f"{subject} is not a ViT: {NOT_A_VIT}",
        "vitrail.load_any, predict, evaluate and train take it; for the rest use a ViT",
    )
