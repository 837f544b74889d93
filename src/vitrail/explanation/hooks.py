"""Temporary changes to a ViT: record what passes between its parts, switch it to eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from vitrail.model.vit import ViT


@contextmanager
def record_block_inputs(vit: ViT) -> Iterator[list[Tensor]]:
    """Inside, each forward appends the input of every block, (B, T, D), to the list."""
    inputs: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in vit.blocks]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def record_outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each call of the module appends its output to the list."""
    outputs: list[Tensor] = []

    def append(module: nn.Module, args: object, output: Tensor) -> None:
        outputs.append(output)

    hook = module.register_forward_hook(append)
    try:
        yield outputs
    finally:
        hook.remove()


@contextmanager
def eval_mode(vit: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode; afterwards every module is in its old mode, also after an exception."""
    modes = [(module, module.training) for module in vit.modules()]
    vit.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
