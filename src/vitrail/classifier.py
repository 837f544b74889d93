"""A classifier: a ViT with its class names and its preprocessing."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.batching import BatchHalver
from vitrail.data.decode import ImageError
from vitrail.data.image_batches import ImageBatch, OnError, read_batches
from vitrail.data.image_input import ImageInput, is_one_image, to_pixels
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.errors import UsageError, VitrailError
from vitrail.fast import make_fast_vit
from vitrail.image_predictions import AnswerForm, ImagePrediction, Predictions
from vitrail.json_types import JsonObject
from vitrail.machine import has_native_bf16
from vitrail.model.config import to_pair
from vitrail.model.vit import ViT
from vitrail.target_scale import TargetScale
from vitrail.tasks import SINGLE_LABEL, TaskName
from vitrail.weights.artifact import Artifact, write_artifact
from vitrail.weights.conversion import check_described
from vitrail.weights.resize import resize_vit
from vitrail.weights.unlike import Unlike, UnlikeFacts

ARTIFACT_NAME = "classifier.safetensors"


class NonFiniteOutput(VitrailError):
    """The model returned NaN or infinity."""


class BaseClassifier(ABC):
    """What prediction, evaluation and serving need, whichever runtime computes the logits."""

    classes: tuple[str, ...]  # empty if the model returns features
    preprocess: Preprocess
    temperature: float
    origin: JsonObject  # where the weights came from: recipe, seed, versions, data, metrics
    task: TaskName
    thresholds: tuple[float, ...]  # of the probability of each label; empty: 0.5 for each

    @property
    def unlike_facts(self) -> UnlikeFacts | None:
        """What is known about the quantiles `unlike`; None if this classifier cannot give them."""
        return None

    def logits_and_distances(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what `logits` returns, and how far each image is from the validation images.

        The second is the distance, (B,), whose quantile `unlike_facts` finds; None if it is not fitted.
        """
        return self.logits(pixels_BCHW), None

    @property
    def answers(self) -> AnswerForm:
        """How logits become answers."""
        return AnswerForm(self.classes, self.task, self.thresholds)

    @abstractmethod
    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns logits (B, Y) in float32, divided by the temperature, for uint8 pixels of the model's size.

        Of a classifier of numbers they are the numbers, in their units.

        Raises `NonFiniteOutput` for NaN or infinity.
        """

    def finish(self, outputs_BY: Tensor) -> Tensor:
        """Returns the logits for outputs of the model: divided by the temperature; numbers in their units."""
        return outputs_BY / self.temperature

    def read_image(self, image: ImageInput, name: str | None = None) -> Tensor:
        """Returns uint8 pixels (C, H, W) of the model's size.

        `image` is a file, the bytes of a file, a PIL image, an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or a
        tensor (h, w) or (C, h, w); arrays and tensors are uint8, or floats from 0 to 1. Raises `ImageError`, with the
        `name`, if the image cannot be read or is too small.
        """
        name = name or (str(image) if isinstance(image, str | Path) else "image")
        pixels = to_pixels(image, self.preprocess.source_channels, name)
        try:
            return self.preprocess.fit_image(pixels)
        except ImageSizeError as error:
            raise ImageError(name, str(error)) from None

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: str | Path | bytes | Image.Image, top: int = 5, *,
        batch_size: int = 64, on_error: OnError = "raise", progress: bool = True,
    ) -> ImagePrediction: ...  # fmt: skip
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: np.ndarray | Tensor, top: int = 5, *,
        batch_size: int = 64, on_error: OnError = "raise", progress: bool = True,
    ) -> ImagePrediction | Predictions: ...  # fmt: skip
    @overload
    def predict(
        self, images: Iterable[ImageInput], top: int = 5, *,
        batch_size: int = 64, on_error: OnError = "raise", progress: bool = True,
    ) -> Predictions: ...  # fmt: skip
    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        top: int = 5,
        *,
        batch_size: int = 64,
        on_error: OnError = "raise",
        progress: bool = True,
    ) -> ImagePrediction | Predictions:
        """Returns the `top` most probable classes of an image, best first, or of each of several images.

        A classifier for several labels returns all labels that reach their thresholds, whatever `top` is.

        One image is anything that `read_image` reads. Several are an iterable of images of any kinds, an array
        (n, h, w, C) or a tensor (n, C, h, w); they are read and computed in batches, with a progress bar if there are
        more than `batch_size` of them and `progress` is not turned off.

        An image that cannot be read raises an `ImageError` that names its index; with `on_error="skip"` the result
        has its reason instead of classes. The same pixels have the same logits, to the last bit, in whatever form
        they come. Another `batch_size` changes logits by rounding only.
        """
        self.require_classes()
        single = is_one_image(images)
        batches = read_batches(
            [images] if single else images,  # type: ignore[arg-type]
            self._read_one if single else self.read_image,
            batch_size=batch_size,
            on_error=on_error,
            progress="predicting" if progress else None,
        )
        predictions = self.predict_batches(batches, top)
        return predictions[0] if single else predictions

    def predict_batches(self, batches: Iterable[ImageBatch], top: int = 5) -> Predictions:
        """Returns the predictions for the images of all batches, in their order."""
        facts = self.unlike_facts
        parts, distances = [torch.empty(0, len(self.classes))], [torch.empty(0)]
        paths: list[str | None] = []
        errors: dict[int, str] = {}
        halve = BatchHalver()
        for batch in batches:
            logits_BY = torch.full((len(batch.paths), len(self.classes)), torch.nan)
            distances_B = torch.full((len(batch.paths),), torch.nan)
            if readable := batch.readable:
                outputs = halve(self.logits_and_distances, batch.pixels_BCHW)
                logits_BY[readable] = torch.cat([part.cpu() for part, _ in outputs])
                if facts is not None:
                    distances_B[readable] = torch.cat([part.cpu() for _, part in outputs if part is not None])
            parts.append(logits_BY)
            distances.append(distances_B)
            errors |= {len(paths) + i: reason for i, reason in batch.errors.items()}
            paths += batch.paths
        return Predictions(
            torch.cat(parts), self.classes, top, paths, errors, self.task, self.thresholds,
            None if facts is None else torch.cat(distances), facts,
        )  # fmt: skip

    def _read_one(self, image: ImageInput, name: str) -> Tensor:
        """Reads an image that stands alone, so its name in messages has no index."""
        return self.read_image(image)

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
    origin: JsonObject = field(default_factory=dict)
    is_fast: bool = False
    task: TaskName = SINGLE_LABEL
    thresholds: tuple[float, ...] = ()
    unlike: Unlike | None = None  # how unlike the validation images an image is; None if it is not fitted
    target_scale: TargetScale | None = None  # of numbers, which the ViT returns standardized

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
        minute or more for each size, once per process, and needs a C++ compiler; such a copy has no `unlike`.
        """
        self.require_plain_weights("be made fast")
        dtype = torch.bfloat16 if has_native_bf16(self.device) else torch.float32
        unlike = None if compile else self.unlike  # the compiled code returns no features
        return replace(self, vit=make_fast_vit(self.vit, dtype, compile=compile), is_fast=True, unlike=unlike)

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
            return self.finish(check_finite(self.vit(self.normalize(pixels_BCHW))))

    def finish(self, outputs_BY: Tensor) -> Tensor:
        """Returns the logits for outputs of the ViT, as `BaseClassifier.finish` describes."""
        return self.target_scale.restore(outputs_BY) if self.target_scale else outputs_BY / self.temperature

    @torch.inference_mode()
    def logits_and_features(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the results of `logits`, (B, Y), and `features`, (B, D), from one forward pass."""
        with eval_mode(self.vit):
            features_BD = self.vit.features(self.normalize(pixels_BCHW))
        return self.finish(check_finite(self.vit.head(features_BD))), check_finite(features_BD)

    @property
    def unlike_facts(self) -> UnlikeFacts | None:
        return None if self.unlike is None else self.unlike.facts

    @torch.inference_mode()
    def logits_and_distances(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what `BaseClassifier.logits_and_distances` describes, from one forward pass."""
        if self.unlike is None:
            return self.logits(pixels_BCHW), None
        logits_BY, features_BD = self.logits_and_features(pixels_BCHW)
        return logits_BY, self.unlike(features_BD)

    @torch.no_grad()  # not inference_mode: users train heads on the result
    def features(self, images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Returns the pooled vectors that the head reads, (B, D) in float32, on the classifier's device.

        `images` are uint8 pixels (B, C, H, W) of the model's size, which are computed as one batch, or anything that
        `embed` takes. Raises `ImageError` for an unreadable image, `NonFiniteOutput` as `logits` does.
        """
        if not (isinstance(images, Tensor) and images.ndim == 4):
            return self.embed(images).to(self.device)
        with eval_mode(self.vit):
            return check_finite(self.vit.features(self.normalize(images)))

    def embed(
        self, images: ImageInput | Iterable[ImageInput], *, batch_size: int = 64, progress: bool = True
    ) -> Tensor:
        """Returns the features of images: (n, D) float32 on the CPU, also for one image.

        They are the pooled vectors that the head reads, as in `vitrail probe` and `vitrail predict --embedding`.
        `images` and `progress` are those of `predict`. Raises `ImageError`, which names the index of an image that
        cannot be read.
        """
        single = is_one_image(images)
        parts = [torch.empty(0, self.vit.config.pooled_width)]
        halve = BatchHalver()
        for batch in read_batches(
            [images] if single else images,  # type: ignore[arg-type]
            self._read_one if single else self.read_image,
            batch_size=batch_size,
            progress="embedding" if progress else None,
        ):
            parts += [part.cpu() for part in halve(self.features, batch.pixels_BCHW)]
        return torch.cat(parts)

    def with_image_size(self, image_size: int | tuple[int, int]) -> Classifier:
        """Returns a copy for another image size, with positions resized; raises `UsageError` for an impossible size.

        At another size features differ, so the copy has no `unlike`.
        """
        self.require_plain_weights("be resized")
        vit = resize_vit(self.vit, replace(self.vit.config, image_size=image_size))
        vit.eval().requires_grad_(False)
        preprocess = self.preprocess.with_image_size(to_pair(image_size))
        unlike = self.unlike if preprocess.image_size == self.preprocess.image_size else None
        return replace(self, vit=vit, preprocess=preprocess, unlike=unlike)

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Writes the artifact atomically; with `half` its weights are in float16, half the bytes.

        Raises `VitrailError` if the config does not describe the weights: the artifact could not be loaded.
        """
        self.require_plain_weights("be saved")
        check_described(self.vit)
        artifact = Artifact(
            self.vit.config,
            self.classes,
            self.preprocess,
            self.temperature,
            self.origin,
            self.task,
            self.thresholds,
            self.unlike_facts,
            self.target_scale,
        )
        weights = self.vit.state_dict()
        if half:
            weights = {name: to_float16(name, tensor) for name, tensor in weights.items()}
        if self.unlike is not None:
            weights |= self.unlike.to_tensors()
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
