"""The ONNX graphs that a page runs; they share one file of weights.

    inspect   an image -> logits, attention of every layer and head, logits of every patch and layer, and the weight of
              each token in the pooled vector
    subset    an image and some of its patches -> logits; the other patches are not computed at all
    map       an image and a class, alone or against another -> the map of the default method

Exported graphs have no autograd, so the gradient that `map` needs is traced into operators (exporting/trace.py).

Shapes: B sets of patches, L layers, N heads, T tokens, P patches, K kept patches, Y classes.
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
from vitrail.explanation.attention import fixed_readout
from vitrail.exporting.onnx_format import OPSET
from vitrail.exporting.program import Program, plain_attention
from vitrail.exporting.trace import logits_and_map
from vitrail.model.attention import attention_weights
from vitrail.model.pool import AttentionPool
from vitrail.model.position import Rotate

WEIGHTS = "weights"  # name of the external file in the graphs
MAX_INLINE_BYTES = 1024  # smaller constants stay in the graph
ALIGNMENT = 64

RunGraph = Callable[..., list[np.ndarray]]  # inputs of a graph in order -> its outputs


class PageGraph(nn.Module):
    """A graph that takes uint8 pixels of the model's size, (1, C, H, W), and further inputs."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        self.vit = program.vit
        self.prefix = program.vit.config.prefix_tokens

    def embed(self, pixels_1CHW: Tensor) -> Tensor:
        """Returns the tokens that enter the first block, (1, T, D)."""
        return self.vit.embed(self.program.preprocess.normalize(pixels_1CHW))

    def rotation(self, keep_BK: Tensor | None = None) -> Rotate | None:
        """Returns the rotary position of all patches, or of some."""
        return self.vit.position.rotation(*self.vit.config.grid, keep_BK)


class InspectGraph(PageGraph):
    """Returns an image's outputs.

    Logits (1, Y), attention (L, N, T, T), logits of each patch alone (L, P, Y), logits by layer (L, Y), and the weight
    of each token in the pooled vector (T,).
    """

    fixed_readout_T: Tensor

    def __init__(self, program: Program):
        super().__init__(program)
        config = self.vit.config
        if config.pool != "map":
            tokens = config.prefix_tokens + config.grid[0] * config.grid[1]
            self.register_buffer("fixed_readout_T", fixed_readout(config, tokens))

    def forward(self, pixels_1CHW: Tensor) -> tuple[Tensor, ...]:
        vit = self.vit
        x_1TD = vit.pre_norm(vit.embedding_drop(self.embed(pixels_1CHW)))
        rotate = self.rotation()
        lens, layer_logits = [], []
        with plain_attention(vit) as attention:
            for block in vit.blocks:
                x_1TD = block(x_1TD, rotate)
                z_1TD = vit.norm(x_1TD)
                layer_logits.append(vit.head(vit.pool(z_1TD)))
                copies_PTD = z_1TD[0, self.prefix :, None].expand(-1, self.prefix + 1, -1)
                lens.append(vit.head(vit.pool(copies_PTD)))  # every pool reads copies of one token as that token
        readout_T = self.readout(z_1TD)
        return layer_logits[-1], torch.cat(attention), torch.stack(lens), torch.cat(layer_logits), readout_T

    def readout(self, z_1TD: Tensor) -> Tensor:
        """Returns the weight of each token in the pooled vector, as `vitrail explain --method attention` has it."""
        pool = self.vit.pool
        if isinstance(pool, AttentionPool):
            q_1N1K = pool.q(pool.query)[None].unflatten(-1, (pool.heads, -1)).transpose(1, 2)
            k_1NTK = pool.kv(z_1TD).unflatten(-1, (2, pool.heads, -1)).permute(2, 0, 3, 1, 4)[0]
            return attention_weights(q_1N1K, k_1NTK)[0, :, 0].mean(dim=0)
        return self.fixed_readout_T + torch.zeros_like(z_1TD[0, :, 0])


