"""Loggers by name, as `logger=` and `--logger` take them."""

from collections.abc import Sequence

from vitrail.callbacks.base import Callback
from vitrail.callbacks.metric_logger import MetricLogger
from vitrail.callbacks.mlflow import MLflow
from vitrail.callbacks.names import LoggerName
from vitrail.callbacks.tensorboard import TensorBoard
from vitrail.callbacks.wandb import WandB
from vitrail.errors import UsageError, did_you_mean

Logger = LoggerName | Callback
LOGGERS: dict[str, type[MetricLogger]] = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": WandB}


def make_loggers(logger: Logger | Sequence[Logger] | None) -> list[object]:
    """Returns the loggers of names, and objects as they are; raises `UsageError` if a library is missing."""
    return [make_logger(each) for each in dict.fromkeys(list_loggers(logger))]


def list_loggers(logger: Logger | Sequence[Logger] | None) -> list[Logger]:
    """Returns the value of `logger=` as a list."""
    if logger is None:
        return []
    if isinstance(logger, Sequence) and not isinstance(logger, str):
        return list(logger)
    return [logger]


def name_loggers(logger: Logger | Sequence[Logger] | None) -> list[str]:
    """Returns those loggers that were given by name."""
    return [each for each in dict.fromkeys(list_loggers(logger)) if isinstance(each, str)]


def make_logger(logger: Logger) -> object:
    """Returns the logger of a name, or the object itself."""
    if not isinstance(logger, str):
        return logger
    if logger not in LOGGERS:
        raise UsageError(f"there is no logger {logger!r}", did_you_mean(logger, LOGGERS))
    return LOGGERS[logger]()
