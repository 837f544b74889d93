"""Loggers by name, as `logger=` and `--logger` take them."""

from vitrail.callbacks.metric_logger import MetricLogger
from vitrail.callbacks.mlflow import MLflow
from vitrail.callbacks.tensorboard import TensorBoard
from vitrail.callbacks.wandb import WandB
from vitrail.errors import UsageError, did_you_mean

LOGGERS: dict[str, type[MetricLogger]] = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": WandB}


def make_logger(logger: object) -> object:
    """Returns the logger of a name, or the object itself; raises `UsageError` if its library is missing."""
    if not isinstance(logger, str):
        return logger
    if logger not in LOGGERS:
        raise UsageError(f"there is no logger {logger!r}", did_you_mean(logger, LOGGERS))
    return LOGGERS[logger]()
