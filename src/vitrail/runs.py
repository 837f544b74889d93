"""A run: data and a recipe in, a folder with a classifier and its pictures out.

This is the table of contents: `train` prepares, `epochs` trains, `finish` scores and draws. Training, evaluation and
explanation meet here; each of them knows nothing of the others.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vitrail
from vitrail.classifier import Classifier, load
from vitrail.console import bar, say
from vitrail.data import Images, Preprocess, Splits, open_data
from vitrail.data.check import UNREADABLE, Report, check
from vitrail.data.decode import ImageError
from vitrail.data.images import load_into_memory
from vitrail.data.sheets import draw_classes
from vitrail.epochs import Row, Training, go_on, train_epochs
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluate import Evaluation, classify, evaluate
from vitrail.evaluate.calibration import calibrate
from vitrail.evaluate.figures import draw_confusion
from vitrail.evaluate.metrics import confusion
from vitrail.explain import explain_batch
from vitrail.explain.pictures import save_gallery
from vitrail.files import write_json
from vitrail.interrupts import Interrupted, stop_at_once
from vitrail.machine import GIB, keep_memory, pick_device
from vitrail.model import ViT, ViTConfig
from vitrail.model.init import initialise
from vitrail.run_folder import RunFolder, new_run, old_run, refuse_full, refuse_taken
from vitrail.train import DEFAULT, Recipe, find_recipe
from vitrail.train.loop import autocast_dtype, trainee
from vitrail.train.settle import settle

FREE = ("workers", "memory")  # fields of a recipe that leave every bit as it is
WARNINGS = 8  # that are said before training
ROOM = 4 << 20  # bytes for a run's pictures and tables


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
    make_report: bool = True,
    check_data: bool = True,
    **changes: Any,
) -> Run:
    """Trains a classifier on the images at `data` and writes the run folder.

    `recipe` is a name (`small` unless said), a file or a `Recipe`; `changes` are fields of it, its augmentation or its
    model (`epochs=3, width=128`). An `out` that holds anything is left alone: without `resume` that is an error. The
    data are checked before and a report is written at the end, unless told otherwise. Raises `VitrailError` where data
    or training go wrong.
    """
    place = pick_device(device)
    if resume:
        folder = old_run(data, out)
        asked = asked_again(folder, recipe, changes)
    else:
        refuse_taken(out)
        asked = find_recipe(DEFAULT if recipe is None else recipe, **changes)
    splits = open_data(
        data,
        validation=asked.validation,
        test=asked.test,
        split_seed=asked.split_seed,
        missing_ok=asked.skip_unreadable,
    )
    if resume:
        folder.check_data(splits.fingerprint)
    report = checked(data, asked) if check_data else None
    splits, unreadable = without(splits, folder.unreadable() if resume else report.unreadable if report else [])
    watchers = [board_writer()] if tensorboard else []
    splits = in_memory(splits, int(asked.memory * GIB), asked.skip_unreadable)
    full, config, preprocess = settle(asked, splits)
    refuse_small(splits, preprocess)
    for note in splits.notes:
        say(note)
    keep_memory()
    vit = starting_vit(config, full).to(place)
    classifier = Classifier(vit, splits.classes, preprocess, origin=origin(full, splits))
    say(plan(classifier, splits, full))
    if not resume:
        refuse_full(out, room_for(vit, full))
        folder = new_run(data, out, splits.fingerprint, asked, unreadable)
        if report:
            show_data(report, folder)
    with folder.alone(), resumable(folder):
        training = Training(trainee(vit, full), classifier, splits, full, folder, watchers=watchers)
        if resume:
            go_on(training)
        train_epochs(training)
        run, evaluation = finish(training)
        if make_report and evaluation is not None:
            report_on(training, run, evaluation, data)
        return run


@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Inside, a signal that no step waits for ends the run at once, with the command that goes on."""
    try:
        with stop_at_once():
            yield
    except KeyboardInterrupt:
        raise Interrupted("stopped; what was saved last is kept", f"go on with: {folder.command()}") from None


def room_for(vit: ViT, recipe: Recipe) -> int:
    """Bytes that a run takes at most: three checkpoints (two are kept), two artefacts, pictures and tables."""
    weights = 4 * sum(p.numel() for p in vit.parameters())
    checkpoint = weights * (1 + bool(recipe.ema) + 2)  # no optimiser keeps more than two numbers a weight
    return 3 * checkpoint + 2 * weights + ROOM


