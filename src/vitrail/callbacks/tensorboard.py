"""TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.callbacks.base import CallbackState
from vitrail.callbacks.metric_logger import MetricLogger


class TensorBoard(MetricLogger):
    """Writes TensorBoard files into the folder `tensorboard` of the run; see them with `tensorboard --logdir RUN`."""

    library, title = "tensorboard", "TensorBoard"

    def start(self, state: CallbackState, parameters: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = state.step + 1 if state.is_resumed else None  # hides what is logged again
        self.writer = SummaryWriter(state.folder / "tensorboard", purge_step=purge_step)
        rows = "".join(f"| {name} | {value} |\n" for name, value in parameters.items())
        self.writer.add_text("recipe", f"| parameter | value |\n| --- | --- |\n{rows}", state.step)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def log_picture(self, name: str, path: Path, step: int) -> None:
        with Image.open(path) as picture:
            self.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def finish(self, is_complete: bool) -> None:
        self.writer.close()
