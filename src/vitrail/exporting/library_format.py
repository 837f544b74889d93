"""What the formats for other libraries share: the result of a conversion, and values folded into weights.

What a library cannot express is folded into the weights if that changes nothing: fixed positions become a table, the
temperature, or the scale of numbers, becomes part of the head. If it would change the outputs, the export is refused
and the field named.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.model.config import NoPosition, SinCos, ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.layouts import LAYOUTS

Document = dict[str, Any]
State = dict[str, Tensor]
HEAD_OUTPUTS = ("head.weight", "head.bias", "head.fc2.weight", "head.fc2.bias")


@dataclass(frozen=True)
class LibraryModel:
    """A classifier in a library's terms: tensors by name, and JSON files by name."""

    tensors: State
    files: dict[str, Document] = field(default_factory=dict)
    load_code: str = ""  # Python that loads it from {folder}
    note: str = ""  # what differs there, or ""


@dataclass(frozen=True)
class LoadedModel:
    """A library's own model, and a function that computes its outputs: normalized images (B, C, H, W) -> (B, Y)."""

    module: nn.Module
    run: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Library:
    """A library that models are exported to.

    `convert` takes a classifier, its config with learned or rotary positions, and its weights. `load` reads a folder
    with the library itself; it raises `ImportError` if the library is not installed.
    """

    package: str
    convert: Callable[[Classifier, ViTConfig, State], LibraryModel]
    load: Callable[[Path], LoadedModel]
    oldest: str = ""  # the oldest version that was tested


def with_learned_positions(vit: ViT) -> tuple[ViTConfig, State]:
    """Returns the config and weights with a learned table instead of sin-cos or no positions; rotary ones stay."""
    config, state = vit.config, vit.state_dict()
    if isinstance(config.position, SinCos | NoPosition):
        h, w = config.grid
        zeros = torch.zeros(1, h, w, config.width, device=vit.prefix.device)
        state["position.grid"] = vit.position.add(zeros)[0].to(vit.prefix.dtype)
        config = replace(config, position=LAYOUTS["timm"].position)
    return config, state


def fold_outputs(state: State, classifier: Classifier) -> State:
    """Divides the head by the temperature, so that its outputs are calibrated logits; numbers get their units.

    Raises `UsageError` for numbers if the head has no single output layer.
    """
    scale, temperature = classifier.target_scale, classifier.temperature
    if scale is None:
        return {name: tensor / temperature if name in HEAD_OUTPUTS else tensor for name, tensor in state.items()}
    layer = {"linear": "head", "mlp": "head.fc2"}.get(classifier.vit.config.head)
    if layer is None:
        raise UsageError(
            "the scale of the numbers fits only into a linear or an MLP head", "export it as onnx or torch"
        )
    mean_Y, std_Y = (torch.tensor(values, dtype=torch.float64) for values in (scale.mean, scale.std))
    weight, bias = (state[f"{layer}.{name}"] for name in ("weight", "bias"))
    folded = {
        f"{layer}.weight": (weight.double() * std_Y.to(weight.device)[:, None]).to(weight.dtype),
        f"{layer}.bias": (bias.double() * std_Y.to(bias.device) + mean_Y.to(bias.device)).to(bias.dtype),
    }
    return {**state, **folded}


def with_layer_scale(config: ViTConfig, state: State) -> tuple[ViTConfig, State]:
    """Returns a model with LayerScale: unchanged if it has it, else with factors of one."""
    if config.layer_scale is not None:
        return config, state
    ones = {
        f"blocks.{block}.{scale}.gamma": torch.ones_like(state["prefix"][0])
        for block in range(config.depth)
        for scale in ("ls1", "ls2")
    }
    return replace(config, layer_scale=1.0), {**state, **ones}


def require_values(library: str, config: ViTConfig, **allowed: Any) -> None:
    """Raises `UsageError` naming the first field with a value that the library does not have."""
    for name, values in allowed.items():
        if (value := getattr(config, name)) not in values:
            raise UsageError(f"{library} has no ViT with {name}={value!r}", "export it in another format")
