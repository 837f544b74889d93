"""Quantizes an ONNX model to 8-bit integers: weights ahead of time, activations while the model runs.

Each product with a weight matrix becomes an integer product. Weights have one scale per output channel, activations one
per token. Norms, softmax, GELU, products of activations with activations, and the patch embedding stay float: ViTs lose
their accuracy if these are quantized (docs/log.md has the figures).

ONNX Runtime's dynamic quantization has one activation scale for the whole batch, so that the output for an image
depends on the other images. A scale per token avoids this.

Weights use 129 of the 256 levels: CPU kernels without VNNI add two 8-bit products in 16 bits, and a weight of 127 would
overflow there silently.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_WEIGHT = 64  # largest absolute integer weight: 2 * 255 * 64 is less than 2**15
MIN_RANGE = 1e-30  # replaces the range of a row or channel of zeros, which would have no scale


@dataclass(frozen=True)
class MatMul:
    """A node `x @ weight (+ bias)` with a constant weight (D, E)."""

    node: Any
    weight_DE: np.ndarray
    bias: str | None = None


def quantize(model: Any) -> Any:
    """Returns a copy of an ONNX model with 8-bit weights; it uses standard operators only."""
    import onnx
    from onnx import numpy_helper

    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    matmuls = {matmul.node.output[0]: matmul for matmul in find_matmuls(graph)}
    constants = {"int8/most": np.float32(127), "int8/least": np.float32(MIN_RANGE), "int8/one": np.float32(1),
                 "int8/middle": np.uint8(128), "int8/last": np.array([-1])}  # fmt: skip
    nodes: list[Any] = []
    for node in graph.node:
        name = node.output[0]
        if name not in matmuls:
            nodes.append(copy_node(node))
            continue
        weight_DE, scale_E = quantize_weight(matmuls[name].weight_DE)
        constants |= {f"{name}/weight": weight_DE, f"{name}/scale": scale_E}
        nodes += quantized_matmul(matmuls[name], name)
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return quantized


def quantized_matmul(matmul: MatMul, name: str) -> list[Any]:
    """Returns the nodes that replace a product; `name` is its output.

    Each token is scaled to -127..127 and shifted to 1..255; the product is divided by that scale again.
    """
    from onnx import TensorProto, helper

    x = matmul.node.input[0]
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Abs", [x], "size", {}),
        ("ReduceMax", ["size", "int8/last"], "largest", {"keepdims": 1}),
        ("Max", ["largest", "int8/least"], "range", {}),
        ("Div", ["int8/most", "range"], "stretch", {}),
        ("Mul", [x, "stretch"], "stretched", {}),
        ("QuantizeLinear", ["stretched", "int8/one", "int8/middle"], "rounded", {}),
        ("MatMulInteger", ["rounded", "weight", "int8/middle"], "product", {}),
        ("Cast", ["product"], "float", {"to": TensorProto.FLOAT}),
        ("Div", ["float", "stretch"], "by token", {}),
        ("Mul", ["by token", "scale"], "by channel", {}),
    ]
    if matmul.bias:
        steps.append(("Add", ["by channel", matmul.bias], "biased", {}))
    local = {output: f"{name}/{output}" for _, _, output, _ in steps}
    local |= {constant: f"{name}/{constant}" for constant in ("weight", "scale")}
    local[steps[-1][2]] = name
    return [
        helper.make_node(operator, [local.get(i, i) for i in inputs], [local[output]], f"{name}/{output}", **options)
        for operator, inputs, output, options in steps
    ]


def find_matmuls(graph: Any) -> Iterator[MatMul]:
    """Yields the products with a constant matrix, as torch's exporter writes them."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in constants or node.input[1] not in constants:
            continue
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0 or options.get("transA", 0):
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        if weight.ndim == 2:
            bias = node.input[2] if len(node.input) > 2 else None
            yield MatMul(node, weight.T if options.get("transB", 0) else weight, bias)


def quantize_weight(weight_DE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 weights from -`MAX_WEIGHT` to `MAX_WEIGHT`, (D, E), and a float32 scale per output channel, (E,)."""
    scale_E = np.maximum(np.abs(weight_DE).max(axis=0), MIN_RANGE).astype(np.float32) / MAX_WEIGHT
    return np.rint(weight_DE / scale_E).clip(-MAX_WEIGHT, MAX_WEIGHT).astype(np.int8), scale_E.astype(np.float32)


def copy_node(node: Any) -> Any:
    """Returns a copy of a node, which stays valid when its graph is emptied."""
    copy = type(node)()
    copy.CopyFrom(node)
    return copy
