"""The epochs of a run: each is trained, measured, recorded and saved, and a signal stops it between two steps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.classifier import Classifier, NonFiniteOutput
from vitrail.console import log, progress_bar
from vitrail.data import Splits
from vitrail.data.decode import ImageError
from vitrail.data.loader import WorkerDied, batch_indices, count_batches
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.outcome import NoReadableImages
from vitrail.files import write_json
from vitrail.interrupts import Interrupted, StopRequest, catch_stop_signals
from vitrail.machine import describe_numerics
from vitrail.options import check_fields
from vitrail.runs.folder import RunFolder
from vitrail.runs.validation import evaluate_all_ranks
from vitrail.training import Recipe
from vitrail.training.batch_sharding import make_train_loader
from vitrail.training.checkpoint import collect_tensors, find_newest_checkpoint, load_checkpoint, save_checkpoint
from vitrail.training.curves import draw_curves
from vitrail.training.distributed import World
from vitrail.training.loop import StepStats, TrainingDiverged, train_steps
from vitrail.training.loss_monitor import LossMonitor
from vitrail.training.losses import LOSSES
from vitrail.training.parallel import check_replicas, gather_model
from vitrail.training.schedules import count_warmup_steps, image_scale
from vitrail.training.train_state import TrainState

Row = dict[str, Any]  # a line of metrics.jsonl
SAVE_EVERY = 600.0  # seconds after which a step is followed by a checkpoint, beside the one at each epoch's end
NAMED = 3  # files in a sentence
REDRAW = 10.0  # seconds between two drawings of the curves while a run is under way


@dataclass
class Progress:
    """How far a run has come, beside the weights; a checkpoint keeps it as JSON."""

    epoch: int = 0  # epochs that are done
    seconds: float = 0.0  # spent training, in this and earlier processes
    best: Row | None = None  # the row of the epoch whose weights are kept
    loss: float = 0.0  # sums over the images of the epoch under way
    correct: int = 0
    images: int = 0
    lr: float = 0.0  # of the last step
    gradient: float = 0.0
    unreadable: int = 0  # images of the epoch under way that could not be read
    made_with: dict[str, Any] = field(default_factory=dict)  # conditions that decide the last bits of a sum

    def __post_init__(self) -> None:
        check_fields(self)

    def add(self, step: StepStats) -> None:
        """Counts a step in."""
        self.loss += step.loss * step.images
        self.correct += step.correct
        self.images += step.images
        self.lr, self.gradient = step.lr, step.grad_norm


@dataclass
class Training:
    """A run under way: what learns, from what, how, where it is written, and how far it has come."""

    learner: TrainState
    classifier: Classifier  # what will be saved: the learner's ViT with classes, preprocessing and origin
    splits: Splits
    recipe: Recipe  # settled: with sizes, epochs and batch
    folder: RunFolder
    state: Progress = field(default_factory=Progress)
    watchers: list[Callable[[Path, Row], None]] = field(default_factory=list)  # each is shown every row of metrics
    watch: LossMonitor | None = None  # warns of a loss that climbs or stands still
    drawn: float = -REDRAW  # when the curves were drawn last
    saved: float = field(default_factory=time.monotonic)  # when the last checkpoint was written

    @property
    def epochs(self) -> int:
        """Passes over the training images, in all."""
        assert self.recipe.epochs is not None
        return self.recipe.epochs

    @property
    def batch(self) -> int:
        """Images per step."""
        assert self.recipe.batch_size is not None
        return self.recipe.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return count_batches(len(self.splits.train), self.batch)

    @property
    def world(self) -> World:
        """The processes that train; one, unless said otherwise. The main one of them writes."""
        return self.learner.world

    @property
    def guess(self) -> Classifier:
        """The classifier with the weights to evaluate and keep: the averaged ones where there are any."""
        return replace(self.classifier, vit=self.learner.eval_model)

    def save(self, label: str = "") -> None:
        """Writes a checkpoint."""
        self.state.made_with = conditions_of(self)
        tensors = collect_tensors(self.learner) if self.world.is_sharded else None
        with self.world.raise_on_all():
            if self.world.is_main:
                save_checkpoint(self.folder.checkpoints, self.learner, asdict(self.state), label, tensors)
        self.saved = time.monotonic()

    def save_guess(self) -> None:
        """Writes the artefact."""
        guess = self.guess
        guess = replace(guess, vit=gather_model(guess.vit, self.world))
        with self.world.raise_on_all():
            if self.world.is_main:
                guess.save(self.folder.artifact)


def conditions_of(training: Training) -> dict[str, Any]:
    """What decides the last bits of a sum in this run."""
    return {**describe_numerics(training.classifier.device), "the number of processes": training.world.size}


def resume_training(training: Training) -> None:
    """Puts a run where its newest whole checkpoint left it, and says where its result may differ in the last bits."""
    world = training.world
    found = None
    with world.raise_on_all():
        if world.is_main:
            training.folder.probe()
            training.folder.require_checkpoints()
            found = find_newest_checkpoint(training.folder.checkpoints)
    name = world.broadcast(found.name if found else None)
    if name is None:
        log(f"{training.folder.path} has no whole checkpoint yet; the run starts from the beginning")
    else:
        found = training.folder.checkpoints / name  # the main process may call its folder by another name
        with world.raise_on_all():
            document = load_checkpoint(found, training.learner)
            state = training.state = state_from_json(document, training, found)
        done = state.epoch == training.epochs
        log(
            "all epochs are done"
            if done
            else f"going on after step {training.learner.step}, in epoch {state.epoch + 1}"
        )
        now = conditions_of(training)
        changed = [f"{k} was {v}, is {now.get(k)}" for k, v in state.made_with.items() if now.get(k) != v]
        if changed and not done:
            log(f"warning: {'; '.join(changed)}: the result will be as good, but not the same to the last bit")
    with world.raise_on_all():
        if world.is_main:
            training.folder.drop_metrics_after(training.state.epoch)


def state_from_json(document: dict[str, Any], training: Training, path: Path) -> Progress:
    """The state in a checkpoint; raises `VitrailError` where it does not belong to this run."""
    try:
        state = Progress(**document)
    except (TypeError, UsageError) as error:
        raise VitrailError(f"the checkpoint {path} is not of this vitrail: {error}", "start a new run") from None
    begun, end = state.epoch * training.steps_per_epoch, (state.epoch + 1) * training.steps_per_epoch
    strange = state.best is not None and not all(isinstance(value, int | float) for value in state.best.values())
    if strange or not begun <= training.learner.step <= end or not 0 <= state.epoch <= training.epochs:
        raise VitrailError(f"the checkpoint {path} is of another run", "start a new run")
    return state


def train_epochs(training: Training) -> None:
    """All epochs that are left; raises `Interrupted` where a signal has come and the run is saved."""
    with catch_stop_signals() as stop:
        training.watch = training.watch or watched(training)
        while training.state.epoch < training.epochs:
            try:
                row = train_epoch(training, stop)
                row |= validate(training)
            except (ImageError, NoReadableImages, WorkerDied) as error:
                raise halted(error, training, stop) from None
            end_epoch(training, row)
            if any(training.world.any(stop.requested)):
                raise stopped(training)


def train_epoch(training: Training, stop: StopRequest) -> Row:
    """The steps that are left of the epoch under way, and what they say of it."""
    learner, state = training.learner, training.state
    began, seen, carried = time.perf_counter(), 0, state.seconds
    done = learner.step - state.epoch * training.steps_per_epoch
    with progress_bar(f"epoch {state.epoch + 1}/{training.epochs}", training.steps_per_epoch) as progress:
        progress.start_from(done)
        for step in steps_left(training, done):
            state.add(step)
            if training.watch and (said := training.watch.update(step)):
                log(f"warning: {said}")
            state.seconds = carried + time.perf_counter() - began
            seen += step.images
            rate = seen / (time.perf_counter() - began)
            scores = f"loss {state.loss / state.images:.3f}  accuracy {state.correct / state.images:.3f}"
            progress.advance(note=f"{scores}  {rate:,.0f} images/s")
            due = time.monotonic() - training.saved > SAVE_EVERY
            came, due = training.world.any(stop.requested, due)  # a signal that comes meanwhile counts at the next step
            if came or due:
                training.save()
            if came:
                raise stopped(training)
    seconds = time.perf_counter() - began
    if not state.images:
        raise VitrailError(f"not one image could be read in epoch {state.epoch + 1}", "is the disk still there?")
    return {
        "epoch": state.epoch + 1,
        "step": learner.step,
        "train_loss": state.loss / state.images,
        "train_accuracy": state.correct / state.images,
        **({"unreadable": state.unreadable} if state.unreadable else {}),
        "lr": state.lr,
        "gradient": state.gradient,
        "seconds": round(seconds, 2),
        "images_per_second": round(seen / seconds, 1),
    }


def steps_left(training: Training, done: int) -> Iterator[StepStats]:
    """The steps of the epoch under way after the first `done`; raises `Diverged` naming the images of the batch."""
    recipe, preprocess = training.recipe, training.classifier.preprocess

    def refuse(error: ImageError) -> None:
        training.state.unreadable += 1
        if training.state.unreadable <= NAMED:
            log(f"warning: left out of epoch {training.state.epoch + 1}: {error.sentence}")

    on_error = refuse if recipe.skip_unreadable else None
    loader = make_train_loader(training.splits.train, preprocess, recipe, training.world, on_error)
    batches = loader.epoch(training.state.epoch, start=done)
    steps = training.epochs * training.steps_per_epoch
    try:
        yield from train_steps(training.learner, batches, recipe, preprocess, total_steps=steps)
    except TrainingDiverged as error:
        raise with_files(error, training) from None


def halted(error: ImageError | NoReadableImages | WorkerDied, training: Training, stop: StopRequest) -> VitrailError:
    """The error that ended the run for now, which is saved, with the command that goes on."""
    training.save()
    if any(training.world.any(stop.requested)):  # the signal reached the workers too
        return stopped(training)
    error.hint = f"{error.hint}; saved at step {training.learner.step}, go on with: {training.folder.resume_command()}"
    return error


def with_files(error: TrainingDiverged, training: Training) -> TrainingDiverged:
    """The error with the images of its batch, all of which are written beside."""
    images, step = training.splits.train, training.learner.step - 1
    epoch, number = divmod(step, training.steps_per_epoch)
    batch = batch_indices(len(images), training.batch, training.recipe.seed, epoch)[number]
    names = [images.paths[i] for i in batch]
    path = training.folder.path / "diverged.json"
    if training.world.is_main:
        write_json(path, {"step": step + 1, "said": error.sentence, "files": names})
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return TrainingDiverged(
        f"{error.sentence}; the batch was {', '.join(names[:NAMED])}{more} ({path} has all)", error.hint
    )


def watched(training: Training) -> LossMonitor:
    """Returns the monitor of this run's loss."""
    recipe = training.recipe
    counts = np.bincount(training.splits.train.labels, minlength=len(training.splits.classes))
    chance_loss = LOSSES[recipe.loss].chance_level(counts, recipe.label_smoothing)
    return LossMonitor(chance_loss, count_warmup_steps(training.epochs * training.steps_per_epoch, recipe))


