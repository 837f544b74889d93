"""Epoch callbacks that vitrail brings."""

from pathlib import Path

from vitrail.errors import UsageError
from vitrail.installation import install_hint
from vitrail.runs.training_run import EpochCallback, Row
from vitrail.training.recipe import Recipe


def tensorboard_callback(recipe: Recipe) -> EpochCallback:
    """Returns a callback that writes metrics as TensorBoard files.

    Raises `UsageError` without TensorBoard, and for a recipe without epochs.
    """
    if recipe.train_on == "features":
        raise UsageError(f"recipe {recipe.name} has no epochs for TensorBoard to show", "leave out --tensorboard")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("TensorBoard is not installed", install_hint("tensorboard")) from None

    def write(folder: Path, row: Row) -> None:
        with SummaryWriter(folder / "tensorboard") as writer:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    writer.add_scalar(name, value, row["step"])

    return write
