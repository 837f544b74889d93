"""The epochs of a run: train, validate, record, save. A signal stops the run between two steps."""

import time
from collections.abc import Iterator
from datetime import timedelta
from types import MappingProxyType
from typing import cast

from vitrail.callbacks.base import SplitScores
from vitrail.classifier import NonFiniteOutput
from vitrail.console import log, progress_bar
from vitrail.data.decode import ImageError
from vitrail.data.loader import WorkerDied, divide_draws
from vitrail.documents import HookScores
from vitrail.errors import VitrailError
from vitrail.evaluation.outcome import NoReadableImages
from vitrail.files import write_json
from vitrail.interrupts import StopRequest, catch_stop_signals
from vitrail.runs.step_recorder import StepRecorder, accuracy_of
from vitrail.runs.training_run import Progress, Row, TrainingRun
from vitrail.runs.validation import evaluate_all_ranks
from vitrail.tasks import GRADES, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from vitrail.training.advice import describe_early_stop, describe_overfitting
from vitrail.training.balance import epoch_draws
from vitrail.training.batch_sharding import make_train_loader
from vitrail.training.curves import draw_curves
from vitrail.training.loop import check_weights_finite, train_steps
from vitrail.training.loss_monitor import LossMonitor
from vitrail.training.parallel import check_replicas
from vitrail.training.schedules import image_scale
from vitrail.training.step_stats import StepStats, TrainingDiverged

CHECKPOINT_INTERVAL_S = 600.0  # between checkpoints within an epoch
CURVES_INTERVAL_S = 10.0  # between drawings of the curves before the last epoch
MAX_FILES = 3  # file names in a sentence
SCORE_TITLES: dict[str, dict[str, str]] = {  # what the line of an epoch shows, and callbacks get, beside the loss
    SINGLE_LABEL: {"accuracy": "accuracy"},
    MULTI_LABEL: {"accuracy": "accuracy", "map": "mAP"},
    GRADES: {"accuracy": "accuracy", "quadratic_kappa": "kappa"},
    REGRESSION: {"mae": "MAE", "r2": "R2"},
}
LOADING_ERRORS = (ImageError, NoReadableImages, WorkerDied)


def train_epochs(run: TrainingRun) -> None:
    """Trains the remaining epochs, or until a callback asks for a stop.

    Raises `Interrupted` after a stop signal, once the run is saved.
    """
    monitor = run.loss_monitor()
    with catch_stop_signals() as stop:
        run.hooks.has_started = True
        run.call_hook_on_all("on_run_start", run.progress.epoch)
        if run.starts_from_weights and not run.state.step and run.progress.best is None:
            score_start(run, stop)
        while run.progress.epoch < run.epochs and not run.progress.stopped_early and begin_epoch(run):
            try:
                row = train_epoch(run, monitor, stop)
                row |= validate(run)
            except LOADING_ERRORS as error:
                raise save_after_error(error, run, stop) from None
            call_evaluation_hook(run, row)
            end_epoch(run, row)
            if any(run.world.any(stop.requested)):
                raise run.interrupted()
    if run.progress.stopped_early:
        end_early(run)
    if run.progress.best and run.progress.best["epoch"] == 0:
        log("no epoch was better on validation than the weights at the start, so these are kept")
    elif warning := describe_overfitting(run.folder.load_metrics(), run.selection_metric):
        log(warning)


def begin_epoch(run: TrainingRun) -> bool:
    """Calls on_epoch_start; returns whether the epoch is to be trained. If a callback asks for a stop, saves that."""
    if not run.stop_if_requested():
        run.call_hook_on_all("on_epoch_start", run.progress.epoch + 1)
    if run.stop_if_requested():
        run.save_checkpoint("-stopped")  # sorts after "-measured", which may exist for this step
        return False
    return True


def end_early(run: TrainingRun) -> None:
    """Prints why training stops; saves the weights at the start if there are no others."""
    assert run.progress.stopped_early is not None
    log(describe_early_stop(run.progress.stopped_early))
    if run.progress.best is None:
        run.save_artifact()


def score_start(run: TrainingRun, stop: StopRequest) -> None:
    """Scores the pretrained weights as epoch 0 and saves them: training must beat them on validation to replace them.

    Does nothing without validation, where the latest weights are kept.
    """
    if run.splits.validation is None:
        return
    try:
        row = {"epoch": 0, "step": 0, **validate(run)}
    except LOADING_ERRORS as error:
        raise save_after_error(error, run, stop) from None
    run.world.on_main(run.folder.check_exists)
    run.progress.best, run.best_outcome = row, run.outcome
    run.save_artifact()
    run.world.on_main(lambda: run.folder.write_metrics([row]))
    log(format_epoch(row, run.epochs, task=run.classifier.task))
    call_evaluation_hook(run, row)


