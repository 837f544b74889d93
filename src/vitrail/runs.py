"""A run: data and a recipe in, a folder with a classifier and its pictures out.

This is the table of contents: `train` prepares, `epochs` trains, `run_end` scores and draws. Training, evaluation and
explanation meet here; each of them knows nothing of the others.
"""

import copy
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import vitrail
from vitrail.classifier import Classifier
from vitrail.console import say
from vitrail.data import Preprocess, Splits, open_data
from vitrail.data.check import Report
from vitrail.epochs import Row, Training, go_on, train_epochs
from vitrail.errors import UsageError
from vitrail.evaluate.probe import Probe
from vitrail.interrupts import Interrupted, stop_at_once
from vitrail.machine import GIB, keep_memory, pick_device
from vitrail.model import ViT, ViTConfig
from vitrail.model.init import initialise
from vitrail.pretrained import (
    Model,
    Pretrained,
    begin,
    fit_head,
    pretrained,
    pretrained_again,
    probed,
    start_head,
)
from vitrail.run_data import checked, in_memory, refuse_small, show_data, without
from vitrail.run_end import Ended, Run, finish
from vitrail.run_folder import RunFolder, begun_by, new_run, old_run, refuse_full, refuse_taken
from vitrail.train import DEFAULT, RECIPES, TRANSFER, Recipe, find_recipe
from vitrail.train.distributed import World, job, joined, launched_at
from vitrail.train.loop import Trainee, autocast_dtype, trainee
from vitrail.train.settle import settle
from vitrail.train.transfer import settle_from

Watcher = Callable[[Path, Row], None]  # is shown the run folder and a row of metrics
FREE = ("workers", "memory")  # fields of a recipe that leave every bit as it is
ROOM = 4 << 20  # bytes for a run's pictures and tables


def train(
    data: str | Path,
    *,
    model: Model | None = None,
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    tensorboard: bool = False,
    make_report: bool = True,
    check_data: bool = True,
    torch_files: bool = False,
    fsdp: bool = False,
    spare_test: bool = False,
    watchers: Sequence[Watcher] = (),
    **changes: Any,
) -> Run:
    """Trains a classifier on the images at `data` and writes the run folder.

    `model` is a classifier to start from (whatever `load` takes, `torch_files` as there, or a `Classifier`), else
    training starts from nothing.
    `recipe` is a name (`small` unless said, `finetune` with a model), a file or a `Recipe`; `changes` are fields of it,
    its augmentation or its model (`epochs=3, width=128`). An `out` that holds anything is left alone: without `resume`
    that is an error. The data are checked before and a report is written at the end, unless told otherwise. With
    `spare_test` the test images are not scored, and the scores are of validation. `watchers` are shown the run
    folder and every row of metrics. Raises `VitrailError` where data or training go wrong.

    Called by every process of a group (torchrun's, or one that is initialised already), it trains one model by all of
    them, and each gets the run; the first one writes. `fsdp` shards the model over them.
    """
    with joined(pick_device(device), fsdp=fsdp) as world:
        with world.together():
            folder, asked = wanted(data, out, model, recipe, changes, resume) if world.main else (None, None)
        folder, asked = told(folder, world), world.tell(asked)
        assert asked is not None
        ready = prepared(
            world,
            folder,
            data,
            asked,
            model,
            fsdp=fsdp,
            check_data=check_data,
            torch_files=torch_files,
            spare_test=spare_test,
        )
        with world.together():
            if tensorboard and asked.train_on == "features":
                raise UsageError(
                    f"recipe {asked.name} has no epochs for TensorBoard to show", "leave out --tensorboard"
                )
            watching = [*watchers, *([board_writer()] if tensorboard else [])]
            say(plan(ready.classifier, ready.splits, ready.recipe, world))
            if world.main and folder is None:
                folder = begun_folder(ready, data, out, asked)
        folder = told(folder, world)
        assert folder is not None
        with held(folder, world):
            with world.together():
                probes = first_look(ready, folder) if world.main else None
            if probes and asked.train_on == "features":
                fit_head(ready.classifier, probes, folder)
                ended = Ended(folder, ready.splits, ready.recipe, world.device, probes.seconds, probes)
                return finish(ended, data, make_report)
            learner = trainee(ready.classifier.vit, ready.recipe, world)
            training = Training(learner, ready.classifier, ready.splits, ready.recipe, folder, watchers=watching)
            say_what_trains(learner)
            if ready.goes_on:
                go_on(training)
            train_epochs(training)
            ended = Ended(folder, ready.splits, ready.recipe, world.device, training.state.seconds, probes)
            with world.together():
                run = finish(ended, data, make_report) if world.main else None
            return everywhere(run, world)


