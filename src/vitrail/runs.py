"""A run: data and a recipe in, a folder with a classifier and its pictures out.

This is the one place where training, evaluation and explanation meet; each of them knows nothing of the others.
"""

from __future__ import annotations

import json
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitrail
from vitrail.classifier import ARTEFACT, Classifier
from vitrail.console import bar, say
from vitrail.data import Images, Preprocess, Splits, open_data
from vitrail.data.augment import sample_transform
from vitrail.data.images import load_into_memory
from vitrail.data.loader import steps_per_epoch, training_batches
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluate import Evaluation, classify
from vitrail.evaluate.figures import draw_confusion
from vitrail.evaluate.metrics import confusion
from vitrail.explain import explain_batch
from vitrail.explain.render import save_gallery
from vitrail.files import write_json, write_text
from vitrail.machine import GIB, keep_memory, pick_device
from vitrail.model import ViT
from vitrail.model.init import initialise
from vitrail.train import Recipe, find_recipe
from vitrail.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from vitrail.train.curves import draw_curves, read_metrics
from vitrail.train.loop import Trainee, autocast_dtype, train_steps, trainee
from vitrail.train.shape import shape


class Interrupted(VitrailError):
    """A signal asked the run to stop; it was saved and can be resumed."""

    exit_code = 130


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its classifier and what it scored."""

    folder: Path
    classifier: Classifier
    result: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Folder and figures."""
        return {"run": str(self.folder), **self.result}