def asked_again(folder: RunFolder, recipe: str | Path | Recipe | None, changes: dict[str, Any]) -> Recipe:
    """The recipe that a run was started with; raises `UsageError` where another one is wished for.

    What leaves every bit as it is may be changed: where images are kept and who reads them.
    """
    asked = folder.recipe().but(**{name: changes[name] for name in FREE if name in changes})
    wished = asked if recipe is None else find_recipe(recipe)
    if asked.but(**changes) != asked or wished.name != asked.name:
        raise UsageError(f"{folder.path} was started with another recipe", "resume it without recipe options")
    return asked


def checked(data: str | Path, recipe: Recipe) -> Report:
    """What a check finds before training: warnings are said, errors raise `VitrailError`."""
    with bar("checking the data", 0) as progress:
        report = check(data, lambda done, total: progress.set(done, total), batch=recipe.batch, fit=recipe.fit)
    for finding in [finding for finding in report.findings if finding.level == "warning"][:WARNINGS]:
        say(f"warning: {finding}")
    if (more := len(report.warnings) - WARNINGS) > 0:
        say(f"warning: {more} more; vitrail check {data} says them all")
    errors = [
        f for f in report.findings if f.level == "error" and not (recipe.skip_unreadable and f.kind == UNREADABLE)
    ]
    if errors:
        others = f" (and {len(errors) - 1} more errors; vitrail check lists them)" if len(errors) > 1 else ""
        raise VitrailError(f"{data}: {errors[0].sentence}{others}", errors[0].then)
    return report


def without(splits: Splits, unreadable: list[str]) -> tuple[Splits, list[str]]:
    """The splits less the images of these names, and the names; raises `VitrailError` where none is left to train."""
    gone = set(unreadable)
    if not gone:
        return splits, []
    say(f"{len(gone)} image{'s' if len(gone) > 1 else ''} cannot be read and are left out, as --skip-unreadable says")
    parts = {
        name: images.subset([i for i, each in enumerate(images.names) if each not in gone])
        for name, images in splits.parts().items()
    }
    if not len(parts["train"]):
        raise VitrailError("not one training image can be read", "vitrail check says why")
    counts = {name: len(images) - len(parts[name]) for name, images in splits.parts().items()}
    kept: dict[str, Any] = {name: images if len(images) else None for name, images in parts.items()}
    return replace(splits, **kept, unreadable={name: n for name, n in counts.items() if n}), sorted(gone)


def show_data(report: Report, folder: RunFolder) -> None:
    """What the check found, beside the run: in full, and as a picture of the classes."""
    write_json(folder.path / "check.json", report.to_json())
    if report.seen:
        draw_classes(report.seen, folder.picture("classes"))


