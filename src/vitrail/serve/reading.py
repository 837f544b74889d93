"""Strangers' image files -> pixels of the model's size, by the one decoder, in a few threads that nothing can flood."""

import asyncio
import io
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import ImageError, decode, read_size
from vitrail.data.preprocess import Preprocess
from vitrail.serve.metrics import Metrics
from vitrail.serve.refusal import overloaded
from vitrail.serve.settings import Settings

LARGE = 4_000_000  # pixels; of images beyond that one is decoded at a time, or a few would fill the memory
Pixels = np.ndarray  # uint8 (C, H, W)
Found = TypeVar("Found")


class Reader:
    """Decodes files in `readers` threads; beyond `queue` that wait, more are refused."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self.settings = settings
        self.metrics = metrics
        self.threads = ThreadPoolExecutor(settings.readers, "reader")
        self.large = threading.Lock()
        self.waiting = 0

    async def read(self, files: Sequence[bytes], preprocess: Preprocess) -> list[Pixels | ImageError]:
        """The pixels of each, or why there are none: one bad file says nothing about the others."""
        if self.waiting + len(files) > self.settings.queue:
            raise overloaded(1)
        self.waiting += len(files)
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self.threads, self._one, file, preprocess) for file in files]
        try:
            return await asyncio.gather(*jobs)
        finally:
            for job in jobs:
                job.cancel()  # what has not begun need not, where whoever asked has gone
            self.waiting -= len(files)

    def _one(self, file: bytes, preprocess: Preprocess) -> Pixels | ImageError:
        started = time.perf_counter()
        try:
            return self._pixels(file, preprocess)
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError("image", "its pixels do not fit into the memory")
        finally:
            self.metrics.decode.observe(time.perf_counter() - started)

    def _pixels(self, file: bytes, preprocess: Preprocess) -> Pixels:
        height, width = read_size(io.BytesIO(file))
        most = self.settings.pixels * 1_000_000
        if height * width > most:
            raise ImageError("image", f"{width}x{height} pixels are more than the {most:,} that are accepted")
        if height * width <= LARGE:
            return fitted(decode(io.BytesIO(file), preprocess.channels), preprocess)
        with self.large:
            return fitted(decode(io.BytesIO(file), preprocess.channels), preprocess)

    async def run(self, work: Callable[..., Found], *given: Any) -> Found:
        """Other work on a client's bytes that takes its time."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *given)

    def close(self) -> None:
        """No more images."""
        self.threads.shutdown(wait=False, cancel_futures=True)


def fitted(image_CHW: Tensor, preprocess: Preprocess) -> Pixels:
    """Pixels of any size -> of the model's; raises `ImageError` where they are too few."""
    try:
        found: Pixels = preprocess.fitted(image_CHW).contiguous().numpy()
    except ValueError as error:
        raise ImageError("image", str(error)) from None
    return found


def fit_all(pixels_NHWC: np.ndarray, preprocess: Preprocess) -> list[Pixels]:
    """Decoded images of any size -> pixels of the model's."""
    return [fitted(torch.tensor(image_HWC).permute(2, 0, 1), preprocess) for image_HWC in pixels_NHWC]
