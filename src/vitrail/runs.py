"""A run: data and a recipe in, a folder with a classifier and its pictures out.

This is the one place where training, evaluation and explanation meet; each of them knows nothing of the others.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitrail
from vitrail.classifier import Classifier, NotFinite, load
from vitrail.console import bar, say
from vitrail.data import Images, Preprocess, Splits, open_data
from vitrail.data.augment import sample_transform
from vitrail.data.decode import ImageError
from vitrail.data.images import load_into_memory
from vitrail.data.loader import steps_per_epoch, training_batches
from vitrail.errors import UsageError
from vitrail.evaluate import classify, evaluate
from vitrail.evaluate.figures import draw_confusion
from vitrail.evaluate.metrics import confusion
from vitrail.explain import explain_batch
from vitrail.explain.pictures import save_gallery
from vitrail.files import write_json
from vitrail.interrupts import Interrupted, stop_requests
from vitrail.machine import GIB, keep_memory, pick_device
from vitrail.model import ViT
from vitrail.model.init import initialise
from vitrail.run_folder import RunFolder, new_run, old_run, refuse_taken
from vitrail.train import DEFAULT, Recipe, find_recipe
from vitrail.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from vitrail.train.curves import draw_curves
from vitrail.train.loop import Diverged, Step, Trainee, autocast_dtype, train_steps, trainee
from vitrail.train.settle import settle

Row = dict[str, Any]  # a line of metrics.jsonl
REDRAW = 10.0  # seconds between two drawings of the curves while a run is under way


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its classifier and what it scored."""

    folder: Path
    classifier: Classifier
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Folder and figures."""
        return {"run": str(self.folder), **self.result}


def train(
    data: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    tensorboard: bool = False,
    **changes: Any,
) -> Run:
    """Trains a classifier on the images at `data` and writes the run folder.

    `recipe` is a name (`small` unless said), a file or a `Recipe`; `changes` are fields of it, its augmentation or its
    model (`epochs=3, width=128`). An `out` that holds anything is left alone: without `resume` that is an error. Raises
    `VitrailError` where data or training go wrong.
    """
    place = pick_device(device)
    if resume:
        folder = old_run(data, out)
        asked = folder.recipe()
        wished = asked if recipe is None else find_recipe(recipe)
        if asked.but(**changes) != asked or wished.name != asked.name:
            raise UsageError(f"{folder.path} was started with another recipe", "resume it without recipe options")
    else:
        refuse_taken(out)
        asked = find_recipe(DEFAULT if recipe is None else recipe, **changes)
    splits = open_data(data, validation=asked.validation, test=asked.test, split_seed=asked.split_seed)
    if resume:
        folder.check_data(splits.fingerprint)
    board = board_writer() if tensorboard else None
    splits = in_memory(splits, int(asked.memory * GIB))
    full, config, preprocess = settle(asked, splits)
    refuse_small(splits, preprocess)
    for note in splits.notes:
        say(note)
    keep_memory()
    torch.manual_seed(full.seed)
    vit = ViT(config)
    initialise(vit, patch_std=full.patch_std, zero_branches=full.zero_branches)
    vit.to(place)
    classifier = Classifier(vit, splits.classes, preprocess, origin=origin(full, splits))
    say(
        f"{len(splits.train)} training images of {len(splits.classes)} classes, {config.image_size} px; "
        f"ViT {config.width}x{config.depth}, patch {config.patch}, {sum(p.numel() for p in vit.parameters()):,} "
        f"parameters; recipe {full.name}, {full.epochs} epochs, batch {full.batch}; "
        f"{place.type} in {str(autocast_dtype(full.precision, place)).removeprefix('torch.')}"
    )
    learner = trainee(vit, full)
    if not resume:
        folder = new_run(data, out)
        folder.start(data, splits.fingerprint, asked)
    with folder.alone():
        state = _resumed(learner, folder, full) if resume else State()
        seconds = _train_epochs(learner, state, classifier, splits, full, folder, board)
        return _finish(splits, folder, seconds, place)


def origin(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Where a classifier's weights come from, for its artefact."""
    return {
        "recipe": recipe.to_json(),
        "seed": recipe.seed,
        "versions": {"vitrail": vitrail.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "data": {
            "name": splits.name,
            "fingerprint": splits.fingerprint,
            "images": {name: len(images) for name, images in splits.parts().items()},
            "split": {"test": recipe.test, "validation": recipe.validation, "seed": recipe.split_seed},
        },
    }


def in_memory(splits: Splits, budget: int) -> Splits:
    """The splits decoded into memory where they fit in `budget` bytes, which proves that every file can be read."""
    parts = splits.parts()
    total = sum(map(len, parts.values()))
    with bar("reading images", total) as progress:
        loaded: dict[str, Any] = {
            name: load_into_memory(images, budget * len(images) // total, progress.tick)
            for name, images in parts.items()
        }
    return replace(splits, **loaded)


def refuse_small(splits: Splits, preprocess: Preprocess) -> None:
    """Raises `ImageError` for an image that is smaller than a patch, before anything is written.

    Of files that are not in memory only the headers are read.
    """
    for images in splits.parts().values():
        for i in range(len(images)):
            try:
                preprocess.check_size(*images.size(i))
            except ValueError as error:
                raise ImageError(images.paths[i], str(error)) from None


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


def _train_epochs(
    learner: Trainee,
    state: State,
    classifier: Classifier,
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    board: Callable[[Path, Row], None] | None,
) -> float:
    """All epochs, each followed by measuring and saving; returns the seconds spent training."""
    assert recipe.epochs is not None
    assert recipe.batch is not None
    preprocess = classifier.preprocess
    per_epoch = steps_per_epoch(splits.train, recipe.batch)
    transform = sample_transform(recipe.augment, preprocess)
    drawn = -REDRAW
    with stop_requests() as stop:
        for epoch in range(state.epoch, recipe.epochs):
            began, done, seen = time.perf_counter(), learner.step - epoch * per_epoch, 0
            batches = training_batches(
                splits.train,
                transform,
                batch=recipe.batch,
                seed=recipe.seed,
                epoch=epoch,
                start=done,
                workers=recipe.workers,
            )
            with bar(f"epoch {epoch + 1}/{recipe.epochs}", per_epoch) as progress:
                progress.tick(done)
                for step in train_steps(learner, batches, recipe, preprocess, steps=recipe.epochs * per_epoch):
                    state.add(step)
                    seen += step.images
                    rate = seen / (time.perf_counter() - began)
                    progress.tick(
                        note=f"loss {state.loss / state.images:.3f}  accuracy {state.correct / state.images:.3f}  "
                        f"{rate:,.0f} images/s"
                    )
                    if stop.came and learner.step < (epoch + 1) * per_epoch:
                        state.seconds += time.perf_counter() - began
                        save_checkpoint(folder.checkpoints, learner, asdict(state))
                        raise stopped(learner, folder)
            seconds = time.perf_counter() - began
            row = {
                "epoch": epoch + 1,
                "step": learner.step,
                "train_loss": state.loss / state.images,
                "train_accuracy": state.correct / state.images,
                **_measured(classifier, learner, splits, recipe),
                "lr": step.lr,
                "gradient": step.gradient,
                "seconds": round(seconds, 2),
                "images_per_second": round(seen / seconds, 1),
            }
            state = State(epoch + 1, state.seconds + seconds, state.best)
            if is_better(row, state.best):
                state.best = row
                replace(classifier, vit=learner.best_guess).save(folder.artefact)
            folder.record(row)
            if board:
                board(folder.path, row)
            say(sentence(row, recipe.epochs))
            save_checkpoint(folder.checkpoints, learner, asdict(state))
            if time.monotonic() - drawn > REDRAW or state.epoch == recipe.epochs:
                draw_curves(folder.metrics(), folder.picture("curves"))
                drawn = time.monotonic()
            if stop.came and state.epoch < recipe.epochs:
                raise stopped(learner, folder)
    return state.seconds


def stopped(learner: Trainee, folder: RunFolder) -> Interrupted:
    """What is said when a signal has ended the run for now."""
    return Interrupted(f"stopped at step {learner.step} and saved", f"go on with --resume --out {folder.path}")


def _resumed(learner: Trainee, folder: RunFolder, recipe: Recipe) -> State:
    """The state of the newest whole checkpoint, the learner put where it was."""
    found = newest_checkpoint(folder.checkpoints)
    if found is None:
        say(f"{folder.path} has no whole checkpoint yet; the run starts from the beginning")
        state = State()
    else:
        state = State(**load_checkpoint(found, learner))
        done = state.epoch == recipe.epochs
        say("all epochs are done" if done else f"going on after step {learner.step}, in epoch {state.epoch + 1}")
    folder.forget_after(state.epoch)
    return state


def _measured(classifier: Classifier, learner: Trainee, splits: Splits, recipe: Recipe) -> Row:
    """Loss and accuracy on validation; without one the test set is recorded, and chooses nothing."""
    name = "validation" if splits.validation is not None else "test"
    images = splits.parts().get(name)
    if images is None:
        return {}
    try:
        outcome = classify(replace(classifier, vit=learner.best_guess), images, workers=recipe.workers)
    except NotFinite:
        raise Diverged(
            f"training diverged before step {learner.step}: the model's answers are not finite",
            "try a lower learning rate or a longer warm-up",
        ) from None
    return {f"{name}_loss": outcome.loss, f"{name}_accuracy": outcome.accuracy}


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


def board_writer() -> Callable[[Path, Row], None]:
    """A function that writes a row of metrics as TensorBoard files; raises `UsageError` without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("TensorBoard is not installed", "pip install 'vitrail[tensorboard]'") from None

    def write(folder: Path, row: Row) -> None:
        with SummaryWriter(folder / "tensorboard") as writer:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    writer.add_scalar(name, value, row["step"])

    return write


def _finish(splits: Splits, folder: RunFolder, seconds: float, place: torch.device) -> Run:
    """Scores the kept weights on test (else validation), puts the figures into the artefact, draws the pictures."""
    classifier = load(folder.path, device=place)
    result: dict[str, Any] = {"seconds": round(seconds, 3)}
    if splits.test is None and splits.validation is None:
        say("no image was kept back, so there is no score and no picture of attention")
    name = "test" if splits.test is not None else "validation"
    images = splits.parts().get(name)
    if images is not None:
        with bar(f"evaluating on {name}", len(images)) as progress:
            evaluation = evaluate(classifier, images, tick=progress.tick)
        result[name] = evaluation.summary()
        classifier.origin["metrics"] = {name: evaluation.summary()}
        classifier.save(folder.artefact)
        draw_confusion(confusion(evaluation.outcome), classifier.classes, folder.picture("confusion"))
        _draw_attention(classifier, images, folder.picture("attention"))
    write_json(folder.path / "result.json", result)
    return Run(folder.path, classifier, result)


def _draw_attention(classifier: Classifier, images: Images, path: Path, most: int = 30) -> None:
    """The maps of some images, about as many of each class, with truth and prediction."""
    rank = np.zeros(len(images), dtype=int)  # the how-manieth of its class an image is
    for number in range(len(images.classes)):
        members = np.flatnonzero(images.labels == number)
        rank[members] = np.arange(len(members))
    chosen = images.subset(sorted(np.lexsort((images.labels, rank))[:most], key=lambda i: int(images.labels[i])))
    pixels = chosen.fitted(classifier.preprocess, range(len(chosen)))
    truths = [images.classes[number] for number in chosen.labels]
    save_gallery(explain_batch(classifier, pixels, method="attention"), truths, path)