def starting_vit(config: ViTConfig, recipe: Recipe) -> ViT:
    """The weights that training starts from: drawn by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    vit = ViT(config)
    initialise(vit, patch_std=recipe.patch_std, zero_branches=recipe.zero_branches)
    return vit


def plan(classifier: Classifier, splits: Splits, recipe: Recipe) -> str:
    """What is about to be trained, on what and how, in a line."""
    config = classifier.vit.config
    number_format = str(autocast_dtype(recipe.precision, classifier.device)).removeprefix("torch.")
    return (
        f"{len(splits.train)} training images of {len(splits.classes)} classes, {config.image_size} px; "
        f"ViT {config.width}x{config.depth}, patch {config.patch}, "
        f"{sum(p.numel() for p in classifier.vit.parameters()):,} parameters; "
        f"recipe {recipe.name}, {recipe.epochs} epochs, batch {recipe.batch}; "
        f"{classifier.device.type} in {number_format}"
    )


def origin(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Where a classifier's weights come from, for its artefact; who read the images is not part of it."""
    return {
        "recipe": {name: value for name, value in recipe.to_json().items() if name not in FREE},
        "seed": recipe.seed,
        "versions": {"vitrail": vitrail.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "data": {
            "name": splits.name,
            "fingerprint": splits.fingerprint,
            "images": {name: len(images) for name, images in splits.parts().items()},
            "unreadable": splits.unreadable,
            "split": {"test": recipe.test, "validation": recipe.validation, "seed": recipe.split_seed},
        },
    }


def in_memory(splits: Splits, budget: int, skip_unreadable: bool = False) -> Splits:
    """The splits decoded into memory where they fit in `budget` bytes, which proves that every file can be read."""
    parts = splits.parts()
    total = sum(map(len, parts.values()))
    with bar("reading images", total) as progress:
        try:
            loaded: dict[str, Any] = {
                name: load_into_memory(images, budget * len(images) // total, progress.tick)
                for name, images in parts.items()
            }
        except ImageError:
            if skip_unreadable:  # it was whole when the data were checked: the loader will count it
                return splits
            raise
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


def finish(training: Training) -> tuple[Run, Evaluation | None]:
    """What is done at the end of a run, but for the report.

    The temperature is fitted on validation, the kept weights are scored, the figures put into the artefact, pictures
    drawn.
    """
    folder = training.folder
    classifier = load(folder.path, device=training.classifier.device)
    result: dict[str, Any] = {"seconds": round(training.state.seconds, 3)}
    skip = training.recipe.skip_unreadable
    if training.splits.unreadable:
        result["unreadable"] = training.splits.unreadable
    if training.splits.validation is not None:
        classifier = calibrated(classifier, training.splits.validation, skip)
    evaluation = None
    name, images = held_out(training.splits)
    if images is None:
        say("no image was kept back, so there is no score and no picture of attention")
    else:
        with bar(f"evaluating on {name}", len(images)) as progress:
            evaluation = evaluate(
                classifier,
                images,
                said=f"the {len(images)} {name} images of {training.splits.name}",
                tick=progress.tick,
                skip_unreadable=skip,
            )
        summary = evaluation.summary()
        summary["unreadable"] += training.splits.unreadable.get(name, 0)
        result[name] = summary
        classifier.origin["metrics"] = {name: summary}
        classifier.save(folder.artefact)
        draw_pictures(classifier, images, evaluation, folder)
    write_json(folder.path / "result.json", result)
    return Run(folder.path, classifier, result), evaluation


def calibrated(classifier: Classifier, validation: Images, skip_unreadable: bool) -> Classifier:
    """The classifier with a temperature fitted on validation images; its origin has what they say of its sureness."""
    plain = replace(classifier, temperature=1.0)
    with bar("fitting the temperature", len(validation)) as progress:
        fitted = calibrate(classify(plain, validation, tick=progress.tick, skip_unreadable=skip_unreadable))
    origin = {**classifier.origin, "calibration": fitted.to_json()}
    return replace(classifier, temperature=fitted.temperature, origin=origin)


def report_on(training: Training, run: Run, evaluation: Evaluation, data: str | Path) -> None:
    """Writes report.html and report.json into the run folder; everything else has been written before."""
    from vitrail.report import Subject, command, readable, write_report
    from vitrail.report.collect import STEPS

    split, images = held_out(training.splits)
    assert images is not None
    skip = training.recipe.skip_unreadable
    subject = Subject(
        run.classifier,
        readable(images, evaluation.outcome),
        evaluation,
        split=split,
        parts=training.splits.parts(),
        skip_unreadable=skip,
        curves=RunFolder(run.folder).metrics(),
        model=str(run.folder),
        command=command(run.folder, data, ["--skip-unreadable"] if skip else []),
    )
    with bar("writing the report", STEPS) as progress:
        write_report(subject, run.folder, tick=lambda doing: progress.tick(note=doing))


def held_out(splits: Splits) -> tuple[str, Images | None]:
    """The images that say how good the run is: test, else validation, else none."""
    name = "test" if splits.test is not None else "validation"
    return name, splits.parts().get(name)


def draw_pictures(classifier: Classifier, images: Images, evaluation: Evaluation, folder: RunFolder) -> None:
    """What a run shows of its classifier without being asked."""
    draw_confusion(confusion(evaluation.outcome), classifier.classes, folder.picture("confusion"))
    draw_attention(classifier, images, folder.picture("attention"))


def draw_attention(classifier: Classifier, images: Images, path: Path, most: int = 30) -> None:
    """The maps of some images, about as many of each class, with truth and prediction."""
    rank = np.zeros(len(images), dtype=int)  # the how-manieth of its class an image is
    for number in range(len(images.classes)):
        members = np.flatnonzero(images.labels == number)
        rank[members] = np.arange(len(members))
    chosen = images.subset(sorted(np.lexsort((images.labels, rank))[:most], key=lambda i: int(images.labels[i])))
    pixels = chosen.fitted(classifier.preprocess, range(len(chosen)))
    truths = [images.classes[number] for number in chosen.labels]
    save_gallery(explain_batch(classifier, pixels), truths, path)
