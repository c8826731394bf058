"""Takes a suspect's graph and the tensors of its reference; gives the layers between tensors that both have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.errors import GraphError

if TYPE_CHECKING:
    import onnx

# What changes how values are stored and not what they are: part of the layer behind it.
STORAGE = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear"})
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """The least part of a graph that makes one tensor of others, all of which the reference has too.

    name, type: of the node that makes `output`. nodes: names of all its nodes (or of their outputs), in order.
    """

    name: str
    type: str
    output: str
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """Layers that follow each other in depth order, and the tensors that go in and come out."""

    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.layers)


def node_name(node: "onnx.NodeProto") -> str:
    """Its own, or its first output's where it has none."""
    return node.name or node.output[0]


class Layers:
    """The layers of a graph with fixed shapes, in depth order.

    Args:
        model: the suspect's. known: shapes of the reference's tensors, by name.

    Raises:
        GraphError: the two graphs share no tensor that depends on the image.
    """

    def __init__(self, model: "onnx.ModelProto", known: Mapping[str, Shape]) -> None:
        self.model = model
        self.shapes = shapes_of(model)
        self._producers = {output: node for node in model.graph.node for output in node.output}
        self._last = {value.name for value in model.graph.output}
        live = _depending(model)
        self._shared = {
            name: None
            for node in model.graph.node
            for name in node.output
            if name in live
            and name in self.shapes
            and self.shapes[name] == known.get(name)
            and (node.op_type not in STORAGE or name in self._last)
        }
        self._image = next(value.name for value in inputs_of(model))
        self.layers = tuple(self._layer(name) for name in self._shared)
        if not self.layers:
            raise GraphError(
                "the two graphs share no tensor but the image: their layers cannot be compared",
                "compare graphs of the same export, with the names that it gave",
            )

    def _layer(self, output: str) -> Layer:
        nodes: dict[str, None] = {}
        inputs: dict[str, None] = {}
        waiting = [output]
        while waiting:
            name = waiting.pop()
            if name == self._image or (name in self._shared and name != output):
                inputs[name] = None
            elif name in self._producers and node_name(self._producers[name]) not in nodes:
                nodes[node_name(self._producers[name])] = None
                waiting += [one for one in self._producers[name].input if one]
        own = self._producers[output]
        return Layer(node_name(own), own.op_type, output, tuple(inputs), tuple(reversed(nodes)))

    def producer(self, tensor: str) -> "onnx.NodeProto":
        """The node that makes a tensor."""
        made: onnx.NodeProto = self._producers[tensor]
        return made

    @cached_property
    def whole(self) -> Piece:
        """All of the graph that both have."""
        return self.piece(self.layers)

    def piece(self, layers: Sequence[Layer]) -> Piece:
        """Layers that follow each other, with what they take from outside and what is used outside."""
        made = {layer.output for layer in layers}
        taken = dict.fromkeys(name for layer in layers for name in layer.inputs if name not in made)
        elsewhere = {name for layer in self.layers if layer.output not in made for name in layer.inputs}
        given = [layer.output for layer in layers if layer.output in elsewhere or layer.output in self._last]
        return Piece(tuple(layers), tuple(taken), tuple(given or [layers[-1].output]))

    def split(self, piece: Piece, parts: int) -> list[Piece]:
        """The piece in up to `parts` of about the same number of layers, in depth order."""
        count = min(parts, len(piece))
        cuts = [round(i * len(piece) / count) for i in range(count + 1)]
        return [self.piece(piece.layers[a:b]) for a, b in pairwise(cuts)]

    def cut(self, piece: Piece) -> "onnx.ModelProto":
        """The piece as a model of its own; inputs and outputs keep their names, types and shapes."""
        from onnx import utils

        made: onnx.ModelProto = utils.Extractor(self.model).extract_model(list(piece.inputs), list(piece.outputs))
        return made


def inputs_of(model: "onnx.ModelProto") -> "list[onnx.ValueInfoProto]":
    """Inputs that are not constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def shapes_of(model: "onnx.ModelProto") -> dict[str, Shape]:
    """Of every tensor of floating-point numbers with a fixed shape."""
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    graph = model.graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type in floats and kind.HasField("shape"):
            found[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return {name: shape for name, shape in found.items() if all(shape)}


def with_outputs(model: "onnx.ModelProto", names: Iterable[str]) -> "onnx.ModelProto":
    """A copy of the model that gives these inner tensors too, behind its own outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in copy.graph.value_info}
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(known[name] for name in dict.fromkeys(names) if name not in present)
    return copy


def _depending(model: "onnx.ModelProto") -> set[str]:
    """Tensors that depend on the image."""
    live = {value.name for value in inputs_of(model)}
    for node in model.graph.node:
        if live & set(node.input):
            live |= set(node.output)
    return live
