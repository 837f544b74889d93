"""Vision Transformers you can see through: train, understand and ship an image classifier, on one ViT you can read."""

import os

# Read once, when torch loads its threads: idle ones sleep instead of spinning. With another process on the same cores
# spinning makes a step more than ten times slower (docs/log.md); on a quiet machine it gains nothing measurable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from vitrail.classifier import Classifier, Prediction, load
from vitrail.errors import UsageError, VitrailError
from vitrail.explanation import Explanation, recording
from vitrail.model import ViT, ViTConfig
from vitrail.prediction import PredictSummary, predict_all
from vitrail.runs.finish import Run
from vitrail.runs.train import train
from vitrail.sweeps import Sweep, sweep
from vitrail.version import __version__ as __version__

__all__ = [
    "Classifier",
    "Explanation",
    "PredictSummary",
    "Prediction",
    "Run",
    "Sweep",
    "UsageError",
    "ViT",
    "ViTConfig",
    "VitrailError",
    "load",
    "predict_all",
    "recording",
    "sweep",
    "train",
]
