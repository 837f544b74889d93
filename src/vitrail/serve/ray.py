"""The same predictor as a Ray Serve deployment: past one machine, Ray places, restarts and balances the replicas.

    from ray import serve
    from vitrail.serve.ray import deployment

    serve.run(deployment("runs/photos", num_replicas=4, ray_actor_options={"num_cpus": 2}))

One route, POST /predict with an image file as the body; batches, limits and the bad image that fails alone are as in
`vitrail serve`. What Ray Serve has of its own (its queue, its health checks, its metrics) is left to it.
"""

import asyncio
import io
from typing import Any

import numpy as np
import torch

from vitrail.classifier import load
from vitrail.data.decode import ImageError, decode, read_size
from vitrail.errors import UsageError
from vitrail.serve.predictor import Predictor
from vitrail.serve.reading import fitted
from vitrail.serve.settings import MIB, Settings


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
    batch = limits.batch or 16

    @serve.deployment(name="vitrail", max_queued_requests=limits.queue, max_ongoing_requests=2 * batch, **options)
    class Deployment:
        """One replica."""

        def __init__(self) -> None:
            if threads is not None:
                torch.set_num_threads(threads)
            classifier = load(model, device=device)
            classifier.refuse_nameless()
            self.classifier = classifier
            self.predictor = Predictor(classifier)
            self.predictor.warm(batch)

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=limits.wait / 1000)  # type: ignore[untyped-decorator, unused-ignore]
        async def logits(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
            """Pixels of the model's size -> logits; the event loop goes on while the model runs."""
            stacked_BCHW = torch.from_numpy(np.stack(pixels))
            rows_BY = await asyncio.to_thread(self.predictor.logits, stacked_BCHW)
            return list(rows_BY.numpy())

        def pixels(self, data: bytes) -> np.ndarray:
            """An image file -> pixels of the model's size; raises `ImageError`."""
            height, width = read_size(io.BytesIO(data))
            if height * width > limits.pixels * 1_000_000:
                raise ImageError("image", f"{width}x{height} pixels are more than are accepted")
            preprocess = self.classifier.preprocess
            return fitted(decode(io.BytesIO(data), preprocess.channels), preprocess)

        async def __call__(self, request: Request) -> JSONResponse:
            """One image, as the body of a POST."""
            data = bytearray()
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.body * MIB:
                    return JSONResponse({"error": f"the body is longer than {limits.body} MiB"}, 413)
            try:
                pixels_CHW = await asyncio.to_thread(self.pixels, bytes(data))
            except ImageError as error:
                return JSONResponse({"error": error.reason}, 400)
            row_Y = torch.from_numpy(await self.logits(pixels_CHW))
            if not row_Y.isfinite().all():
                return JSONResponse({"error": "the model's answer is not a finite number"}, 500)
            top = [vars(each) for each in self.classifier.ranked(row_Y)]
            return JSONResponse({"predictions": [{"name": "image", "top": top, "error": None}]})

    application: Any = Deployment
    return application.bind()
