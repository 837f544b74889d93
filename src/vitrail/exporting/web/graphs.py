"""What the page asks of the model, as ONNX graphs that share one file of weights.

    look   an image -> logits, the attention of every layer and head, what every token would answer after every layer
    keep   an image and the patches that are left -> logits: what is hidden is not computed at all
    map    an image and a class, or one rather than another -> what each patch adds, by the default method

An exported graph knows no gradients, so for `map` the pass back is traced and becomes operators like any other
(`map_graph.answers`).

Shapes: L layers, N heads, T tokens, P patches, K patches that are left, Y classes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vitrail.classifier import Classifier
from vitrail.console import silence_output
from vitrail.exporting.onnx_format import OPSET
from vitrail.exporting.program import Program, plain_attention
from vitrail.exporting.trace import logits_and_map
from vitrail.model.position import Rotate

WEIGHTS = "weights"  # the file that all graphs refer to
INLINE = 1024  # bytes up to which a constant stays in the graph
ALIGNED = 64


class Part(nn.Module):
    """A question to the model; pixels are uint8 of the model's size, (1, C, H, W)."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.vit = program.vit
        self.prefix = program.vit.config.prefix_tokens

    def embed(self, pixels_1CHW: Tensor) -> Tensor:
        """Pixels -> the tokens that enter the first block, (1, T, D)."""
        return self.vit.embed(self.program.preprocess.normalize(pixels_1CHW))

    def rotation(self, keep_BK: Tensor | None = None) -> Rotate | None:
        """The rotation of all patches, or of those that are left."""
        return self.vit.position.rotation(*self.vit.config.grid, keep_BK)


class Look(Part):
    """logits (1, Y); attention (L, N, T, T); lens (L, P, Y): each patch's token read alone; answers (L, Y)."""

    def forward(self, pixels_1CHW: Tensor) -> tuple[Tensor, ...]:
        vit = self.vit
        x_1TD = vit.pre_norm(vit.embedding_drop(self.embed(pixels_1CHW)))
        rotate = self.rotation()
        lens, answers = [], []
        with plain_attention(vit) as attention:
            for block in vit.blocks:
                x_1TD = block(x_1TD, rotate)
                z_1TD = vit.norm(x_1TD)
                answers.append(vit.head(vit.pool(z_1TD)))
                copies_PTD = z_1TD[0, self.prefix :, None].expand(-1, self.prefix + 1, -1)
                lens.append(vit.head(vit.pool(copies_PTD)))  # every pool reads copies of one token as that token
        return answers[-1], torch.cat(attention), torch.stack(lens), torch.cat(answers)


class Keep(Part):
    """The logits (B, Y) where only these patches of the one image are there, (B, K) numbers row by row."""

    def forward(self, pixels_1CHW: Tensor, keep_BK: Tensor) -> Tensor:
        x_1TD = self.embed(pixels_1CHW)
        x_BKD = x_1TD[0, self.prefix :][keep_BK]
        prefix_BRD = x_1TD[:, : self.prefix].expand(keep_BK.shape[0], -1, -1)
        x_BTD = torch.cat([prefix_BRD, x_BKD], dim=1)
        with plain_attention(self.vit):
            rotate = self.rotation(keep_BK)
            return self.vit.head(self.vit.pool(self.vit.encode(x_BTD, rotate)))


@dataclass(frozen=True)
class Graphs:
    """The graphs as ONNX files, and the one file of weights that they share."""

    graphs: dict[str, bytes]
    weights: bytes = field(repr=False)
    half: bool = False

    def sessions(self) -> "dict[str, Callable[..., list[np.ndarray]]]":
        """Each graph as a function from its inputs to its outputs, run by ONNX Runtime from these very bytes."""
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)

        def session(graph: bytes) -> Callable[..., list[np.ndarray]]:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [self.weights], [len(self.weights)])
            opened = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            names = [given.name for given in opened.get_inputs()]

            def run(*given: np.ndarray) -> list[np.ndarray]:
                found: list[np.ndarray] = opened.run(None, dict(zip(names, given, strict=True)))
                return found

            return run

        return {name: session(graph) for name, graph in self.graphs.items()}


