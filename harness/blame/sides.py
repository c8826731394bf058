"""Takes a graph and who runs it; gives a `Side`: values of inner tensors, and what it makes of a piece of the graph."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.blame.layers import inputs_of, with_outputs
from harness.engines import Engine, Source

if TYPE_CHECKING:
    import onnx

Values = Mapping[str, npt.NDArray[Any]]
Images = npt.NDArray[np.float32]
Runner = Callable[["onnx.ModelProto", Images], Values]

CHANNELS = 3
WIDE = "_as_float32"
PACKED = "packed"


@dataclass
class Side:
    """One of the two that are compared: `graph` for one batch, whose input is `image`, run by `run`; `runs` counts."""

    name: str
    graph: "onnx.ModelProto"
    run: Runner
    image: str
    runs: int = 0

    @classmethod
    def of(cls, name: str, model: "onnx.ModelProto", run: Runner) -> "Side":
        """Of a graph, whose inner shapes are inferred as far as can be."""
        from onnx import shape_inference

        return cls(name, shape_inference.infer_shapes(model, data_prop=True), run, inputs_of(model)[0].name)

    def values(self, images: Images, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """What these tensors hold for the images `[batch, 3, H, W]`; the image itself is one of them."""
        inner = [name for name in dict.fromkeys(names) if name != self.image]
        found = self._made(widened(with_outputs(self.graph, inner)), images, inner)
        return found | ({self.image: images} if self.image in names else {})

    def outputs(self, piece: "onnx.ModelProto", inputs: Values) -> dict[str, npt.NDArray[Any]]:
        """What the piece makes of its inputs."""
        packed, image = pack(widened(piece), inputs, self.image)
        return self._made(packed, image, [value.name for value in piece.graph.output])

    def _made(self, model: "onnx.ModelProto", images: Images, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        self.runs += 1
        made = self.run(model, images)
        return {name: np.asarray(made[name if name in made else name + WIDE]) for name in names}


@dataclass(frozen=True)
class EngineRunner:
    """Builds an engine file from a graph, opens it, and runs it once; nothing is kept."""

    engine: Engine
    source: Source

    def __call__(self, model: "onnx.ModelProto", images: Images) -> Values:
        import onnx

        batch, _, height, width = images.shape
        size = self.source.spec.input.model_copy(update={"height": height, "width": width})
        shapes = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in model.graph.output
        }
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "piece.onnx"
            onnx.save(model, str(graph))
            source = dataclasses.replace(
                self.source,
                spec=self.source.spec.model_copy(update={"input": size}),
                batch=batch,
                graph=graph,
                shapes=shapes,
            )
            file = Path(folder) / f"piece{self.engine.file_suffix}"
            self.engine.build(source, file)
            with self.engine.open(source, file) as session:
                return {name: values.copy() for name, values in session.infer(images).items()}


def widened(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy whose float16 outputs are float32, under another name: what every engine can give."""
    import onnx
    from onnx import helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.output:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            inner = value.name
            value.name = inner + WIDE
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            copy.graph.node.append(helper.make_node("Cast", [inner], [value.name], value.name, to=1))
    return copy


def pack(model: "onnx.ModelProto", inputs: Values, name: str) -> "tuple[onnx.ModelProto, Images]":
    """The model with all its inputs in one `[1, 3, 1, W]`, which is all that an engine's session takes; and that input.

    Args:
        inputs: of the model, by name. name: of the one that takes their place.
    """
    import onnx
    from onnx import helper, numpy_helper

    wanted = [(value.name, value.type.tensor_type.elem_type) for value in inputs_of(model)]
    flat = np.concatenate([np.asarray(inputs[one], np.float32).ravel() for one, _ in wanted])
    width = -(-flat.size // CHANNELS)
    image = np.zeros((1, CHANNELS, 1, width), np.float32)
    image.reshape(-1)[: flat.size] = flat
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    if name in {one for one, _ in wanted}:  # the model's own image: its place is taken
        _rename(packed, name, f"{PACKED}_{name}")
    own = {one: f"{PACKED}_{one}" if one == name else one for one, _ in wanted}

    def constant(label: str, values: Sequence[int]) -> str:
        packed.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{PACKED}_{label}"))
        return f"{PACKED}_{label}"

    nodes = [helper.make_node("Reshape", [name, constant("all", [-1])], [f"{PACKED}_flat"], f"{PACKED}_flat")]
    start = 0
    for place, (one, kind) in enumerate(wanted):
        shape = inputs[one].shape
        end = start + prod(shape)
        bounds = [constant(f"{label}_{place}", [at]) for label, at in (("from", start), ("to", end))]
        part, shaped = f"{PACKED}_part_{place}", f"{PACKED}_shaped_{place}"
        nodes.append(helper.make_node("Slice", [f"{PACKED}_flat", *bounds], [part], part))
        nodes.append(helper.make_node("Reshape", [part, constant(f"shape_{place}", shape)], [shaped], shaped))
        nodes.append(helper.make_node("Cast", [shaped], [own[one]], f"{PACKED}_cast_{place}", to=kind))
        start = end
    nodes += packed.graph.node
    del packed.graph.node[:], packed.graph.input[:]
    packed.graph.node.extend(nodes)
    packed.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, image.shape))
    return packed, image


def _rename(model: "onnx.ModelProto", name: str, to: str) -> None:
    for node in model.graph.node:
        for place, one in enumerate(node.input):
            if one == name:
                node.input[place] = to
