"""The decoding process: decodes untrusted image files to pixels of a model's image size, one at a time.

A crash of an image library ends this process only; the server replaces it (`decoding.py`).
"""

import io
import json
import math
import os
import socket
import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.data.decode import GRAY_16_BIT, ImageError, decode_with_header, read_size
from vitrail.data.preprocess import ImageSizeError, Preprocess
from vitrail.serving.messages import receive_message, send_message

ONE_FILE = "; send all channels of an image in one file: a TIFF, also of one page per channel, or .npy"
LARGE_IMAGE_PIXELS = 4_000_000  # larger images are decoded one at a time, to limit the memory in use
Pixels = np.ndarray  # (C, H, W), uint8 or float32


def run_decoder(connection: socket.socket) -> None:
    """Sends its pid and a hello message, and decodes one file per message until the connection closes."""
    send_message(connection, {"pid": os.getpid()})
    torch.set_num_threads(1)
    send_message(connection, {})
    with connection.makefile("rb") as requests:
        while (message := receive_message(requests)) is not None:
            started = time.perf_counter()
            document, parts = answer_file(*message)
            send_message(connection, {**document, "seconds": time.perf_counter() - started}, parts)


def answer_file(request: dict[str, Any], file: bytes) -> tuple[dict[str, Any], list[Pixels]]:
    """Returns shape, number format and pixels, and whether the file has over 8 bits; or why it cannot be read.

    Or it returns that the image is large. A large image is decoded only if the request allows it.
    """
    preprocess = parse_preprocess(json.dumps(request["preprocess"]))
    try:
        max_pixels = math.inf if request["decode_large"] else LARGE_IMAGE_PIXELS
        if count_pixels(file, request["max_megapixels"]) * max(1, preprocess.channels / 3) > max_pixels:
            return {"is_large": True}, []
        image_CHW, header = decode_with_header(io.BytesIO(file), preprocess.source_channels)
        pixels_CHW = fit_pixels(image_CHW, preprocess)
    except ImageError as error:
        return {"unreadable": error.reason + (ONE_FILE if preprocess.has_bands else "")}, []
    except MemoryError:
        return {"unreadable": "its pixels do not fit into memory"}, []
    document = {"pixels": list(pixels_CHW.shape), "dtype": str(pixels_CHW.dtype)}
    return {**document, "is_deep": header.color_type == GRAY_16_BIT}, [pixels_CHW]


@lru_cache
def parse_preprocess(text: str) -> Preprocess:
    return Preprocess.from_json(json.loads(text))


def count_pixels(file: bytes, max_megapixels: int) -> int:
    """Returns the number of pixels from the image's header; raises `ImageError` if it exceeds the limit."""
    height, width = read_size(io.BytesIO(file))
    if height * width > (limit := max_megapixels * 1_000_000):
        raise ImageError("image", f"{width}x{height} pixels are above the limit of {limit:,}")
    return height * width


def fit_pixels(image_CHW: Tensor, preprocess: Preprocess) -> Pixels:
    """Resizes an image to the model's image size; raises `ImageError` if that is not possible."""
    try:
        pixels_CHW: Pixels = preprocess.fit_image(image_CHW).contiguous().numpy()
    except ImageSizeError as error:
        raise ImageError("image", str(error)) from None
    return pixels_CHW


def fit_all(pixels_NHWC: np.ndarray, preprocess: Preprocess) -> list[Pixels]:
    """Resizes decoded images to the model's image size; raises `ImageError` if that is not possible."""
    return [fit_pixels(torch.tensor(image_HWC).permute(2, 0, 1), preprocess) for image_HWC in pixels_NHWC]
