"""Takes an ONNX graph; gives the same one with every InstanceNormalization taken apart into means of means.

Group norm is exported as InstanceNormalization. Runtimes sum its 80,000 squares in float32, ONNX Runtime one by one; a
mean of eight means is the same number with a hundredth of the rounding. It tells an engine's rounding from our faults.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

STAGES = 8


def staged_norm(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy of `model` without InstanceNormalization; inputs are `[N, C, L]` with L a multiple of 8, scale and bias
    `[C]`, as group norm is exported."""
    import onnx
    from onnx import helper, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: np.ndarray) -> str:
        copy.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    for node in model.graph.node:
        if node.op_type != "InstanceNormalization":
            nodes.append(node)
            continue
        (x, scale, bias), y = node.input, node.output[0]
        epsilon = constant(f"{y}/epsilon", np.array(node.attribute[0].f, np.float32))
        staged = constant(f"{y}/staged", np.array([0, 0, STAGES, -1], np.int64))
        whole = constant(f"{y}/whole", np.array([0, 0, -1], np.int64))
        column = constant(f"{y}/column", np.array([1, -1, 1, 1], np.int64))

        def add(kind: str, inputs: list[str], name: str, y: str = y, **attributes: object) -> str:
            nodes.append(helper.make_node(kind, inputs, [name], **attributes))
            return name

        def mean(values: str, name: str) -> str:
            inner = add("ReduceMean", [values], f"{name}/parts", axes=[3], keepdims=1)
            return add("ReduceMean", [inner], name, axes=[2], keepdims=1)

        parts = add("Reshape", [x, staged], f"{y}/parts")
        centred = add("Sub", [parts, mean(parts, f"{y}/mean")], f"{y}/centred")
        variance = mean(add("Mul", [centred, centred], f"{y}/squares"), f"{y}/variance")
        deviation = add("Sqrt", [add("Add", [variance, epsilon], f"{y}/shifted")], f"{y}/deviation")
        normal = add("Div", [centred, deviation], f"{y}/normal")
        scaled = add("Mul", [normal, add("Reshape", [scale, column], f"{y}/scale")], f"{y}/scaled")
        moved = add("Add", [scaled, add("Reshape", [bias, column], f"{y}/bias")], f"{y}/moved")
        add("Reshape", [moved, whole], y)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
