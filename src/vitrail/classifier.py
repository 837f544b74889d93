"""A classifier: a ViT with its classes and its preprocessing. What users load, use and ship."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrail.data.decode import ImageError, decode
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.fast import make_fast_vit
from vitrail.machine import has_native_bf16
from vitrail.model import ViT, ViTConfig
from vitrail.model.config import to_pair
from vitrail.weights.artifact import Artifact, is_artifact, read_artifact, write_artifact
from vitrail.weights.bundled import bundled_classifiers
from vitrail.weights.public import load_public_model
from vitrail.weights.layouts import meta_state_dict
from vitrail.weights.resize import resize_vit

if TYPE_CHECKING:
    from vitrail.evaluation import Evaluation
    from vitrail.evaluation.probe import Probe
    from vitrail.explanation import Explanation

ARTIFACT_NAME = "classifier.safetensors"


@dataclass(frozen=True)
class Prediction:
    """A class and how probable the classifier holds it."""

    label: str
    probability: float


class NonFiniteOutput(VitrailError):
    """The model answers with something that is no number."""


def check_finite(answers: Tensor) -> Tensor:
    """The model's answers in float32; raises `NotFinite` where one is not a finite number."""
    if not answers.isfinite().all():
        raise NonFiniteOutput("the model's answers are not finite numbers", "its weights are damaged; train it again")
    return answers.float()


def to_float16(name: str, tensor: Tensor) -> Tensor:
    """A tensor in float16; raises `VitrailError` where a number is too large for it."""
    half = tensor.half()
    if not half.isfinite().all():
        raise VitrailError(f"{name} has a number too large for float16", "save it without half")
    return half


class BaseClassifier(ABC):
    """What predicting, scoring and serving need of a classifier, whichever runtime computes its logits."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float
    origin: dict[str, Any]

    @abstractmethod
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 pixels of the model's size -> logits (B, Y) in float32, divided by the temperature.

        Raises `NotFinite` where an answer is not a finite number.
        """

    def read_image(self, image: str | Path | Tensor) -> Tensor:
        """A file, or uint8 pixels (C, h, w), -> uint8 (C, H, W) of the model's size; raises `ImageError`."""
        name = "image" if isinstance(image, Tensor) else str(image)
        pixels = image if isinstance(image, Tensor) else decode(image, self.preprocess.channels)
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) != self.preprocess.channels:
            raise ImageError(name, f"pixels must be uint8 ({self.preprocess.channels}, h, w)")
        try:
            return self.preprocess.fitted(pixels)
        except ValueError as error:
            raise ImageError(name, str(error)) from None

    def predict(self, image: str | Path | Tensor, top: int = 5) -> list[Prediction]:
        """The most probable classes of one image, best first; raises `ImageError` if it cannot be read."""
        return self.top_predictions(self.logits(self.read_image(image).unsqueeze(0))[0], top)

    def top_predictions(self, logits_Y: Tensor, top: int = 5) -> list[Prediction]:
        """The most probable classes, best first, from one image's logits; raises `UsageError` without classes."""
        self.require_classes()
        probability, number = logits_Y.softmax(0).topk(min(top, len(self.classes)))
        return [Prediction(self.classes[i], p) for p, i in zip(probability.tolist(), number.tolist(), strict=True)]

    def require_classes(self) -> None:
        """Raises `UsageError` where the outputs are features, to which no classes belong."""
        if not self.classes:
            raise UsageError(
                "this model gives features and knows no classes",
                "vitrail probe scores its features, vitrail train DATA --from MODEL gives it classes",
            )

    def evaluate(self, data: str | Path, *, skip_unreadable: bool = False) -> Evaluation:
        """The numbers of this classifier on labelled images.

        Raises `ImageError` naming a file that cannot be read, or with `skip_unreadable` counts it.
        """
        from vitrail.evaluation import evaluate, images_to_score

        images, said = images_to_score(self, data, skip_unreadable)
        return evaluate(self, images, said=said, skip_unreadable=skip_unreadable)


