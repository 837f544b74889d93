"""Vision Transformers you can see through: train, understand and ship an image classifier, on one ViT you can read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitrail.openmp import let_idle_threads_sleep
from vitrail.version import __version__ as __version__

let_idle_threads_sleep()
del let_idle_threads_sleep

if TYPE_CHECKING:
    from vitrail.api import evaluate, probe
    from vitrail.callbacks.base import Callback
    from vitrail.callbacks.early_stopping import EarlyStopping
    from vitrail.classifier import Classifier, Prediction
    from vitrail.errors import UsageError, VitrailError
    from vitrail.explanation.api import explain
    from vitrail.explanation.explanation import Explanation
    from vitrail.explanation.recording import recording
    from vitrail.loading import load, load_any
    from vitrail.model.config import ViTConfig
    from vitrail.model.vit import ViT
    from vitrail.prediction import PredictSummary, predict_all
    from vitrail.registry import register
    from vitrail.runs.result import Run
    from vitrail.runs.train import train
    from vitrail.sweeps.sweep import Sweep, sweep

# Public names and their modules. A module is imported when its name is first used, so `import vitrail` is fast.
_MODULES = {
    "Callback": "vitrail.callbacks.base",
    "Classifier": "vitrail.classifier",
    "EarlyStopping": "vitrail.callbacks.early_stopping",
    "Explanation": "vitrail.explanation.explanation",
    "PredictSummary": "vitrail.prediction",
    "Prediction": "vitrail.classifier",
    "Run": "vitrail.runs.result",
    "Sweep": "vitrail.sweeps.sweep",
    "UsageError": "vitrail.errors",
    "ViT": "vitrail.model.vit",
    "ViTConfig": "vitrail.model.config",
    "VitrailError": "vitrail.errors",
    "evaluate": "vitrail.api",
    "explain": "vitrail.explanation.api",
    "load": "vitrail.loading",
    "load_any": "vitrail.loading",
    "predict_all": "vitrail.prediction",
    "probe": "vitrail.api",
    "recording": "vitrail.explanation.recording",
    "register": "vitrail.registry",
    "sweep": "vitrail.sweeps.sweep",
    "train": "vitrail.runs.train",
}

__all__ = [
    "Callback",
    "Classifier",
    "EarlyStopping",
    "Explanation",
    "PredictSummary",
    "Prediction",
    "Run",
    "Sweep",
    "UsageError",
    "ViT",
    "ViTConfig",
    "VitrailError",
    "evaluate",
    "explain",
    "load",
    "load_any",
    "predict_all",
    "probe",
    "recording",
    "register",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
