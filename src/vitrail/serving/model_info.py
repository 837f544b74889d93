"""What the server knows about a model without running it: its name and metadata."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.classifier import Classifier
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError
from vitrail.image_predictions import AnswerForm
from vitrail.model.config import ViTConfig
from vitrail.serving.fork_server import ModelSource
from vitrail.tasks import REGRESSION
from vitrail.weights.artifact import Artifact
from vitrail.weights.unlike import UnlikeFacts

NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # it becomes part of URLs
RESERVED_NAMES = ("stats",)  # /v2/models/stats is a route


@dataclass(frozen=True)
class ModelInfo:
    """What the server knows about a model without running it."""

    name: str
    index: int
    source: ModelSource
    config: ViTConfig
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float
    origin: dict[str, Any]
    program_path: str | None  # the exported file of a model that is served from one
    answers: AnswerForm = AnswerForm(())  # how logits become answers
    unlike: UnlikeFacts | None = None  # how distances become quantiles, if that is fitted

    @property
    def outputs(self) -> list[str]:
        """The names of the protocol's output tensors."""
        if not self.classes:
            return ["features"]
        main = ["numbers"] if self.answers.task == REGRESSION else ["logits", "probabilities"]
        return [*main, *([] if self.unlike is None else ["unlike"])]


def describe_model(name: str, index: int, source: ModelSource, classifier: Classifier | None) -> ModelInfo:
    """Returns the metadata of a classifier, or of the exported file if `classifier` is None."""
    if classifier is None:
        artifact = read_program_artifact(Path(source.model))
        answers = AnswerForm(artifact.classes, artifact.task, artifact.thresholds)
        return ModelInfo(
            name, index, source, artifact.config, artifact.classes, artifact.preprocess,
            artifact.temperature, artifact.origin, source.model, answers, artifact.unlike,
        )  # fmt: skip
    return ModelInfo(
        name, index, source, classifier.vit.config, classifier.classes, classifier.preprocess,
        classifier.temperature, classifier.origin, None, classifier.answers, classifier.unlike_facts,
    )  # fmt: skip


def read_program_artifact(path: Path) -> Artifact:
    """Returns what an exported file says about its model; raises the errors of loading it."""
    if path.suffix.lower() == ".xml":
        from vitrail.exporting.openvino_file import read_openvino

        return read_openvino(path).artifact
    from vitrail.exporting.onnx_file import parse_onnx, read_onnx_bytes

    return parse_onnx(read_onnx_bytes(path), path)[0]


def choose_names(models: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the names of the models: `names`, or names from their paths; raises `UsageError` for an invalid one."""
    if names and len(names) != len(models):
        raise UsageError(
            f"there are {len(names)} names for {len(models)} models", "use --name once per model, in order"
        )
    names = list(names) or [
        re.sub(r"[^\w.-]", "-", derive_name(model), flags=re.ASCII).strip("-.") or "model" for model in models
    ]
    for name in names:
        if not NAME_PATTERN.fullmatch(name) or name in RESERVED_NAMES:
            raise UsageError(f"{name!r} cannot be a model's name", "use letters, digits, '.', '_' and '-'")
        if names.count(name) > 1:
            raise UsageError(f"two models have the name {name!r}", "use --name once per model, in order")
    return names


def derive_name(model: str) -> str:
    """Returns the last part of a model's path or name."""
    path = Path(model.rpartition("@")[2])
    if path.exists():
        path = path.resolve()
        return path.parent.name if path.name == "classifier.safetensors" else path.stem if path.is_file() else path.name
    return model.rpartition("/")[2]