def train(
    data: str | Path,
    *,
    recipe: str | Path | Recipe = "small",
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    tensorboard: bool = False,
    **changes: Any,
) -> Run:
    """Trains a classifier on the images at `data` and writes the run folder.

    `changes` are fields of the recipe, its augmentation or its model (`epochs=3, width=128`). An `out` that exists is
    never overwritten: without `resume` that is an error. Raises `VitrailError` where data or training go wrong.
    """
    folder = Path(out) if out else _free_folder(data, resume)
    wanted = find_recipe(recipe, **changes)
    if resume:
        wanted = _recipe_of(folder, wanted, changes, data)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", "go on with --resume, or choose another --out")
    splits = in_memory(
        open_data(data, validation=wanted.validation, test=wanted.test, split_seed=wanted.split_seed),
        int(wanted.memory * GIB),
    )
    full, config, preprocess = shape(wanted, splits)
    for note in splits.notes:
        say(note)
    keep_memory()
    place = pick_device(device)
    torch.manual_seed(full.seed)
    vit = initialise(ViT(config), patch_std=full.patch_std, zero_branches=full.zero_branches).to(place)
    origin = {
        "recipe": full.to_json(),
        "seed": full.seed,
        "versions": {"vitrail": vitrail.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "data": {
            "name": splits.name,
            "fingerprint": splits.fingerprint,
            "images": {s: len(images) for s in SPLITS if (images := splits[s]) is not None},
            "split": {"test": full.test, "validation": full.validation, "seed": full.split_seed},
        },
    }
    classifier = Classifier(vit, splits.classes, preprocess, origin=origin)
    say(
        f"{len(splits.train)} images of {len(splits.classes)} classes, {config.image_size} px; "
        f"ViT {config.width}x{config.depth}, patch {config.patch}, "
        f"{sum(p.numel() for p in vit.parameters()):,} parameters; "
        f"{full.epochs} epochs, recipe {full.name}, {place.type} in "
        f"{str(autocast_dtype(full.precision, place)).removeprefix('torch.')}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recipe.json", {"data": str(data), "recipe": wanted.to_json()})
    run = _Folder(folder, classifier, splits, full, tensorboard)
    seconds = run.train_epochs(resume)
    return run.finish(seconds)


SPLITS = ("train", "validation", "test")


def in_memory(splits: Splits, budget: int) -> Splits:
    """The splits decoded into memory where they fit, which also proves that every file can be read."""
    from dataclasses import replace

    parts: dict[str, Images] = {s: images for s in SPLITS if (images := splits[s]) is not None}
    share = {s: budget * len(images) // sum(map(len, parts.values())) for s, images in parts.items()}
    with bar("reading images", sum(map(len, parts.values()))) as progress:
        loaded = {s: load_into_memory(images, share[s], progress.tick) for s, images in parts.items()}
    return replace(splits, **loaded)


def _free_folder(data: str | Path, resume: bool) -> Path:
    """runs/NAME, or runs/NAME-2 ... while that exists; for a resume the newest that exists."""
    name = Path(data).resolve().name if Path(data).exists() else str(data)
    name = Path(name).stem.strip() or "run"
    base = Path("runs") / name
    taken = [path for path in [base, *(base.with_name(f"{name}-{i}") for i in range(2, 10_000))] if path.exists()]
    if resume:
        return taken[-1] if taken else base
    return base.with_name(f"{name}-{len(taken) + 1}") if taken else base


def _recipe_of(folder: Path, wanted: Recipe, changes: dict[str, Any], data: str | Path) -> Recipe:
    """The recipe a run was started with; raises `UsageError` if there is no run or other wishes were given."""
    try:
        document = json.loads((folder / "recipe.json").read_text())
        model, augment = document["recipe"].pop("model"), document["recipe"].pop("augment")
        about = {name: document["recipe"].pop(name) for name in ("name", "about")}
        recipe = Recipe(**about, model=model).but(**document["recipe"], **augment)
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a run that can be resumed", "start it without --resume") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise VitrailError(f"{folder / 'recipe.json'} is damaged ({error!r})", "start a new run") from None
    if recipe.but(**changes) != recipe:
        raise UsageError(f"{folder} was started with another recipe", "resume it without recipe options")
    return recipe


@dataclass
class _Folder:
    """The run folder while it is being written."""

    folder: Path
    classifier: Classifier
    splits: Splits
    recipe: Recipe
    tensorboard: bool = False

    def train_epochs(self, resume: bool) -> float:
        """All epochs, each followed by measuring and saving; returns the seconds of training in this process."""
        train_set, recipe, preprocess = self.splits.train, self.recipe, self.classifier.preprocess
        assert recipe.epochs and recipe.batch
        learner = trainee(self.classifier.vit, recipe)
        per_epoch = steps_per_epoch(train_set, recipe.batch)
        state: dict[str, Any] = {"epoch": 0, "best": None, "seconds": 0.0, "sums": [0.0, 0, 0]}
        if resume:
            state = self._resumed(learner, state)
        transform = sample_transform(recipe.augment, preprocess)
        with stop_requests() as stop, self._board() as board:
            for epoch in range(state["epoch"], recipe.epochs):
                began = time.perf_counter()
                loss, correct, seen = state["sums"]
                batches = training_batches(
                    train_set, transform, batch=recipe.batch, seed=recipe.seed, epoch=epoch,
                    start=learner.step - epoch * per_epoch, workers=recipe.workers,
                )  # fmt: skip
                with bar(f"epoch {epoch + 1}/{recipe.epochs}", per_epoch) as progress:
                    progress.tick(learner.step - epoch * per_epoch)
                    for step in train_steps(learner, batches, recipe, preprocess, steps=recipe.epochs * per_epoch):
                        loss, correct, seen = (
                            loss + step.loss * step.images, correct + step.correct, seen + step.images,
                        )  # fmt: skip
                        rate = seen / (time.perf_counter() - began)
                        progress.tick(1, f"loss {loss / seen:.3f}  accuracy {correct / seen:.3f}  {rate:,.0f} images/s")
                        if stop.requested:
                            state |= {"epoch": epoch, "sums": [loss, correct, seen]}
                            state["seconds"] += time.perf_counter() - began
                            save_checkpoint(self.folder / "checkpoint", learner, state)
                            raise Interrupted(
                                f"stopped at step {step.number} and saved", f"go on with --resume --out {self.folder}"
                            )
                seconds = time.perf_counter() - began
                row = {
                    "epoch": epoch + 1, "step": learner.step,
                    "train_loss": loss / seen, "train_accuracy": correct / seen,
                    "lr": step.lr, "gradient": step.gradient,
                    "seconds": round(seconds, 2), "images_per_second": round(seen / seconds, 1),
                }  # fmt: skip
                row |= self._measured(learner)
                state |= {"epoch": epoch + 1, "sums": [0.0, 0, 0], "seconds": state["seconds"] + seconds}
                if self._is_best(row, state["best"]):
                    state["best"] = row
                    self._save(learner)
                self._record(row)
                board(row)
                save_checkpoint(self.folder / "checkpoint", learner, state)
                draw_curves(read_metrics(self.folder / "metrics.jsonl"), self.folder / "curves.png")
        return float(state["seconds"])

    def _resumed(self, learner: Trainee, state: dict[str, Any]) -> dict[str, Any]:
        """The state of the newest checkpoint; the metrics written after it are dropped, for they come again."""
        found = newest_checkpoint(self.folder / "checkpoint")
        if found is None:
            say(f"{self.folder} has no whole checkpoint yet; the run starts from the beginning")
        else:
            state = load_checkpoint(found, learner)
            say(f"going on after step {learner.step} (epoch {state['epoch']})")
        metrics = self.folder / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.exists() else []
        kept = [json.dumps(row) + "\n" for row in rows if row["epoch"] <= state["epoch"]]
        write_text(metrics, "".join(kept))
        return state

    def _measured(self, learner: Trainee) -> dict[str, float]:
        """Loss and accuracy on validation; without one the test set is recorded, and chooses nothing."""
        split = "validation" if self.splits.validation is not None else "test"
        images = self.splits[split]
        if images is None:
            return {}
        outcome = classify(self._judged(learner), images, workers=self.recipe.workers)
        return {f"{split}_loss": outcome.loss, f"{split}_accuracy": outcome.accuracy}

    def _is_best(self, row: dict[str, Any], best: dict[str, Any] | None) -> bool:
        """By validation accuracy, then loss; without validation the last weights are kept."""
        if best is None or "validation_accuracy" not in row:
            return True
        return (row["validation_accuracy"], -row["validation_loss"]) > (
            best["validation_accuracy"], -best["validation_loss"],
        )  # fmt: skip

    def _judged(self, learner: Trainee) -> Classifier:
        origin = self.classifier.origin
        return Classifier(learner.best_guess, self.classifier.classes, self.classifier.preprocess, origin=origin)

    def _save(self, learner: Trainee) -> None:
        self._judged(learner).save(self.folder / ARTEFACT)

    def _record(self, row: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        split = "validation" if "validation_loss" in row else "test"
        beside = f"  {split} loss {row[f'{split}_loss']:.3f} accuracy {row[f'{split}_accuracy']:.3f}" if f"{split}_loss" in row else ""
        say(
            f"epoch {row['epoch']:3d}/{self.recipe.epochs}  train loss {row['train_loss']:.3f} "
            f"accuracy {row['train_accuracy']:.3f}{beside}  {row['images_per_second']:,.0f} images/s"
        )

    @contextmanager
    def _board(self) -> Iterator[Any]:
        """A function that writes a row of metrics to TensorBoard, or does nothing."""
        if not self.tensorboard:
            yield lambda row: None
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError("TensorBoard is not installed", "pip install 'vitrail[tensorboard]'") from None
        with SummaryWriter(self.folder / "tensorboard") as writer:
            yield lambda row: [
                writer.add_scalar(name, value, row["step"]) for name, value in row.items() if name not in ("step", "epoch")
            ]

    def finish(self, seconds: float) -> Run:
        """Scores the kept weights on test (else validation), writes the artefact's last word and the pictures."""
        classifier = vitrail.load(self.folder, device=self.classifier.device)
        split = "test" if self.splits.test is not None else "validation"
        images = self.splits[split]
        result: dict[str, Any] = {"seconds": round(seconds, 1)}
        if images is not None:
            with bar(f"evaluating on {split}", len(images)) as progress:
                evaluation = Evaluation(classify(classifier, images, tick=progress.tick), f"{len(images)} {split} images")
            result[split] = evaluation.summary()
            classifier.origin["metrics"] = {split: evaluation.summary()}
            classifier.save(self.folder / ARTEFACT)
            self._pictures(classifier, evaluation, images)
        write_json(self.folder / "result.json", result)
        return Run(self.folder, classifier, result)

    def _pictures(self, classifier: Classifier, evaluation: Evaluation, images: Images) -> None:
        """confusion.png, and attention.png of up to 30 images, of each class about as many."""
        outcome = evaluation.outcome
        draw_confusion(confusion(outcome), outcome.classes, self.folder / "confusion.png")
        ranks = np.zeros(len(images), dtype=int)
        for number in range(len(images.classes)):
            members = np.flatnonzero(images.labels == number)
            ranks[members] = np.arange(len(members))
        chosen = images.subset(sorted(np.lexsort((images.labels, ranks))[:30], key=lambda i: images.labels[i]))
        pixels = torch.stack([classifier.preprocess.fitted(chosen[i]) for i in range(len(chosen))])
        explanations = explain_batch(classifier, pixels)
        save_gallery(explanations, [images.classes[i] for i in chosen.labels], self.folder / "attention.png")


@dataclass
class StopRequest:
    """Whether SIGINT or SIGTERM has come."""

    requested: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGINT and SIGTERM ask instead of killing; a second one kills. Other threads cannot set signals."""
    stop = StopRequest()
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        stop.requested = True
        say("stopping after this step; once more to stop at once")
        for known, handler in before.items():
            signal.signal(known, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:
        before.clear()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
