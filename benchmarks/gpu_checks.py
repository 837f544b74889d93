"""The checks of `python -m benchmarks.gpu`: what a GPU computes equals what the CPU computes."""

import csv
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitrail
from benchmarks.cancels import ServerLog
from benchmarks.gpu_session import Recorder, Session
from vitrail.benchmarking.peers import torchvision_vit, transformers_vit
from vitrail.explanation.api import explain_batch
from vitrail.explanation.methods import METHODS
from vitrail.exporting.onnx_classifier import OnnxClassifier
from vitrail.machine import describe_hardware, has_native_bf16
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT

FP32_BOUND, GRADIENT_BOUND, MAP_BOUND, BF16_BOUND = 1e-4, 1e-3, 1e-2, 0.05
TINY_MODEL: dict[str, Any] = dict(width=32, depth=2, heads=2, mlp_width=64)
LARGE_MODEL: dict[str, Any] = dict(width=192, depth=6, heads=3, mlp_width=768)
OPTIONS: dict[str, Any] = dict(report=False, check=False, workers=0, batch_size=16)


def describe(session: Session, record: Recorder) -> None:
    """Records the device, its memory and the libraries."""
    device = session.device
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    record.add("machine", **describe_hardware(device), memory=memory, cuda=torch.version.cuda)
    record.check("bf16 is native", has_native_bf16(device) or device.type != "cuda")


def use_exact_float32() -> None:
    """Turns TF32 off, which has a tenth of float32's digits."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def compare_with_cpu(session: Session, record: Recorder) -> None:
    """Logits, gradients and the fast copy beside the CPU's; models of other libraries beside themselves."""
    use_exact_float32()
    classifier, pixels = session.classifier(), session.pixels(4)
    expected = classifier.logits(pixels)
    there = classifier.to(session.device)
    record.compare("logits in float32", there.logits(pixels), expected, FP32_BOUND)
    record.compare("logits of the fast copy", there.fast().logits(pixels), expected, BF16_BOUND)
    images = classifier.normalize(pixels)
    gradients = {name: compute_gradients(classifier.vit, images, name) for name in ("cpu", session.device_name)}
    record.compare("gradients in float32", gradients[session.device_name], gradients["cpu"], GRADIENT_BOUND)
    for library, build in PEERS.items():
        torch.manual_seed(0)
        peer = build(session.config()).eval().requires_grad_(False)
        ours = vitrail.load(peer).to(session.device)
        x = images.to(session.device)
        theirs = peer.to(session.device)(x)
        record.compare(f"logits of {library}", ours.vit(x), getattr(theirs, "logits", theirs), FP32_BOUND)


def build_timm(config: ViTConfig) -> nn.Module:
    """timm's ViT of this size, with the `pretrained_cfg` of `create_model`, which `vitrail.load` reads."""
    import timm

    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=config.classes,
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_width / config.width,
    )
    return model


def build_transformers(config: ViTConfig) -> nn.Module:
    """transformers' ViTForImageClassification of this size."""
    model: nn.Module = transformers_vit(config).model  # type: ignore[assignment]
    return model


PEERS: dict[str, Callable[[ViTConfig], nn.Module]] = {
    "timm": build_timm,
    "torchvision": torchvision_vit,
    "transformers": build_transformers,
}


def compute_gradients(vit: ViT, images_BCHW: Tensor, device: str) -> Tensor:
    """All gradients of a cross-entropy on this device, as one vector."""
    model = ViT(vit.config)
    model.load_state_dict(vit.state_dict())
    model.to(device).train()
    labels_B = torch.arange(len(images_BCHW), device=device) % vit.config.classes
    F.cross_entropy(model(images_BCHW.to(device)), labels_B).backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])


