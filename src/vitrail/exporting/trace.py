"""Traces a program into a graph of torch operators, the source of every exported format.

Exported graphs have no autograd. For the map, `make_fx` runs the explanation method once and records every operation of
its forward and backward pass, so that the gradient becomes operators like any other.

Shapes: B batch, Y classes, h w grid of patches.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from vitrail.classifier import Classifier
from vitrail.explanation.gradient import libragrad
from vitrail.explanation.inputs import TokenInputs
from vitrail.exporting.program import Program, ProgramOptions, plain_attention


def trace_program(classifier: Classifier, options: ProgramOptions) -> torch.export.ExportedProgram:
    """Returns the program with the requested outputs, for a batch of any size, without source paths of this machine."""
    program = Program(classifier, attention=options.attention, unlike=options.unlike)
    module = trace_map_program(program) if options.map else program
    inputs = example_inputs(program) if options.map else (program.example_pixels,)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        exported = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    for graph in exported.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return exported


def trace_map_program(program: Program) -> nn.Module:
    """Returns a module (pixels, target) -> the program's outputs and then the map (B, h, w).

    `pixels` are (B, C, H, W). `target` is float32 (B, Y): 1 for the explained class, -1 for the class that it is
    compared with, if any, 0 elsewhere. The batch may be of any size.
    """
    trace: Any = make_fx(partial(logits_and_map, program), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    with torch.enable_grad():
        graph: nn.Module = trace(*example_inputs(program))
    return graph.eval()


def example_inputs(program: Program) -> tuple[Tensor, Tensor]:
    """Pixels and a target to trace with, a different class for each image."""
    pixels_BCHW = program.example_pixels
    target_BY = torch.zeros(len(pixels_BCHW), program.vit.config.classes)
    for image, target_Y in enumerate(target_BY):
        target_Y[image % target_BY.shape[1]] = 1
    return pixels_BCHW, target_BY


def logits_and_map(program: Program, pixels_BCHW: Tensor, target_BY: Tensor) -> tuple[Tensor, ...]:
    """Returns the logits as the classifier does, the attention if the program has it, and the map."""
    vit = program.vit
    h, w = vit.config.grid
    with plain_attention(vit) as weights:
        x_BTD = vit.embed(program.preprocess.normalize(pixels_BCHW))
        inputs = TokenInputs(x_BTD, (h, w), lambda logits_BY: target_BY, x_BTD, vit=vit, task=program.task)
        map_BP, logits_BY = libragrad(inputs)
    map_Bhw = map_BP.view(-1, h, w)
    attention = [torch.stack(weights, dim=1).detach()] if program.attention else []
    return (program.finish(logits_BY), *attention, map_Bhw)
