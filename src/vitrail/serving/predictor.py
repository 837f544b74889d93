"""Runs a classifier on batches of pixels; used by the worker processes and by the Ray deployment."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, Classifier, NonFiniteOutput
from vitrail.errors import UsageError
from vitrail.explanation.api import explain_batch
from vitrail.explanation.methods import DEFAULT_METHOD
from vitrail.explanation.targets import Target
from vitrail.serving.service_time import PassTimes

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
MEASURED_FORWARDS = 4  # images in the batch that is timed for perturbation methods
MIN_RELATIVE_RATE = 0.95  # of the best rate: the smallest batch size that reaches this fraction is chosen


@dataclass
class Predictor:
    """A classifier that answers batches of uint8 pixels (B, C, H, W) of the model's size."""

    classifier: BaseClassifier
    output_width: int = 0  # values per image (classes or features, distance); known after the warm-up

    def rows(self, pixels_BCHW: Tensor) -> Tensor:
        """Returns the logits (B, Y) in float32; if distances are fitted, they are the last column.

        The row of an image with non-finite logits is all NaN.
        """
        try:
            logits_BY, distances_B = self.classifier.logits_and_distances(pixels_BCHW)
            columns = [logits_BY] if distances_B is None else [logits_BY, distances_B.unsqueeze(1)]
            return torch.cat(columns, dim=1).cpu()
        except NonFiniteOutput:
            if len(pixels_BCHW) > 1:  # find the image: the rows of the other images stay valid
                return torch.cat([self.rows(one_CHW[None]) for one_CHW in pixels_BCHW])
            width = len(self.classifier.classes) + (self.classifier.unlike_facts is not None)
            return torch.full((1, self.output_width or width), torch.nan)

    def explain(
        self, pixels_CHW: Tensor, target: Target, options: dict[str, Any], picture: str | None
    ) -> tuple[dict[str, Any], bytes]:
        """Returns an explanation as JSON, and as PNG if `picture` is `panels` or `overlay`.

        Raises `UsageError` for invalid options, and for a model in ONNX, which cannot be explained.
        """
        if not isinstance(self.classifier, Classifier):
            raise UsageError("an exported file cannot be explained", "serve the classifier that it was exported from")
        explanation = explain_batch(self.classifier, pixels_CHW[None], target=target, **options)[0]
        document = {**explanation.to_json(), "summary": explanation.summary}
        if picture is None:
            return document, b""
        from vitrail.explanation.figures import render_png

        return document, render_png(explanation, overlay_only=picture == "overlay")

    def warm_up(self, batch_size: int = 1) -> float:
        """Runs a gray batch; returns the duration in seconds."""
        pixels_BCHW = self.gray_image.expand(batch_size, -1, -1, -1).contiguous()
        started = time.perf_counter()
        self.output_width = self.rows(pixels_BCHW).shape[1]
        return time.perf_counter() - started

    def measure_passes(self) -> PassTimes:
        """Warms up all that explanations need and measures the seconds of their parts, for one image."""
        method = DEFAULT_METHOD if self.classifier.classes else "attention"
        image_CHW = self.gray_image[0]

        def measure_explanation(picture: str | None) -> float:
            started = time.perf_counter()
            self.explain(image_CHW, None, {"method": method}, picture)
            return time.perf_counter() - started

        self.warm_up()
        forward = min(self.warm_up() for _ in range(2))
        measure_explanation("overlay")  # imports the modules for pictures
        explanation = min(measure_explanation(None) for _ in range(2))
        return PassTimes(
            forward=forward,
            backward=max(explanation - forward, forward),
            batched_forward=min(forward, self.warm_up(MEASURED_FORWARDS) / MEASURED_FORWARDS),
            picture=max(0.0, measure_explanation("panels") - explanation),
        )

    @property
    def gray_image(self) -> Tensor:
        return self.classifier.preprocess.blank()

    def measure_rates(self, max_batch_size: int, seconds: float = 2.0) -> dict[int, float]:
        """Measures images per second by batch size, for doubling sizes up to `max_batch_size`.

        Stops after `seconds`, but measures at least one size.
        """
        self.warm_up()
        rates: dict[int, float] = {}
        stop = time.perf_counter() + seconds
        for batch_size in sorted({*(size for size in BATCH_SIZES if size < max_batch_size), max_batch_size}):
            rates[batch_size] = batch_size / min(self.warm_up(batch_size) for _ in range(3))
            if time.perf_counter() > stop:
                break
        return rates


def choose_batch_size(rates: dict[int, float]) -> int:
    """Returns the smallest batch size that is nearly as fast as the fastest one, for a low latency."""
    return min(batch_size for batch_size, rate in rates.items() if rate >= MIN_RELATIVE_RATE * max(rates.values()))
