"""What the loggers share: what is logged of a run, and when.

No local path is logged: only the names of the data and the run, and numbers and words of the recipe and the scores.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from vitrail.callbacks.base import Callback, CallbackState
from vitrail.errors import UsageError
from vitrail.installation import install_hint
from vitrail.training.recipe import flatten_recipe
from vitrail.version import __version__

PICTURES = ("curves", "confusion", "attention", "classes")
NOT_METRICS = ("epoch", "step")


class MetricLogger(Callback):
    """Logs recipe, metrics, final scores and pictures. A subclass has the four functions that write."""

    library = ""  # the module to import; the extra of vitrail that installs it has the same name
    title = ""

    def __init__(self, *, pictures: bool = True):
        self.pictures = pictures
        self.run_id: str | None = None
        self.has_started = False
        require_library(self.library, self.title)

    def start(self, state: CallbackState, parameters: Mapping[str, Any]) -> None:
        """Begins a run, or continues the one with the ID `run_id`."""
        raise NotImplementedError

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes numbers by name."""
        raise NotImplementedError

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Writes a PNG file."""
        raise NotImplementedError

    def finish(self, is_complete: bool) -> None:
        """Ends the run."""
        raise NotImplementedError

    def on_run_start(self, state: CallbackState) -> None:
        self.start(state, run_parameters(state))
        self.has_started = True

    def on_epoch_end(self, state: CallbackState) -> None:
        self.log_metrics(measured(state.metrics), state.step)

    def on_evaluation_end(self, state: CallbackState) -> None:
        if state.evaluation and state.evaluation.is_final:
            self.log_metrics(final_scores(state.evaluation.split, state.evaluation.scores), state.step)
        elif state.evaluation and state.epoch == 0:  # the pretrained weights, before the first epoch
            self.log_metrics(measured(state.metrics), state.step)

    def on_run_end(self, state: CallbackState) -> None:
        if not self.has_started:
            return
        for name in PICTURES if self.pictures else ():
            if (path := state.folder / f"{name}.png").exists():
                self.log_picture(name, path, state.step)
        self.finish(is_complete=state.result is not None)

    def state_dict(self) -> dict[str, Any]:
        """Returns the ID of the run, so that a resumed run continues it."""
        return {"run_id": self.run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.run_id = state["run_id"]


def require_library(module: str, title: str) -> Any:
    """Returns a module; raises `UsageError` with the command that installs it if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        if error.name and error.name.split(".")[0] == module.split(".")[0]:
            raise UsageError(f"{title} is not installed", install_hint(module.split(".")[0])) from None
        raise UsageError(f"{title} cannot be imported: {error}", f"install {error.name or title}") from None


def measured(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of a row without its epoch and step."""
    return {name: value for name, value in metrics.items() if name not in NOT_METRICS}


def run_parameters(state: CallbackState) -> dict[str, Any]:
    """Returns the recipe and the data of a run as numbers and words."""
    recipe = {
        name: value if isinstance(value, bool | int | float | str) or value is None else str(value)
        for name, value in flatten_recipe(state.recipe).items()
    }
    images = {f"{split}_images": n for split, n in state.images.items()}
    return {
        **recipe,
        "data": state.data,
        "class_count": len(state.classes),
        **images,
        "processes": state.world_size,
        "device": state.device.type,
        "vitrail": __version__,
    }


def final_scores(split: str, scores: Mapping[str, Any]) -> dict[str, float]:
    """Returns the final scores by name: final_test_accuracy, final_test_accuracy_low and _high for its interval, ..."""
    values: dict[str, float] = {}
    for name, value in scores.items():
        if name.endswith("_interval") and value is not None:
            for end, number in zip(("low", "high"), value, strict=True):
                values[f"final_{split}_{name.removesuffix('_interval')}_{end}"] = float(number)
        elif isinstance(value, int | float):
            values[f"final_{split}_{name}"] = float(value)
    return values
