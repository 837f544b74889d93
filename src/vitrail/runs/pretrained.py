"""Pretrained weights that training starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.classifier import Classifier
from vitrail.errors import UsageError, VitrailError
from vitrail.loading import load
from vitrail.model.vit import ViT
from vitrail.runs.folder import RunFolder
from vitrail.runs.module_start import GivenModule, give_module
from vitrail.training.freezing import frozen_names
from vitrail.training.recipe import Recipe
from vitrail.weights.artifact import weights_sha256
from vitrail.weights.conversion import check_described

Model = str | Path | Classifier | nn.Module


@dataclass(frozen=True)
class Pretrained:
    """A classifier to start from."""

    classifier: Classifier
    source: str | None  # what `load` was called with; None for a classifier given as an object
    sha256: str  # of its weights

    def to_json(self) -> dict[str, Any]:
        """Returns what recipe.json keeps of it."""
        return {"model": self.source, "sha256": self.sha256}

    def origin(self, head: str) -> dict[str, Any]:
        """Returns what the trained artifact keeps of it. It includes its own origin, so a chain can be followed.

        An artifact may be published: a file or folder is named without its path, which recipe.json has.
        """
        source = self.source and (Path(self.source).name if Path(self.source).exists() else self.source)
        start = {"model": source, "sha256": self.sha256}
        return {**start, "classes": len(self.classifier.classes), "head": head, "origin": self.classifier.origin}


def find_frozen_parameters(model: Model, architecture: str = "vit") -> list[str]:
    """Returns the parameters of a model in memory that its user has frozen with `requires_grad=False`.

    Raises `UsageError` for a model of another library, whose parameters have other names here.
    """
    module = model.vit if isinstance(model, Classifier) else model
    frozen = frozen_names(module) if isinstance(module, nn.Module) else []
    if frozen and architecture == "vit" and not isinstance(module, ViT):
        raise UsageError(
            f"{frozen[0]} has requires_grad=False, and vitrail has other names for the parameters of this model",
            'freeze them by vitrail\'s names, such as freeze="patch_embed blocks.0"',
        )
    return frozen


def load_pretrained(
    model: Model | None, recipe: Recipe, device: torch.device, torch_files: bool = False
) -> Pretrained | GivenModule | None:
    """Returns the weights to start from, or None; raises `UsageError` if there are none and the recipe needs some."""
    if model is not None and not recipe.is_vit:
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"{recipe.architecture!r} is not a ViT, and its weights cannot be read from {model}",
                "give a module in memory as model=, or let the builder load weights",
            )
        return give_module(model)
    if model is None:
        if recipe.needs_pretrained_weights:
            raise UsageError(
                f"recipe {recipe.name}, as it is requested, needs weights to start from", "name them with --from MODEL"
            )
        return None
    source = None if isinstance(model, Classifier | nn.Module) else str(model)
    classifier = model if isinstance(model, Classifier) else load(model, device=device, torch_files=torch_files)
    if isinstance(model, Classifier):
        check_described(model.vit)
    weights = {name: tensor.cpu() for name, tensor in classifier.vit.state_dict().items()}
    return Pretrained(classifier, source, weights_sha256(weights))


def reload_pretrained(
    folder: RunFolder, model: Model | None, recipe: Recipe, device: torch.device, torch_files: bool = False
) -> Pretrained | GivenModule | None:
    """Returns the weights that a run was started from; raises `VitrailError` if they are no longer the same."""
    started_from = folder.load_config().pretrained
    if not started_from:
        if model is not None:
            raise UsageError(f"{folder.path} was started from random weights", "resume it without --from")
        return None
    source = model or started_from["model"]
    if source is None:
        raise UsageError(f"{folder.path} was started from a classifier in Python", "pass it again as model=")
    pretrained = load_pretrained(source, recipe, device, torch_files)
    if pretrained is None or pretrained.sha256 != started_from["sha256"]:
        raise VitrailError(
            f"{source} does not hold the weights that {folder.path} was started from",
            "restore them, or start a new run",
        )
    return pretrained
