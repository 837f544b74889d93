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

VITRAIL = "vitrail"
Run = Callable[[], object]


@dataclass(frozen=True)
class Candidate:
    """A library's ViT run in one way; `make` builds it and gives a function that runs one batch."""

    library: str
    mode: str
    build: Callable[[], Run]

    @property
    def has_comparable_memory(self) -> bool:
        """Whether running it takes more memory than building it, which a compiler or an exporter turns round."""
        return "compiled" not in self.mode and "ONNX" not in self.mode


@dataclass(frozen=True)
class Workload:
    """What all contenders of a run are given: the same size, batch and device."""

    config: ViTConfig
    batch_size: int
    device: torch.device
    vit: ViT | None = None  # the trained model that is ours; without it one with random weights

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalised images (B, C, H, W)."""
        drawn = torch.Generator().manual_seed(0)
        size = (self.batch_size, self.config.channels, *to_pair(self.config.image_size))
        return torch.randn(size, generator=drawn).to(self.device, dtype)

    def model(self, who: str) -> nn.Module:
        """A library's ViT, fresh."""
        torch.manual_seed(0)
        if who == VITRAIL:
            return (copy.deepcopy(self.vit) if self.vit else ViT(self.config)).to(self.device)
        return PEERS[who](self.config).to(self.device)


def training_candidates(task: Workload, peers: Sequence[str]) -> list[Candidate]:
    """A step with AdamW on each library's ViT: forward, cross-entropy, backward, update; the optimiser is the same."""
    ways = {
        "fp32": partial(prepare_training_step, dtype=torch.float32),
        "bf16 autocast": partial(prepare_training_step, dtype=torch.bfloat16),
    }
    if task.device.type == "cuda":
        ways["bf16 autocast, compiled"] = partial(prepare_training_step, dtype=torch.bfloat16, compile=True)
    return [Candidate(who, way, partial(make, task, who)) for who in (VITRAIL, *peers) for way, make in ways.items()]


def prepare_training_step(task: Workload, who: str, dtype: torch.dtype, compile: bool = False) -> Run:
    """A step on one batch that is already on the device."""
    model = task.model(who).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images_BCHW = task.images()
    labels_B = torch.arange(task.batch_size, device=task.device) % max(task.config.classes, 1)
    forward = compile_model(model) if compile else model

    def step() -> None:
        with torch.autocast(task.device.type, dtype, enabled=dtype != torch.float32):
            logits_BY = forward(images_BCHW)
        F.cross_entropy(logits_BY.float(), labels_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_candidates(
    task: Workload, peers: Sequence[str], *, compile: bool = True, onnx: bool = True
) -> list[Candidate]:
    """Logits of a batch: ours plainly and by the fast path, the peers eager, one of them compiled and in ONNX Runtime.

    That one is the first: compiled or exported, they are all the same graph.
    """
    half = has_native_bf16(task.device)
    on_cpu = task.device.type == "cpu"
    ways: dict[tuple[str, str], Callable[..., Run]] = {
        (VITRAIL, "fp32"): prepare_eager,
        (VITRAIL, "fast"): prepare_fast,
    }
    if compile:
        ways[VITRAIL, "fast, compiled"] = partial(prepare_fast, compile=True)
    for who in peers:
        ways[who, "fp32"] = prepare_eager
        if half:
            ways[who, "bf16"] = partial(prepare_eager, dtype=torch.bfloat16)
    for who in peers[:1]:
        if compile:
            ways[who, "fp32, compiled"] = prepare_compiled
        if compile and half:
            ways[who, "bf16, compiled"] = partial(prepare_compiled, dtype=torch.bfloat16)
        if onnx and on_cpu:
            ways[who, "ONNX Runtime fp32"] = partial(prepare_onnx_runtime, int8=False)
            ways[who, "ONNX Runtime int8"] = partial(prepare_onnx_runtime, int8=True)
    return [Candidate(who, way, partial(make, task, who)) for (who, way), make in ways.items()]


def prepare_inference(model: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Run:
    """The logits of one batch."""

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images_BCHW)

    return run


def prepare_eager(task: Workload, who: str, dtype: torch.dtype = torch.float32) -> Run:
    """The library's own forward, its weights in this dtype."""
    return prepare_inference(task.model(who).eval().to(dtype), task.images(dtype))


def prepare_fast(task: Workload, who: str, compile: bool = False) -> Run:
    """Our fast path."""
    dtype = torch.bfloat16 if has_native_bf16(task.device) else torch.float32
    vit = task.model(who)
    assert isinstance(vit, ViT)
    return prepare_inference(
        make_fast_vit(vit, dtype, compile=[task.batch_size] if compile else []), task.images(dtype)
    )


def prepare_compiled(task: Workload, who: str, dtype: torch.dtype = torch.float32) -> Run:
    """The library's forward through torch.compile: on CPU with its weights frozen into the code."""
    import torch._inductor.config as inductor

    model = compile_model(task.model(who).eval().requires_grad_(False).to(dtype))
    run = prepare_inference(model, task.images(dtype))
    with inductor.patch(freezing=task.device.type == "cpu"):
        run()
    return run


def compile_model(model: nn.Module) -> nn.Module:
    """The model through torch.compile, on a GPU in CUDA graphs."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    made: nn.Module = torch.compile(model, mode="reduce-overhead" if on_gpu else "default", dynamic=False)  # type: ignore[assignment]
    return made


def prepare_onnx_runtime(task: Workload, who: str, *, int8: bool) -> Run:
    """The model exported to ONNX Runtime, with as many threads as torch has.

    `int8` quantises the weights by channel and the activations as they come (dynamic quantisation).
    """
    import onnxruntime

    images = task.images().numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    file = export_onnx(task.config, who, int8)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


@lru_cache(maxsize=2)
def export_onnx(config: ViTConfig, who: str, int8: bool) -> bytes:
    """The model as an ONNX file for batches of any size."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if int8:
        made = onnx.load_from_string(export_onnx(config, who, False))
        with quiet(), TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            some = ["MatMul", "Gemm"]
            quantize_dynamic(made, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=some)
            return path.read_bytes()
    two = Workload(config, 2, torch.device("cpu"))  # one image would be taken for a batch that is always one
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