def compare_recordings(session: Session, record: Recorder) -> None:
    """The recorded attention beside the CPU's; recording changes no bit of the logits, also in bf16."""
    use_exact_float32()
    classifier = session.classifier()
    images = classifier.normalize(session.pixels(2))
    with torch.no_grad(), vitrail.recording(classifier.vit) as expected:
        classifier.vit(images)
    there = classifier.to(session.device)
    for dtype in (torch.float32, torch.bfloat16):
        vit, x = there.vit.to(dtype), images.to(session.device, dtype)
        with torch.no_grad():
            plain = vit(x)
            with vitrail.recording(vit) as recorded:
                logits = vit(x)
        record.check(f"{dtype}: the same logits while recording", torch.equal(plain, logits))
        bound = FP32_BOUND if dtype == torch.float32 else BF16_BOUND
        for layer in range(vit.config.depth):
            attention = recorded.attention(layer)
            record.compare(f"{dtype}: attention of layer {layer}", attention, expected.attention(layer), bound)


def compare_explanations(session: Session, record: Recorder) -> None:
    """The map of each method beside the CPU's."""
    use_exact_float32()
    classifier, pixels = session.classifier(), session.pixels(1)
    there = classifier.to(session.device)
    for method in METHODS:
        maps = [explain_batch(each, pixels, method=method, target="red")[0].map for each in (there, classifier)]
        record.compare(f"map of {method}", *maps, MAP_BOUND)


def train_in_each_precision(session: Session, record: Recorder) -> None:
    """Trains on images of three colors in float32 and bf16, and checks the accuracy."""
    folder = session.folder("train")
    images = session.write_images(folder / "images", per_class=20)
    for precision in ("fp32", "bf16"):
        started = time.perf_counter()
        run = train_small(session, images, folder / precision, precision=precision)
        accuracy = run.result["test"]["accuracy"]
        seconds = time.perf_counter() - started
        record.check(f"accuracy in {precision}", accuracy >= 0.9, accuracy=accuracy, seconds=seconds)


def train_small(session: Session, images: Path, out: Path, **changes: Any) -> vitrail.Run:
    """Trains a small ViT on the device for 8 epochs, or as `changes` say."""
    model = TINY_MODEL if session.tiny else LARGE_MODEL
    return vitrail.train(images, out=out, device=session.device_name, **{**model, **OPTIONS, "epochs": 8, **changes})


class StopProcess(Exception):
    """Raised by a callback in the middle of a training."""


class Interruption:
    """A callback that ends the training after an epoch."""

    def on_epoch_end(self, state: Any) -> None:
        """Raises an error after the second epoch."""
        if state.epoch == 2:
            raise StopProcess


def resume_a_run(session: Session, record: Recorder) -> None:
    """Interrupts a training and resumes it: the weights are those of a training without interruption.

    A GPU adds some gradients in an order that varies, so there the last bits may differ.
    """
    folder = session.folder("resume")
    images = session.write_images(folder / "images", per_class=20)
    whole = train_small(session, images, folder / "whole", epochs=4)
    interrupted = False
    try:
        train_small(session, images, folder / "cut", epochs=4, callbacks=[Interruption()])
    except Exception as error:
        if not isinstance(error, StopProcess) and not isinstance(error.__cause__, StopProcess):
            raise
        interrupted = True
    record.check("the training was interrupted", interrupted)
    resumed = train_small(session, images, folder / "cut", epochs=4, resume=True)
    weights = [
        torch.cat([tensor.flatten() for tensor in run.classifier.to("cpu").vit.state_dict().values()])
        for run in (resumed, whole)
    ]
    bound = 0.0 if session.device.type == "cpu" else BF16_BOUND
    record.compare("weights after resuming", *weights, bound)
    record.add("weights are the same to the last bit", value=torch.equal(*weights))


