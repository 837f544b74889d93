"""Runs vitrail with images that are decoded in threads of the server, not in processes. For benchmarks/serving.py.

python -m benchmarks.decoding_in_threads serve MODEL ...

It shows what the processes cost. They exist because a crash of an image library would end the server.
"""

import sys
import time
from typing import Any

from vitrail.cli.main import main
from vitrail.serving.decode_worker import answer_file
from vitrail.serving.decoding import ImageDecoder
from vitrail.serving.worker_pool import WorkerPool


async def decode_in_thread(
    decoder: ImageDecoder, pool: WorkerPool, file: bytes, preprocess: dict[str, Any], deadline: float
) -> tuple[dict[str, Any], bytes]:
    """Replaces the method that asks a process."""
    request = {
        "preprocess": preprocess, "max_megapixels": decoder.settings.max_megapixels,
        "decode_large": pool is decoder.large_image_pool,
    }  # fmt: skip
    started = time.perf_counter()
    document, parts = await decoder.run(answer_file, request, file)
    return {**document, "seconds": time.perf_counter() - started}, parts[0].tobytes() if parts else b""


if __name__ == "__main__":
    ImageDecoder._ask = decode_in_thread  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
