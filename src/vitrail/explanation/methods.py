"""The explanation methods: for each its name, its source, its cost, and the options that it takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from vitrail.errors import UsageError, did_you_mean
from vitrail.explanation.attention import attention, attention_rollout
from vitrail.explanation.gradient import (
    chefer,
    gradcam,
    input_x_gradient,
    integrated_gradients,
    legrad,
    libragrad,
)
from vitrail.explanation.logit_lens import logit_lens
from vitrail.explanation.perturbation import occlusion, rise
from vitrail.model.config import ViTConfig
from vitrail.parts import check_arguments, find_part, split_part


@dataclass(frozen=True)
class Method:
    """`run` takes `TokenInputs` and the options named in `options`; it returns the map (B, P) and the logits (B, Y).

    `class_blind`: the map is the same for every class. `signed`: values below zero are evidence against the class.
    `cost` is a text; the numbers of passes are `forwards` and `backwards` of one image at a time, and forwards in
    batches: `batched_forwards`, or one for each patch.
    """

    name: str
    description: str
    run: Callable[..., tuple[Tensor, Tensor]]
    cost: str
    class_blind: bool = False
    signed: bool = False
    options: frozenset[str] = frozenset()
    forwards: int = 1
    backwards: int = 0
    batched_forwards: int = 0
    forward_per_patch: bool = False
    needs_tokens: bool = True  # of a ViT; else it takes any `PatchInputs`, and explains any model

    def count_batched_forwards(self, patches: int) -> int:
        """Returns the forward passes that run in batches, for an image of this many patches."""
        return self.batched_forwards + (patches if self.forward_per_patch else 0)


_METHODS = (
    Method(
        "libragrad", "LibraGrad input x gradient of the log-odds, mean over all layers (Mehri et al. 2025)",
        libragrad, "1 forward, 1 backward", signed=True, backwards=1,
    ),
    Method(
        "attention", "attention weights of one layer, by default the last",
        attention, "1 forward", class_blind=True, options=frozenset({"layer", "head", "query"}),
    ),
    Method(
        "rollout", "attention rollout through all layers (Abnar & Zuidema 2020)",
        attention_rollout, "1 forward", class_blind=True, options=frozenset({"layer"}),
    ),
    Method(
        "chefer", "attention x its gradient, accumulated through all layers (Chefer et al. 2021)",
        chefer, "1 forward, 1 backward", backwards=1,
    ),
    Method(
        "legrad", "LeGrad: positive gradient of the attention of every layer (Bousselham et al. 2025)",
        legrad, "2 forwards, 1 backward", forwards=2, backwards=1,
    ),
    Method(
        "gradcam", "Grad-CAM on the normalized input of a block, by default the last (Selvaraju et al. 2017)",
        gradcam, "1 forward, 1 backward", backwards=1, options=frozenset({"layer"}),
    ),
    Method(
        "input_x_gradient", "input x gradient of the patch embeddings (Shrikumar et al. 2016)",
        input_x_gradient, "1 forward, 1 backward", signed=True, backwards=1, needs_tokens=False,
    ),
    Method(
        "integrated_gradients", "integrated gradients, baseline: mean color (Sundararajan et al. 2017)",
        integrated_gradients, "21 forwards, 20 backwards", signed=True, forwards=21, backwards=20, needs_tokens=False,
    ),
    Method(
        "occlusion", "drop in calibrated probability without a patch (Zeiler & Fergus 2014)",
        occlusion, "1 forward for each patch", signed=True, forward_per_patch=True, needs_tokens=False,
    ),
    Method(
        "rise", "RISE: mean calibrated probability over random halves that contain a patch (Petsiuk et al. 2018)",
        rise, "200 forwards of half the patches", signed=True, needs_tokens=False,
        batched_forwards=100,  # of all patches
    ),
    Method(
        "logit_lens", "head applied to each patch token after a layer, by default the last (Vilas et al. 2023)",
        logit_lens, "1 forward", signed=True, options=frozenset({"layer"}),
    ),
)  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
DEFAULT_METHOD = "libragrad"
METHOD_ALIASES = {  # the names in earlier versions
    "balanced": "libragrad",
    "generic": "chefer",
    "gradient": "input_x_gradient",
    "integrated": "integrated_gradients",
    "lens": "logit_lens",
}


def find_method(name: str) -> Method:
    """Returns the method of this name or old name, with its arguments; raises `UsageError` for an unknown one."""
    text = METHOD_ALIASES.get(name, name)
    name, arguments = split_part(text)
    if name not in METHODS and find_part("explanation", name) is None:
        raise UsageError(f"there is no method {name!r}", did_you_mean(name, METHODS))
    method = METHODS[name]
    if not arguments:
        return method
    check_arguments(method.run, text, 1)
    return replace(method, name=text, run=partial(method.run, **arguments))


def check_options(
    method: Method,
    config: ViTConfig | None,
    grid: tuple[int, int],
    layer: int | None,
    head: int | None,
    query: tuple[int, int] | None,
) -> dict[str, object]:
    """Returns the options to call a method with.

    Raises `UsageError` for one that the method does not take or the model does not have.
    """
    all_options: dict[str, object] = {"layer": layer, "head": head, "query": query}
    options = {name: value for name, value in all_options.items() if value is not None}
    for name in options:
        if name not in method.options:
            able = [other.name for other in METHODS.values() if name in other.options]
            raise UsageError(f"method {method.name} has no option {name}", f"methods with it: {', '.join(able)}")
    if config is None:  # not a ViT, and methods for it have no options
        return options
    if layer is not None and not -config.depth <= layer < config.depth:
        raise UsageError(f"there is no layer {layer}", f"the model has {config.depth}, from 0 to {config.depth - 1}")
    if head is not None and not 0 <= head < config.heads:
        raise UsageError(f"there is no head {head}", f"the model has {config.heads}, from 0 to {config.heads - 1}")
    if query is not None and not (0 <= query[0] < grid[0] and 0 <= query[1] < grid[1]):
        raise UsageError(
            f"there is no patch in row {query[0]}, column {query[1]}",
            f"rows run from 0 to {grid[0] - 1}, columns from 0 to {grid[1] - 1}",
        )
    return options