@dataclass
class Classifier(BaseClassifier):
    """What turns image files into labels; `origin` says where the weights came from."""

    vit: ViT
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    origin: dict[str, Any] = field(default_factory=dict)
    is_fast: bool = False

    def to(self, device: str | torch.device) -> Classifier:
        """The same classifier with its weights on this device."""
        self.require_plain_weights("be moved")
        return replace(self, vit=self.vit.to(device))

    def fast(self, *, compile: Sequence[int] = ()) -> Classifier:
        """The same classifier made ready to answer quickly; it can neither explain nor be saved.

        Weights are folded and packed, in bf16 where the device computes it natively: logits differ by rounding
        (docs/benchmarks.md says how little). For batches of the sizes in `compile` torch's compiler writes code of
        their own, which takes a minute or more for each, once in the life of the process, and a C++ compiler.
        """
        self.require_plain_weights("be made fast")
        dtype = torch.bfloat16 if has_native_bf16(self.device) else torch.float32
        return replace(self, vit=make_fast_vit(self.vit, dtype, compile=compile), is_fast=True)

    def require_plain_weights(self, what: str) -> None:
        """Raises `UsageError` where this is a fast classifier, whose weights are there for answers alone."""
        if self.is_fast:
            raise UsageError(f"a fast classifier cannot {what}", "use the one that it was made from")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.vit.parameters()).device

    def normalize(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 pixels of the model's size -> what the ViT takes, on its device and in its dtype."""
        return self.preprocess.normalise(pixels_BCHW.to(self.device)).to(self.vit.prefix.dtype)

    @torch.inference_mode()
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 pixels of the model's size -> logits (B, Y) in float32, divided by the temperature.

        Puts the model in eval mode. Raises `NotFinite` where an answer is not a finite number.
        """
        self.vit.eval()
        return check_finite(self.vit(self.normalize(pixels_BCHW))) / self.temperature

    @torch.inference_mode()
    def logits_and_features(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """What `logits` and `features` give, (B, Y) and (B, D), from one pass; raises `NotFinite` as they do."""
        self.vit.eval()
        pooled_BD = self.vit.features(self.normalize(pixels_BCHW))
        return check_finite(self.vit.head(pooled_BD)) / self.temperature, check_finite(pooled_BD)

    @torch.no_grad()  # not inference_mode: people train heads on what this returns
    def features(self, images: Tensor | str | Path | Sequence[str | Path | Tensor]) -> Tensor:
        """What the model knows of images before its head decides: pooled vectors (B, D) in float32.

        `images` are uint8 pixels (B, C, H, W) of the model's size, or a file, or several files or uint8 (C, h, w).
        Raises `ImageError` for one that cannot be read, `NotFinite` as `logits` does.
        """
        if not isinstance(images, Tensor):
            several = [images] if isinstance(images, str | Path) else images
            images = torch.stack([self.read_image(image) for image in several])
        self.vit.eval()
        return check_finite(self.vit.features(self.normalize(images)))

    def with_image_size(self, image_size: int | tuple[int, int]) -> Classifier:
        """The same classifier for images of another size, its positions resized by their own rule.

        Raises `UsageError` where the size does not divide into patches.
        """
        self.require_plain_weights("be made for another size")
        vit = resize_vit(self.vit, replace(self.vit.config, image_size=image_size))
        vit.eval().requires_grad_(False)
        return replace(self, vit=vit, preprocess=replace(self.preprocess, image_size=to_pair(image_size)))

    def probe(self, data: str | Path, *, skip_unreadable: bool = False, **options: Any) -> Probe:
        """How far the features go untrained: k-NN and a linear head; options as in `vitrail.evaluation.probe.probe`."""
        from vitrail.evaluation.probe import data_to_probe, probe

        return probe(self, data_to_probe(self, data, skip_unreadable), skip_unreadable=skip_unreadable, **options)

    def explain(self, image: str | Path | Tensor, **options: Any) -> Explanation:
        """What speaks for a class in one image; options as in `vitrail.explanation.explain`."""
        from vitrail.explanation import explain

        return explain(self, image, **options)

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Writes the artefact, whole or not at all; with `half` its weights in float16, for half the bytes."""
        self.require_plain_weights("be saved")
        artefact = Artifact(self.vit.config, self.classes, self.preprocess, self.temperature, self.origin)
        weights = self.vit.state_dict()
        if half:
            weights = {name: to_float16(name, tensor) for name, tensor in weights.items()}
        write_artifact(Path(path), artefact, weights)


def load(model: str | Path, device: str | torch.device = "cpu", *, torch_files: bool = False) -> Classifier:
    """A classifier from a run folder, an artefact, the name of one that comes with vitrail (`cifar10-small`), or public
    weights: a card, `CARD@FILE`, a file, folder or hub id.

    `torch_files` lets plain tensors be read from torch's own files (.pt, .pth, .bin). Raises `VitrailError` saying what
    is wrong with the file, `UsageError` where there is none.
    """
    path = Path(model)
    if path.suffix.lower() == ".onnx" and path.is_file():
        raise UsageError(
            f"{path} is a program, whose weights cannot be looked into", "vitrail predict, evaluate and serve run it"
        )
    if str(model) in bundled_classifiers() and not path.exists():
        path = bundled_classifiers()[str(model)]
    if path.is_dir() and not (path / "config.json").is_file():
        if not (path / ARTIFACT_NAME).is_file():
            unfinished = " yet" if (path / "checkpoint").is_dir() else ""
            raise UsageError(f"{path} has no {ARTIFACT_NAME}{unfinished}", "name a run folder or an artefact")
        path = path / ARTIFACT_NAME
    if not (path.is_file() and is_artifact(path)):
        found = load_public_model(str(model), torch_files=torch_files)
        vit = build_vit(found.config, found.weights, Path(model))
        vit.eval().requires_grad_(False)
        return Classifier(vit.to(device), found.classes, found.preprocess, origin=found.origin)
    artefact, weights = read_artifact(path)
    whole = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in weights.items()}
    vit = build_vit(artefact.config, whole, path)
    vit.eval().requires_grad_(False)
    return Classifier(vit.to(device), artefact.classes, artefact.preprocess, artefact.temperature, artefact.origin)


def build_vit(config: ViTConfig, weights: dict[str, Tensor], path: Path) -> ViT:
    """A ViT with these weights; raises `VitrailError` naming a missing, unknown or misshapen tensor.

    Names and shapes are compared with a model without memory first, so a file asks for no more than it brings.
    """
    if f"blocks.{config.depth - 1}.norm1.weight" not in weights:
        raise VitrailError(f"{path} lacks the tensor blocks.{config.depth - 1}.norm1.weight")
    try:
        ours = meta_state_dict(config)
    except VitrailError as error:
        raise VitrailError(f"{path}: {error.sentence}") from None
    for name, tensor in ours.items():
        if name not in weights:
            raise VitrailError(f"{path} lacks the tensor {name}")
        if weights[name].shape != tensor.shape or weights[name].dtype != tensor.dtype:
            raise VitrailError(f"{path}: {name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}")
    if unknown := sorted(set(weights) - set(ours)):
        raise VitrailError(f"{path} has tensors that the model does not know: {', '.join(unknown[:5])}")
    vit = ViT(config)
    vit.load_state_dict(weights)
    return vit
