"""A classifier as one program: decoded pixels -> logits, and what else is asked for, with nothing left to do outside.

In it: scaling to 0..1, mean and standard deviation, the ViT, the temperature. Not in it: decoding, turning upright and
resizing, for which no two runtimes have the same arithmetic; `Preprocess.fitted` does them wherever vitrail reads a
file, and the file says how.

Shapes: B batch, L layers, N heads, T tokens, Y classes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.model import ViT
from vitrail.model.attention import Attention, attention_weights
from vitrail.model.pool import AttentionPool

PIXELS, TARGET = "pixels", "target"  # inputs
LOGITS, ATTENTION, MAP = "logits", "attention", "map"  # outputs


@dataclass(frozen=True, kw_only=True)
class ProgramOptions:
    """What a program gives beside logits, and whether its weights are whole numbers of eight bits."""

    attention: bool = False
    map: bool = False
    int8: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the program takes, by name."""
        return (PIXELS, TARGET) if self.map else (PIXELS,)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the program gives, by name."""
        return (LOGITS, *[ATTENTION] * self.attention, *[MAP] * self.map)

    def check(self, classifier: Classifier) -> None:
        """Raises `UsageError` for what this classifier cannot give."""
        if self.map and self.int8:
            raise UsageError(
                "the pass back that a map takes is not quantised", "export one file with --int8, another with --map"
            )
        if self.map and not classifier.vit.config.classes:
            raise UsageError("this model knows no classes, so there is no class's map", "leave --map out")


class Program(nn.Module):
    """uint8 pixels (B, C, H, W) of the model's size -> logits (B, Y), divided by the temperature.

    With `attention` also every block's attention, (B, L, N, T, T), whose rows each sum to one.
    """

    def __init__(self, classifier: Classifier, *, attention: bool = False):
        super().__init__()
        own = classifier.with_image_size(
            classifier.preprocess.image_size
        ).vit  # a copy, its positions for just this grid
        self.vit = own.cpu().float().eval().requires_grad_(False)
        self.preprocess = classifier.preprocess
        self.temperature = classifier.temperature
        self.attention = attention

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, ...]:
        with plain_attention(self.vit) as kept:
            logits_BY = self.vit(self.preprocess.normalize(pixels_BCHW)) / self.temperature
        if not self.attention:
            return (logits_BY,)
        return logits_BY, torch.stack(kept, dim=1)

    @property
    def example_pixels(self) -> Tensor:
        """Pixels to trace with: as many images as nothing else counts, lest the batch be taken for something else."""
        shape = (self.preprocess.channels, *self.preprocess.image_size)
        batch = next(n for n in range(2, 9) if n not in (*shape, self.vit.config.classes))
        return torch.zeros(batch, *shape, dtype=torch.uint8)


@contextmanager
def plain_attention(vit: ViT) -> Iterator[list[Tensor]]:
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
