"""`vitrail.pretrain`: a whole pre-training, from images without labels to an encoder.

OUT/
  pretraining.json           how it was started; a resume reads it
  classifier.safetensors     the encoder, an artifact without classes: --from OUT
  checkpoint/                the two newest checkpoints
  metrics.jsonl              a row per epoch, with the scores of the probes
  reconstructions.png        some images, their visible patches, and what the decoder makes of them
  result.json                the last row, once it is finished
"""

import copy
import json
import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import torch

from vitrail.classifier import Classifier
from vitrail.console import log, progress_bar
from vitrail.data.bands import Channels
from vitrail.data.folder import split_name
from vitrail.data.images import Images, load_into_memory
from vitrail.data.open import open_data
from vitrail.data.split import Splits
from vitrail.data.unlabeled import read_unlabeled
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.probe import open_probe_data, probe
from vitrail.files import create_json, read_json_object, write_json, write_text
from vitrail.interrupts import Interrupted, StopRequest, catch_stop_signals
from vitrail.loading import load
from vitrail.machine import GIB, pick_device
from vitrail.model.vit import ViT
from vitrail.pretraining.masked_autoencoder import MaskedAutoencoder
from vitrail.pretraining.picture import draw_reconstructions
from vitrail.pretraining.settings import MAE_RECIPE, MaskSettings
from vitrail.pretraining.step import MaskedTraining, init_masked_state, take_step
from vitrail.training.batch_sharding import make_train_loader
from vitrail.training.checkpoint import find_newest_checkpoint, load_checkpoint, save_checkpoint
from vitrail.training.data_defaults import resolve_model, with_normalization
from vitrail.training.distributed import World, join_world
from vitrail.training.launch import current_launch
from vitrail.training.recipe import Recipe, recipe_from_json
from vitrail.training.recipe_changes import ModelChanges, RecipeChanges
from vitrail.training.step_stats import StepStats, check_stats_finite
from vitrail.training.train_state import TrainState
from vitrail.training.transfer import resolve_transfer, transfer_weights
from vitrail.version import __version__

CONFIG_FILE, FORMAT = "pretraining.json", 1
CHECKPOINT_INTERVAL_S = 600.0  # between checkpoints within an epoch
NEUTRAL = ("workers", "image_cache_gib")  # fields of the recipe that do not change the result


@dataclass(frozen=True)
class Pretraining:
    """A finished pre-training: its folder, the encoder, and the last row of its metrics."""

    folder: Path
    classifier: Classifier
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the folder and the last row."""
        return {"run": str(self.folder), **self.result}


@dataclass(frozen=True)
class Plan:
    """How a pre-training was started: the content of pretraining.json."""

    data: str
    digest: str  # of the images
    recipe: Recipe
    settings: MaskSettings
    model: str | None = None  # the weights that it started from
    probe_data: str | None = None
    launch_id: str | None = None  # of a launcher that restarts dead processes

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON document."""
        return {"format": FORMAT, **vars(self), "recipe": self.recipe.to_json(), "settings": asdict(self.settings)}


def load_plan(folder: Path) -> Plan:
    """Reads pretraining.json; raises `VitrailError` if it is damaged."""
    path = folder / CONFIG_FILE
    try:
        document = read_json_object(path)
        if document.pop("format") != FORMAT:
            raise ValueError("another format")
        recipe, settings = recipe_from_json(document.pop("recipe")), MaskSettings(**document.pop("settings"))
        return Plan(**document, recipe=recipe, settings=settings)
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise VitrailError(f"{path} is damaged ({error!r})", "start a new pre-training") from None


