"""What a tutorial shows: one endpoint, one image, the model in the thread pool. For benchmarks/serving.py."""

import io
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

import vitrail
from vitrail.data.decode import decode

torch.set_num_threads(1)  # forty threads of the pool call the model; more each would only be in each other's way
classifier = vitrail.load(sys.argv[1])
app = FastAPI()


def answer(data: bytes) -> list[dict[str, Any]]:
    """An image file -> its five best classes."""
    return [vars(each) for each in classifier.predict(decode(io.BytesIO(data)))]


@app.post("/predict")
async def predict(request: Request) -> list[dict[str, Any]]:
    """An image as the body."""
    return await run_in_threadpool(answer, await request.body())


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", backlog=2048)
