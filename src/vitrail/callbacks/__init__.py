"""Callbacks of a training: objects that a run calls when it starts, after each step and epoch, and when it ends."""

from vitrail.callbacks.base import Callback, CallbackState, SplitScores
from vitrail.callbacks.early_stopping import EarlyStopping
from vitrail.callbacks.mlflow import MLflow
from vitrail.callbacks.tensorboard import TensorBoard
from vitrail.callbacks.wandb import WandB

__all__ = ["Callback", "CallbackState", "EarlyStopping", "MLflow", "SplitScores", "TensorBoard", "WandB"]
