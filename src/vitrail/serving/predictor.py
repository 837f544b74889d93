"""Pixels -> answers, in whichever process; what the server's workers and the Ray deployment hold."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier, NonFiniteOutput
from vitrail.errors import UsageError
from vitrail.explanation import DEFAULT_METHOD, explain_batch
from vitrail.explanation.targets import Target

BATCHES = (1, 2, 4, 8, 16, 32, 64)
MIN_RELATIVE_RATE = 0.95  # a batch half as long is worth a rate that is so much of the best


@dataclass
class Predictor:
    """A classifier that answers batches of uint8 pixels (B, C, H, W) of the model's size."""

    classifier: BaseClassifier
    outputs: int = 0  # numbers in an answer, known once the model has run

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """The logits (B, Y) in float32; a row is NaN where the answer to that image is no finite number."""
        try:
            return self.classifier.logits(pixels_BCHW).cpu()
        except NonFiniteOutput:
            if len(pixels_BCHW) > 1:  # one image's trouble is not the others'
                return torch.cat([self.logits(one_CHW[None]) for one_CHW in pixels_BCHW])
            return torch.full((1, self.outputs or len(self.classifier.classes)), torch.nan)

    def explain(
        self, pixels_CHW: Tensor, target: Target, options: dict[str, Any], picture: str | None
    ) -> tuple[dict[str, Any], bytes]:
        """An explanation as JSON, and as PNG where a picture is asked for: `panels` or `overlay`.

        Raises `UsageError` for what `vitrail.explanation.explain` does not take, and for a model without a ViT inside.
        """
        if not isinstance(self.classifier, Classifier):
            raise UsageError("an ONNX file has no inside to explain", "serve the classifier that it was made from")
        found = explain_batch(self.classifier, pixels_CHW[None], target=target, **options)[0]
        document = {**found.to_json(), "summary": found.summary}
        if picture is None:
            return document, b""
        from vitrail.explanation.figures import render_png

        return document, render_png(found, overlay_only=picture == "overlay")

    def warm_up(self, batch: int = 1) -> float:
        """Runs a grey batch; returns the seconds it took."""
        pixels_BCHW = self.gray_image.expand(batch, -1, -1, -1).contiguous()
        started = time.perf_counter()
        self.outputs = self.logits(pixels_BCHW).shape[1]
        return time.perf_counter() - started

    def warm_up_explanation(self) -> None:
        """Draws an explanation of grey: what that imports is imported now."""
        method = DEFAULT_METHOD if self.classifier.classes else "attention"
        self.explain(self.gray_image[0], None, {"method": method}, "overlay")

    @property
    def gray_image(self) -> Tensor:
        """One image that shows nothing."""
        preprocess = self.classifier.preprocess
        return torch.full((1, preprocess.channels, *preprocess.image_size), 128, dtype=torch.uint8)

    def measure_rates(self, most: int, seconds: float = 2.0) -> dict[int, float]:
        """Images a second by size of batch, the sizes doubling up to `most`, for as long as there is time."""
        self.warm_up()
        rates: dict[int, float] = {}
        stop = time.perf_counter() + seconds
        for batch in sorted({*(b for b in BATCHES if b < most), most}):
            rates[batch] = batch / min(self.warm_up(batch) for _ in range(3))
            if time.perf_counter() > stop:
                break
        return rates


def best_batch_size(rates: dict[int, float]) -> int:
    """The smallest batch that is nearly as fast as the fastest: who waits less is answered sooner."""
    return min(batch for batch, rate in rates.items() if rate >= MIN_RELATIVE_RATE * max(rates.values()))