def pretrain(
    data: str | Path,
    *,
    out: str | Path,
    model: str | Path | None = None,
    probe_data: str | Path | None = None,
    settings: MaskSettings | None = None,
    resume: bool = False,
    device: str | None = None,
    torch_files: bool = False,
    **changes: Unpack[RecipeChanges],
) -> Pretraining:
    """Trains a ViT to reconstruct masked patches of images without labels, and writes the folder `out`.

    `data` is a folder of images, at any depth, whose names mean nothing, or the training images of any labeled DATA.
    `model` holds weights to start from. The encoder's features are probed on the labeled images of `probe_data` along
    the way. `changes` are fields of the recipe. `resume` continues the run in `out`, or starts it. If several processes
    call it, they train one model. Raises `VitrailError`.
    """
    folder = Path(out)
    with join_world(pick_device(device)) as world:
        before = world.on_main(lambda: find_plan(folder, resume))
        recipe = MAE_RECIPE.with_changes(**changes)
        if before:
            check_same(before, settings, changes, folder, model=model, probe_data=probe_data)
            recipe, settings = before.recipe.with_changes(**pick(changes, NEUTRAL)), before.settings
            model, probe_data = before.model, before.probe_data
        settings = settings or MaskSettings()
        with world.raise_on_all(), world.local_main_first():
            theirs = None if model is None else load(model, torch_files=torch_files)
        with world.raise_on_all():
            splits = open_images(data, recipe, world, theirs.preprocess.source_channels if theirs else None)
        if before and before.digest != splits.fingerprint:
            raise VitrailError(f"the images are not those that {folder} was started on", "restore them, or start anew")
        with world.raise_on_all():
            recipe, encoder = make_encoder(splits, recipe, theirs)
            autoencoder = MaskedAutoencoder(
                encoder.vit, settings.decoder_width, settings.decoder_depth, settings.decoder_heads
            )
            probed = open_probe_data(encoder, probe_data) if probe_data is not None else None
        training = make_training(autoencoder.to(world.device), encoder, splits, recipe, settings, world)
        launch = current_launch()
        plan = Plan(
            str(data),
            splits.fingerprint,
            training.recipe,
            settings,
            model=None if model is None else str(model),
            probe_data=None if probe_data is None else str(probe_data),
            launch_id=launch.id if launch else None,
        )
        run = PretrainRun(folder, training, describe_origin(encoder, splits, settings, model), splits.train, probed)
        with ExitStack() as stack:
            world.on_main(lambda: begin(folder, plan if before is None else None))
            stop = stack.enter_context(catch_stop_signals())
            result = train_epochs(run, stop)
        return Pretraining(folder, load(folder, world.device), result)


def find_plan(folder: Path, resume: bool) -> Plan | None:
    """Returns the plan of the run to resume; None for a new one, whose folder must then be free."""
    if (folder / CONFIG_FILE).exists():
        launch = current_launch()
        plan = load_plan(folder)
        is_restarted = launch is not None and plan.launch_id == launch.id  # the launcher restarts dead processes
        if not (resume or is_restarted):
            raise UsageError(
                f"{folder} has a pre-training already", "continue it with --resume, or choose another --out"
            )
        return plan
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty", "choose another --out")
    if resume:
        log(f"there is no pre-training in {folder} to resume, so a new one starts")
    return None


def check_same(
    before: Plan, settings: MaskSettings | None, changes: RecipeChanges, folder: Path, **paths: str | Path | None
) -> None:
    """Raises `UsageError` if settings or paths that are given are not those that a resumed run was started with."""
    requested = before.recipe.with_changes(**changes)
    neutral = {name: getattr(before.recipe, name) for name in NEUTRAL}
    given = {name: str(path) for name, path in paths.items() if path is not None} | (
        {"settings": settings} if settings else {}
    )
    if replace(requested, **neutral) != before.recipe or any(getattr(before, name) != given[name] for name in given):
        raise UsageError(f"{folder} was started with other settings", "resume it without options")


def pick(changes: RecipeChanges, names: tuple[str, ...]) -> RecipeChanges:
    """Returns the changes with these names."""
    return cast(RecipeChanges, {name: value for name, value in changes.items() if name in names})


