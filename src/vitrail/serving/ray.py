"""The same predictor as a Ray Serve deployment: past one machine, Ray places, restarts and balances the replicas.

    from ray import serve
    from vitrail.classifier import BaseClassifier, top_predictions
from vitrail.serving.ray import deployment

    serve.run(deployment("runs/photos", num_replicas=4, ray_actor_options={"num_cpus": 2}))

One route, POST /predict with an image file as the body; a bad image fails alone, and of large ones a replica decodes
one at a time. Of the settings `batch` (16 unless given), `wait`, `body` and `pixels` hold as in `vitrail serve`, and
`queue` is how many requests may wait at each of Ray's proxies; the others mean nothing here. Deadlines, processes,
health checks and metrics are Ray's own.
"""

import asyncio
import io
import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from vitrail.classifier import BaseClassifier, top_predictions
from vitrail.data.decode import ImageError, decode
from vitrail.errors import UsageError
from vitrail.loading import load
from vitrail.serving.decoding import LARGE_IMAGE_PIXELS, count_pixels, fit_pixels
from vitrail.serving.predictor import Predictor
from vitrail.serving.settings import MIB, Settings


def describe_predictions(classifier: BaseClassifier, row_Y: torch.Tensor) -> list[dict[str, Any]]:
    """Returns the most probable classes of one image.

    It is a function of the module because Ray pickles the deployment's own methods by value: one that names both
    `torch` and an attribute `classes` would drag in `torch.classes`, which cannot be pickled.
    """
    return [vars(each) for each in top_predictions(row_Y, classifier.classes)]


def deployment(
    model: str, settings: Settings | None = None, *, threads: int | None = None, device: str = "cpu", **options: Any
) -> Any:
    """An application for `serve.run`; `options` are Ray's own for a deployment (num_replicas, ray_actor_options, ...).

    Raises `UsageError` where Ray Serve is not installed or the model knows no classes.
    """
    try:
        from ray import serve
    except ImportError:
        raise UsageError("ray is not installed", "pip install 'vitrail[ray]'") from None
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    limits = settings or Settings()
    batch = limits.max_batch_size or 16

    @serve.deployment(name="vitrail", max_queued_requests=limits.queue_size, max_ongoing_requests=2 * batch, **options)
    class Deployment:
        """One replica."""

        def __init__(self) -> None:
            if threads is not None:
                torch.set_num_threads(threads)
            classifier = load(model, device=device)
            classifier.require_classes()
            self.classifier = classifier
            self.predictor = Predictor(classifier)
            self.predictor.warm_up(batch)
            self.large = threading.Lock()

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=limits.max_delay_ms / 1000)  # type: ignore[untyped-decorator, unused-ignore]
        async def logits(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
            """Pixels of the model's size -> logits; the event loop goes on while the model runs."""
            stacked_BCHW = torch.from_numpy(np.stack(pixels))
            rows_BY = await asyncio.to_thread(self.predictor.logits, stacked_BCHW)
            return list(rows_BY.numpy())

        def pixels(self, data: bytes) -> np.ndarray:
            """An image file -> pixels of the model's size; raises `ImageError`."""
            preprocess = self.classifier.preprocess
            with self.large if count_pixels(data, limits) > LARGE_IMAGE_PIXELS else nullcontext():
                return fit_pixels(decode(io.BytesIO(data), preprocess.channels), preprocess)

        async def __call__(self, request: Request) -> JSONResponse:
            """One image, as the body of a POST."""
            data = bytearray()
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.max_body_mib * MIB:
                    return JSONResponse({"error": f"the body is longer than {limits.max_body_mib} MiB"}, 413)
            try:
                pixels_CHW = await asyncio.to_thread(self.pixels, bytes(data))
            except ImageError as error:
                return JSONResponse({"error": error.reason}, 400)
            row_Y = torch.from_numpy(await self.logits(pixels_CHW))
            if not row_Y.isfinite().all():
                return JSONResponse({"error": "the model's answer is not a finite number"}, 500)
            top = describe_predictions(self.classifier, row_Y)
            return JSONResponse({"predictions": [{"name": "image", "top": top, "error": None}]})

    application: Any = Deployment
    return application.bind()
