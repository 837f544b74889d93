"""A LitServe server with batching, as its documentation describes. For serving.py and overload.py.

Arguments: model, port, maximum batch size, time limit in seconds (default: 120), and images per second of a model that
sleeps instead (default: the model itself).
"""

import base64
import io
import sys
import time
from typing import Any

import litserve as ls
import torch

import vitrail
from vitrail.data.decode import decode
from vitrail.image_predictions import top_predictions
from vitrail.machine import count_cores


class Api(ls.LitAPI):
    """Decodes, predicts and encodes the response in LitServe's worker process."""

    def setup(self, device: str) -> None:
        torch.set_num_threads(count_cores())
        self.classifier = vitrail.load(sys.argv[1])

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        return self.classifier.read_image(decode(io.BytesIO(base64.b64decode(request["image"]))))

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(inputs)

    def predict(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns logits. With a maximum batch size of 1, LitServe calls neither `batch` nor `unbatch`."""
        return self.predict_batch(pixels) if pixels.ndim == 4 else self.predict_batch(pixels[None])[0]

    def predict_batch(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        if len(sys.argv) > 5:
            time.sleep(len(pixels_BCHW) / float(sys.argv[5]))
            return torch.zeros(len(pixels_BCHW), len(self.classifier.classes))
        return self.classifier.logits(pixels_BCHW)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        return {"top": [vars(prediction) for prediction in top_predictions(output, self.classifier.classes)]}


if __name__ == "__main__":
    api = Api(max_batch_size=int(sys.argv[3]), batch_timeout=0.01)
    server = ls.LitServer(api, accelerator="cpu", timeout=float(sys.argv[4]) if len(sys.argv) > 4 else 120)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="error")
