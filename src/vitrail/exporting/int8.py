"""Whole numbers of eight bits for the weights, and for what is multiplied with them while it is.

Every product with a weight matrix becomes a product of integers: the weights once and for all, with a scale for each
output channel; the activations as they come, with a scale for each token. Norms, softmax, GELU, products of activations
with activations, and the patch embedding stay float: quantised, they break ViTs (docs/log.md has the figures).

A scale for each token is what ONNX Runtime's own dynamic quantisation lacks. It takes one for the whole batch, so that
an image's answer depends on the images beside it.

Weights use 129 levels of the 256: kernels for processors without VNNI add two products of 8 bits in 16 bits, and a
weight of 127 would overflow there, without a word.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_WEIGHT = 64  # of a weight's size as an integer: 2 * 255 * 64 is less than 2**15
MIN_RANGE = 1e-30  # a row or a channel of zeros has no scale


@dataclass(frozen=True)
class MatMul:
    """A node `x @ weight (+ bias)` with a constant weight (D, E)."""

    node: Any
    weight_DE: np.ndarray
    bias: str | None = None


def quantize(model: Any) -> Any:
    """A copy of an ONNX model with eight-bit weights, activations quantised on the way, in standard operators alone."""
    import onnx
    from onnx import helper, numpy_helper

    small = onnx.ModelProto()
    small.CopyFrom(model)
    graph = small.graph
    products = {product.node.output[0]: product for product in find_matmuls(graph)}
    constants = {"int8/most": np.float32(127), "int8/least": np.float32(MIN_RANGE), "int8/one": np.float32(1),
                 "int8/middle": np.uint8(128), "int8/last": np.array([-1])}  # fmt: skip
    nodes: list[Any] = []
    for node in graph.node:
        if node.output[0] not in products:
            nodes.append(node)
            continue
        product, name = products[node.output[0]], node.output[0]
        weight_DE, scale_E = quantize_weight(product.weight_DE)
        constants |= {f"{name}/weight": weight_DE, f"{name}/scale": scale_E}
        # token by token x is spread over -127 to 127 and moved to 1 to 255; what came of it is taken back at the end
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("Abs", [node.input[0]], "size", {}),
            ("ReduceMax", ["size", "int8/last"], "largest", {"keepdims": 1}),
            ("Max", ["largest", "int8/least"], "range", {}),
            ("Div", ["int8/most", "range"], "stretch", {}),
            ("Mul", [node.input[0], "stretch"], "stretched", {}),
            ("QuantizeLinear", ["stretched", "int8/one", "int8/middle"], "rounded", {}),
            ("MatMulInteger", ["rounded", "weight", "int8/middle"], "product", {}),
            ("Cast", ["product"], "float", {"to": onnx.TensorProto.FLOAT}),
            ("Div", ["float", "stretch"], "by token", {}),
            ("Mul", ["by token", "scale"], "by channel", {}),
        ]
        if product.bias:
            steps.append(("Add", ["by channel", product.bias], "biased", {}))
        local = {made: f"{name}/{made}" for _, _, made, _ in steps} | {w: f"{name}/{w}" for w in ("weight", "scale")}
        local[steps[-1][2]] = name
        for operator, taken, made, options in steps:
            inputs = [local.get(each, each) for each in taken]
            nodes.append(helper.make_node(operator, inputs, [local[made]], f"{name}/{made}", **options))
    kept = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in kept]
    nodes = [copied(node) for node in nodes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return small


def find_matmuls(graph: Any) -> Iterator[MatMul]:
    """The products with a constant matrix, as the exporter writes them."""
    from onnx import helper, numpy_helper

    constant = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in constant or node.input[1] not in constant:
            continue
        options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0 or options.get("transA", 0):
            continue
        weight = numpy_helper.to_array(constant[node.input[1]])
        if weight.ndim == 2:
            bias = node.input[2] if len(node.input) > 2 else None
            yield MatMul(node, weight.T if options.get("transB", 0) else weight, bias)


def quantize_weight(weight_DE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as integers from -`MOST` to `MOST`, (D, E), and the float32 scale of each output channel, (E,)."""
    scale_E = np.maximum(np.abs(weight_DE).max(axis=0), MIN_RANGE).astype(np.float32) / MAX_WEIGHT
    return np.rint(weight_DE / scale_E).clip(-MAX_WEIGHT, MAX_WEIGHT).astype(np.int8), scale_E.astype(np.float32)


def copied(node: Any) -> Any:
    """A node of its own, which stays when the graph that held it is emptied."""
    own = type(node)()
    own.CopyFrom(node)
    return own
