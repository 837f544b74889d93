"""A classifier as one module: decoded pixels -> logits and, on request, attention, a map or how unlike an image is.

The program contains the scaling to 0..1, mean and standard deviation, the ViT and the temperature. Decoding, rotation
by EXIF and resizing stay outside, because no two runtimes do them with the same arithmetic; `Preprocess.fit_image` does
them in vitrail, and the exported file describes them.

Shapes: B batch, L layers, N heads, T tokens, Y classes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.classifier import Classifier
from vitrail.errors import UsageError
from vitrail.model.attention import Attention, attention_weights
from vitrail.model.pool import AttentionPool
from vitrail.model.vit import ViT
from vitrail.weights.unlike import FIT_HINT, UnlikeFacts

PIXELS, TARGET = "pixels", "target"  # inputs
LOGITS, ATTENTION, MAP = "logits", "attention", "map"  # outputs
UNLIKE, DISTANCE = "unlike", "unlike_distance"  # outputs: the quantile, and the distance that it is found from

RunProgram = Callable[..., Tensor]  # (pixels (B, C, H, W), name of an output, target (B, Y) for a map) -> that output


@dataclass(frozen=True, kw_only=True)
class ProgramOptions:
    """The outputs of a program beside the logits, and whether its weights are quantized to 8 bits."""

    attention: bool = False
    map: bool = False
    int8: bool = False
    unlike: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (PIXELS, TARGET) if self.map else (PIXELS,)

    @property
    def outputs(self) -> tuple[str, ...]:
        return (LOGITS, *[ATTENTION] * self.attention, *[UNLIKE, DISTANCE] * self.unlike, *[MAP] * self.map)

    def check(self, classifier: Classifier) -> None:
        """Raises `UsageError` for options that contradict each other or do not suit the classifier."""
        if self.map and self.int8:
            raise UsageError(
                "the gradient that a map needs cannot be quantized", "export one file with --int8, another with --map"
            )
        if self.unlike and classifier.unlike is None:
            raise UsageError("how unlike an image is was not fitted for this model", FIT_HINT)
        if self.unlike and (self.map or self.int8):
            other = "--map" if self.map else "--int8"
            raise UsageError(f"--unlike and {other} do not work together", "export a file with each")
        if self.map and not classifier.vit.config.classes:
            raise UsageError("this model has no classes, so it has no map of a class", "leave out --map")


class Program(nn.Module):
    """Pixels (B, C, H, W) of the model's size -> logits (B, Y), divided by the temperature.

    With `attention` also every block's attention, (B, L, N, T, T), whose rows sum to one. With `unlike` also the
    quantile of the distance from the validation images, and the distance, (B, 1) each.
    """

    def __init__(self, classifier: Classifier, *, attention: bool = False, unlike: bool = False):
        super().__init__()
        copy = classifier.with_image_size(classifier.preprocess.image_size)  # position embeddings for this grid alone
        self.vit = copy.vit.cpu().float().eval().requires_grad_(False)
        self.preprocess = classifier.preprocess
        self.finish = classifier.finish
        self.task = classifier.task
        self.attention = attention
        self.unlike = classifier.unlike if unlike else None

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, ...]:
        with plain_attention(self.vit) as weights:
            features_BD = self.vit.features(self.preprocess.normalize(pixels_BCHW))
            logits_BY = self.finish(self.vit.head(features_BD))
        outputs = [logits_BY, *([torch.stack(weights, dim=1)] if self.attention else [])]
        if self.unlike is not None:
            distances_B = self.unlike(features_BD)
            outputs += [find_quantiles(distances_B, self.unlike.facts).unsqueeze(1), distances_B.unsqueeze(1)]
        return tuple(outputs)

    @property
    def example_pixels(self) -> Tensor:
        """Pixels to trace with; the batch size differs from every other dimension, so that no tracer confuses them."""
        shape = (self.preprocess.channels, *self.preprocess.image_size)
        batch_size = next(n for n in range(2, 9) if n not in (*shape, self.vit.config.classes))
        return torch.zeros(batch_size, *shape, dtype=self.preprocess.dtype)


def find_quantiles(distances_B: Tensor, facts: UnlikeFacts) -> Tensor:
    """Returns what `UnlikeFacts.find_quantiles` returns, as a mean of clamped ramps, which every runtime has."""
    edges = torch.tensor(facts.distances)
    ramps = (distances_B.unsqueeze(1) - edges[:-1]) / edges.diff()
    return ramps.clamp(0, 1).mean(1)


@contextmanager
def plain_attention(vit: ViT) -> Iterator[list[Tensor]]:
    """Inside, attention is computed by matrix products and softmax, which every runtime has.

    Yields a list that receives the attention weights of each block.
    """
    recorded: list[Tensor] = []

    def attend(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, dropout: float = 0.0) -> Tensor:
        return attention_weights(q_BNTK, k_BNTK) @ v_BNTK

    def attend_and_record(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, dropout: float = 0.0) -> Tensor:
        recorded.append(attention_weights(q_BNTK, k_BNTK))
        return recorded[-1] @ v_BNTK

    modules = [module for module in vit.modules() if isinstance(module, Attention | AttentionPool)]
    originals = [module.attend for module in modules]
    try:
        for module in modules:
            is_pool = isinstance(module, AttentionPool)
            module.attend = attend if is_pool else attend_and_record  # type: ignore[assignment]
        yield recorded
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.attend = original
