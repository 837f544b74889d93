"""The start of a run whose model is not a ViT: a module that a plugin's builder makes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.module_classifier import load_weights
from vitrail.training.distributed import World
from vitrail.training.recipe import Recipe
from vitrail.weights.artifact import weights_sha256
from vitrail.weights.builders import NOT_A_VIT, ModuleConfig, build_module

ROUND_TRIP_HINT = "keep the state of a model in parameters and persistent buffers, one name for each tensor"


@dataclass(frozen=True)
class GivenModule:
    """A module in memory whose weights training starts from."""

    module: nn.Module
    sha256: str  # of its weights

    def to_json(self) -> dict[str, Any]:
        """Returns what recipe.json keeps of it."""
        return {"model": None, "sha256": self.sha256}


def give_module(module: nn.Module) -> GivenModule:
    """Returns a module with the hash of its weights."""
    return GivenModule(
        module, weights_sha256({name: each.detach().cpu() for name, each in module.state_dict().items()})
    )


def check_module_world(recipe: Recipe, world: World) -> None:
    """Raises `UsageError` if several processes are to train a model that is not a ViT."""
    if not recipe.is_vit and world.size > 1:
        raise UsageError(
            f"{recipe.architecture!r} is not a ViT, and its buffers could differ between processes", "start one process"
        )


def start_module(config: ModuleConfig, recipe: Recipe, start: GivenModule | None) -> nn.Module:
    """Returns the model that training starts from: built with the recipe's seed, with the weights of a given module.

    It is built again, loaded and compared, as a fresh process would do. Raises `VitrailError` if it differs then, or
    does not return logits.
    """
    torch.manual_seed(recipe.seed)
    module = build(config)
    if start:
        weights = {name: each.detach() for name, each in start.module.state_dict().items()}
        load_weights(module, weights, f"the given model is not what {config.architecture!r} builds")
        compare(config, start.module, module, "the given model has other outputs than the one that is built")
    with torch.random.fork_rng(devices=[]):
        again = build(config)
    weights = {name: each.detach().clone() for name, each in module.state_dict().items()}
    pointers = [each.untyped_storage().data_ptr() for each in module.state_dict().values() if each.numel()]
    if len(pointers) != len(set(pointers)):
        raise VitrailError(f"the model {config.architecture!r} shares a tensor under two names", ROUND_TRIP_HINT)
    load_weights(again, weights, f"the model {config.architecture!r} could not be loaded again")
    compare(config, module, again, "its outputs differ after loading")
    return module


def build(config: ModuleConfig) -> nn.Module:
    """Builds the model; an error of the builder becomes a `UsageError`."""
    try:
        return build_module(config)
    except VitrailError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"the builder of the model {config.architecture!r} fails: {reason}") from error


def compare(config: ModuleConfig, ours: nn.Module, theirs: nn.Module, sentence: str) -> None:
    """Raises `VitrailError` with the sentence if two modules have different logits for images of noise."""
    first, second = (run_on_noise(config, module) for module in (ours, theirs))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True):
        difference = float((first - second).abs().max())
        raise VitrailError(f"{config.architecture!r}: {sentence}, by {difference:.3g}", ROUND_TRIP_HINT)


def run_on_noise(config: ModuleConfig, module: nn.Module) -> Tensor:
    """Returns the logits of a module in eval mode for two images of noise; raises `UsageError` if it has none."""
    noise = torch.rand(2, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    training = [each for each in module.modules() if each.training]
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            outputs: Any = module.eval()(noise.to(device))
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"the model {config.architecture!r} fails on images {tuple(noise.shape)}: {reason}") from error
    finally:
        for each in training:
            each.training = True
    shape = (2, config.classes)
    if not isinstance(outputs, Tensor) or outputs.shape != shape:
        returned = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise UsageError(
            f"the model {config.architecture!r} returns {returned} for two images",
            f"it must return logits {shape}, one for each class of the config",
        )
    return outputs.cpu()


def describe_missing(architecture: str) -> str:
    """Returns the sentence on what a model that is not a ViT does without."""
    return f"{architecture} is not a ViT: {NOT_A_VIT}"
