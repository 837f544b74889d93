"""Models that are not ViTs: modules from images to logits, which builders of plugins make.

A builder is registered with `vitrail.register("model", "resnet", build)`; files then name it, with its arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from vitrail.errors import UsageError
from vitrail.options import Checked, option
from vitrail.parts import make_part

MODELS: dict[str, Callable[..., nn.Module]] = {}  # of plugins
NOT_A_VIT = "it has no tokens, so no attention, features, LoRA, exports, report or server"


@dataclass(frozen=True, kw_only=True)
class ModuleConfig(Checked):
    """What a builder of a model gets: its name with arguments, and the shapes of its inputs and outputs."""

    architecture: str = option("", "the builder's name and arguments, such as resnet:depth=18", part="model")
    image_size: tuple[int, int] = option((224, 224), "height and width of the images, in pixels")
    channels: int = option(3, "1 for gray images, 3 for color, or any number of bands", ge=1)
    classes: int = option(2, "number of logits", ge=1)


def build_module(config: ModuleConfig) -> nn.Module:
    """Returns the model that the registered builder makes; raises `UsageError` if it makes anything else."""
    module = make_part(MODELS, config.architecture, config)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"the builder of the model {config.architecture!r} returns a {type(module).__name__}",
            "it must return a torch.nn.Module",
        )
    return module
