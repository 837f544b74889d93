"""Continues a run from its newest checkpoint."""

from pathlib import Path
from typing import Any

from vitrail.console import log
from vitrail.errors import UsageError, VitrailError
from vitrail.runs.training_run import Progress, TrainingRun, progress_from_json
from vitrail.training.checkpoint import find_newest_checkpoint, load_checkpoint


def resume_from_checkpoint(run: TrainingRun) -> None:
    """Restores a run from its newest sound checkpoint, and warns if the result may differ in the last bits.

    Without a checkpoint the run starts from the beginning. Raises `VitrailError` if the checkpoint is of another run.
    """
    name = find_checkpoint_name(run)
    if name is None:
        log(f"{run.folder.path} has no complete checkpoint yet; the run starts from the beginning")
    else:
        path = run.folder.checkpoints / name
        with run.world.raise_on_all():
            run.progress = check_progress(load_checkpoint(path, run.state), run, path)
            run.hooks.calls.load_state_dicts(run.progress.callbacks)
        log_resumed(run)
    run.world.on_main(lambda: run.folder.drop_metrics_after(run.progress.epoch))


def find_checkpoint_name(run: TrainingRun) -> str | None:
    """Returns the newest sound checkpoint. Only its name: other processes may see the folder under another path."""

    def find() -> str | None:
        run.folder.check_writable()
        run.folder.require_checkpoints()
        newest = find_newest_checkpoint(run.folder.checkpoints)
        return newest.name if newest else None

    return run.world.on_main(find)


def log_resumed(run: TrainingRun) -> None:
    """Prints the step from which a run continues, and what has changed since that decides the last bits."""
    if run.progress.epoch == run.epochs or run.progress.stopped_early:
        log("all epochs are done" if run.progress.epoch == run.epochs else "training is over")
        return
    log(f"continuing after step {run.state.step}, in epoch {run.progress.epoch + 1}")
    now = run.describe_numerics()
    changed = [f"{key} was {value}, is {now.get(key)}" for key, value in run.progress.numerics.items()
               if now.get(key) != value]  # fmt: skip
    if changed:
        log(f"warning: {'; '.join(changed)}: the result will be as good, but not the same to the last bit")


def check_progress(document: dict[str, Any], run: TrainingRun, path: Path) -> Progress:
    """Returns the progress in a checkpoint; raises `VitrailError` if it does not belong to this run."""
    try:
        progress = progress_from_json(document)
    except (TypeError, UsageError) as error:
        raise VitrailError(f"the checkpoint {path} is not of this vitrail: {error}", "start a new run") from None
    first_step = progress.epoch * run.steps_per_epoch
    has_numbers = progress.best is None or all(isinstance(value, int | float) for value in progress.best.values())
    is_within_epoch = first_step <= run.state.step <= first_step + run.steps_per_epoch
    if progress.stopped_early:  # perhaps within its last epoch
        is_within_epoch = run.state.step <= first_step
    if not has_numbers or not is_within_epoch or not 0 <= progress.epoch <= run.epochs:
        raise VitrailError(f"the checkpoint {path} is of another run", "start a new run")
    return progress
