"""Takes an ONNX graph; gives the same one with its float32 group norms taken apart into means of means.

torch exports group norm as InstanceNormalization over `[N, groups, L]`. A runtime that adds its L = 80,000 squares one
by one in float32 loses three digits; a mean of eight means is the same number with a hundredth of the rounding.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

STAGES = 8
DEFAULT_EPSILON = 1e-5  # ONNX's, where the node states none


def staged_norm(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy of `model` without InstanceNormalization of float32 `[N, C, L]` where L is a multiple of eight.

    What has another type, rank or length, or none that the graph states, stays as it is.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stated = {value.name: value.type.tensor_type for value in (*model.graph.value_info, *model.graph.input)}
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        fits = node.op_type == "InstanceNormalization" and _can_be_staged(stated.get(node.input[0]))
        nodes += _staged(node, copy.graph, opset) if fits else [node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _can_be_staged(tensor: "onnx.TypeProto.Tensor | None") -> bool:
    import onnx

    if tensor is None or tensor.elem_type != onnx.TensorProto.FLOAT or len(tensor.shape.dim) != 3:
        return False
    length: int = tensor.shape.dim[2].dim_value
    return length > 0 and length % STAGES == 0


def _staged(norm: "onnx.NodeProto", graph: "onnx.GraphProto", opset: int) -> "list[onnx.NodeProto]":
    """Nodes that compute what `norm` does; their constants go into `graph`."""
    import onnx
    from onnx import helper, numpy_helper

    (x, scale, bias), y = norm.input, norm.output[0]
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def add(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def mean_over(axis: int, values: str, name: str) -> str:
        if opset < 18:  # the axes were an attribute then
            return add("ReduceMean", [values], name, axes=[axis], keepdims=1)
        return add("ReduceMean", [values, constant(f"{name}/axes", np.array([axis], np.int64))], name, keepdims=1)

    def mean(values: str, name: str) -> str:
        return mean_over(2, mean_over(3, values, f"{name}/parts"), name)

    epsilon = constant(
        f"{y}/epsilon",
        np.array(next((a.f for a in norm.attribute if a.name == "epsilon"), DEFAULT_EPSILON), np.float32),
    )
    staged = constant(f"{y}/staged", np.array([0, 0, STAGES, -1], np.int64))
    whole = constant(f"{y}/whole", np.array([0, 0, -1], np.int64))
    column = constant(f"{y}/column", np.array([1, -1, 1, 1], np.int64))
    parts = add("Reshape", [x, staged], f"{y}/parts")
    centred = add("Sub", [parts, mean(parts, f"{y}/mean")], f"{y}/centred")
    variance = mean(add("Mul", [centred, centred], f"{y}/squares"), f"{y}/variance")
    deviation = add("Sqrt", [add("Add", [variance, epsilon], f"{y}/shifted")], f"{y}/deviation")
    normal = add("Div", [centred, deviation], f"{y}/normal")
    scaled = add("Mul", [normal, add("Reshape", [scale, column], f"{y}/scale")], f"{y}/scaled")
    moved = add("Add", [scaled, add("Reshape", [bias, column], f"{y}/bias")], f"{y}/moved")
    add("Reshape", [moved, whole], y)
    return nodes
