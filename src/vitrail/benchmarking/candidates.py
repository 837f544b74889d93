"""The candidates of a benchmark: vitrail's ViT and its peers, in every mode in which each can run."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.benchmarking.peers import PEERS
from vitrail.console import silence_output
from vitrail.fast import make_fast_vit
from vitrail.machine import has_native_bf16
from vitrail.model.config import ViTConfig, to_pair
from vitrail.model.vit import ViT

VITRAIL = "vitrail"
Run = Callable[[], object]


@dataclass(frozen=True)
class Candidate:
    """A library's ViT in one mode; `build` makes it and returns a function that runs one batch."""

    library: str
    mode: str
    build: Callable[[], Run]
    has_comparable_memory: bool = True  # False if compiling or exporting dominates its peak memory


@dataclass(frozen=True)
class Workload:
    """The model size, the batch and the device that all candidates of a benchmark share."""

    config: ViTConfig
    batch_size: int
    device: torch.device
    vit: ViT | None = None  # vitrail's trained model; None for random weights

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random normalized images (B, C, H, W), the same at every call."""
        generator = torch.Generator().manual_seed(0)
        size = (self.batch_size, self.config.channels, *to_pair(self.config.image_size))
        return torch.randn(size, generator=generator).to(self.device, dtype)

    def model(self, library: str) -> nn.Module:
        """Returns a new ViT of the library."""
        torch.manual_seed(0)
        if library == VITRAIL:
            return (copy.deepcopy(self.vit) if self.vit else ViT(self.config)).to(self.device)
        return PEERS[library](self.config).to(self.device)


def training_candidates(workload: Workload, peers: Sequence[str]) -> list[Candidate]:
    """Returns a training step of each library's ViT: forward, cross-entropy, backward, the same AdamW for all."""
    modes = [
        ("fp32", partial(prepare_training_step, dtype=torch.float32), True),
        ("bf16 autocast", partial(prepare_training_step, dtype=torch.bfloat16), True),
    ]
    if workload.device.type == "cuda":
        compiled = partial(prepare_training_step, dtype=torch.bfloat16, compile=True)
        modes.append(("bf16 autocast, compiled", compiled, False))
    return [
        Candidate(library, mode, partial(prepare, workload, library), has_comparable_memory)
        for library in (VITRAIL, *peers)
        for mode, prepare, has_comparable_memory in modes
    ]


