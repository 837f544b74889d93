"""A classifier as one program: decoded pixels -> logits, and what else is asked for, with nothing left to do outside.

In it: scaling to 0..1, mean and standard deviation, the ViT, the temperature. Not in it: decoding, turning upright and
resizing, for which no two runtimes have the same arithmetic; `Preprocess.fitted` does them wherever vitrail reads a
file, and the file says how.

Shapes: B batch, L layers, N heads, T tokens, Y classes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitrail.classifier import Classifier
from vitrail.model import ViT
from vitrail.model.attention import Attention, attention_weights
from vitrail.model.pool import AttentionPool


class Program(nn.Module):
    """uint8 pixels (B, C, H, W) of the model's size -> logits (B, Y), divided by the temperature.

    With `attention` also every block's attention, (B, L, N, T, T), whose rows each sum to one.
    """

    def __init__(self, classifier: Classifier, *, attention: bool = False):
        super().__init__()
        self.vit = copy.deepcopy(classifier.vit).cpu().float().eval().requires_grad_(False)
        self.preprocess = classifier.preprocess
        self.temperature = classifier.temperature
        self.attention = attention

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, ...]:
        with explicit(self.vit) as kept:
            logits_BY = self.vit(self.preprocess.normalise(pixels_BCHW)) / self.temperature
        if not self.attention:
            return (logits_BY,)
        return logits_BY, torch.stack(kept, dim=1)

    @property
    def example(self) -> Tensor:
        """Pixels to trace with."""
        return torch.zeros(2, self.preprocess.channels, *self.preprocess.image_size, dtype=torch.uint8)


@contextmanager
def explicit(vit: ViT) -> Iterator[list[Tensor]]:
    """Inside, attention is three plain operations, which any runtime knows; the list gets each block's weights."""
    kept: list[Tensor] = []

    def keeping(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, dropout: float = 0.0) -> Tensor:
        kept.append(attention_weights(q_BNTK, k_BNTK))
        return kept[-1] @ v_BNTK

    def plain(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, dropout: float = 0.0) -> Tensor:
        return attention_weights(q_BNTK, k_BNTK) @ v_BNTK

    attending = [module for module in vit.modules() if isinstance(module, Attention | AttentionPool)]
    before = [module.attend for module in attending]
    try:
        for module in attending:
            module.attend = plain if isinstance(module, AttentionPool) else keeping  # type: ignore[assignment]
        yield kept
    finally:
        for module, attend in zip(attending, before, strict=True):
            module.attend = attend


def traced(program: Program) -> torch.export.ExportedProgram:
    """The program as a graph of torch's operators, for a batch of any size."""
    with torch.no_grad():
        return torch.export.export(program, (program.example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
