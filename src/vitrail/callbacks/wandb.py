"""Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.callbacks.base import CallbackState
from vitrail.callbacks.metric_logger import MetricLogger, require_library


class WandB(MetricLogger):
    """Logs to Weights & Biases; with `mode="offline"` only to the folder `wandb` of the run.

    `options` are those of `wandb.init`. Unless they say otherwise, the printed lines, the source code, the command line
    and facts about the machine are not sent.
    """

    library, title = "wandb", "Weights & Biases"

    def __init__(self, project: str = "vitrail", *, pictures: bool = True, **options: Any):
        super().__init__(pictures=pictures)
        self.options = {"project": project, **options}

    def start(self, state: CallbackState, parameters: Mapping[str, Any]) -> None:
        wandb = require_library("wandb", self.title)
        private = wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            host="",
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        defaults = {"name": state.folder.name, "dir": str(state.folder), "settings": private, "resume": "allow"}
        self.run = wandb.init(config=dict(parameters), id=self.run_id, **{**defaults, **self.options})
        self.run_id = self.run.id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        wandb = require_library("wandb", self.title)
        self.run.log({name: wandb.Image(str(path))}, step=step)

    def finish(self, is_complete: bool) -> None:
        self.run.finish(exit_code=0 if is_complete else 1)