def trace_graphs(classifier: Classifier) -> dict[str, Any]:
    """The graphs of a classifier as ONNX models, in float32; the classifier is left as it is."""
    program = Program(classifier)
    config = classifier.vit.config
    patches = config.grid[0] * config.grid[1]
    pixels_1CHW = program.example_pixels[:1]
    target_1Y = torch.eye(config.classes)[:1]
    keep_BK = torch.arange(min(patches, 5)).expand(3, -1).contiguous()
    batch, left = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("left", min=1, max=max(patches, 2))
    dynamic = {"pixels_1CHW": None, "keep_BK": None if patches == 1 else {0: batch, 1: left}}
    back: Any = make_fx(lambda pixels, target: logits_and_map(program, pixels, target)[-1])
    with torch.enable_grad():
        back = back(pixels_1CHW, target_1Y)
    return {
        "look": onnx_of(Look(program), (pixels_1CHW,), ["pixels"], ["logits", "attention", "lens", "answers"]),
        "keep": onnx_of(Keep(program), (pixels_1CHW, keep_BK), ["pixels", "keep"], ["logits"], dynamic),
        "map": onnx_of(back.eval(), (pixels_1CHW, target_1Y), ["pixels", "target"], ["map"]),
    }


def pack_graphs(models: dict[str, Any], half: bool = False) -> Graphs:
    """The models as files that share their weights, stored in float16 if `half`; they compute in float32 anyway."""
    from onnx import ModelProto

    shared = Shared(half)
    graphs = {}
    for name, model in models.items():
        own = ModelProto()
        own.CopyFrom(model)
        graphs[name] = shared.without_weights(own)
    return Graphs(graphs, bytes(shared.blob), half)


def onnx_of(
    module: nn.Module, given: tuple[Tensor, ...], inputs: list[str], outputs: list[str], dynamic: Any = None
) -> Any:
    """The module as an ONNX model, just as it was traced: transposed weights stay one tensor and a Transpose."""
    with torch.no_grad(), silence_output():
        program = torch.onnx.export(
            module, given, dynamo=True, optimize=False, verbose=False, opset_version=OPSET, input_names=inputs,
            output_names=outputs, dynamic_shapes=dynamic,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


class Shared:
    """The file of weights that graphs share: what several of them hold lies in it once."""

    def __init__(self, half: bool):
        self.half = half
        self.blob = bytearray()
        self.places: dict[bytes, tuple[int, int]] = {}

    def without_weights(self, model: Any) -> bytes:
        """The model with its larger constants moved into the file."""
        from onnx import TensorProto, helper, numpy_helper

        graph = model.graph
        casts = []
        for tensor in graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.nbytes < INLINE:
                continue
            name, kind = tensor.name, tensor.data_type
            if self.half and kind == TensorProto.FLOAT:
                values, kind, name = values.astype(np.float16), TensorProto.FLOAT16, f"{name}.half"
                casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
            at, length = self.place(values.tobytes())
            tensor.Clear()
            tensor.name, tensor.data_type = name, kind
            tensor.dims.extend(values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": WEIGHTS, "offset": at, "length": length}.items():
                tensor.external_data.add(key=key, value=str(value))
        nodes = [*casts, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]  # where in whose source it was traced
        del graph.value_info[:]
        del model.metadata_props[:]
        whole: bytes = model.SerializeToString()
        return whole

    def place(self, content: bytes) -> tuple[int, int]:
        """Where these bytes lie in the file, and how many they are."""
        digest = hashlib.sha256(content).digest()
        if digest not in self.places:
            self.blob.extend(bytes(-len(self.blob) % ALIGNED))
            self.places[digest] = (len(self.blob), len(content))
            self.blob.extend(content)
        return self.places[digest]