@dataclass(frozen=True)
class Ready:
    """All that a run needs before its first step; every process that trains has it."""

    classifier: Classifier  # with the weights that training starts from
    head: str  # kept, reordered or new
    start: Pretrained | None
    splits: Splits
    unreadable: list[str]
    recipe: Recipe  # settled: no field is left open
    report: Report | None  # what the check of the data found; the main process has it
    goes_on: bool  # whether there is a run to go on with


def prepared(
    world: World,
    folder: RunFolder | None,
    data: str | Path,
    asked: Recipe,
    model: Model | None,
    *,
    fsdp: bool,
    check_data: bool,
    torch_files: bool,
    spare_test: bool,
) -> Ready:
    """The data, opened and checked, and the model before its first step; `folder` is the run to go on with."""
    place = torch.device("cpu") if world.sharded else world.device  # where a model is made before it is spread
    with world.together(), world.one_at_a_time():
        refuse_unshared(asked, world)
        if fsdp and world.size == 1:
            alone_with_shards(goes_on=folder is not None)
        start = (
            pretrained_again(folder, model, asked, place, torch_files)
            if folder
            else pretrained(model, asked, place, torch_files)
        )
        splits = open_data(
            data,
            channels=start.classifier.preprocess.channels if start else None,
            validation=asked.validation,
            test=asked.test,
            split_seed=asked.split_seed,
            missing_ok=asked.skip_unreadable,
        )
        if spare_test:
            splits = replace(splits, test=None)
        if folder:
            folder.check_data(splits.fingerprint)
    with world.together():
        report = checked(data, asked) if check_data and world.main else None
    left_out = world.tell(folder.unreadable() if folder else report.unreadable if report else [])
    with world.together():
        splits, unreadable = without(splits, left_out)
        splits = in_memory(splits, int(asked.memory * GIB) // world.local_size, asked.skip_unreadable)
        theirs = start.classifier if start else None
        full, config, preprocess = (
            settle_from(asked, splits, theirs.vit.config, theirs.preprocess) if theirs else settle(asked, splits)
        )
        refuse_small(splits, preprocess, asked.skip_unreadable)
        for note in splits.notes:
            say(note)
        keep_memory()
        classifier, head = begun(start, config, preprocess, splits, full, place)
    return Ready(classifier, head, start, splits, unreadable, full, report, folder is not None)


def begun_folder(ready: Ready, data: str | Path, out: str | Path | None, asked: Recipe) -> RunFolder:
    """A new run folder, on a disk that has room for it."""
    refuse_full(out, room_for(ready.classifier.vit, ready.recipe))
    return new_run(
        data,
        out,
        ready.splits.fingerprint,
        asked,
        unreadable=ready.unreadable,
        start=ready.start.note() if ready.start else None,
        job=job(),
    )


def first_look(ready: Ready, folder: RunFolder) -> Probe | None:
    """What the main process does before the first step: shows the data, probes the weights, starts a new head."""
    if ready.report and not folder.picture("classes").exists():
        show_data(ready.report, folder)
    if not ready.start:
        return None
    probes = probed(ready.classifier, ready.splits, ready.recipe)
    if ready.recipe.train_on != "features" and ready.head == "new":
        start_head(ready.classifier, probes, ready.recipe)
    return probes


def wanted(
    data: str | Path,
    out: str | Path | None,
    model: Model | None,
    recipe: str | Path | Recipe | None,
    changes: dict[str, Any],
    resume: bool,
) -> tuple[RunFolder | None, Recipe]:
    """The run to go on with, if there is one, and the recipe.

    A launcher that starts dead processes again says the same words again: what they began is gone on with.
    """
    folder = old_run(data, out) if resume else begun_by(job(), data, out, launched_at())
    if folder:
        return folder, asked_again(folder, recipe, changes)
    refuse_taken(out)
    return None, find_recipe((DEFAULT if model is None else TRANSFER) if recipe is None else recipe, **changes)


def refuse_unshared(recipe: Recipe, world: World) -> None:
    """Raises `UsageError` where a recipe does not go with several processes, or not with a sharded model."""
    if world.size > 1 and recipe.train_on == "features":
        raise UsageError(f"recipe {recipe.name} fits its head in one process", "start one process")
    if world.sharded and recipe.optimizer == "muon":
        raise UsageError("Muon needs whole matrices, and --fsdp shards them", "use adamw, or leave out --fsdp")
    if world.sharded and recipe.lora_rank:
        raise UsageError("LoRA's updates are merged into whole matrices, and --fsdp shards them", "leave out --fsdp")


def alone_with_shards(goes_on: bool) -> None:
    """Raises `UsageError` where a run would begin with nobody to shard its model with.

    One that goes on may have lost the others, and only says so.
    """
    if not goes_on:
        raise UsageError("--fsdp shards over several processes, and this is one", "add --processes N")
    say("warning: --fsdp shards over several processes; this one goes on with the whole model")


def told(folder: RunFolder | None, world: World) -> RunFolder | None:
    """The main process's folder; the others may work in other directories."""
    there = world.tell(folder.path.absolute() if folder else None)
    return folder if world.main or there is None else RunFolder(there)


def everywhere(run: Run | None, world: World) -> Run:
    """The main process's run, for all of them."""
    if run is not None and world.size > 1:
        away = copy.deepcopy(run.classifier).to("cpu")
        world.tell(replace(run, folder=run.folder.absolute(), classifier=away))
    found = run if run is not None else world.tell(run)
    assert found is not None
    return found


@contextmanager
def held(folder: RunFolder, world: World) -> Iterator[None]:
    """Inside, the run belongs to these processes alone; a signal that no step waits for ends it (`resumable`)."""
    with ExitStack() as stack:
        with world.together():
            if world.main:
                stack.enter_context(folder.alone())
        with resumable(folder):
            yield


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

    What leaves every bit as it is may be changed: where images are kept and who reads them. The name of a built-in
    recipe stands for whatever the run made of it; a file or a `Recipe` says every field.
    """
    asked = folder.recipe().but(**{name: changes[name] for name in FREE if name in changes})
    if recipe is None or str(recipe) in RECIPES:
        wished = replace(asked, name=asked.name if recipe is None else str(recipe)).but(**changes)
    else:
        wished = find_recipe(recipe, **changes).but(**{name: getattr(asked, name) for name in FREE})
    if wished != asked:
        raise UsageError(f"{folder.path} was started with another recipe", "resume it without recipe options")
    return asked


def begun(
    start: Pretrained | None,
    config: ViTConfig,
    preprocess: Preprocess,
    splits: Splits,
    recipe: Recipe,
    place: torch.device,
) -> tuple[Classifier, str]:
    """The classifier as training finds it, and whether its head is kept, reordered or new."""
    if start:
        vit, head = begin(start, config, splits, recipe)
    else:
        vit, head = starting_vit(config, recipe), "new"
    came_from = {"from": start.origin(head)} if start else {}
    about = {**came_from, **origin(recipe, splits)}
    return Classifier(vit.to(place), splits.classes, preprocess, origin=about), head


def starting_vit(config: ViTConfig, recipe: Recipe) -> ViT:
    """The weights that training starts from: drawn by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    vit = ViT(config)
    initialise(vit, patch_std=recipe.patch_std, zero_branches=recipe.zero_branches)
    return vit


def plan(classifier: Classifier, splits: Splits, recipe: Recipe, world: World) -> str:
    """What is about to be trained, on what and how, in a line."""
    config = classifier.vit.config
    number_format = str(autocast_dtype(recipe.precision, world.device)).removeprefix("torch.")
    how = f"{recipe.epochs} epochs, batch {recipe.batch}"
    if recipe.train_on == "features":
        number_format, how = "float32", "a linear head on frozen features"
    shared = f"{world.size} processes{', sharded' if world.sharded else ''}; " if world.size > 1 else ""
    return (
        f"{len(splits.train)} training images of {len(splits.classes)} classes, {config.image_size} px; "
        f"ViT {config.width}x{config.depth}, patch {config.patch}, "
        f"{sum(p.numel() for p in classifier.vit.parameters()):,} parameters; "
        f"recipe {recipe.name}, {how}; {shared}{world.device.type} in {number_format}"
    )


def say_what_trains(learner: Trainee) -> None:
    """How many of the parameters are trained, where it is not all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in learner.vit.parameters()]
    trained = sum(n for n, trains in sizes if trains)
    if not all(trains for _, trains in sizes):
        say(f"{trained:,} parameters are trained, {sum(n for n, _ in sizes) - trained:,} stand still")


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


def board_writer() -> Watcher:
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
