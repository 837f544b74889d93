"""The speed of `python -m benchmarks.gpu`: inference and training beside timm, and CIFAR-10 with a plain ViT."""

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

import vitrail
from benchmarks.gpu_checks import BF16_BOUND, TINY_MODEL
from benchmarks.gpu_session import Recorder, Session
from benchmarks.throughput import BATCH_SIZES, CONFIGS, DESCRIPTIONS
from vitrail.benchmarking import Candidate, Workload, inference_candidates, run_benchmark, training_candidates
from vitrail.benchmarking.candidates import VITRAIL

PEER = "timm"
TARGET = 0.94
MAX_EPOCHS = 60
END_SECONDS = 10.0  # of the accuracy part, for the last scores and the files of the run
# wider and deeper than speedrun-90, whose other settings it takes; its accuracy is to be measured here
LARGE_RUN: dict[str, Any] = dict(width=384, depth=8, heads=6, mlp_width=1536, batch_size=512)
TINY_RUN: dict[str, Any] = dict(**TINY_MODEL, patch=4, image_size=16, batch_size=8, cutmix=0.0)


def sizes(session: Session) -> Sequence[str]:
    """The names of the model sizes."""
    return ("quick",) if session.tiny else ("Ti", "S", "B")


def record_speed(session: Session, record: Recorder, title: str, batch_size: int, candidates: list[Candidate]) -> None:
    """Times candidates in turn and records a row for each."""
    rounds, min_seconds = (1, 0.001) if session.tiny else (5, 0.1)
    result = run_benchmark(
        candidates, batch_size, rounds=rounds, min_seconds=min_seconds, clock="wall", device=session.device
    )
    for row in result.rows:
        values = {"images_per_second": row.images_per_second, "milliseconds": row.milliseconds}
        ratio = {"ratio": row.ratio[0], "quartiles": row.ratio[1:]} if row.ratio else {}
        record.add(f"{title}: {row.library} {row.mode}", **values, **ratio)
    for name, reason in result.failed.items():
        record.check(f"{title}: {name}", False, reason=reason)


def time_inference(session: Session, record: Recorder) -> None:
    """Inference of each size beside timm, in float32, bf16 and as the fast copy, without compiling."""
    for size in sizes(session):
        for batch_size in BATCH_SIZES["cuda"][size][1]:
            workload = Workload(CONFIGS[size], batch_size, session.device)
            candidates = inference_candidates(workload, [PEER], compile=False, onnx=False)
            record_speed(session, record, f"{DESCRIPTIONS[size]}, batch {batch_size}", batch_size, candidates)


def time_training(session: Session, record: Recorder) -> None:
    """A training step of each size beside timm, in float32 and bf16, without compiling."""
    for size in sizes(session):
        batch_size = BATCH_SIZES["cuda"][size][0]
        candidates = training_candidates(Workload(CONFIGS[size], batch_size, session.device), [PEER])
        eager = [candidate for candidate in candidates if "compiled" not in candidate.mode]
        record_speed(session, record, f"{DESCRIPTIONS[size]}, batch {batch_size}", batch_size, eager)


def time_compiled_training(session: Session, record: Recorder) -> None:
    """Compares the gradients of the compiled model with those of the eager one, then times its step for ViT-S.

    On a CPU the gradients go through the tracer alone, and no code is generated.
    """
    size = sizes(session)[min(1, len(sizes(session)) - 1)]
    batch_size = BATCH_SIZES["cuda"][size][0]
    workload = Workload(CONFIGS[size], batch_size, session.device)
    images, gradients = workload.images()[:4], []
    labels = torch.arange(len(images), device=session.device) % workload.config.classes
    for compiles in (True, False):
        model = workload.model(VITRAIL).train()
        backend = "inductor" if session.device.type == "cuda" else "aot_eager"
        forward = torch.compile(model, backend=backend) if compiles else model
        F.cross_entropy(forward(images), labels).backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    record.compare("gradients of the compiled model", *gradients, BF16_BOUND if torch.cuda.is_available() else 1e-4)
    candidates = training_candidates(workload, [PEER])
    fastest = [candidate for candidate in candidates if "bf16" in candidate.mode]
    record_speed(session, record, f"{DESCRIPTIONS[size]}, batch {batch_size}", batch_size, fastest)


class EpochRecorder:
    """A callback that records the accuracy after each epoch."""

    def __init__(self, record: Recorder):
        self.record = record
        self.started = time.perf_counter()

    def on_epoch_end(self, state: Any) -> None:
        """Adds a row."""
        accuracy = next((value for name, value in state.metrics.items() if name.endswith("_accuracy")), None)
        self.record.add(f"epoch {state.epoch}", accuracy=accuracy, seconds=time.perf_counter() - self.started)


def train_to_accuracy(session: Session, record: Recorder) -> None:
    """Trains a plain ViT from scratch for as many epochs as the time allows, and checks the accuracy.

    The first of two runs is one epoch: its time says how many epochs the second can have.
    """
    started = time.perf_counter()
    folder = session.folder("accuracy")
    data = str(session.write_images(folder / "images", per_class=20)) if session.tiny else session.data
    options: dict[str, Any] = {**(TINY_RUN if session.tiny else LARGE_RUN), "check": False, "report": False}
    options |= {"recipe": "speedrun-90", "device": session.device_name}
    probe_started = time.perf_counter()
    vitrail.train(data, out=folder / "one-epoch", epochs=1, **options)
    epoch_s = time.perf_counter() - probe_started
    left_s = session.limit_s - (time.perf_counter() - started) - END_SECONDS
    epochs = max(1, min(12 if session.tiny else MAX_EPOCHS, int(left_s / epoch_s)))
    record.add("epochs that fit into the time", epochs=epochs, seconds_of_one=epoch_s)
    run = vitrail.train(data, out=folder / "run", epochs=epochs, callbacks=[EpochRecorder(record)], **options)
    accuracy = run.result["test"]["accuracy"]
    seconds = time.perf_counter() - started
    record.check(f"accuracy of {TARGET:.0%}", accuracy >= TARGET, accuracy=accuracy, seconds=seconds)