def open_images(data: str | Path, recipe: Recipe, world: World, channels: Channels | None = None) -> Splits:
    """Returns the images to train on, without classes, in memory if they fit.

    `channels` are those of the weights to start from; None: color in a folder of images, the images' own in other data.
    """
    max_bytes = int(recipe.image_cache_gib * GIB) // world.local_size
    if os.path.isdir(data) and not any(split_name(each) for each in Path(data).iterdir() if each.is_dir()):
        channels = channels or 3
        images, digest = read_unlabeled(data, channels, skip_unreadable=recipe.skip_unreadable, max_bytes=max_bytes)
        return Splits(Path(data).resolve().name, (), images, None, None, channels, digest)
    splits = open_data(data, channels=channels)
    images = replace(load_into_memory(splits.train, max_bytes), classes=())
    return replace(splits, classes=(), train=images, validation=None, test=None)


def make_encoder(splits: Splits, recipe: Recipe, theirs: Classifier | None) -> tuple[Recipe, Classifier]:
    """Returns the recipe with the sizes of the model, and the encoder before its first step.

    The encoder is a classifier without classes, with random weights or those of `theirs`.
    """
    if theirs is None:
        config, preprocess = resolve_model(recipe, splits)
        preprocess = with_normalization(preprocess, "data", splits.train, skip_unreadable=recipe.skip_unreadable)
        torch.manual_seed(recipe.seed)
        vit = ViT(config)
    else:
        changed = replace(recipe, model=cast(ModelChanges, pick_model(recipe)))
        config, preprocess = resolve_transfer(changed, 0, theirs.vit.config, theirs.preprocess)
        torch.manual_seed(recipe.seed)
        vit, _ = transfer_weights(theirs.vit, theirs.classes, config, ())
        vit.requires_grad_(True)
    origin: dict[str, Any] = {} if theirs is None else {"from": {"origin": theirs.origin}}
    return recipe.with_changes(image_size=config.image_size, patch=config.patch), Classifier(
        vit, (), preprocess, origin=origin
    )


def describe_origin(
    encoder: Classifier, splits: Splits, settings: MaskSettings, model: str | Path | None
) -> Classifier:
    """Returns the encoder with what its artifact keeps of the training."""
    origin: dict[str, Any] = {
        **encoder.origin,
        "pretraining": {"method": "mae", "images": len(splits.train), **asdict(settings)},
        "versions": {"vitrail": __version__, "torch": torch.__version__},
    }
    if model is not None:
        origin["from"] = {**origin["from"], "model": Path(model).name}
    return replace(encoder, origin=origin)


