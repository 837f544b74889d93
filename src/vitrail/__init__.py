"""Vision Transformers you can see through: train, understand and ship an image classifier, on one ViT you can read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitrail.openmp import let_idle_threads_sleep
from vitrail.version import __version__ as __version__

let_idle_threads_sleep()
del let_idle_threads_sleep

if TYPE_CHECKING:
    from vitrail.api import evaluate, export, predict, probe
    from vitrail.callbacks.base import Callback
    from vitrail.callbacks.early_stopping import EarlyStopping
    from vitrail.classifier import Classifier
    from vitrail.data.decode import ImageError
    from vitrail.data.preprocess import Preprocess
    from vitrail.errors import UsageError, VitrailError
    from vitrail.evaluation.evaluation import Evaluation
    from vitrail.evaluation.multi_label_evaluation import MultiLabelEvaluation
    from vitrail.evaluation.numbers import NumberEvaluation
    from vitrail.evaluation.probe import Probe
    from vitrail.explanation.api import explain
    from vitrail.explanation.explanation import Explanation
    from vitrail.explanation.recording import recording
    from vitrail.image_predictions import ImagePrediction, Prediction, Predictions
    from vitrail.loading import load, load_any
    from vitrail.model.config import ViTConfig
    from vitrail.model.vit import ViT
    from vitrail.module_classifier import ModuleClassifier
    from vitrail.prediction import PredictSummary, predict_all
    from vitrail.pretraining.pretrain import Pretraining, pretrain
    from vitrail.registry import register
    from vitrail.runs.cross_validation import CrossValidation, cross_validate
    from vitrail.runs.result import ModuleRun, Run
    from vitrail.runs.train import train
    from vitrail.sweeps.sweep import Sweep, sweep
    from vitrail.training.recipe import Recipe
    from vitrail.training.recipe_changes import RecipeChanges

# Public names and their modules. A module is imported when its name is first used, so `import vitrail` is fast.
_MODULES = {
    "Callback": "vitrail.callbacks.base",
    "Classifier": "vitrail.classifier",
    "CrossValidation": "vitrail.runs.cross_validation",
    "EarlyStopping": "vitrail.callbacks.early_stopping",
    "Evaluation": "vitrail.evaluation.evaluation",
    "Explanation": "vitrail.explanation.explanation",
    "ImageError": "vitrail.data.decode",
    "ImagePrediction": "vitrail.image_predictions",
    "ModuleClassifier": "vitrail.module_classifier",
    "ModuleRun": "vitrail.runs.result",
    "MultiLabelEvaluation": "vitrail.evaluation.multi_label_evaluation",
    "NumberEvaluation": "vitrail.evaluation.numbers",
    "PredictSummary": "vitrail.prediction",
    "Prediction": "vitrail.image_predictions",
    "Predictions": "vitrail.image_predictions",
    "Preprocess": "vitrail.data.preprocess",
    "Pretraining": "vitrail.pretraining.pretrain",
    "Probe": "vitrail.evaluation.probe",
    "Recipe": "vitrail.training.recipe",
    "RecipeChanges": "vitrail.training.recipe_changes",
    "Run": "vitrail.runs.result",
    "Sweep": "vitrail.sweeps.sweep",
    "UsageError": "vitrail.errors",
    "ViT": "vitrail.model.vit",
    "ViTConfig": "vitrail.model.config",
    "VitrailError": "vitrail.errors",
    "cross_validate": "vitrail.runs.cross_validation",
    "evaluate": "vitrail.api",
    "explain": "vitrail.explanation.api",
    "export": "vitrail.api",
    "load": "vitrail.loading",
    "load_any": "vitrail.loading",
    "predict": "vitrail.api",
    "predict_all": "vitrail.prediction",
    "pretrain": "vitrail.pretraining.pretrain",
    "probe": "vitrail.api",
    "recording": "vitrail.explanation.recording",
    "register": "vitrail.registry",
    "sweep": "vitrail.sweeps.sweep",
    "train": "vitrail.runs.train",
}

__all__ = [
    "Callback",
    "Classifier",
    "CrossValidation",
    "EarlyStopping",
    "Evaluation",
    "Explanation",
    "ImageError",
    "ImagePrediction",
    "ModuleClassifier",
    "ModuleRun",
    "MultiLabelEvaluation",
    "NumberEvaluation",
    "PredictSummary",
    "Prediction",
    "Predictions",
    "Preprocess",
    "Pretraining",
    "Probe",
    "Recipe",
    "RecipeChanges",
    "Run",
    "Sweep",
    "UsageError",
    "ViT",
    "ViTConfig",
    "VitrailError",
    "cross_validate",
    "evaluate",
    "explain",
    "export",
    "load",
    "load_any",
    "predict",
    "predict_all",
    "pretrain",
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
