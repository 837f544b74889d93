"""A FastAPI server as in a tutorial: one image per request, the model in the thread pool. For benchmarks/serving.py."""

import io
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

import vitrail
from vitrail.data.decode import decode

torch.set_num_threads(1)  # the pool has forty threads that call the model, more would compete
classifier = vitrail.load(sys.argv[1])
app = FastAPI()


def predict_file(data: bytes) -> list[dict[str, Any]]:
    """Returns the five most probable classes of an image file."""
    return [vars(prediction) for prediction in classifier.predict(decode(io.BytesIO(data)))]


@app.post("/predict")
async def predict(request: Request) -> list[dict[str, Any]]:
    """Predicts the image in the body."""
    return await run_in_threadpool(predict_file, await request.body())


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", backlog=2048)
