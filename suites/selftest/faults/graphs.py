"""Takes an ONNX graph; breaks one thing in it, in place."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

MINI_CLASSES = 10


def last_convolution(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    """The convolution nearest to an output, against the flow."""
    produced = {name: node for node in model.graph.node for name in node.output}
    node = produced[output]
    while node.op_type != "Conv":
        node = produced[node.input[0]]
    return node


def edit(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace one initializer."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


def scaled_boxes(factor: float) -> Callable[[onnx.ModelProto], None]:
    """The last box convolution times `factor`; the heads share it between levels."""

    def scale(model: onnx.ModelProto) -> None:
        for name in last_convolution(model, "box_8").input[1:]:
            edit(model, name, lambda values: values * np.float32(factor))

    return scale


def swap_two_classes(model: onnx.ModelProto) -> None:
    """The first two classes' rows of the last class convolution."""

    def swap(values: np.ndarray) -> np.ndarray:
        by_anchor = values.reshape(-1, MINI_CLASSES, *values.shape[1:]).copy()
        by_anchor[:, [0, 1]] = by_anchor[:, [1, 0]]
        return by_anchor.reshape(values.shape)

    for name in last_convolution(model, "cls_8").input[1:]:
        edit(model, name, swap)


def put_nan_in_one_output(model: onnx.ModelProto) -> None:
    """The first bias of the last class convolution."""

    def first_nan(values: np.ndarray) -> np.ndarray:
        values.flat[0] = np.nan
        return values

    edit(model, last_convolution(model, "cls_8").input[2], first_nan)


def wrong_scale(model: onnx.ModelProto) -> None:
    """The step of one activation's quantisation, early in the graph, a quarter of the calibrated: it clips."""
    constants = {tensor.name for tensor in model.graph.initializer}
    steps = [
        node.input[1]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    ]
    edit(model, steps[1], lambda step: step / np.float32(4))


def other_weights(model: onnx.ModelProto) -> None:
    """Every convolution's weights as another training step might have left them."""
    rng = np.random.default_rng(0)
    constants = {tensor.name for tensor in model.graph.initializer}
    for name in dict.fromkeys(node.input[1] for node in model.graph.node if node.op_type == "Conv"):
        if name in constants:
            edit(model, name, lambda w: (w * (1 + 0.02 * rng.standard_normal(w.shape))).astype(w.dtype))
