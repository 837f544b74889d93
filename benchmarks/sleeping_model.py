"""Runs vitrail with a model that sleeps: a batch takes a known time and no CPU. For benchmarks/overload.py.

python -m benchmarks.sleeping_model RATE serve MODEL ...
"""

import sys
import time
from typing import Any

import numpy as np

from vitrail.cli.main import main
from vitrail.serving import worker
from vitrail.serving.predictor import Predictor


def replace_model(rate: float) -> None:
    """Lets every worker that is forked later compute `rate` images per second."""

    def sleep_for_images(count: int) -> None:
        time.sleep(count / rate)

    def answer_logits(predictor: Predictor, document: dict[str, Any], payload: bytes) -> worker.Answer:
        count = document["shape"][0]
        sleep_for_images(count)
        zeros_BY = np.zeros((count, predictor.output_width), np.float32)
        return {"outputs": predictor.output_width}, zeros_BY.tobytes()

    def warm_up(predictor: Predictor, batch_size: int = 1) -> float:
        predictor.output_width = len(predictor.classifier.classes)
        started = time.perf_counter()
        sleep_for_images(batch_size)
        return time.perf_counter() - started

    worker.OPERATIONS["logits"] = answer_logits
    Predictor.warm_up = warm_up  # type: ignore[method-assign]


if __name__ == "__main__":
    replace_model(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