class SubsetGraph(PageGraph):
    """Returns the logits (B, Y) with only some patches of the image; `keep_BK` has a row of patch indices per set."""

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
    """The graphs as ONNX files by name, and the file of weights that they share."""

    graphs: dict[str, bytes]
    weights: bytes = field(repr=False)
    half: bool = False

    def sessions(self) -> dict[str, RunGraph]:
        """Returns each graph as a function; ONNX Runtime runs it from the bytes of the page."""
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)

        def open_session(graph: bytes) -> RunGraph:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [self.weights], [len(self.weights)])
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            names = [port.name for port in session.get_inputs()]

            def run(*inputs: np.ndarray) -> list[np.ndarray]:
                outputs: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
                return outputs

            return run

        return {name: open_session(graph) for name, graph in self.graphs.items()}


def trace_graphs(classifier: Classifier) -> dict[str, Any]:
    """Returns the graphs of a classifier as ONNX models in float32."""
    program = Program(classifier)
    config = classifier.vit.config
    patches = config.grid[0] * config.grid[1]
    pixels_1CHW = program.example_pixels[:1]
    target_1Y = torch.eye(config.classes)[:1]
    keep_BK = torch.arange(min(patches, 5)).expand(3, -1).contiguous()
    sets = torch.export.Dim("sets", min=1, max=4096)
    patches_left = torch.export.Dim("patches", min=1, max=max(patches, 2))
    dynamic = {"pixels_1CHW": None, "keep_BK": None if patches == 1 else {0: sets, 1: patches_left}}
    map_graph: Any = make_fx(lambda pixels, target: logits_and_map(program, pixels, target)[-1])
    with torch.enable_grad():
        map_graph = map_graph(pixels_1CHW, target_1Y)
    return {
        "inspect": export_graph(
            InspectGraph(program),
            (pixels_1CHW,),
            ["pixels"],
            ["logits", "attention", "lens", "layer_logits", "readout"],
        ),
        "subset": export_graph(SubsetGraph(program), (pixels_1CHW, keep_BK), ["pixels", "keep"], ["logits"], dynamic),
        "map": export_graph(map_graph.eval(), (pixels_1CHW, target_1Y), ["pixels", "target"], ["map"]),
    }


def export_graph(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], dynamic: Any = None
) -> Any:
    """Returns the module as an ONNX model; without optimization, so that weights stay identical in every graph."""
    with torch.no_grad(), silence_output():
        program = torch.onnx.export(
            module, example, dynamo=True, optimize=False, verbose=False, opset_version=OPSET, input_names=inputs,
            output_names=outputs, dynamic_shapes=dynamic,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def pack_graphs(models: dict[str, Any], half: bool = False) -> Graphs:
    """Returns the models as files that share their weights; with `half`, these are stored in float16.

    The graphs compute in float32 in both cases.
    """
    from onnx import ModelProto

    weights = SharedWeights(half)
    graphs = {}
    for name, model in models.items():
        copy = ModelProto()
        copy.CopyFrom(model)
        graphs[name] = weights.move_from(copy)
    return Graphs(graphs, bytes(weights.blob), half)


class SharedWeights:
    """The file of weights that graphs share; equal tensors are stored once."""

    def __init__(self, half: bool):
        self.half = half
        self.blob = bytearray()
        self.offsets: dict[bytes, int] = {}  # by SHA-256 of the content

    def move_from(self, model: Any) -> bytes:
        """Moves the larger constants of a model into the file, and returns the model as bytes."""
        from onnx import TensorProto, helper, numpy_helper

        graph = model.graph
        casts = []
        for tensor in graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.nbytes < MAX_INLINE_BYTES:
                continue
            name, data_type = tensor.name, tensor.data_type
            if self.half and data_type == TensorProto.FLOAT:
                values, data_type, name = values.astype(np.float16), TensorProto.FLOAT16, f"{name}.half"
                casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
            content = values.tobytes()
            tensor.Clear()
            tensor.name, tensor.data_type = name, data_type
            tensor.dims.extend(values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": WEIGHTS, "offset": self.add(content), "length": len(content)}.items():
                tensor.external_data.add(key=key, value=str(value))
        nodes = [*casts, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]  # source paths of the exporter
        del graph.value_info[:]
        del model.metadata_props[:]
        serialized: bytes = model.SerializeToString()
        return serialized

    def add(self, content: bytes) -> int:
        """Returns the offset of these bytes in the file, and appends them if they are new."""
        digest = hashlib.sha256(content).digest()
        if digest not in self.offsets:
            self.blob.extend(bytes(-len(self.blob) % ALIGNMENT))
            self.offsets[digest] = len(self.blob)
            self.blob.extend(content)
        return self.offsets[digest]
