"""Checks, before a run is begun, that the parts of plugins can be trained, saved and loaded again.

The first artifact is made in memory, loaded and compared; an optimizer takes a step on a tiny ViT. Built-in parts need
no such check: only the names and shapes of their tensors are compared with those that loading expects.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.data.augment import build_augmentation
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.loading import build_vit, describe_tensor
from vitrail.model.config import ViTConfig, position_kind, to_pair
from vitrail.model.mlp import MLPS
from vitrail.model.pool import POOLS
from vitrail.model.position import EMBEDDINGS
from vitrail.model.vit import HEADS, ViT
from vitrail.module_classifier import TorchClassifier
from vitrail.parts import PARTS, part_name, registered_names
from vitrail.runs.start import Start
from vitrail.training.checkpoint import check_optimizer_state
from vitrail.training.losses import make_loss
from vitrail.training.optimizers import build_optimizers
from vitrail.training.recipe import Recipe
from vitrail.training.schedules import lr_factor
from vitrail.weights.artifact import Artifact, parse_artifact
from vitrail.weights.config_json import model_parts
from vitrail.weights.conversion import UNSAVED, check_described

TINY: dict[str, Any] = dict(width=8, depth=1, heads=2, mlp_width=8, patch=2, image_size=4, classes=2)
STATE_HINT = "keep the state of a part in parameters and persistent buffers, one name for each tensor"


def check_plugins(start: Start) -> None:
    """Raises `VitrailError` for a part that would fail in training, or whose model could not be loaded again."""
    recipe, classifier = start.recipe, start.classifier
    if isinstance(classifier, Classifier):
        check_model(classifier)
    make_loss(start.loss_context())
    if part_name(recipe.augment.policy) in registered_names("augmentation"):
        check_policy(recipe, classifier)
    if part_name(recipe.schedule) in registered_names("schedule"):
        lr_factor(0, 1, recipe)
    if part_name(recipe.optimizer) in registered_names("optimizer"):
        check_optimizer(recipe)


def check_model(classifier: Classifier) -> None:
    """Raises `VitrailError` if a classifier could not be saved, or would not be the same after loading."""
    config, weights = classifier.vit.config, classifier.vit.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise VitrailError(f"{UNSAVED}{name} is a {type(value).__name__}, not a tensor", STATE_HINT)
    check_built_in_rows(config)
    if model_parts(config):
        check_round_trip(classifier)
    else:
        check_described(classifier.vit)


def check_built_in_rows(config: ViTConfig) -> None:
    """Raises `VitrailError` if a built-in part was replaced in its table: other processes load the built-in one."""
    rows: dict[str, tuple[Mapping[str, Any], str]] = {
        "pool": (POOLS, config.pool),
        "position": (EMBEDDINGS, position_kind(config.position)),
        "mlp": (MLPS, config.mlp),
        "head": (HEADS, config.head),
    }
    for kind, (table, text) in rows.items():
        name = part_name(text)
        if (kind, name) not in PARTS and not table[name].__module__.startswith("vitrail."):
            hint = f'give it a name of its own: vitrail.register("{kind}", "my_{name}", part)'
            raise VitrailError(f"{UNSAVED}the {kind} {name!r} was replaced in its table", hint)


def check_round_trip(classifier: Classifier) -> None:
    """Saves and loads a classifier in memory, and compares the outputs; raises `VitrailError` if that fails."""
    artifact = Artifact(classifier.vit.config, classifier.classes, classifier.preprocess)
    weights = {name: each.detach().cpu().contiguous() for name, each in classifier.vit.state_dict().items()}
    text = json.dumps({**artifact.to_json(), "sha256": ""})
    try:
        data = safetensors.torch.save(weights, {"vitrail": text})
    except (RuntimeError, ValueError) as error:  # tensors that share memory
        raise VitrailError(f"{UNSAVED}{first_line(error)}", STATE_HINT) from error
    path = Path("the model")
    loaded = build_vit(parse_artifact(json.loads(text), path).config, safetensors.torch.load(data), path)
    ours, theirs = (run_on_noise(vit.to(classifier.device), classifier) for vit in (classifier.vit, loaded))
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise VitrailError(
            f"{UNSAVED}its outputs differ after loading by {float((ours - theirs).abs().max()):.3g}", STATE_HINT
        )


def run_on_noise(vit: ViT, classifier: Classifier) -> Tensor:
    """Returns the outputs for two images of noise, always the same; raises `VitrailError` if a part fails."""
    height, width = to_pair(vit.config.image_size)
    noise = torch.rand(2, vit.config.channels, height, width, generator=torch.Generator().manual_seed(0))
    was_training = vit.training
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            outputs: Tensor = vit.eval()(noise.to(classifier.device))
    except Exception as error:
        names = ", ".join(f"{each['kind']} {each['name']!r}" for each in model_parts(vit.config))
        raise VitrailError(f"the model with {names} fails: {type(error).__name__}: {first_line(error)}") from error
    finally:
        vit.train(was_training)
    if outputs.shape != (2, vit.config.classes):
        raise VitrailError(
            f"the model returns {tuple(outputs.shape)} for two images and {vit.config.classes} classes",
            "a pool returns (B, width), a head (B, classes); see docs/plugins.md",
        )
    return outputs


def check_policy(recipe: Recipe, classifier: TorchClassifier) -> None:
    """Raises `UsageError` if an augmentation of a plugin does not return pixels of the model's size and format."""
    preprocess, policy = classifier.preprocess, recipe.augment.policy
    shape = (preprocess.channels, *preprocess.image_size)
    pixels = torch.arange(shape[0] * shape[1] * shape[2]).remainder(256).to(preprocess.dtype).view(shape)
    try:
        with torch.random.fork_rng(devices=[]):
            augmented: Any = build_augmentation(recipe.augment, preprocess).augment_image(pixels)
    except VitrailError:
        raise
    except Exception as error:
        raise UsageError(f"the augmentation {policy!r} fails: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(augmented, Tensor) or augmented.dtype != preprocess.dtype or augmented.shape != shape:
        returned = describe_tensor(augmented) if isinstance(augmented, Tensor) else type(augmented).__name__
        raise UsageError(
            f"the augmentation {policy!r} returns {returned}",
            f"it must return {shape} {str(preprocess.dtype).removeprefix('torch.')}",
        )


def check_optimizer(recipe: Recipe) -> None:
    """Raises `UsageError` if an optimizer of a plugin cannot take a step, or its state cannot be saved."""
    with torch.random.fork_rng(devices=[]):
        vit = ViT(ViTConfig(**TINY))
    (optimizer,) = build_optimizers(vit, recipe)
    for parameter in vit.parameters():
        parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"the optimizer {recipe.optimizer!r} cannot take a step: {reason}") from error
    check_optimizer_state(optimizer)
