"""A whole run.

This is the table of contents: `asked` says which run is meant, `ready` has all that it needs before the first step,
`epochs` trains, `end` scores and draws.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data import Splits
from vitrail.errors import UsageError
from vitrail.evaluation.probe import Probe
from vitrail.interrupts import Interrupted, interrupt_on_sigterm
from vitrail.machine import pick_device
from vitrail.model import ViT
from vitrail.runs.data import show_data
from vitrail.runs.epochs import Row, Training, resume_training, train_epochs
from vitrail.runs.finish import Ended, Run, finish
from vitrail.runs.folder import RunFolder, create_run, refuse_full
from vitrail.runs.pretrained import Model, fit_head, probed, start_head
from vitrail.runs.resolve import wanted
from vitrail.runs.start import Ready, prepared
from vitrail.training import Recipe
from vitrail.training.distributed import World, join_world
from vitrail.training.launch import current_launch
from vitrail.training.optimizers import OPTIMIZERS
from vitrail.training.train_state import TrainState, autocast_dtype, init_train_state

EpochCallback = Callable[[Path, Row], None]  # is shown the run folder and a row of metrics
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
    report: bool = True,
    check: bool = True,
    torch_files: bool = False,
    fsdp: bool = False,
    score_test: bool = True,
    epoch_callbacks: Sequence[EpochCallback] = (),
    **changes: Any,
) -> Run:
    """Trains a classifier on the images at `data` and writes the run folder.

    `model` is a classifier to start from (whatever `load` takes, `torch_files` as there, or a `Classifier`), else
    training starts from nothing.
    `recipe` is a name (`small` unless said, `finetune` with a model), a file or a `Recipe`; `changes` are fields of it,
    its augmentation or its model (`epochs=3, width=128`). An `out` that holds anything is left alone: without `resume`
    that is an error. The data are checked before and a report is written at the end, unless told otherwise. Without
    `score_test` the test images are not scored, and the scores are of validation. `epoch_callbacks` are shown the run
    folder and every row of metrics. Raises `VitrailError` where data or training go wrong.

    Called by every process of a group (torchrun's, or one that is initialised already), it trains one model by all of
    them, and each gets the run; the first one writes. `fsdp` shards the model over them.
    """
    with join_world(pick_device(device), fsdp=fsdp) as world:
        with world.raise_on_all():
            folder, asked = wanted(data, out, model, recipe, changes, resume) if world.is_main else (None, None)
        folder, asked = told(folder, world), world.broadcast(asked)
        assert asked is not None
        with world.raise_on_all():
            watching = [*epoch_callbacks, *([board_writer(asked)] if tensorboard else [])]
        ready = prepared(
            world,
            folder,
            data,
            asked,
            model,
            fsdp=fsdp,
            check_data=check,
            torch_files=torch_files,
            score_test=score_test,
        )
        with world.raise_on_all():
            log(describe_plan(ready.classifier, ready.splits, ready.recipe, world))
            if world.is_main and folder is None:
                folder = begun_folder(ready, data, out, asked, resume_options(world, torch_files))
        folder = told(folder, world)
        assert folder is not None
        with owned(folder, world):
            with world.raise_on_all():
                probes = prepare_main_process(ready, folder) if world.is_main else None
            if probes and asked.train_on == "features":
                fit_head(ready.classifier, probes, folder)
                ended = Ended(folder, ready.splits, ready.recipe, world.device, probes.seconds, probes)
                return finish(ended, data, report)
            learner = init_train_state(ready.classifier.vit, ready.recipe, world)
            training = Training(learner, ready.classifier, ready.splits, ready.recipe, folder, watchers=watching)
            say_what_trains(learner)
            if ready.goes_on:
                resume_training(training)
            train_epochs(training)
            ended = Ended(folder, ready.splits, ready.recipe, world.device, training.state.seconds, probes)
            with world.raise_on_all():
                run = finish(ended, data, report) if world.is_main else None
            return everywhere(run, world)


def begun_folder(
    ready: Ready, data: str | Path, out: str | Path | None, asked: Recipe, options: list[str]
) -> RunFolder:
    """A new run folder, on a disk that has room for it."""
    refuse_full(out, room_for(ready.classifier.vit, ready.recipe))
    return create_run(
        data,
        out,
        ready.splits.fingerprint,
        asked,
        unreadable=ready.unreadable,
        start=ready.start.note() if ready.start else None,
        job=launch.id if (launch := current_launch()) else None,
        options=options,
    )


def resume_options(world: World, torch_files: bool) -> list[str]:
    """What the command that goes on has to say of how the run was started; several machines have no one command."""
    options = ["--torch-files"] if torch_files else []
    if 1 < world.size == world.local_size:
        options += ["--processes", str(world.size)]
    return options + (["--fsdp"] if world.is_sharded else [])


def prepare_main_process(ready: Ready, folder: RunFolder) -> Probe | None:
    """What the main process does before the first step: shows the data, probes the weights, starts a new head."""
    if ready.report and not folder.picture("classes").exists():
        show_data(ready.report, folder)
    if not ready.start:
        return None
    probes = probed(ready.classifier, ready.splits, ready.recipe)
    if ready.recipe.train_on != "features" and ready.head == "new":
        start_head(ready.classifier, probes, ready.recipe)
    return probes


def told(folder: RunFolder | None, world: World) -> RunFolder | None:
    """The main process's folder; the others may work in other directories."""
    there = world.broadcast(folder.path.absolute() if folder else None)
    return folder if world.is_main or there is None else RunFolder(there)


def everywhere(run: Run | None, world: World) -> Run:
    """The main process's run, for all of them."""
    if run is not None and world.size > 1:
        away = copy.deepcopy(run.classifier).to("cpu")
        world.broadcast(replace(run, folder=run.folder.absolute(), classifier=away))
    found = run if run is not None else world.broadcast(run)
    assert found is not None
    return found


@contextmanager
def owned(folder: RunFolder, world: World) -> Iterator[None]:
    """Inside, the run belongs to these processes alone; a signal that no step waits for ends it (`resumable`)."""
    with ExitStack() as stack:
        with world.raise_on_all():
            if world.is_main:
                stack.enter_context(folder.lock())
        with resumable(folder):
            yield


@contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Inside, a signal that no step waits for ends the run at once, with the command that goes on."""
    try:
        with interrupt_on_sigterm():
            yield
    except KeyboardInterrupt:
        raise Interrupted("stopped; what was saved last is kept", f"go on with: {folder.resume_command()}") from None


def room_for(vit: ViT, recipe: Recipe) -> int:
    """Bytes that a run takes at most: three checkpoints (two are kept), two artefacts, pictures and tables."""
    weights = 4 * sum(p.numel() for p in vit.parameters())
    checkpoint = weights * (1 + bool(recipe.ema_decay) + OPTIMIZERS[recipe.optimizer].state_per_weight)
    return 3 * checkpoint + 2 * weights + ROOM


def describe_plan(classifier: Classifier, splits: Splits, recipe: Recipe, world: World) -> str:
    """What is about to be trained, on what and how, in a line."""
    config = classifier.vit.config
    number_format = str(autocast_dtype(recipe.precision, world.device)).removeprefix("torch.")
    how = f"{recipe.epochs} epochs, batch {recipe.batch_size}"
    if recipe.train_on == "features":
        number_format, how = "float32", "a linear head on frozen features"
    shared = f"{world.size} processes{', sharded' if world.is_sharded else ''}; " if world.size > 1 else ""
    return (
        f"{len(splits.train)} training images of {len(splits.classes)} classes, {config.image_size} px; "
        f"ViT {config.width}x{config.depth}, patch {config.patch}, "
        f"{sum(p.numel() for p in classifier.vit.parameters()):,} parameters; "
        f"recipe {recipe.name}, {how}; {shared}{world.device.type} in {number_format}"
    )


def say_what_trains(learner: TrainState) -> None:
    """How many of the parameters are trained, where it is not all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in learner.vit.parameters()]
    trained = sum(n for n, trains in sizes if trains)
    if not all(trains for _, trains in sizes):
        log(f"{trained:,} parameters are trained, {sum(n for n, _ in sizes) - trained:,} stand still")


def board_writer(recipe: Recipe) -> EpochCallback:
    """A function that writes a row of metrics as TensorBoard files.

    Raises `UsageError` without TensorBoard, and for a recipe that has no epochs.
    """
    if recipe.train_on == "features":
        raise UsageError(f"recipe {recipe.name} has no epochs for TensorBoard to show", "leave out --tensorboard")
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
