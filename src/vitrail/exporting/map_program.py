"""The default explanation as a part of the program: pixels and a class -> logits and the class's signed map.

An exported program knows no gradients, so the pass back is written out as operators like any other: `make_fx` runs
`libragrad` once and notes every operation, forwards and backwards.

Shapes: B batch, Y classes, h w grid of patches.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vitrail.explanation.gradient import libragrad
from vitrail.explanation.inputs import TokenInputs
from vitrail.exporting.program import Program, plain_attention


def trace_map_program(program: Program) -> nn.Module:
    """(pixels, target) -> what the program gives, and then the map (B, h, w) of what speaks for the target.

    `pixels` are uint8 (B, C, H, W), `target` is float32 (B, Y): 1 at the class that is asked for, -1 at the one it is
    held against, if there is one, else 0. The batch may be of any size.
    """
    trace: Any = make_fx(partial(logits_and_map, program), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    with torch.enable_grad():
        graph: nn.Module = trace(*example_inputs(program))
    return graph.eval()


def example_inputs(program: Program) -> tuple[Tensor, Tensor]:
    """Pixels and a target to trace with, another class for each image."""
    pixels_BCHW = program.example_pixels
    target_BY = torch.zeros(len(pixels_BCHW), program.vit.config.classes)
    for image, weights_Y in enumerate(target_BY):
        weights_Y[image % target_BY.shape[1]] = 1
    return pixels_BCHW, target_BY


def logits_and_map(program: Program, pixels_BCHW: Tensor, target_BY: Tensor) -> tuple[Tensor, ...]:
    """Logits, divided by the temperature; attention where the program gives it; the map."""
    vit = program.vit
    h, w = vit.config.grid
    with plain_attention(vit) as kept:
        x_BTD = vit.embed(program.preprocess.normalize(pixels_BCHW))
        scene = TokenInputs(vit, x_BTD, (h, w), lambda logits_BY: target_BY, x_BTD)
        map_BP, logits_BY = libragrad(scene)
    map_Bhw = map_BP.view(-1, h, w)
    attention = [torch.stack(kept, dim=1).detach()] if program.attention else []
    return (logits_BY / program.temperature, *attention, map_Bhw)