def prepare_training_step(workload: Workload, library: str, dtype: torch.dtype, compile: bool = False) -> Run:
    """Returns a training step on one batch that is already on the device."""
    model = workload.model(library).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images_BCHW = workload.images()
    labels_B = torch.arange(workload.batch_size, device=workload.device) % max(workload.config.classes, 1)
    forward = compile_model(model) if compile else model

    def step() -> None:
        with torch.autocast(workload.device.type, dtype, enabled=dtype != torch.float32):
            logits_BY = forward(images_BCHW)
        F.cross_entropy(logits_BY.float(), labels_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_candidates(
    workload: Workload, peers: Sequence[str], *, compile: bool = True, onnx: bool = True
) -> list[Candidate]:
    """Returns candidates that compute the logits of a batch.

    vitrail runs in fp32 and as its fast copy, the peers in eager mode, the first peer also compiled and in ONNX
    Runtime. One peer is enough for that: compiled or exported, all peers are the same graph.
    """
    has_bf16 = has_native_bf16(workload.device)
    candidates: list[Candidate] = []

    def add(library: str, mode: str, prepare: Callable[[Workload, str], Run], has_comparable_memory: bool) -> None:
        candidates.append(Candidate(library, mode, partial(prepare, workload, library), has_comparable_memory))

    add(VITRAIL, "fp32", prepare_eager, True)
    add(VITRAIL, "fast", prepare_fast, True)
    if compile:
        add(VITRAIL, "fast, compiled", partial(prepare_fast, compile=True), False)
    for library in peers:
        add(library, "fp32", prepare_eager, True)
        if has_bf16:
            add(library, "bf16", partial(prepare_eager, dtype=torch.bfloat16), True)
    for library in peers[:1]:
        if compile:
            add(library, "fp32, compiled", prepare_compiled, False)
        if compile and has_bf16:
            add(library, "bf16, compiled", partial(prepare_compiled, dtype=torch.bfloat16), False)
        if onnx and workload.device.type == "cpu":
            add(library, "ONNX Runtime fp32", partial(prepare_onnx_runtime, int8=False), False)
            add(library, "ONNX Runtime int8", partial(prepare_onnx_runtime, int8=True), False)
    return candidates


def prepare_inference(model: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Run:
    """Returns the forward pass of one batch, in inference mode."""

    def run() -> Tensor:
        with torch.inference_mode():
            return model(images_BCHW)

    return run


def prepare_eager(workload: Workload, library: str, dtype: torch.dtype = torch.float32) -> Run:
    """Returns the library's own forward pass with weights in this dtype."""
    return prepare_inference(workload.model(library).eval().to(dtype), workload.images(dtype))


def prepare_fast(workload: Workload, library: str, compile: bool = False) -> Run:
    """vitrail's fast path, in bf16 where the device computes it natively."""
    dtype = torch.bfloat16 if has_native_bf16(workload.device) else torch.float32
    vit = workload.model(library)
    assert isinstance(vit, ViT)
    fast_vit = make_fast_vit(vit, dtype, compile=[workload.batch_size] if compile else [])
    return prepare_inference(fast_vit, workload.images(dtype))


def prepare_compiled(workload: Workload, library: str, dtype: torch.dtype = torch.float32) -> Run:
    """Returns the forward pass through torch.compile; on CPU the weights are constants of the compiled code."""
    import torch._inductor.config as inductor

    model = compile_model(workload.model(library).eval().requires_grad_(False).to(dtype))
    run = prepare_inference(model, workload.images(dtype))
    with inductor.patch(freezing=workload.device.type == "cpu"):
        run()
    return run


def compile_model(model: nn.Module) -> nn.Module:
    """Returns the model through torch.compile; on a GPU with CUDA graphs."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    compiled: nn.Module = torch.compile(model, mode="reduce-overhead" if on_gpu else "default", dynamic=False)  # type: ignore[assignment]
    return compiled


def prepare_onnx_runtime(workload: Workload, library: str, *, int8: bool) -> Run:
    """Returns the exported model in ONNX Runtime, with as many threads as torch uses.

    `int8`: weights quantized per channel, activations dynamically.
    """
    import onnxruntime

    images = workload.images().numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    model = export_onnx(workload.config, library, int8)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


@lru_cache(maxsize=2)
def export_onnx(config: ViTConfig, library: str, int8: bool) -> bytes:
    """Returns the model as an ONNX file for batches of any size."""
    if int8:
        return quantize_onnx(export_onnx(config, library, False))
    workload = Workload(config, 2, torch.device("cpu"))  # with one image the exporter would fix the batch size at 1
    with silence_output():
        model = workload.model(library).eval()
        program: Any = torch.onnx.export(
            model, (workload.images(),), dynamo=True, dynamic_shapes=({0: "batch"},), input_names=["images"],
            verbose=False,
        )  # fmt: skip
    proto = program.model_proto
    del proto.graph.value_info[:]  # the exporter's shape annotations, on which quantization fails
    serialized: bytes = proto.SerializeToString()
    return serialized


def quantize_onnx(model: bytes) -> bytes:
    """Returns the ONNX file with linear layers in int8: ONNX Runtime's dynamic quantization, weights per channel."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    proto = onnx.load_from_string(model)
    with silence_output(), TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        linear = ["MatMul", "Gemm"]
        quantize_dynamic(proto, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=linear)
        return path.read_bytes()
