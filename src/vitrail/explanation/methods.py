"""The methods, each a row: what it does, what it costs, whether it knows the class, what it can be asked."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vitrail.errors import UsageError, did_you_mean
from vitrail.explanation.attention import attention, attention_rollout
from vitrail.explanation.gradient import (
    balanced_gradient,
    generic_attention,
    gradcam,
    input_gradient,
    integrated_gradients,
    legrad,
)
from vitrail.explanation.lens import logit_lens
from vitrail.explanation.perturbation import occlusion, rise
from vitrail.model import ViTConfig


@dataclass(frozen=True)
class Method:
    """`run` takes a scene and the options named in `takes`; it gives the map (B, P) and the logits (B, Y).

    `class_blind`: the map is the same whatever class is asked for. `signed`: below zero speaks against the class.
    """

    about: str
    run: Callable[..., tuple[Tensor, Tensor]]
    cost: str
    class_blind: bool = False
    signed: bool = False
    takes: frozenset[str] = frozenset()


METHODS: dict[str, Method] = {
    "balanced": Method(
        "input times balanced gradient, over all layers", balanced_gradient, "1 forward, 1 backward", signed=True
    ),
    "attention": Method(
        "one layer's attention, the last unless said", attention, "1 forward",
        class_blind=True, takes=frozenset({"layer", "head", "query"}),
    ),
    "rollout": Method(
        "attention followed through all layers", attention_rollout, "1 forward",
        class_blind=True, takes=frozenset({"layer"}),
    ),
    "generic": Method(
        "attention where its gradient favours the class, carried through all layers (Chefer et al.)",
        generic_attention, "1 forward, 1 backward",
    ),
    "legrad": Method(
        "how attention would have to change for the class, layer by layer", legrad, "2 forwards, 1 backward"
    ),
    "gradcam": Method(
        "Grad-CAM on a block's normed tokens, the last unless said", gradcam, "1 forward, 1 backward",
        takes=frozenset({"layer"}),
    ),
    "gradient": Method("input times plain gradient", input_gradient, "1 forward, 1 backward", signed=True),
    "integrated": Method(
        "integrated gradients from the mean colour", integrated_gradients, "21 forwards, 20 backwards", signed=True
    ),
    "occlusion": Method(
        "what each patch's absence costs in probability", occlusion, "1 forward for each patch", signed=True
    ),
    "rise": Method(
        "mean probability over random halves that hold the patch", rise, "200 forwards of half the patches", signed=True
    ),
    "lens": Method(
        "what each patch's token answers, after the last layer unless said", logit_lens, "1 forward",
        signed=True, takes=frozenset({"layer"}),
    ),
}  # fmt: skip
DEFAULT = "balanced"


def find_method(name: str) -> Method:
    """The row of this name; raises `UsageError` where there is none."""
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", did_you_mean(name, METHODS))
    return METHODS[name]


def check_options(
    name: str,
    config: ViTConfig,
    grid: tuple[int, int],
    layer: int | None,
    head: int | None,
    query: tuple[int, int] | None,
) -> dict[str, object]:
    """The options to call a method with; raises `UsageError` for one that it does not take or the model has not."""
    given = {k: v for k, v in {"layer": layer, "head": head, "query": query}.items() if v is not None}
    for option in given:
        if option not in METHODS[name].takes:
            able = ", ".join(other for other, row in METHODS.items() if option in row.takes)
            raise UsageError(f"{name} takes no {option}", f"{able} {'does' if ',' not in able else 'do'}")
    if layer is not None and not -config.depth <= layer < config.depth:
        raise UsageError(f"there is no layer {layer}", f"the model has {config.depth}, from 0 to {config.depth - 1}")
    if head is not None and not 0 <= head < config.heads:
        raise UsageError(f"there is no head {head}", f"the model has {config.heads}, from 0 to {config.heads - 1}")
    if query is not None and not (0 <= query[0] < grid[0] and 0 <= query[1] < grid[1]):
        raise UsageError(
            f"there is no patch in row {query[0]}, column {query[1]}",
            f"rows run from 0 to {grid[0] - 1}, columns from 0 to {grid[1] - 1}",
        )
    return dict(given)