def predict_a_folder(session: Session, record: Recorder) -> None:
    """Predicts a folder into files on both devices; the rows agree."""
    folder = session.folder("predict")
    images = session.write_images(folder / "images", per_class=10 if session.tiny else 400)
    session.classifier().save(folder / "model.safetensors")
    rows = []
    for name, device in (("here", session.device_name), ("expected", "cpu")):
        started = time.perf_counter()
        vitrail.predict_all(folder / "model.safetensors", images / "train", folder / name, format="csv", device=device)
        rows.append([row for path in sorted((folder / name).rglob("*.csv")) for row in csv.DictReader(path.open())])
        record.add(f"on {device}", images=len(rows[-1]), seconds=time.perf_counter() - started)
    ours, expected = rows
    same = sum(a["label"] == b["label"] for a, b in zip(ours, expected, strict=True))
    record.check("labels", same >= 0.99 * len(expected), equal=same, of=len(expected))
    probabilities = [[float(row["probability"]) for row in each] for each in (ours, expected)]
    record.compare("probabilities", *probabilities, BF16_BOUND)


def export_programs(session: Session, record: Recorder) -> None:
    """Exports a classifier from the device; the exporter compares the program with it, and so does this."""
    folder = session.folder("export")
    classifier, pixels = session.classifier(), session.pixels(2)
    there = classifier.to(session.device)
    for format, name in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        result = vitrail.export(there, folder / name, format=format, attention=True)  # type: ignore[call-overload]
        record.add(f"{format} is written", **result.verification.to_json())
        if format == "onnx":
            logits = OnnxClassifier.load(result.path).logits(pixels)
            record.compare("logits in ONNX Runtime", logits, classifier.logits(pixels), GRADIENT_BOUND)


def serve_batches(session: Session, record: Recorder) -> None:
    """Serves with one process and with two, so with two batches in flight; answers equal the CPU's."""
    folder = session.folder("serve")
    images = sorted(session.write_images(folder / "images", per_class=6).glob("train/*/*.png"))
    classifier = session.classifier()
    classifier.save(folder / "model.safetensors")
    expected = [classifier.predict(path)[0].label for path in images]
    for processes in (2,) if session.tiny else (1, 2):
        with start_server(session, folder / "model.safetensors", processes) as address:
            labels = [post_image(address, path) for path in images]
            same = sum(a == b for a, b in zip(labels, expected, strict=True))
            record.check(f"labels with {processes} processes", same >= 0.9 * len(expected), equal=same, of=len(labels))
            rate = measure_rate(
                address, images[0], clients=4 if session.tiny else 32, requests=8 if session.tiny else 100
            )
            record.add(f"{processes} batches in flight", images_per_second=rate)


@contextmanager
def start_server(session: Session, model: Path, processes: int) -> Iterator[str]:
    """Runs `vitrail serve`; yields its address."""
    options = ["--processes", str(processes), "--backend", "torch", "--device", session.device_name, "--port", "0"]
    command = [sys.executable, "-m", "vitrail", "serve", str(model), *options, "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = ServerLog(process)
            address = log.wait("listening")["url"]
            log.wait("ready")
            yield address
        finally:
            process.terminate()


def post_image(address: str, path: Path) -> str:
    """Returns the most probable label of a file."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request("POST", "/predict", path.read_bytes())
        return read_label(connection.getresponse())
    finally:
        connection.close()


def read_label(response: http.client.HTTPResponse) -> str:
    """The label in an answer; raises `RuntimeError` for an error of the server."""
    body = response.read()
    if response.status != 200:
        raise RuntimeError(f"the server answered {response.status}: {body[:200]!r}")
    label: str = json.loads(body)["predictions"][0]["top"][0]["label"]
    return label


def measure_rate(address: str, path: Path, clients: int, requests: int) -> float:
    """Images per second for `clients` that send `requests` each, one after another."""
    parts, content = urlsplit(address), path.read_bytes()

    def send(_: int) -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        for _ in range(requests):
            connection.request("POST", "/predict", content)
            read_label(connection.getresponse())
        connection.close()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, range(clients)))
    return clients * requests / (time.perf_counter() - started)
