"""Takes an ONNX graph with its shapes; gives the work of each convolution, and the names a runtime may know it by."""

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# What runtimes fuse behind a convolution; the fused layer is often called after the last of them.
FUSED = frozenset({"Add", "Clip", "DequantizeLinear", "Mul", "QuantizeLinear", "Relu", "Sigmoid"})


@dataclass(frozen=True)
class Convolutions:
    """The convolutions of a graph.

    work: multiply-accumulates of one call, by node name; a node without one goes by its output's, as in TensorRT.
    aliases: names of a convolution's node and output, and of the nodes and outputs fused behind it -> its node name.
    """

    work: dict[str, int]
    aliases: dict[str, str]


def convolutions_of(path: Path) -> Convolutions:
    """The convolutions of a graph file for a fixed batch."""
    import onnx

    return convolutions(onnx.load(str(path)))


def convolutions(model: "onnx.ModelProto") -> Convolutions:
    """The convolutions of a graph for a fixed batch; shapes that it does not state are inferred."""
    from onnx import shape_inference

    graph = model.graph
    if not {node.output[0] for node in graph.node if node.op_type == "Conv"} <= set(_shapes(graph)):
        graph = shape_inference.infer_shapes(model).graph
    shapes = _shapes(graph)
    produced = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    work: dict[str, int] = {}
    aliases: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Conv":
            weight = _dequantised(node.input[1], produced)
            own = node.name or node.output[0]
            work[own] = prod(shapes[node.output[0]]) * prod(shapes[weight][1:])
            for name in _names_behind(node, consumers):
                aliases.setdefault(name, own)
    return Convolutions(work, aliases)


def _shapes(graph: "onnx.GraphProto") -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.output]:
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return shapes


def _dequantised(name: str, produced: dict[str, "onnx.NodeProto"]) -> str:
    """The initializer behind a weight that other nodes cast or dequantise."""
    while name in produced and produced[name].op_type in ("Cast", "DequantizeLinear"):
        name = produced[name].input[0]
    return name


def _names_behind(node: "onnx.NodeProto", consumers: dict[str, list["onnx.NodeProto"]]) -> list[str]:
    names = [node.name or node.output[0], node.output[0]]
    while len(consumers[node.output[0]]) == 1 and consumers[node.output[0]][0].op_type in FUSED:
        node = consumers[node.output[0]][0]
        names += [node.name or node.output[0], node.output[0]]
    return names
