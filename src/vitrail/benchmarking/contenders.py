"""Who is timed: our ViT and its peers, in every way each is run."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache, partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.benchmarking.peers import PEERS
from vitrail.fast import make_fast_vit
from vitrail.machine import has_native_bf16
from vitrail.model import ViT, ViTConfig
from vitrail.model.config import to_pair

OURS = "vitrail"
Run = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """A library's ViT run in one way; `make` builds it and gives a function that runs one batch."""

    who: str
    way: str
    make: Callable[[], Run]

    @property
    def is_light(self) -> bool:
        """Whether running it takes more memory than building it, which a compiler or an exporter turns round."""
        return "compiled" not in self.way and "ONNX" not in self.way


@dataclass(frozen=True)
class Task:
    """What all contenders of a run are given: the same size, batch and device."""

    config: ViTConfig
    batch: int
    device: torch.device
    vit: ViT | None = None  # the trained model that is ours; without it one with random weights

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalised images (B, C, H, W)."""
        drawn = torch.Generator().manual_seed(0)
        size = (self.batch, self.config.channels, *to_pair(self.config.image_size))
        return torch.randn(size, generator=drawn).to(self.device, dtype)

    def model(self, who: str) -> nn.Module:
        """A library's ViT, fresh."""
        torch.manual_seed(0)
        if who == OURS:
            return (copy.deepcopy(self.vit) if self.vit else ViT(self.config)).to(self.device)
        return PEERS[who](self.config).to(self.device)


def training_contenders(task: Task, peers: Sequence[str]) -> list[Contender]:
    """A step with AdamW on each library's ViT: forward, cross-entropy, backward, update; the optimiser is the same."""
    ways = {"fp32": partial(train, dtype=torch.float32), "bf16 autocast": partial(train, dtype=torch.bfloat16)}
    if task.device.type == "cuda":
        ways["bf16 autocast, compiled"] = partial(train, dtype=torch.bfloat16, compile=True)
    return [Contender(who, way, partial(make, task, who)) for who in (OURS, *peers) for way, make in ways.items()]


def train(task: Task, who: str, dtype: torch.dtype, compile: bool = False) -> Run:
    """A step on one batch that is already on the device."""
    model = task.model(who).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images_BCHW = task.images()
    labels_B = torch.arange(task.batch, device=task.device) % max(task.config.classes, 1)
    forward = compiled(model) if compile else model

    def step() -> None:
        with torch.autocast(task.device.type, dtype, enabled=dtype != torch.float32):
            logits_BY = forward(images_BCHW)
        F.cross_entropy(logits_BY.float(), labels_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_contenders(
    task: Task, peers: Sequence[str], *, compile: bool = True, onnx: bool = True
) -> list[Contender]:
    """Logits of a batch: ours plainly and by the fast path, the peers eager, one of them compiled and in ONNX Runtime.

    That one is the first: compiled or exported, they are all the same graph.
    """
    half = has_native_bf16(task.device)
    on_cpu = task.device.type == "cpu"
    ways: dict[tuple[str, str], Callable[..., Run]] = {(OURS, "fp32"): eager, (OURS, "fast"): quick}
    if compile:
        ways[OURS, "fast, compiled"] = partial(quick, compile=True)
    for who in peers:
        ways[who, "fp32"] = eager
        if half:
            ways[who, "bf16"] = partial(eager, dtype=torch.bfloat16)
    for who in peers[:1]:
        if compile:
            ways[who, "fp32, compiled"] = frozen
        if compile and half:
            ways[who, "bf16, compiled"] = partial(frozen, dtype=torch.bfloat16)
        if onnx and on_cpu:
            ways[who, "ONNX Runtime fp32"] = partial(in_onnx_runtime, int8=False)
            ways[who, "ONNX Runtime int8"] = partial(in_onnx_runtime, int8=True)
    return [Contender(who, way, partial(make, task, who)) for (who, way), make in ways.items()]


def inference_of(model: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Run:
    """The logits of one batch."""

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images_BCHW)

    return run


def eager(task: Task, who: str, dtype: torch.dtype = torch.float32) -> Run:
    """The library's own forward, its weights in this dtype."""
    return inference_of(task.model(who).eval().to(dtype), task.images(dtype))


def quick(task: Task, who: str, compile: bool = False) -> Run:
    """Our fast path."""
    dtype = torch.bfloat16 if has_native_bf16(task.device) else torch.float32
    vit = task.model(who)
    assert isinstance(vit, ViT)
    return inference_of(make_fast_vit(vit, dtype, compile=[task.batch] if compile else []), task.images(dtype))


def frozen(task: Task, who: str, dtype: torch.dtype = torch.float32) -> Run:
    """The library's forward through torch.compile: on CPU with its weights frozen into the code."""
    import torch._inductor.config as inductor

    model = compiled(task.model(who).eval().requires_grad_(False).to(dtype))
    run = inference_of(model, task.images(dtype))
    with inductor.patch(freezing=task.device.type == "cpu"):
        run()
    return run


def compiled(model: nn.Module) -> nn.Module:
    """The model through torch.compile, on a GPU in CUDA graphs."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    made: nn.Module = torch.compile(model, mode="reduce-overhead" if on_gpu else "default", dynamic=False)  # type: ignore[assignment]
    return made


def in_onnx_runtime(task: Task, who: str, *, int8: bool) -> Run:
    """The model exported to ONNX Runtime, with as many threads as torch has.

    `int8` quantises the weights by channel and the activations as they come (dynamic quantisation).
    """
    import onnxruntime

    images = task.images().numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    file = onnx_bytes(task.config, who, int8)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


@lru_cache(maxsize=2)
def onnx_bytes(config: ViTConfig, who: str, int8: bool) -> bytes:
    """The model as an ONNX file for batches of any size."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if int8:
        made = onnx.load_from_string(onnx_bytes(config, who, False))
        with quiet(), TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            some = ["MatMul", "Gemm"]
            quantize_dynamic(made, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=some)
            return path.read_bytes()
    two = Task(config, 2, torch.device("cpu"))  # one image would be taken for a batch that is always one
    with quiet():
        model = two.model(who).eval()
        program: Any = torch.onnx.export(
            model, (two.images(),), dynamo=True, dynamic_shapes=({0: "batch"},), input_names=["images"], verbose=False
        )
    made = program.model_proto
    del made.graph.value_info[:]  # shapes noted by the exporter, on which quantising stumbles
    written: bytes = made.SerializeToString()
    return written


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters and quantisers say to themselves is not said."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
