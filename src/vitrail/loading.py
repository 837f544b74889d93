"""Loads a classifier from a run folder, an artifact, public weights, an ONNX file or an OpenVINO model."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitrail.classifier import ARTIFACT_NAME, BaseClassifier, Classifier
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.model.config import ViTConfig, to_pair
from vitrail.model.vit import ViT
from vitrail.module_classifier import TorchClassifier, load_module_artifact, refuse_module
from vitrail.weights.artifact import is_artifact, read_artifact
from vitrail.weights.assemble import assemble_vit
from vitrail.weights.bundled import bundled_classifiers
from vitrail.weights.conversion import check_described, check_finite, meta_state_dict
from vitrail.weights.modules import (
    REGISTER_HINT,
    convert_torchvision,
    is_known_library,
    library_of,
    refuse_unknown,
    save_module,
)
from vitrail.weights.public import load_public_model
from vitrail.weights.unlike import split_unlike

if TYPE_CHECKING:
    from vitrail.exporting.program_classifier import ProgramClassifier

PROGRAM_KINDS = {".onnx": "an ONNX file", ".xml": "an OpenVINO model"}  # that a runtime runs, by suffix
ADAPTER_CONFIG = "adapter_config.json"


def load(model: str | Path | nn.Module, device: str | torch.device = "cpu", *, torch_files: bool = False) -> Classifier:
    """Returns a classifier. `model` is one of:

    - a run folder, or an artifact (`classifier.safetensors`)
    - the name of a bundled classifier (`cifar10-small`)
    - public weights: a card (`timm/...`), `CARD@FILE`, a file, a folder, or a Hugging Face hub id
    - a `ViT`, or a Vision Transformer of timm, transformers or torchvision, whose weights are copied

    `torch_files` allows reading plain tensors from torch's own files (.pt, .pth, .bin). Raises `VitrailError` for a
    damaged file, `UsageError` if the model does not exist.
    """
    if isinstance(model, nn.Module):
        classifier = load_module(model)
        classifier.vit.to(device).eval().requires_grad_(False)
        return classifier
    check_model_kind(model)
    path = Path(model)
    if is_program(path) and path.is_file():
        raise UsageError(
            f"{path} is {PROGRAM_KINDS[path.suffix.lower()]}, whose weights cannot be read",
            "vitrail predict, evaluate and serve run it",
        )
    artifact = find_artifact(model)
    classifier = load_artifact(artifact) if artifact else load_public_weights(model, torch_files=torch_files)
    classifier.vit.to(device).eval().requires_grad_(False)
    return classifier


def check_model_kind(model: object) -> None:
    """Raises `UsageError` for a model that is not a name, path or module, for callers who do not check types."""
    if isinstance(model, BaseClassifier):  # of another runtime, or not a ViT
        raise refuse_module(f"a {type(model).__name__}")
    if not isinstance(model, str | Path):
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise UsageError(f"the model is {kind}", REGISTER_HINT)


def find_artifact(model: str | Path) -> Path | None:
    """Returns the artifact that a run folder, a path or the name of a bundled classifier means; else None.

    Raises `UsageError` for a folder that has neither an artifact nor a config.json.
    """
    path = Path(model)
    if str(model) in bundled_classifiers() and not path.exists():
        path = bundled_classifiers()[str(model)]
    if path.is_dir() and not (path / "config.json").is_file():
        if not (path / ARTIFACT_NAME).is_file():
            refuse_adapter(path)
            unfinished = " yet" if (path / "checkpoint").is_dir() else ""
            raise UsageError(f"{path} has no {ARTIFACT_NAME}{unfinished}", "name a run folder or an artifact")
        path = path / ARTIFACT_NAME
    return path if path.is_file() and is_artifact(path) else None


def load_any(
    model: str | Path | nn.Module,
    device: str | torch.device = "cpu",
    *,
    torch_files: bool = False,
    threads: int | None = None,
) -> BaseClassifier:
    """Returns a classifier as `load` does, one of ONNX Runtime or OpenVINO for a file of theirs, or a module's.

    A run or artifact of a model that is not a ViT gives a `ModuleClassifier`.
    """
    if not isinstance(model, str | Path) or not is_program(model):
        return load_torch(model, device, torch_files=torch_files)
    return load_program(model, str(device), threads)


def load_torch(
    model: str | Path | nn.Module, device: str | torch.device = "cpu", *, torch_files: bool = False
) -> TorchClassifier:
    """Returns a classifier as `load` does, or that of a model that is not a ViT."""
    artifact = find_artifact(model) if isinstance(model, str | Path) and not is_program(model) else None
    if artifact and (classifier := load_module_artifact(artifact)):
        return classifier.to(device)
    return load(model, device, torch_files=torch_files)


def is_program(model: str | Path) -> bool:
    """Returns whether a model is named by an ONNX file, or the .xml file of an OpenVINO model; it may be missing."""
    return Path(model).suffix.lower() in PROGRAM_KINDS and not Path(model).is_dir()


def load_program(path: str | Path, device: str = "cpu", threads: int | None = None) -> "ProgramClassifier":
    """Returns the classifier of an ONNX file, which ONNX Runtime runs, or of an OpenVINO model.

    Raises `UsageError` if the runtime or the file is missing, `VitrailError` for a damaged or foreign file.
    """
    if Path(path).suffix.lower() == ".xml":
        from vitrail.exporting.openvino_classifier import OpenvinoClassifier

        return OpenvinoClassifier.load(path, threads=threads, device=device)
    from vitrail.exporting.onnx_classifier import OnnxClassifier

    return OnnxClassifier.load(path, threads=threads, device=device)


def refuse_adapter(folder: Path) -> None:
    """Raises `UsageError` if a folder has only the LoRA updates of a model, which peft saved."""
    if (folder / ADAPTER_CONFIG).is_file():
        raise UsageError(
            f"{folder} is an adapter of peft, without the weights of its model",
            "merge it first: PeftModel.from_pretrained(model, FOLDER).merge_and_unload().save_pretrained(OUT)",
        )


def load_artifact(path: Path) -> Classifier:
    """Returns the classifier of an artifact; weights of any float type are float32 in it."""
    artifact, tensors = read_artifact(path)
    try:
        unlike, weights = split_unlike(artifact.unlike, tensors)
    except VitrailError as error:
        raise VitrailError(f"{path} is not a complete artifact: {error}", "write it again with vitrail") from None
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    for name, tensor in weights.items():
        try:
            check_finite(name, tensor)
        except VitrailError as error:
            raise VitrailError(f"{path}: {error.sentence}", error.hint) from None
    vit = build_vit(artifact.config, weights, path)
    return Classifier(
        vit,
        artifact.classes,
        artifact.preprocess,
        artifact.temperature,
        artifact.origin,
        task=artifact.task,
        thresholds=artifact.thresholds,
        unlike=unlike,
        target_scale=artifact.target_scale,
    )


def load_module(module: nn.Module) -> Classifier:
    """Returns a classifier with a copy of the weights of a model in memory; classes without names are numbers."""
    if isinstance(module, ViT):
        check_described(module)
        classes = tuple(map(str, range(module.config.classes)))
        preprocess = Preprocess(
            image_size=to_pair(module.config.image_size),
            mean=(0.5,) * module.config.channels,
            std=(0.5,) * module.config.channels,
        )
        return Classifier(copy.deepcopy(module), classes, preprocess)
    if not is_known_library(module):
        raise refuse_unknown(module)
    if library_of(module) == "torchvision":
        public = convert_torchvision(module)
        vit = build_vit(public.config, {name: each.clone() for name, each in public.weights.items()}, Path("the model"))
        classifier = Classifier(vit, public.classes, public.preprocess)
    else:
        with tempfile.TemporaryDirectory() as folder:
            try:
                classifier = load_public_weights(save_module(module, Path(folder)))
            except VitrailError as error:
                raise UsageError(error.sentence, error.hint or REGISTER_HINT) from None
    source = f"{type(module).__module__}.{type(module).__name__}"
    return replace(classifier, origin={**classifier.origin, "source": source})


def load_public_weights(model: str | Path, *, torch_files: bool = False) -> Classifier:
    public = load_public_model(str(model), torch_files=torch_files)
    vit = build_vit(public.config, public.weights, Path(model))
    return Classifier(vit, public.classes, public.preprocess, origin=public.origin, task=public.task)


def build_vit(config: ViTConfig, weights: dict[str, Tensor], path: Path) -> ViT:
    """Returns a ViT with these weights; raises `VitrailError` naming a missing, unknown or misshaped tensor.

    Names and shapes are compared with a model on the meta device first, so that a hostile config allocates no memory.
    """
    last_block = f"blocks.{config.depth - 1}.norm1.weight"
    if last_block not in weights:
        raise VitrailError(f"{path} lacks the tensor {last_block}")
    try:
        expected = meta_state_dict(config)
    except VitrailError as error:
        raise VitrailError(f"{path}: {error.sentence}") from None
    for name, tensor in expected.items():
        if name not in weights:
            raise VitrailError(f"{path} lacks the tensor {name}")
        if (stored := describe_tensor(weights[name])) != (needed := describe_tensor(tensor)):
            raise VitrailError(f"{path}: {name} is {stored}, expected {needed}")
    if unknown := sorted(set(weights) - set(expected)):
        raise VitrailError(f"{path} has tensors that the model does not know: {', '.join(unknown[:5])}")
    return assemble_vit(config, weights)


def describe_tensor(tensor: Tensor) -> str:
    """Returns shape and type for a message."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