def train_epoch(run: TrainingRun, monitor: LossMonitor, stop: StopRequest) -> Row:
    """Trains the remaining steps of the current epoch; returns its row of metrics."""
    progress = run.progress
    with progress_bar(f"epoch {progress.epoch + 1}/{run.epochs}", run.steps_per_epoch) as bar:
        done = run.state.step - progress.epoch * run.steps_per_epoch
        bar.start_from(done)
        recorder = StepRecorder(run, monitor, bar)
        try:
            try:
                take_steps(run, recorder, stop, done)
            except LOADING_ERRORS:
                recorder.flush()  # the run is then saved after this step
                raise
            recorder.flush()
        except TrainingDiverged as error:
            raise with_batch_files(error, run) from None
    seconds = recorder.seconds
    if not progress.images:
        raise VitrailError(f"no image could be read in epoch {progress.epoch + 1}", "is the disk still there?")
    return {
        "epoch": progress.epoch + 1,
        "step": run.state.step,
        "train_loss": progress.loss / progress.images,
        **accuracy_of(run, progress.accuracy),
        **({"unreadable": progress.unreadable} if progress.unreadable else {}),
        "lr": progress.lr,
        "grad_norm": progress.grad_norm,
        "seconds": round(seconds, 2),
        "images_per_second": round(recorder.images / seconds, 1),
    }


def take_steps(run: TrainingRun, recorder: StepRecorder, stop: StopRequest, done: int) -> None:
    """Takes the steps after the first `done`; saves the run when it is due, and when a signal or a callback stops it.

    If a callback gets the statistics of each step, they are read at once.
    """
    state, calls, has_step_hook = run.state, run.hooks.calls, run.hooks.has("on_step_end")
    for step in remaining_steps(run, done):
        recorder.add(step)
        is_due = time.monotonic() - run.saved_at > CHECKPOINT_INTERVAL_S
        if has_step_hook:
            recorder.flush()
            run.call_hook("on_step_end", run.progress.epoch + 1, metrics=describe_step(run, step))
        must_stop, is_due, ends_early, has_failed = run.world.any(  # a later signal counts at the next step
            stop.requested, is_due, calls.stop is not None, calls.error is not None
        )
        if must_stop or is_due:
            recorder.flush()
            run.save_checkpoint()
        if has_failed:
            run.hooks.raise_error(run.save_after_callback)
        if must_stop:
            raise run.interrupted()
        if ends_early and run.stop_if_requested():
            recorder.flush()
            check_weights_finite(state, step)
            break


def describe_step(run: TrainingRun, step: StepStats) -> Row:
    """Returns the metrics of a step, with the names of those of an epoch."""
    return {
        "step": step.step,
        "train_loss": step.loss,
        **accuracy_of(run, step.accuracy),
        "lr": step.lr,
        "grad_norm": step.grad_norm,
    }


def remaining_steps(run: TrainingRun, done: int) -> Iterator[StepStats]:
    """Takes the steps of the current epoch after the first `done`."""
    recipe, preprocess, progress = run.recipe, run.classifier.preprocess, run.progress

    def skip(error: ImageError) -> None:
        progress.unreadable += 1
        if progress.unreadable <= MAX_FILES:
            log(f"warning: skipped in epoch {progress.epoch + 1}: {error.sentence}")

    on_error = skip if recipe.skip_unreadable else None
    has_numbers = run.state.teacher is not None
    loader = make_train_loader(run.train_images, preprocess, recipe, run.world, on_error, has_numbers=has_numbers)
    batches = loader.epoch(progress.epoch, start=done)
    yield from train_steps(run.state, batches, recipe, preprocess, total_steps=run.total_steps)


def with_batch_files(error: TrainingDiverged, run: TrainingRun) -> TrainingDiverged:
    """Returns the error with some files of the batch of its step; diverged.json gets all of them."""
    step = error.step or run.state.step
    epoch, number = divmod(step - 1, run.steps_per_epoch)
    images = run.train_images
    draws = divide_draws(epoch_draws(images, run.recipe, epoch), run.batch_size)[number]
    files = [images.paths[i] for i in draws % len(images)]
    path = run.folder.path / "diverged.json"
    if run.world.is_main:
        write_json(path, {"step": step, "error": error.sentence, "files": files})
    more = f" and {len(files) - MAX_FILES} more" if len(files) > MAX_FILES else ""
    names = ", ".join(files[:MAX_FILES])
    return TrainingDiverged(f"{error.sentence}; the batch was {names}{more} ({path} lists them)", error.hint, step)


def save_after_error(error: VitrailError, run: TrainingRun, stop: StopRequest) -> VitrailError:
    """Saves a run that an error ends; returns the error with the command that resumes the run."""
    run.save_checkpoint()
    if any(run.world.any(stop.requested)):  # a signal to the process group has killed the workers too
        return run.interrupted()
    error.hint = f"{error.hint}; saved at step {run.state.step}, continue with: {run.folder.resume_command()}"
    return error


