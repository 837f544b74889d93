"""A Ray Serve deployment of a classifier, for more than one machine: Ray places, restarts and balances the replicas.

    from ray import serve
    from vitrail.serving.ray import deployment

    serve.run(deployment("runs/photos", num_replicas=4, ray_actor_options={"num_cpus": 2}))

It has one route, which takes an image file as the body of a POST. A bad image does not affect other requests, and each
replica decodes large images one at a time. These settings apply: `max_batch_size` (default here: 16), `max_delay_ms`,
`max_body_mib`, `max_megapixels`, and `queue_size` as the number of requests that may wait at each proxy of Ray. The
other settings have no effect: Ray has its own deadlines, processes, health checks and metrics.
"""

import asyncio
import io
import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from vitrail.classifier import BaseClassifier
from vitrail.data.decode import ImageError, decode
from vitrail.errors import UsageError
from vitrail.installation import install_hint
from vitrail.loading import load
from vitrail.parts import plugins_for_processes
from vitrail.plugins import load_plugins
from vitrail.serving.decode_worker import LARGE_IMAGE_PIXELS, count_pixels, fit_pixels
from vitrail.serving.predictor import Predictor
from vitrail.serving.settings import MIB, Settings
from vitrail.tasks import REGRESSION


def describe_answer(classifier: BaseClassifier, row: torch.Tensor) -> dict[str, Any]:
    """Returns the answer for one image: `top`, its most probable classes or its labels, or `numbers` by name.

    It also has the quantile `unlike`, how unlike the validation images the image is, if that is fitted.

    It is a function of the module because Ray pickles the deployment's own methods by value: one that names both
    `torch` and an attribute `classes` would drag in `torch.classes`, which cannot be pickled.
    """
    row_Y = row[: len(classifier.classes)]
    answer: dict[str, Any]
    if classifier.task == REGRESSION:
        answer = {"numbers": classifier.answers.name_numbers(row_Y)}
    else:
        answer = {"top": [vars(each) for each in classifier.answers.predict(row_Y)]}
    facts = classifier.unlike_facts
    return answer if facts is None else {**answer, "unlike": float(facts.find_quantiles(row[-1].numpy()))}


def deployment(
    model: str, settings: Settings | None = None, *, threads: int | None = None, device: str = "cpu", **options: Any
) -> Any:
    """Returns an application for `serve.run`; `options` are those of `serve.deployment` (num_replicas, ...).

    Raises `UsageError` if Ray Serve is not installed; a replica raises it if the model has no classes.
    """
    try:
        from ray import serve
    except ImportError:
        raise UsageError("ray is not installed", install_hint("ray")) from None
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    limits = settings or Settings()
    batch_size = limits.max_batch_size or 16
    plugins = plugins_for_processes()

    @serve.deployment(
        name="vitrail", max_queued_requests=limits.queue_size, max_ongoing_requests=2 * batch_size, **options
    )
    class Deployment:
        """One replica."""

        def __init__(self) -> None:
            if threads is not None:
                torch.set_num_threads(threads)
            load_plugins(plugins)
            classifier = load(model, device=device)
            classifier.require_classes()
            self.classifier = classifier
            self.predictor = Predictor(classifier)
            self.predictor.warm_up(batch_size)
            self.large_image_lock = threading.Lock()

        @serve.batch(max_batch_size=batch_size, batch_wait_timeout_s=limits.max_delay_ms / 1000)  # type: ignore[untyped-decorator, unused-ignore]
        async def rows(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
            """Computes the rows of pixels of the model's image size, in a thread beside the event loop."""
            stacked_BCHW = torch.from_numpy(np.stack(pixels))
            rows = await asyncio.to_thread(self.predictor.rows, stacked_BCHW)
            return list(rows.numpy())

        def decode_pixels(self, data: bytes) -> np.ndarray:
            """Decodes an image file to pixels of the model's image size; raises `ImageError`."""
            preprocess = self.classifier.preprocess
            with (
                self.large_image_lock
                if count_pixels(data, limits.max_megapixels) > LARGE_IMAGE_PIXELS
                else nullcontext()
            ):
                return fit_pixels(decode(io.BytesIO(data), preprocess.source_channels), preprocess)

        async def __call__(self, request: Request) -> JSONResponse:
            """Predicts the classes of one image, the body of the request."""
            data = bytearray()
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.max_body_mib * MIB:
                    return JSONResponse(
                        {"error": f"the body is larger than the limit of {limits.max_body_mib} MiB"}, 413
                    )
            try:
                pixels_CHW = await asyncio.to_thread(self.decode_pixels, bytes(data))
            except ImageError as error:
                return JSONResponse({"error": error.reason}, 400)
            row = torch.from_numpy(await self.rows(pixels_CHW))
            if not row.isfinite().all():
                return JSONResponse({"error": "the model's output is not finite"}, 500)
            answer = describe_answer(self.classifier, row)
            return JSONResponse({"predictions": [{"name": "image", **answer, "error": None}]})

    application: Any = Deployment
    return application.bind()
