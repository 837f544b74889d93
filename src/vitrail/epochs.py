"""The epochs of a run: each is trained, measured, recorded and saved, and a signal stops it between two steps."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from vitrail.classifier import Classifier, NotFinite
from vitrail.console import bar, say
from vitrail.data import Splits
from vitrail.data.augment import sample_transform
from vitrail.data.loader import steps_per_epoch, training_batches
from vitrail.evaluate import classify
from vitrail.interrupts import Interrupted, StopRequest, stop_requests
from vitrail.run_folder import RunFolder
from vitrail.train import Recipe
from vitrail.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from vitrail.train.curves import draw_curves
from vitrail.train.loop import Diverged, Step, Trainee, train_steps

Row = dict[str, Any]  # a line of metrics.jsonl
REDRAW = 10.0  # seconds between two drawings of the curves while a run is under way


@dataclass
class State:
    """How far a run has come, beside the weights; a checkpoint keeps it as JSON."""

    epoch: int = 0  # epochs that are done
    seconds: float = 0.0  # spent training, in this and earlier processes
    best: Row | None = None  # the row of the epoch whose weights are kept
    loss: float = 0.0  # sums over the images of the epoch under way
    correct: int = 0
    images: int = 0

    def add(self, step: Step) -> None:
        """Counts a step in."""
        self.loss += step.loss * step.images
        self.correct += step.correct
        self.images += step.images


@dataclass
class Training:
    """A run under way: what learns, from what, how, where it is written, and how far it has come."""

    learner: Trainee
    classifier: Classifier  # what will be saved: the learner's ViT with classes, preprocessing and origin
    splits: Splits
    recipe: Recipe  # settled: no field is left open
    folder: RunFolder
    state: State = field(default_factory=State)
    watchers: list[Callable[[Path, Row], None]] = field(default_factory=list)  # each is shown every row of metrics
    drawn: float = -REDRAW  # when the curves were drawn last

    @property
    def epochs(self) -> int:
        """Passes over the training images, in all."""
        assert self.recipe.epochs is not None
        return self.recipe.epochs

    @property
    def batch(self) -> int:
        """Images per step."""
        assert self.recipe.batch is not None
        return self.recipe.batch

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return steps_per_epoch(self.splits.train, self.batch)

    @property
    def guess(self) -> Classifier:
        """The classifier with the weights to evaluate and keep: the averaged ones where there are any."""
        return replace(self.classifier, vit=self.learner.best_guess)

    def save(self) -> None:
        """Writes a checkpoint."""
        save_checkpoint(self.folder.checkpoints, self.learner, asdict(self.state))


def go_on(training: Training) -> None:
    """Puts a run where its newest whole checkpoint left it."""
    found = newest_checkpoint(training.folder.checkpoints)
    if found is None:
        say(f"{training.folder.path} has no whole checkpoint yet; the run starts from the beginning")
    else:
        state = training.state = State(**load_checkpoint(found, training.learner))
        done = state.epoch == training.epochs
        say(
            "all epochs are done"
            if done
            else f"going on after step {training.learner.step}, in epoch {state.epoch + 1}"
        )
    training.folder.forget_after(training.state.epoch)


def train_epochs(training: Training) -> None:
    """All epochs that are left; raises `Interrupted` where a signal has come and the run is saved."""
    with stop_requests() as stop:
        while training.state.epoch < training.epochs:
            row = train_epoch(training, stop)
            row |= measured(training)
            keep(training, row)
            if stop.came and training.state.epoch < training.epochs:
                raise stopped(training)


def train_epoch(training: Training, stop: StopRequest) -> Row:
    """The steps that are left of the epoch under way, and what they say of it."""
    learner, state, recipe = training.learner, training.state, training.recipe
    began, seen = time.perf_counter(), 0
    first, end = state.epoch * training.steps_per_epoch, (state.epoch + 1) * training.steps_per_epoch
    batches = training_batches(
        training.splits.train,
        sample_transform(recipe.augment, training.classifier.preprocess),
        batch=training.batch,
        seed=recipe.seed,
        epoch=state.epoch,
        start=learner.step - first,
        workers=recipe.workers,
    )
    with bar(f"epoch {state.epoch + 1}/{training.epochs}", training.steps_per_epoch) as progress:
        progress.tick(learner.step - first)
        steps = training.epochs * training.steps_per_epoch
        for step in train_steps(learner, batches, recipe, training.classifier.preprocess, steps=steps):
            state.add(step)
            seen += step.images
            rate = seen / (time.perf_counter() - began)
            scores = f"loss {state.loss / state.images:.3f}  accuracy {state.correct / state.images:.3f}"
            progress.tick(note=f"{scores}  {rate:,.0f} images/s")
            if stop.came and learner.step < end:
                state.seconds += time.perf_counter() - began
                training.save()
                raise stopped(training)
    seconds = time.perf_counter() - began
    state.seconds += seconds
    return {
        "epoch": state.epoch + 1,
        "step": learner.step,
        "train_loss": state.loss / state.images,
        "train_accuracy": state.correct / state.images,
        "lr": step.lr,
        "gradient": step.gradient,
        "seconds": round(seconds, 2),
        "images_per_second": round(seen / seconds, 1),
    }


def measured(training: Training) -> Row:
    """Loss and accuracy on validation; without one the test set is recorded, and chooses nothing."""
    name = "validation" if training.splits.validation is not None else "test"
    images = training.splits.parts().get(name)
    if images is None:
        return {}
    try:
        outcome = classify(training.guess, images, workers=training.recipe.workers)
    except NotFinite:
        raise Diverged(
            f"training diverged before step {training.learner.step}: the model's answers are not finite",
            "try a lower learning rate or a longer warm-up",
        ) from None
    return {f"{name}_loss": outcome.loss, f"{name}_accuracy": outcome.accuracy}


def keep(training: Training, row: Row) -> None:
    """An epoch is over: its weights are kept if they are the best, its row is recorded, all of it is saved."""
    state = training.state = State(training.state.epoch + 1, training.state.seconds, training.state.best)
    if is_better(row, state.best):
        state.best = row
        training.guess.save(training.folder.artefact)
    training.folder.record(row)
    for watch in training.watchers:
        watch(training.folder.path, row)
    say(sentence(row, training.epochs))
    training.save()
    if time.monotonic() - training.drawn > REDRAW or state.epoch == training.epochs:
        draw_curves(training.folder.metrics(), training.folder.picture("curves"))
        training.drawn = time.monotonic()


def is_better(row: Row, best: Row | None) -> bool:
    """By validation accuracy, then loss; without validation the last weights are kept."""
    if best is None or "validation_accuracy" not in row:
        return True
    return (row["validation_accuracy"], -row["validation_loss"]) > (
        best["validation_accuracy"],
        -best["validation_loss"],
    )


def sentence(row: Row, epochs: int) -> str:
    """An epoch in a line, with the time that the rest will take at its speed."""
    scores = "".join(
        f"{name} loss {row[f'{name}_loss']:.3f} accuracy {row[f'{name}_accuracy']:.3f}  "
        for name in ("train", "validation", "test")
        if f"{name}_loss" in row
    )
    left = round((epochs - row["epoch"]) * row["seconds"])
    return f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}  {scores}{row['images_per_second']:,.0f} images/s" + (
        f"  {timedelta(seconds=left)} left" if left else ""
    )


def stopped(training: Training) -> Interrupted:
    """What is said when a signal has ended the run for now."""
    return Interrupted(
        f"stopped at step {training.learner.step} and saved", f"go on with --resume --out {training.folder.path}"
    )
