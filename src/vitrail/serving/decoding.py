"""Strangers' image files -> pixels of the model's size, by the one decoder, in a few threads that nothing can flood."""

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

LARGE_IMAGE_PIXELS = 4_000_000  # pixels; of images beyond that one is decoded at a time, or a few would fill the memory
Pixels = np.ndarray  # uint8 (C, H, W)
Found = TypeVar("Found")


class ImageDecoder:
    """Decodes files in `readers` threads, large ones in one more; beyond `queue` that wait, more are refused."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self.settings = settings
        self.metrics = metrics
        self.threads = ThreadPoolExecutor(settings.decode_threads, "reader")
        self.large = ThreadPoolExecutor(1, "large")
        self.waiting = 0

    async def decode_all(self, files: Sequence[bytes], preprocess: Preprocess) -> list[Pixels | ImageError]:
        """The pixels of each, or why there are none: one bad file says nothing about the others."""
        if self.waiting + len(files) > self.settings.queue_size:
            raise overloaded(1)
        self.waiting += len(files)
        jobs = [asyncio.create_task(self._decode_one(file, preprocess)) for file in files]
        try:
            return await asyncio.gather(*jobs)
        finally:
            for job in jobs:
                job.cancel()  # what has not begun need not, where whoever asked has gone
            self.waiting -= len(files)

    async def _decode_one(self, file: bytes, preprocess: Preprocess) -> Pixels | ImageError:
        """In one of the threads; a large one is only looked at there, and waits elsewhere for its turn."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self.threads, self._decode, file, preprocess, LARGE_IMAGE_PIXELS)
        if found is None:
            found = await loop.run_in_executor(self.large, self._decode, file, preprocess, math.inf)
        assert found is not None
        return found

    def _decode(self, file: bytes, preprocess: Preprocess, most: float) -> Pixels | ImageError | None:
        """The pixels, or why there are none; None for an image of more than `most` pixels."""
        started = time.perf_counter()
        try:
            if count_pixels(file, self.settings) > most:
                return None
            found: Pixels | ImageError = fit_pixels(decode(io.BytesIO(file), preprocess.channels), preprocess)
        except ImageError as error:
            found = error
        except MemoryError:
            found = ImageError("image", "its pixels do not fit into the memory")
        self.metrics.decode.observe(time.perf_counter() - started)
        return found

    async def run(self, work: Callable[..., Found], *given: Any) -> Found:
        """Other work on a client's bytes that takes its time."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *given)

    def close(self) -> None:
        """No more images."""
        for threads in (self.threads, self.large):
            threads.shutdown(wait=False, cancel_futures=True)


def count_pixels(file: bytes, settings: Settings) -> int:
    """The pixels that an image has by its header; raises `ImageError` where they are more than are accepted."""
    height, width = read_size(io.BytesIO(file))
    if height * width > (most := settings.max_megapixels * 1_000_000):
        raise ImageError("image", f"{width}x{height} pixels are more than the {most:,} that are accepted")
    return height * width


def fit_pixels(image_CHW: Tensor, preprocess: Preprocess) -> Pixels:
    """Pixels of any size -> of the model's; raises `ImageError` where they cannot be."""
    try:
        found: Pixels = preprocess.fit_image(image_CHW).contiguous().numpy()
    except ValueError as error:
        raise ImageError("image", str(error)) from None
    return found


def fit_all(pixels_NHWC: np.ndarray, preprocess: Preprocess) -> list[Pixels]:
    """Decoded images of any size -> pixels of the model's."""
    return [fit_pixels(torch.tensor(image_HWC).permute(2, 0, 1), preprocess) for image_HWC in pixels_NHWC]
