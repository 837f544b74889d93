"""The names of loggers."""

from typing import Literal

LoggerName = Literal["mlflow", "tensorboard", "wandb"]
