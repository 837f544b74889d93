"""`VitrailClassifier`: a Vision Transformer with scikit-learn's interface, trained as `vitrail.train` does."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from vitrail import console
from vitrail.classifier import Classifier
from vitrail.data.image_input import to_pixels
from vitrail.data.labels import categorize
from vitrail.data.source import Listing, Source
from vitrail.documents import RunResult
from vitrail.errors import VitrailError
from vitrail.interrupts import Interrupted
from vitrail.runs.pretrained import Model
from vitrail.runs.train import train
from vitrail.training.recipe import OptimizerName, Recipe

MAX_SEED = 2**31 - 1
# keywords whose value, if it is not None, replaces the recipe's
RECIPE_KEYWORDS = (
    "size", "width", "depth", "heads", "mlp_width", "patch", "image_size", "epochs", "batch_size", "optimizer", "lr",
    "weight_decay", "label_smoothing", "flip", "validation_fraction",
)  # fmt: skip


class VitrailClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A Vision Transformer with `fit`, `predict`, `predict_proba` and `score`.

    `X` is an array of gray images (n, h, w) or of images (n, h, w, C), a list of paths, of PIL images or of arrays of
    any sizes, or an array (n, features) with an image in each row. `image_shape` is then the shape of the image, (h, w)
    or (h, w, C), or "row" for images of one row of pixels. Without it, a square number of features is a square gray
    image, and three times a square number a square color image.

    `pixel_range` are the values of black and white. Without it, pixels are uint8 or floats from 0 to 1; "fit" takes the
    smallest and the largest value of the training images, and clips others to them when it predicts.

    The other parameters are those of `vitrail.train`: `model` holds pretrained weights, `recipe` is a name, a file or a
    `Recipe`, and the fields from `size` to `validation_fraction` replace those of the recipe unless they are None.
    `changes` holds any other fields. `flip` is 0 unless it is set: an array does not say whether a mirrored image
    belongs to the same class. `out` keeps the run in a folder, which must be new. `random_state` is the seed.

    After `fit`, `classes_` are the labels, in order and of their own type, `classifier_` is a `vitrail.Classifier`, and
    `result_` holds the scores on the images that were held out for validation. Bad input raises `ValueError`.
    """

    def __init__(
        self,
        *,
        recipe: str | Path | Recipe | None = None,
        model: Model | None = None,
        image_shape: tuple[int, ...] | Literal["row"] | None = None,
        pixel_range: tuple[float, float] | Literal["fit"] | None = None,
        size: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp_width: int | None = None,
        patch: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: OptimizerName | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        label_smoothing: float | None = None,
        flip: float | None = None,
        validation_fraction: float | None = None,
        changes: dict[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        device: str | None = None,
        out: str | Path | None = None,
        verbose: bool = False,
    ):
        self.recipe = recipe
        self.model = model
        self.image_shape = image_shape
        self.pixel_range = pixel_range
        self.size = size
        self.width = width
        self.depth = depth
        self.heads = heads
        self.mlp_width = mlp_width
        self.patch = patch
        self.image_size = image_size
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.flip = flip
        self.validation_fraction = validation_fraction
        self.changes = changes
        self.random_state = random_state
        self.device = device
        self.out = out
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> VitrailClassifier:
        """Trains a new model on images and their labels; returns self."""
        images = self._read(X, y, is_training=True)
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        check_consistent_length(images, labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"VitrailClassifier needs two classes or more, and y has 1 class: {self.classes_[0]!r}")
        names = name_classes(self.classes_)
        source = make_source(images, [names[code] for code in codes], can_flip=self.flip is not None)
        seed = self._choose_seed()
        changes = {name: getattr(self, name) for name in RECIPE_KEYWORDS if getattr(self, name) is not None}
        with run_folder(self.out) as out, quiet_unless(self.verbose), errors_as_value_errors():
            run = train(
                source,
                model=self.model,
                recipe=self.recipe,
                out=out,
                device=self.device,
                report=False,
                check=False,
                seed=seed,
                **changes,
                **(self.changes or {}),
            )
        self.classifier_: Classifier = run.classifier
        self.result_: RunResult = run.result
        self.columns_ = [run.classifier.classes.index(name) for name in names]
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probability of each class, (n, classes) float64, in the order of `classes_`."""
        check_is_fitted(self)
        images = self._read(X, None, is_training=False)
        with errors_as_value_errors():
            logits = self.classifier_.predict(images, progress=self.verbose).logits
        probabilities: np.ndarray = logits.double().softmax(1).numpy()[:, self.columns_]
        return probabilities

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each image."""
        probabilities = self.predict_proba(X)
        labels: np.ndarray = self.classes_[probabilities.argmax(1)]
        return labels

    def _choose_seed(self) -> int:
        state = self.random_state
        return state if isinstance(state, int | np.integer) else int(check_random_state(state).randint(MAX_SEED))

    def _read(self, X: Any, y: Any, *, is_training: bool) -> list[Any] | np.ndarray:
        """Returns images that `Classifier.predict` reads: a list, or an array (n, h, w, C) of uint8."""
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy() if X.ndim < 4 else list(X)
        if is_list_of_images(X):
            return list(X)
        keywords = {"y": y} if is_training else {}
        dimensions = len(X.shape) if hasattr(X, "shape") else np.asarray(X).ndim
        array = validate_data(
            self, X, **keywords, reset=is_training, ensure_2d=dimensions < 3, allow_nd=True, dtype="numeric"
        )
        array = array[0] if is_training else array
        if is_training:
            self.range_ = find_range(array, self.pixel_range)
        pixels = to_uint8(array, self.range_, clip=self.pixel_range == "fit")
        if pixels.ndim == 2:
            pixels = pixels.reshape(len(pixels), *shape_of_rows(pixels.shape[1], self.image_shape))
        return pixels[..., None] if pixels.ndim == 3 else pixels


def is_list_of_images(X: Any) -> bool:
    """Returns whether X is a sequence of paths, files, PIL images, or arrays that may have different sizes."""
    if not isinstance(X, Sequence | np.ndarray) or isinstance(X, str | bytes) or not len(X):
        return False
    if isinstance(X, np.ndarray) and X.ndim > 1:
        return False
    first = X[0]
    is_array = isinstance(first, np.ndarray | Tensor) and first.ndim >= 2
    return is_array or isinstance(first, str | Path | bytes | Image.Image)


def shape_of_rows(features: int, image_shape: tuple[int, ...] | str | None) -> tuple[int, ...]:
    """Returns the shape of the image in a row of X."""
    if image_shape == "row":
        return (1, features)
    if image_shape is not None:
        if isinstance(image_shape, str) or math.prod(image_shape) != features or len(image_shape) not in (2, 3):
            raise ValueError(f"image_shape is {image_shape!r}, and X has {features} features; give (h, w) or (h, w, C)")
        return tuple(image_shape)
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side * side * channels == features:
            return (side, side) if channels == 1 else (side, side, 3)
    raise ValueError(f"n_features={features} is no square image; set image_shape=(h, w), (h, w, C) or 'row'")


def find_range(array: np.ndarray, pixel_range: tuple[float, float] | str | None) -> tuple[float, float]:
    """Returns the values of black and white."""
    if pixel_range == "fit":
        low, high = float(array.min()), float(array.max())
        return low, high if high > low else low + 1
    if isinstance(pixel_range, str):
        raise ValueError(f"pixel_range is {pixel_range!r}; give a pair of numbers, or 'fit'")
    if pixel_range is not None:
        low, high = map(float, pixel_range)
        if not low < high:
            raise ValueError(f"pixel_range is {pixel_range!r}; the first number must be below the second")
        return low, high
    return (0.0, 255.0) if array.dtype == np.uint8 else (0.0, 1.0)


def to_uint8(array: np.ndarray, value_range: tuple[float, float], *, clip: bool) -> np.ndarray:
    """Returns pixels from 0 to 255; raises `ValueError` for a value outside of the range, unless it is clipped."""
    low, high = value_range
    if array.dtype == np.uint8 and value_range == (0.0, 255.0):
        return array
    smallest, largest = array.min(), array.max()
    if not clip and (smallest < low or largest > high):
        raise ValueError(
            f"X has values from {smallest:.4g} to {largest:.4g}, and black and white are {low:.4g} and {high:.4g}; "
            "set pixel_range, for example pixel_range=(0, 16), or pixel_range='fit'"
        )
    pixels: np.ndarray = ((array.astype(np.float64).clip(low, high) - low) / (high - low) * 255).round()
    return pixels.astype(np.uint8)


def name_classes(classes: np.ndarray) -> list[str]:
    """Returns a different name for each label: its text, with a number before it if two have the same text."""
    names = [str(label) for label in classes.tolist()]
    return names if len(set(names)) == len(names) else [f"{i}: {name}" for i, name in enumerate(names)]


def make_source(images: list[Any] | np.ndarray, labels: list[str], *, can_flip: bool) -> Source:
    """Returns labeled images as a source without splits of its own: all are for training and validation."""
    names = [f"image-{i:07d}" for i in range(len(images))]
    channels = 1 if isinstance(images, np.ndarray) and images.shape[-1] == 1 else 3
    with errors_as_value_errors():
        pixels = [to_pixels(image, channels, f"X[{i}]") for i, image in enumerate(images)]
    same_shape = len({each.shape for each in pixels}) == 1
    listing = Listing(torch.stack(pixels) if same_shape else pixels, names, categorize(labels))
    return Source("arrays", {"train": listing}, can_flip=can_flip, channels=channels)


@contextmanager
def run_folder(out: str | Path | None) -> Iterator[Path]:
    """Gives the folder of the run, which is temporary if the user named none."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="vitrail-") as folder:
        yield Path(folder, "run")


@contextmanager
def quiet_unless(verbose: bool) -> Iterator[None]:
    """Turns off progress bars and messages within the block, unless `verbose`."""
    with ExitStack() as stack:
        if not verbose:
            stack.callback(setattr, console, "quiet", console.quiet)
            console.quiet = True
        yield


@contextmanager
def errors_as_value_errors() -> Iterator[None]:
    """Turns vitrail's errors into `ValueError`, which scikit-learn's tools expect for bad input.

    Ctrl-C stays `KeyboardInterrupt`: a search must stop, and not count it as a fit that failed.
    """
    try:
        yield
    except Interrupted as error:
        raise KeyboardInterrupt(error.sentence) from error
    except VitrailError as error:
        raise ValueError(str(error)) from error