def validate(training: Training) -> Row:
    """Loss and accuracy on validation; without one the test set is recorded, and chooses nothing."""
    name = "validation" if training.splits.validation is not None else "test"
    images = training.splits.as_dict().get(name)
    if images is None:
        return {}
    try:
        loss, accuracy = evaluate_all_ranks(
            training.guess,
            images,
            training.world,
            workers=training.recipe.workers,
            skip_unreadable=training.recipe.skip_unreadable,
        )
    except NonFiniteOutput:
        raise TrainingDiverged(
            f"training diverged before step {training.learner.step}: the model's answers are not finite",
            "try a lower learning rate or a longer warm-up",
        ) from None
    return {f"{name}_loss": loss, f"{name}_accuracy": accuracy}


def end_epoch(training: Training, row: Row) -> None:
    """An epoch is over: its weights are kept if they are the best, its row is recorded, all of it is saved."""
    world = training.world
    with world.raise_on_all():
        if world.is_main:
            training.folder.refuse_vanished()
    check_replicas(training.learner.replicas, world)
    state = training.state = Progress(training.state.epoch + 1, training.state.seconds, training.state.best)
    if is_better(row, state.best):
        state.best = row
        training.save_guess()
    with world.raise_on_all():
        if world.is_main:
            training.folder.append_metrics(row)
    log(sentence(row, training.epochs, time_left(training, row)))
    training.save("-measured")
    with world.raise_on_all():
        if world.is_main:
            for watcher in training.watchers:  # once all is saved: one of them may end the run
                watcher(training.folder.path, row)
            if time.monotonic() - training.drawn > REDRAW or state.epoch == training.epochs:
                draw_curves(training.folder.load_metrics(), training.folder.picture("curves"))
                training.drawn = time.monotonic()