def make_training(
    autoencoder: MaskedAutoencoder, encoder: Classifier, splits: Splits, recipe: Recipe, settings: MaskSettings,
    world: World,
) -> MaskedTraining:  # fmt: skip
    """Returns the training before its first step; a collective."""
    state = init_masked_state(autoencoder, recipe, world)
    assert recipe.batch_size and recipe.epochs
    steps = -(-len(splits.train) // recipe.batch_size)
    return MaskedTraining(state, autoencoder, recipe, settings, encoder.preprocess, steps, recipe.epochs * steps)


def pick_model(recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of the recipe's model that differ from the default recipe's: weights bring the others."""
    return {name: value for name, value in recipe.model.items() if MAE_RECIPE.model.get(name) != value}


@dataclass
class PretrainRun:
    """A pre-training while it trains."""

    folder: Path
    training: MaskedTraining
    classifier: Classifier  # of the encoder
    images: Images
    probed: Splits | None

    @property
    def state(self) -> TrainState:
        """The model, its optimizer and the number of steps."""
        return self.training.state


def begin(folder: Path, plan: Plan | None) -> None:
    """Makes the folder of a new run."""
    if plan:
        folder.mkdir(parents=True, exist_ok=True)
        create_json(folder / CONFIG_FILE, plan.to_json())
    (folder / "checkpoint").mkdir(exist_ok=True)


def train_epochs(run: PretrainRun, stop: StopRequest) -> dict[str, Any]:
    """Trains the remaining epochs; returns the last row. Raises `Interrupted` after a signal, once the run is saved."""
    state, training, world = run.state, run.training, run.state.world
    newest = world.on_main(lambda: find_newest_checkpoint(run.folder / "checkpoint"))
    progress: dict[str, Any] = {"loss": 0.0, "images": 0, "seconds": 0.0}
    if newest:
        progress = load_checkpoint(run.folder / "checkpoint" / newest.name, state)
        log(f"continuing after step {state.step}")
    rows = [row for row in load_rows(run.folder) if row["step"] <= state.step]
    assert training.recipe.epochs
    for epoch in range(state.step // training.steps_per_epoch, training.recipe.epochs):
        train_epoch(run, epoch, progress, stop)
        row = {"epoch": epoch + 1, "step": state.step, "loss": progress["loss"] / progress["images"],
               "seconds": round(progress["seconds"], 1)}  # fmt: skip
        is_last = epoch + 1 == training.recipe.epochs
        if is_last or (epoch + 1) % training.settings.probe_every == 0:
            row |= world.on_main(lambda epoch=epoch: look(run, epoch + 1))  # type: ignore[misc]
        rows.append(row)
        progress = {"loss": 0.0, "images": 0, "seconds": progress["seconds"]}
        world.on_main(lambda: write_rows(run.folder, rows))
        save(run, progress, "-measured")
        log("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
        if any(world.any(stop.requested)):
            raise Interrupted(f"stopped at step {state.step} and saved", f"continue with --resume --out {run.folder}")
    world.on_main(lambda: write_json(run.folder / "result.json", rows[-1]))
    return rows[-1]


def train_epoch(run: PretrainRun, epoch: int, progress: dict[str, Any], stop: StopRequest) -> None:
    """Takes the remaining steps of an epoch and adds to its progress. Saves on a signal, and every ten minutes."""
    training, state, world = run.training, run.state, run.state.world
    state.set_train_mode()
    loader = make_train_loader(run.images, training.preprocess, training.recipe, world, has_numbers=True)
    done = state.step - epoch * training.steps_per_epoch
    saved_at = started = time.monotonic()
    earlier = progress["seconds"]
    with progress_bar(f"epoch {epoch + 1}/{training.recipe.epochs}", training.steps_per_epoch) as bar:
        bar.start_from(done)
        last: StepStats | None = None

        def record(stats: StepStats | None) -> None:  # of the step before, while the next one computes
            if stats:
                check_stats_finite(stats)
                progress["loss"] += stats.loss * stats.images
                progress["images"] += stats.images
                progress["seconds"] = earlier + time.monotonic() - started
                bar.advance(note=f"loss {progress['loss'] / progress['images']:.3f}")

        for batch in loader.epoch(epoch, start=done):
            stats = take_step(training, batch)
            record(last)
            last = stats
            is_due = time.monotonic() - saved_at > CHECKPOINT_INTERVAL_S
            must_stop, is_due = world.any(stop.requested, is_due)
            if (must_stop or is_due) and state.step < (epoch + 1) * training.steps_per_epoch:
                record(last)
                last = None
                save(run, progress)
                saved_at = time.monotonic()
                if must_stop:
                    hint = f"continue with --resume --out {run.folder}"
                    raise Interrupted(f"stopped at step {state.step} and saved", hint)
        record(last)


def save(run: PretrainRun, progress: dict[str, Any], label: str = "") -> None:
    """Writes a checkpoint."""
    run.state.world.on_main(lambda: save_checkpoint(run.folder / "checkpoint", run.state, progress, label))


def look(run: PretrainRun, epoch: int) -> dict[str, Any]:
    """Saves the encoder, draws reconstructions and probes the encoder's features; returns the scores of the probes."""
    encoder = copy.deepcopy(run.training.model.encoder).eval().requires_grad_(False)
    classifier = replace(run.classifier, vit=encoder)
    classifier.save(run.folder / "classifier.safetensors")
    draw_reconstructions(
        run.training.model, run.images, run.training.preprocess, run.training.settings.mask,
        run.folder / "reconstructions.png", f"epoch {epoch}, {run.training.settings.mask:.0%} of the patches masked",
    )  # fmt: skip
    if run.probed is None:
        return {}
    scores = probe(classifier, run.probed, cache=False, workers=run.training.recipe.workers).to_json()
    return {
        f"{name}_accuracy": each["accuracy"]
        for name, each in (("knn", scores["knn"]), ("linear", scores["linear"]))
        if "accuracy" in each
    }


def load_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces metrics.jsonl."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
