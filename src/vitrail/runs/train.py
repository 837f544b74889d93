"""`vitrail.train`: a whole run, from its data to its report.

The modules of this package are its steps, in order: `resolve` chooses the run and the recipe, `data` loads the images,
`start` builds the classifier, `epochs` trains it, `finish` scores it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import nn

from vitrail.callbacks.loggers import Logger, name_loggers
from vitrail.classifier import Classifier
from vitrail.console import log
from vitrail.data.augment import describe_restriction
from vitrail.data.check import check_image_sizes, write_report
from vitrail.data.python_data import Data
from vitrail.data.source import name_of_data
from vitrail.errors import UsageError
from vitrail.evaluation.probe import Probe
from vitrail.interrupts import Interrupted, interrupt_on_sigterm
from vitrail.machine import keep_freed_memory, pick_device
from vitrail.model.config import ViTConfig
from vitrail.module_classifier import module_of
from vitrail.plugins import loaded_plugins
from vitrail.runs.arguments import resolve_arguments
from vitrail.runs.claim import check_disk_space, create_run
from vitrail.runs.data import load_data
from vitrail.runs.epochs import train_epochs
from vitrail.runs.finish import TrainedRun, finish_run, is_finished, reload_run
from vitrail.runs.folder import RunConfig, RunFolder
from vitrail.runs.hooks import RunHooks, make_hooks
from vitrail.runs.module_start import GivenModule, check_module_world
from vitrail.runs.plugin_checks import check_plugins
from vitrail.runs.pretrained import Model, Pretrained, load_pretrained, reload_pretrained
from vitrail.runs.probes import initialize_head, probe_pretrained, save_linear_probe
from vitrail.runs.resolve import find_run_to_resume, request_recipe, resume_recipe
from vitrail.runs.result import Run
from vitrail.runs.resume import resume_from_checkpoint
from vitrail.runs.start import Start, build_classifier, describe_plan, explain_precision
from vitrail.runs.teacher import add_teacher, load_unlabeled, prepare_teacher
from vitrail.runs.teacher_model import TeacherModel, TeacherRequest, load_teacher
from vitrail.runs.training_run import TrainingRun
from vitrail.tasks import MULTI_LABEL
from vitrail.training.advice import advise_pretrained_weights
from vitrail.training.balance import describe_balance, describe_label_weights
from vitrail.training.distributed import World, join_world
from vitrail.training.launch import current_launch
from vitrail.training.losses import chance_level, make_loss
from vitrail.training.optimizers import find_optimizer
from vitrail.training.recipe import Recipe
from vitrail.training.recipe_changes import TrainChanges
from vitrail.training.train_state import TrainState, init_train_state

PICTURES_BYTES = 4 << 20  # for the pictures and tables of a run


def train(
    data: Data,
    *,
    model: Model | ViTConfig | None = None,
    architecture: str | None = None,
    recipe: str | Path | Recipe | None = None,
    loss: str | Callable[..., Any] | None = None,
    augment: str | Callable[..., Any] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    report: bool = True,
    pictures: bool = True,
    check: bool = True,
    torch_files: bool = False,
    fsdp: bool = False,
    score_test: bool = True,
    callbacks: Sequence[object] = (),
    logger: Logger | Sequence[Logger] | None = None,
    teacher: TeacherModel | None = None,
    unlabeled: str | Path | None = None,
    baseline: str | Path | None = None,
    **changes: Unpack[TrainChanges],
) -> Run:
    """Trains a classifier on the images of `data` and writes the run folder.

    `model` holds pretrained weights to start from: a `Classifier`, or anything that `load` accepts (`torch_files` is
    passed to it). Parameters with `requires_grad=False` stay frozen, unless all have it, as in a loaded model. A
    `ViTConfig` describes a model with random weights instead. `architecture` names another model than a ViT by its
    registered builder (docs/plugins.md), and the result is a `ModuleRun`; `model` may then be a module that has its
    weights. `recipe` is a name (default: `small`, or `finetune` with weights), a TOML or JSON file, or a `Recipe`;
    `changes` are fields of it, of its augmentation or of its model (`epochs=3, width=128`), as `vitrail.RecipeChanges`
    lists them. `loss` is a name, a callable `loss(logits, targets)`, or a class that makes one from a `LossContext`,
    which has the class counts. `augment`, a name or a callable, takes the place of the recipe's `policy`: it gets each
    training image as uint8 (C, H, W) of the model's size. To resume, pass both again.

    `out` is the run folder (default: runs/NAME); it must be new or empty, unless `resume` continues the run in it.
    `resume` starts a new run if there is none yet, and returns a finished one as it is. `check` checks the data first,
    `report` writes report.html at the end, `pictures` draws classes, curves, confusion and attention,
    `score_test=False` scores validation instead of test. `callbacks` are objects with hooks (`vitrail.Callback`);
    `logger` is one of them, or its name.

    `teacher` is a trained model whose answers the student learns: a classifier, or anything that `load_any` accepts.
    `unlabeled` is a folder of more images, for which only the teacher answers. `baseline` is a run on the same data
    without a teacher, for the table at the end (`result["teaching"]`).

    If several processes call it (under torchrun, or in an initialized process group), they train one model: the main
    process writes the run, and every process returns it. `fsdp` shards the model over the processes.
    Raises `VitrailError` for errors in the data and in training.
    """
    weights, all_changes = resolve_arguments(model, architecture, recipe, loss, augment, changes)
    with join_world(pick_device(device), fsdp=fsdp) as world:
        name = name_of_data(data)
        resumed = share_folder(world, lambda: find_run_to_resume(name, out, resume))
        requested = world.on_main(lambda: select_recipe(resumed, recipe, weights, all_changes))
        with world.raise_on_all():
            hooks = make_hooks(callbacks, logger, requested, world)
            check_world(requested, world, fsdp=fsdp, resumes=resumed is not None)
        pretrained = load_weights(weights, requested, resumed, world, torch_files)
        with world.raise_on_all(), world.local_main_first():
            request = TeacherRequest(teacher, unlabeled, baseline)
            loaded_teacher = load_teacher(request, requested, resumed, world.device, torch_files)
        run_data = load_data(
            data, requested, world, pretrained=pretrained, resumed=resumed, check=check, score_test=score_test
        )
        run_data = replace(run_data, **load_unlabeled(loaded_teacher, requested, resumed, world))
        keep_freed_memory()
        with world.raise_on_all():
            start = build_classifier(requested, run_data, pretrained, init_device(world))
            start = add_teacher(start, loaded_teacher, world)
            hooks.check_start(start)
            if world.is_main:
                check_parts_and_sizes(start)
            config = describe_run(start, requested, pretrained, resume_options(world, torch_files, logger, pictures))
            log_plan(start, world, config.data, has_weights=pretrained is not None)
        folder = resumed or share_folder(world, lambda: begin_run(config, start, name, out))
        folder = replace(cast(RunFolder, folder), draws=pictures)
        hooks.begin(start, folder.path, name, is_resumed=resumed is not None)
        transfers = isinstance(pretrained, Pretrained)
        return train_in_folder(start, folder, hooks, world, resumes=bool(resumed), transfers=transfers, report=report)


def train_in_folder(
    start: Start, folder: RunFolder, hooks: RunHooks, world: World, *, resumes: bool, transfers: bool, report: bool
) -> Run:
    """Trains, scores and describes a run, from where it is on. `transfers` says if it is probed."""
    with lock_run(folder, world):
        trained = TrainedRun(folder, start.splits, start.recipe, world.device, start=start)
        if resumes and world.on_main(lambda: is_finished(trained)):
            return finish_on_main(world, lambda: reload_run(trained, report=report, hooks=hooks))
        probes = None
        with world.raise_on_all():
            if world.is_main:
                if start.data.report and not folder.check_file.exists():
                    write_report(start.data.report, folder.check_file, folder.classes_picture)
                probes = probe_start(start) if transfers else None
        with hooks.call_run_end():
            trained = train_classifier(start, folder, probes, hooks, world, resumes=resumes)
            return finish_on_main(world, lambda: finish_run(trained, report=report, hooks=hooks), hooks)


def share_folder(world: World, find: Callable[[], RunFolder | None]) -> RunFolder | None:
    """Calls `find` on the main process; returns its folder on all, with an absolute path on the others."""
    with world.raise_on_all():
        folder = find() if world.is_main else None
    path = world.broadcast(folder.path.absolute() if folder else None)
    return folder if world.is_main or path is None else RunFolder(path)


def select_recipe(
    resumed: RunFolder | None, recipe: str | Path | Recipe | None, model: Model | None, changes: Mapping[str, Any]
) -> Recipe:
    """Returns the recipe of the resumed run, or that of a new one."""
    return resume_recipe(resumed, recipe, changes) if resumed else request_recipe(recipe, model, changes)


def check_world(recipe: Recipe, world: World, *, fsdp: bool, resumes: bool) -> None:
    """Raises `UsageError` if a recipe does not work with several processes, or with a sharded model.

    A resumed run may have lost the other processes; it continues with a warning.
    """
    check_module_world(recipe, world)
    if world.size > 1 and recipe.train_on == "features":
        raise UsageError(f"recipe {recipe.name} fits its head in one process", "start one process")
    if world.is_sharded and find_optimizer(recipe).needs_full_matrices:
        name = recipe.optimizer.capitalize()
        raise UsageError(f"{name} needs whole matrices, and --fsdp shards them", "use adamw, or leave out --fsdp")
    if world.is_sharded and recipe.lora_rank:
        raise UsageError("LoRA's updates are merged into whole matrices, and --fsdp shards them", "leave out --fsdp")
    if fsdp and world.size == 1 and not resumes:
        raise UsageError("--fsdp shards over several processes, and this is one", "add --processes N")
    if fsdp and world.size == 1:
        log("warning: --fsdp shards over several processes; this single one continues with the whole model")


def init_device(world: World) -> torch.device:
    """Returns the device on which a model is built before it is sharded."""
    return torch.device("cpu") if world.is_sharded else world.device


def load_weights(
    model: Model | None, recipe: Recipe, resumed: RunFolder | None, world: World, torch_files: bool
) -> Pretrained | GivenModule | None:
    """Returns the pretrained weights, if any; on each machine one process downloads them first."""
    with world.raise_on_all(), world.local_main_first():
        if resumed:
            return reload_pretrained(resumed, model, recipe, init_device(world), torch_files)
        return load_pretrained(model, recipe, init_device(world), torch_files)


def resume_options(
    world: World, torch_files: bool, logger: Logger | Sequence[Logger] | None, pictures: bool = True
) -> list[str]:
    """Returns the options that the resume command repeats. Processes on several machines have no single command."""
    options = ["--torch-files"] if torch_files else []
    options += [] if pictures else ["--no-pictures"]
    options += [f"--logger={name}" for name in name_loggers(logger)]
    for plugin in loaded_plugins():
        options += ["--plugin", plugin]
    if 1 < world.size == world.local_size:
        options += ["--processes", str(world.size)]
    return options + (["--fsdp"] if world.is_sharded else [])


def describe_run(
    start: Start, recipe: Recipe, pretrained: Pretrained | GivenModule | None, options: Sequence[str]
) -> RunConfig:
    """Returns what recipe.json keeps of a run; `recipe` is the requested one."""
    return RunConfig(
        data=start.data.address,
        fingerprint=start.splits.fingerprint,
        recipe=recipe,
        unreadable=start.data.unreadable,
        pretrained=pretrained.to_json() if pretrained else None,
        launch_id=launch.id if (launch := current_launch()) else None,
        options=tuple(options),
        teacher=start.teacher.to_json(start.data.unlabeled_digest) if start.teacher else None,
    )


def begin_run(config: RunConfig, start: Start, name: str, out: str | Path | None) -> RunFolder:
    """Makes the folder of a new run; raises `VitrailError` if its disk is too small."""
    check_disk_space(out, estimate_run_bytes(module_of(start.classifier), start.recipe))
    return create_run(config, name, out)


def estimate_run_bytes(vit: nn.Module, recipe: Recipe) -> int:
    """Returns the maximum size of a run: three checkpoints (while one of two is replaced), two artifacts, pictures."""
    weights = 4 * sum(parameter.numel() for parameter in vit.parameters())
    checkpoint = weights * (1 + bool(recipe.ema_decay) + find_optimizer(recipe).state_per_weight)
    return 3 * checkpoint + 2 * weights + PICTURES_BYTES


@contextmanager
def lock_run(folder: RunFolder, world: World) -> Iterator[None]:
    """Locks the run for these processes. A stop signal outside of the epochs raises `Interrupted` with a hint."""
    with ExitStack() as stack:
        world.on_main(lambda: stack.enter_context(folder.lock()))
        try:
            with interrupt_on_sigterm():
                yield
        except KeyboardInterrupt:
            hint = f"continue with: {folder.resume_command()}"
            raise Interrupted("stopped; the last checkpoint is kept", hint) from None


def probe_start(start: Start) -> Probe:
    """Probes pretrained weights; initializes a new head with the probe's weights if the recipe has that option."""
    assert isinstance(start.classifier, Classifier)
    probes = probe_pretrained(start.classifier, start.splits, start.recipe)
    if start.recipe.train_on != "features" and start.has_new_head:
        initialize_head(start.classifier, probes, start.recipe)
    return probes


