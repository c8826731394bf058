"""Takes a healthy graph and a seeded generator; gives one fault at a place chosen at random, as an edit of any part."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from harness.blame.layers import node_name
from suites.selftest.faults.graphs import edit

Kind = Literal["weight x 1.02", "swapped channels", "Resize mode", "fp16 overflow", "int8 scale / 4"]
PRECISION_OF: dict[Kind, str] = {
    "weight x 1.02": "fp32",
    "swapped channels": "fp32",
    "Resize mode": "fp32",
    "fp16 overflow": "fp16",
    "int8 scale / 4": "int8",
}


@dataclass(frozen=True)
class Planted:
    """A fault. `damage` edits a graph, whole or a part, that holds the place; `guilty` are the nodes that have it."""

    kind: Kind
    place: str
    guilty: frozenset[str]
    damage: Callable[[onnx.ModelProto], None]


def plant(kind: Kind, model: onnx.ModelProto, values: Callable[[str], np.ndarray], rng: np.random.Generator) -> Planted:
    """One fault of this kind.

    Args:
        values: what a tensor of the healthy graph holds, for the overflow's limit.
    """
    if kind == "Resize mode":
        return _resize(model, rng)
    if kind == "int8 scale / 4":
        return _scale(model, rng)
    if kind == "fp16 overflow":
        return _overflow(model, values, rng)
    return _weight(kind, model, rng)


def _chosen(found: Iterable[onnx.NodeProto], rng: np.random.Generator) -> onnx.NodeProto:
    nodes = list(found)
    return nodes[int(rng.integers(len(nodes)))]


def _convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def _readers(model: onnx.ModelProto, name: str) -> frozenset[str]:
    return frozenset(node_name(node) for node in model.graph.node if name in node.input)


def _where_present(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    def damage(model: onnx.ModelProto) -> None:
        if any(tensor.name == name for tensor in model.graph.initializer):
            edit(model, name, change)

    return damage


def _weight(kind: Kind, model: onnx.ModelProto, rng: np.random.Generator) -> Planted:
    channels_of = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer}
    weight = _chosen((node for node in _convolutions(model) if channels_of[node.input[1]] > 1), rng).input[1]
    channels = channels_of[weight]
    pair = rng.choice(channels, 2, replace=False)

    def swapped(values: np.ndarray) -> np.ndarray:
        values[pair] = values[pair[::-1]]
        return values

    def larger(values: np.ndarray) -> np.ndarray:
        return (values * 1.02).astype(values.dtype)

    change = swapped if kind == "swapped channels" else larger
    return Planted(kind, weight, _readers(model, weight), _where_present(weight, change))


def _scale(model: onnx.ModelProto, rng: np.random.Generator) -> Planted:
    constants = {tensor.name for tensor in model.graph.initializer}
    node = _chosen((n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants), rng)
    step = node.input[1]
    return Planted("int8 scale / 4", step, _readers(model, step), _where_present(step, lambda s: s / np.float32(4)))


def _resize(model: onnx.ModelProto, rng: np.random.Generator) -> Planted:
    name = node_name(_chosen((n for n in model.graph.node if n.op_type == "Resize"), rng))

    def damage(part: onnx.ModelProto) -> None:
        for node in part.graph.node:
            if node_name(node) == name:
                del node.attribute[:]
                node.attribute.extend([helper.make_attribute("mode", "linear")])

    return Planted("Resize mode", name, frozenset([name]), damage)


def _overflow(model: onnx.ModelProto, values: Callable[[str], np.ndarray], rng: np.random.Generator) -> Planted:
    """Values over half of the largest that the node gives become Inf, as where a kernel's sum leaves float16."""
    name = node_name(_chosen(_convolutions(model), rng))
    output = next(node.output[0] for node in model.graph.node if node_name(node) == name)
    limit = np.abs(values(output)).max() / 2

    def damage(part: onnx.ModelProto) -> None:
        place = next((i for i, node in enumerate(part.graph.node) if node_name(node) == name), None)
        if place is None:
            return
        whole, size, held, one = (f"{output}_{word}" for word in ("whole", "size", "held", "one"))
        part.graph.node[place].output[0] = whole
        part.graph.initializer.append(numpy_helper.from_array(np.array(limit, np.float16), f"{output}_limit"))
        behind = [
            helper.make_node("Abs", [whole], [size], size),
            helper.make_node("LessOrEqual", [size, f"{output}_limit"], [held], held),
            helper.make_node("Cast", [held], [one], one, to=onnx.TensorProto.FLOAT16),
            helper.make_node("Div", [whole, one], [output], f"{output}_inf"),
        ]
        nodes = [*part.graph.node[: place + 1], *behind, *part.graph.node[place + 1 :]]
        del part.graph.node[:]
        part.graph.node.extend(nodes)

    return Planted("fp16 overflow", name, frozenset([name]), damage)
