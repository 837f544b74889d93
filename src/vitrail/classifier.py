"""A classifier: a ViT with its class names and its preprocessing."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.data.decode import ImageError
from vitrail.data.image_input import ImageInput, is_one_image, to_pixels
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.fast import make_fast_vit
from vitrail.machine import has_native_bf16
from vitrail.model.config import to_pair
from vitrail.model.vit import ViT
from vitrail.weights.artifact import Artifact, write_artifact
from vitrail.weights.resize import resize_vit

ARTIFACT_NAME = "classifier.safetensors"
PREDICT_BATCH_SIZE = 64


@dataclass(frozen=True)
class Prediction:
    """A class and its predicted probability."""

    label: str
    probability: float


class NonFiniteOutput(VitrailError):
    """The model returned NaN or infinity."""


class BaseClassifier(ABC):
    """What prediction, evaluation and serving need, whichever runtime computes the logits."""

    classes: tuple[str, ...]  # empty if the model returns features
    preprocess: Preprocess
    temperature: float
    origin: dict[str, Any]  # where the weights came from: recipe, seed, versions, data, metrics

    @abstractmethod
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns logits (B, Y) in float32, divided by the temperature, for uint8 pixels of the model's size.

        Raises `NonFiniteOutput` for NaN or infinity.
        """

    def read_image(self, image: ImageInput) -> Tensor:
        """Returns uint8 pixels (C, H, W) of the model's size.

        `image` is a file, the bytes of a file, a PIL image, an array (h, w), (h, w, 3) or (h, w, 4), or a tensor
        (C, h, w); arrays and tensors are uint8, or floats from 0 to 1. Raises `ImageError` if the image cannot be read
        or is too small.
        """
        name = str(image) if isinstance(image, str | Path) else "image"
        pixels = to_pixels(image, self.preprocess.channels)
        try:
            return self.preprocess.fit_image(pixels)
        except ImageSizeError as error:
            raise ImageError(name, str(error)) from None

    @overload
    def predict(self, image: str | Path | bytes | Image.Image, top: int = 5) -> list[Prediction]: ...
    @overload
    def predict(self, image: list[Any] | tuple[Any, ...], top: int = 5) -> list[list[Prediction]]: ...
    @overload
    def predict(self, image: Any, top: int = 5) -> Any: ...
    def predict(self, image: Any, top: int = 5) -> Any:
        """Returns the `top` most probable classes of an image, best first; raises as `read_image` does.

        For a list of images, an array (B, h, w, C) or a tensor (B, C, h, w) it returns a list of such lists.
        """
        self.require_classes()
        if is_one_image(image):
            return self.predict_batch([image], top)[0]
        starts = range(0, len(image), PREDICT_BATCH_SIZE)
        return [each for start in starts for each in self.predict_batch(image[start : start + PREDICT_BATCH_SIZE], top)]

    def predict_batch(self, images: Sequence[ImageInput], top: int) -> list[list[Prediction]]:
        """Returns the most probable classes of each image, computed at once."""
        logits_BY = self.logits(torch.stack([self.read_image(image) for image in images]))
        return [top_predictions(logits_Y, self.classes, top) for logits_Y in logits_BY]

    def require_classes(self) -> None:
        """Raises `UsageError` if the model returns features, which have no classes."""
        if not self.classes:
            raise UsageError(
                "this model returns features and has no classes",
                "score the features with vitrail probe, or add classes with vitrail train DATA --from MODEL",
            )