def check_parts_and_sizes(start: Start) -> None:
    """Raises `VitrailError` if parts of plugins would fail, or images are too small for the model."""
    check_plugins(start)
    check_image_sizes(start.data.report, start.splits, start.classifier.preprocess, start.recipe.skip_unreadable)


def log_plan(start: Start, world: World, data: str, *, has_weights: bool) -> None:
    """Prints what is trained, on what data and how."""
    advice = None if has_weights else advise_pretrained_weights(len(start.splits.train), data)
    context = start.loss_context()
    if context.task == MULTI_LABEL:
        balance = describe_label_weights(context.class_counts, context.images, start.recipe)
    else:
        balance = describe_balance(start.splits.classes, context.class_counts, start.recipe)
    restriction = describe_restriction(start.recipe.augment, start.classifier.preprocess)
    plan = (describe_plan(start, world), balance, restriction, explain_precision(start.recipe, world.device), advice)
    for line in filter(None, (*start.splits.notes, *plan)):
        log(line)


def train_classifier(
    start: Start,
    folder: RunFolder,
    probes: Probe | None,
    hooks: RunHooks,
    world: World,
    *,
    resumes: bool,
) -> TrainedRun:
    """Trains for all epochs, or makes the linear probe the head if the recipe trains on features."""
    if probes and start.recipe.train_on == "features" and isinstance(start.classifier, Classifier):
        hooks.start_without_epochs()
        save_linear_probe(start.classifier, probes, folder)
        return TrainedRun(folder, start.splits, start.recipe, world.device, probes.seconds, probes)
    loss = make_loss(start.loss_context())
    task, classes = start.splits.train.task, len(start.splits.classes)
    scale = start.classifier.target_scale if isinstance(start.classifier, Classifier) else None
    images = start.data.training_images()
    teacher = prepare_teacher(start, images, folder, world)
    state = init_train_state(module_of(start.classifier), start.recipe, world, loss, classes, task, teacher, scale)
    level = None if teacher else chance_level(loss)
    run = TrainingRun(
        state, start.classifier, start.splits, start.recipe, folder, hooks, chance_loss=level, training_images=images
    )
    log_frozen_parameters(state)
    if resumes:
        resume_from_checkpoint(run)
    train_epochs(run)
    return TrainedRun(
        folder,
        start.splits,
        start.recipe,
        world.device,
        run.progress.seconds,
        probes,
        validation_outcome=run.best_outcome,
        best_epoch=run.best_epoch,
        stopped_early=run.progress.stopped_early,
        start=start,
    )


def log_frozen_parameters(state: TrainState) -> None:
    """Prints how many parameters are trainable, if some are frozen."""
    parameters = list(state.vit.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    if not all(parameter.requires_grad for parameter in parameters):
        frozen = sum(parameter.numel() for parameter in parameters) - trainable
        log(f"{trainable:,} trainable parameters, {frozen:,} frozen")


def finish_on_main(world: World, finish: Callable[[], Run], hooks: RunHooks | None = None) -> Run:
    """Finishes the run on the main process; all return it, the others with the classifier on the CPU.

    `hooks` get the scores in the other processes.
    """
    with world.raise_on_all():
        run = finish() if world.is_main else None
    if world.size == 1:
        assert run is not None
        return run
    copied = run and replace(run, folder=run.folder.absolute(), classifier=copy.deepcopy(run.classifier).to("cpu"))
    shared = world.broadcast(copied)
    assert shared is not None
    if hooks and not world.is_main:
        hooks.finish_scores(shared)
    return run or shared