def validate(run: TrainingRun) -> Row:
    """Returns the scores on validation; without validation those on test, which no choice depends on."""
    split = "validation" if run.splits.validation is not None else "test"
    images = run.splits.as_dict().get(split)
    if images is None:
        return {}
    try:
        scores = evaluate_all_ranks(
            run.eval_classifier,
            images,
            run.world,
            batch_size=run.recipe.evaluation_batch_size(run.world.size),
            workers=run.recipe.workers,
            skip_unreadable=run.recipe.skip_unreadable,
        )
    except NonFiniteOutput:
        raise TrainingDiverged(
            f"training diverged before step {run.state.step}: the model's outputs are not finite",
            "try a lower learning rate or a longer warmup",
        ) from None
    run.outcome = scores.outcome if split == "validation" else None
    return {f"{split}_{name}": value for name, value in scores.scores.items()}


def call_evaluation_hook(run: TrainingRun, row: Row) -> None:
    """Calls on_evaluation_end with the scores in the row, if it has any."""
    for split in ("validation", "test"):
        if f"{split}_loss" in row:
            scores = {name: row[f"{split}_{name}"] for name in ("loss", *SCORE_TITLES[run.classifier.task])}
            evaluation = SplitScores(split, cast(HookScores, MappingProxyType(scores)), is_final=False)
            run.call_hook_on_all("on_evaluation_end", row["epoch"], metrics=row, evaluation=evaluation)


def end_epoch(run: TrainingRun, row: Row) -> None:
    """Saves the weights if they are the best, records the row, calls the callbacks, writes a checkpoint.

    The checkpoint holds the state of the callbacks after this epoch, and a stop that they ask for.
    """
    world = run.world
    world.on_main(run.folder.check_exists)
    check_replicas(run.state.replicas, world)
    before = run.progress
    run.progress = Progress(
        before.epoch + 1, before.seconds, before.best, lr=before.lr, stopped_early=before.stopped_early
    )
    if is_better(row, run.progress.best, run.selection_metric):
        run.progress.best, run.best_outcome = row, run.outcome
        run.save_artifact()
    world.on_main(lambda: run.folder.append_metrics(row))
    log(format_epoch(row, run.epochs, seconds_left(run, row), run.classifier.task))
    run.call_hook("on_epoch_end", row["epoch"], metrics=row)
    has_stopped = run.stop_if_requested()
    run.save_checkpoint("-measured")
    run.hooks.raise_error(run.save_after_callback)
    world.on_main(lambda: draw_epochs(run, is_last=has_stopped or run.progress.epoch == run.epochs))


def draw_epochs(run: TrainingRun, *, is_last: bool) -> None:
    """Draws the curves if they are older than `CURVES_INTERVAL_S` or the epoch is the last."""
    if run.folder.draws and (time.monotonic() - run.curves_drawn_at > CURVES_INTERVAL_S or is_last):
        best_epoch = run.progress.best["epoch"] if run.progress.best else None
        title = f"{run.splits.name}, recipe {run.recipe.name}"
        draw_curves(run.folder.load_metrics(), run.folder.picture("curves"), title, best_x=best_epoch)
        run.curves_drawn_at = time.monotonic()


def is_better(row: Row, best: Row | None, metric: str = "accuracy") -> bool:
    """Compares this validation metric, then the loss. Without validation the latest weights are the best."""

    def rank(row: Row) -> tuple[float, float]:
        return row.get(f"validation_{metric}", 0.0), -row.get("validation_loss", 0.0)

    return best is None or f"validation_{metric}" not in row or rank(row) > rank(best)


def seconds_left(run: TrainingRun, row: Row) -> float:
    """Returns the time that the remaining epochs take at this epoch's speed; the cost of an image is its area."""
    if not row["images_per_second"]:  # all steps were taken before a resume
        return 0.0

    def relative_cost(epoch: int) -> float:
        return image_scale(round((epoch - 0.5) * run.steps_per_epoch), run.total_steps, run.recipe) ** 2

    remaining = sum(relative_cost(epoch) for epoch in range(row["epoch"] + 1, run.epochs + 1))
    return len(run.train_images) / row["images_per_second"] * remaining / relative_cost(row["epoch"])


def format_epoch(row: Row, epochs: int, left_s: float = 0.0, task: str = SINGLE_LABEL) -> str:
    """Returns a line for an epoch, with the time left; epoch 0 is the start."""
    scores = "".join(
        f"{split} loss {row[f'{split}_loss']:.3f} "
        + " ".join(
            f"{title} {row[f'{split}_{name}']:.3f}"
            for name, title in SCORE_TITLES[task].items()
            if f"{split}_{name}" in row
        )
        + "  "
        for split in ("train", "validation", "test")
        if f"{split}_loss" in row
    )
    left = f"  {timedelta(seconds=round(left_s))} left" if left_s else ""
    speed = f"{row['images_per_second']:,.0f} images/s{left}" if row["epoch"] else "before training"
    return f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  {scores}{speed}"