@dataclass
class Classifier(BaseClassifier):
    """A classifier that torch runs."""

    vit: ViT
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    origin: dict[str, Any] = field(default_factory=dict)
    is_fast: bool = False

    def __repr__(self) -> str:
        """A line: a notebook would show every module of the model."""
        config = self.vit.config
        size = "x".join(map(str, self.preprocess.image_size))
        classes = f"{len(self.classes)} classes" if self.classes else "no classes"
        parameters = sum(parameter.numel() for parameter in self.vit.parameters())
        shape = f"ViT of width {config.width} and depth {config.depth}, patch {config.patch}, {size} px"
        return f"Classifier({classes}, {shape}, {parameters:,} parameters on {self.device})"

    def to(self, device: str | torch.device) -> Classifier:
        """Returns this classifier if it is on the device, else a copy there; the original stays where it is."""
        self.require_plain_weights("be moved")
        if torch.empty(0, device=device).device == self.device:
            return self
        return replace(self, vit=copy_to_device(self.vit, device))

    def fast(self, *, compile: Sequence[int] = ()) -> Classifier:
        """Returns a copy for fast inference. It cannot explain, be saved or be moved.

        Weights are folded and packed, in bf16 if the device supports it natively: logits differ by rounding
        (figures in docs/benchmarks.md). Batches of the sizes in `compile` run code from torch.compile, which takes a
        minute or more for each size, once per process, and needs a C++ compiler.
        """
        self.require_plain_weights("be made fast")
        dtype = torch.bfloat16 if has_native_bf16(self.device) else torch.float32
        return replace(self, vit=make_fast_vit(self.vit, dtype, compile=compile), is_fast=True)

    def require_plain_weights(self, action: str) -> None:
        """Raises `UsageError` if this is a fast copy, whose weights can only compute outputs."""
        if self.is_fast:
            raise UsageError(f"a fast classifier cannot {action}", "use the classifier it was made from")

    @property
    def device(self) -> torch.device:
        return next(self.vit.parameters()).device

    def normalize(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns the ViT's input for uint8 pixels of the model's size, on its device and in its dtype."""
        return self.preprocess.normalize(pixels_BCHW.to(self.device)).to(self.vit.prefix.dtype)

    @torch.inference_mode()
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns logits as described in `BaseClassifier`, computed in eval mode."""
        with eval_mode(self.vit):
            return check_finite(self.vit(self.normalize(pixels_BCHW))) / self.temperature

    @torch.inference_mode()
    def logits_and_features(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the results of `logits`, (B, Y), and `features`, (B, D), from one forward pass."""
        with eval_mode(self.vit):
            features_BD = self.vit.features(self.normalize(pixels_BCHW))
        return check_finite(self.vit.head(features_BD)) / self.temperature, check_finite(features_BD)

    @torch.no_grad()  # not inference_mode: users train heads on the result
    def features(self, images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Returns the pooled vectors that the head reads, (B, D) in float32.

        `images` are uint8 pixels (B, C, H, W) of the model's size, an image of any kind that `read_image` reads, or a
        list of them. Raises `ImageError` for an unreadable image, `NonFiniteOutput` as `logits` does.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            items: Any = [images] if is_one_image(images) else images
            images = torch.stack([self.read_image(image) for image in items])
        with eval_mode(self.vit):
            return check_finite(self.vit.features(self.normalize(images)))

    def with_image_size(self, image_size: int | tuple[int, int]) -> Classifier:
        """Returns a copy for another image size, with positions resized; raises `UsageError` for an impossible size."""
        self.require_plain_weights("be resized")
        vit = resize_vit(self.vit, replace(self.vit.config, image_size=image_size))
        vit.eval().requires_grad_(False)
        return replace(self, vit=vit, preprocess=self.preprocess.with_image_size(to_pair(image_size)))

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Writes the artifact atomically; with `half` its weights are in float16, half the bytes."""
        self.require_plain_weights("be saved")
        artifact = Artifact(self.vit.config, self.classes, self.preprocess, self.temperature, self.origin)
        weights = self.vit.state_dict()
        if half:
            weights = {name: to_float16(name, tensor) for name, tensor in weights.items()}
        write_artifact(Path(path), artifact, weights)


def copy_to_device(vit: ViT, device: str | torch.device) -> ViT:
    """Returns a copy on a device, without a second copy of the weights on this one."""
    copies: dict[int, Any] = {id(buffer): buffer.to(device) for buffer in vit.buffers()}
    for parameter in vit.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
    return copy.deepcopy(vit, copies)


@contextmanager
def eval_mode(vit: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode, and the modules that were in training mode back into it afterwards."""
    training = [module for module in vit.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def top_predictions(logits_Y: Tensor, classes: Sequence[str], top: int = 5) -> list[Prediction]:
    """Returns the `top` most probable classes of one image, best first."""
    probabilities, indices = top_probabilities(logits_Y.unsqueeze(0), top)
    return [Prediction(classes[i], p) for p, i in zip(probabilities[0].tolist(), indices[0].tolist(), strict=True)]


def top_probabilities(logits_BY: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Returns the `top` largest softmax probabilities of each row and their class indices, (B, top) each."""
    probabilities, indices = logits_BY.softmax(1).topk(min(top, logits_BY.shape[1]))
    return probabilities, indices


def check_finite(outputs: Tensor) -> Tensor:
    """Returns a model's outputs in float32; raises `NonFiniteOutput` for NaN or infinity."""
    if not outputs.isfinite().all():
        raise NonFiniteOutput("the model's outputs are not finite", "its weights are damaged; train it again")
    return outputs.float()


def to_float16(name: str, tensor: Tensor) -> Tensor:
    """Returns a tensor in float16; raises `VitrailError` if a value overflows."""
    half = tensor.half()
    if not half.isfinite().all():
        raise VitrailError(f"{name} has a value too large for float16", "save it without half")
    return half
