"""Decodes untrusted image files to pixels of the model's image size, in a small pool of threads."""

import asyncio
import io
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import ImageError, decode, read_size
from vitrail.data.preprocess import Preprocess
from vitrail.serving.errors import overloaded
from vitrail.serving.metrics import Metrics
from vitrail.serving.settings import Settings

LARGE_IMAGE_PIXELS = 4_000_000  # larger images are decoded one at a time, to limit the memory in use
Pixels = np.ndarray  # uint8 (C, H, W)
Result = TypeVar("Result")


class ImageDecoder:
    """Decodes files in `decode_threads` threads, and large images in one more.

    Refuses files if more than `queue_size` would be waiting.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        self.settings = settings
        self.metrics = metrics
        self.pool = ThreadPoolExecutor(settings.decode_threads, "decode")
        self.large_image_pool = ThreadPoolExecutor(1, "decode-large")
        self.waiting = 0

    async def decode_all(self, files: Sequence[bytes], preprocess: Preprocess) -> list[Pixels | ImageError]:
        """Returns the pixels of each file, or its error: a bad file does not affect the other files."""
        if self.waiting + len(files) > self.settings.queue_size:
            raise overloaded(1)
        self.waiting += len(files)
        tasks = [asyncio.create_task(self._decode_one(file, preprocess)) for file in files]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # if the client disconnected, the files that are still waiting are not decoded
            self.waiting -= len(files)

    async def _decode_one(self, file: bytes, preprocess: Preprocess) -> Pixels | ImageError:
        """Decodes a file in the pool; a large image only has its header read there and moves to the other pool."""
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self.pool, self._decode, file, preprocess, LARGE_IMAGE_PIXELS)
        if result is None:
            result = await loop.run_in_executor(self.large_image_pool, self._decode, file, preprocess, math.inf)
        assert result is not None
        return result

    def _decode(self, file: bytes, preprocess: Preprocess, max_pixels: float) -> Pixels | ImageError | None:
        """Returns the pixels or the error; None for an image of more than `max_pixels` pixels."""
        started = time.perf_counter()
        try:
            if count_pixels(file, self.settings) > max_pixels:
                return None
            result: Pixels | ImageError = fit_pixels(decode(io.BytesIO(file), preprocess.channels), preprocess)
        except ImageError as error:
            result = error
        except MemoryError:
            result = ImageError("image", "its pixels do not fit into memory")
        self.metrics.decode.observe(time.perf_counter() - started)
        return result

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Runs another slow function on a client's data in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    def close(self) -> None:
        for pool in (self.pool, self.large_image_pool):
            pool.shutdown(wait=False, cancel_futures=True)


def count_pixels(file: bytes, settings: Settings) -> int:
    """Returns the number of pixels from the image's header; raises `ImageError` if it exceeds the limit."""
    height, width = read_size(io.BytesIO(file))
    if height * width > (limit := settings.max_megapixels * 1_000_000):
        raise ImageError("image", f"{width}x{height} pixels are above the limit of {limit:,}")
    return height * width


def fit_pixels(image_CHW: Tensor, preprocess: Preprocess) -> Pixels:
    """Resizes an image to the model's image size; raises `ImageError` if that is not possible."""
    try:
        pixels_CHW: Pixels = preprocess.fit_image(image_CHW).contiguous().numpy()
    except ValueError as error:
        raise ImageError("image", str(error)) from None
    return pixels_CHW


def fit_all(pixels_NHWC: np.ndarray, preprocess: Preprocess) -> list[Pixels]:
    """Resizes decoded images to the model's image size; raises `ImageError` if that is not possible."""
    return [fit_pixels(torch.tensor(image_HWC).permute(2, 0, 1), preprocess) for image_HWC in pixels_NHWC]
