"""Vision Transformers you can see through: train, understand and ship an image classifier, on one ViT you can read."""

__version__ = "0.1.0"

from vitrail.classifier import Classifier, Prediction, load
from vitrail.errors import UsageError, VitrailError
from vitrail.model import ViT, ViTConfig
from vitrail.runs import Run, train

__all__ = [
    "Classifier",
    "Prediction",
    "Run",
    "UsageError",
    "ViT",
    "ViTConfig",
    "VitrailError",
    "load",
    "train",
]