def is_better(row: Row, best: Row | None) -> bool:
    """By validation accuracy, then loss; without validation the last weights are kept."""

    def rank(row: Row) -> tuple[float, float]:
        return row.get("validation_accuracy", 0.0), -row.get("validation_loss", 0.0)

    return best is None or "validation_accuracy" not in row or rank(row) > rank(best)


def time_left(training: Training, row: Row) -> float:
    """Seconds that the epochs to come will take at this one's speed; small images cost as little as their area."""
    if not row["images_per_second"]:  # all of its steps were taken before a resume
        return 0.0

    def work(epoch: int) -> float:
        return image_scale(round((epoch - 0.5) * training.steps_per_epoch), steps, training.recipe) ** 2

    steps = training.epochs * training.steps_per_epoch
    to_come = sum(work(epoch) for epoch in range(row["epoch"] + 1, training.epochs + 1))
    return len(training.splits.train) / row["images_per_second"] * to_come / work(row["epoch"])


def sentence(row: Row, epochs: int, left: float) -> str:
    """An epoch in a line, with the seconds that are left."""
    scores = "".join(
        f"{name} loss {row[f'{name}_loss']:.3f} accuracy {row[f'{name}_accuracy']:.3f}  "
        for name in ("train", "validation", "test")
        if f"{name}_loss" in row
    )
    return f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  {scores}{row['images_per_second']:,.0f} images/s" + (
        f"  {timedelta(seconds=round(left))} left" if left else ""
    )


def stopped(training: Training) -> Interrupted:
    """What is said when a signal has ended the run for now."""
    return Interrupted(
        f"stopped at step {training.learner.step} and saved", f"go on with: {training.folder.resume_command()}"
    )
