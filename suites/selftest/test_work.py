"""The work of a graph's convolutions, counted by hand, under every name a runtime may give them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness.model.work import convolutions

pytestmark = pytest.mark.selftest


def graph(batch: int = 2) -> onnx.ModelProto:
    """conv `a` (3 to 4 channels, 3x3) on 8x8, Relu, grouped conv `b` (2 groups, 1x1, stride 2)."""
    weights = [
        numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "wa"),
        numpy_helper.from_array(np.zeros((6, 2, 1, 1), np.float32), "wb"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a_out"], "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a_out"], ["a_relu"], "relu"),
        helper.make_node("Conv", ["a_relu", "wb"], ["y"], "b", group=2, strides=[2, 2]),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 6, 4, 4]),
    ]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights))


def test_work_is_outputs_times_weights_of_each() -> None:
    assert convolutions(graph()).work == {"a": 2 * 4 * 8 * 8 * 27, "b": 2 * 6 * 4 * 4 * 2}


def test_work_grows_with_the_batch() -> None:
    assert convolutions(graph(6)).work["a"] == 3 * convolutions(graph(2)).work["a"]


@pytest.mark.parametrize(
    ("name", "convolution"), [("a", "a"), ("a_out", "a"), ("relu", "a"), ("a_relu", "a"), ("b", "b"), ("y", "b")]
)
def test_a_convolution_is_known_by_what_is_fused_behind_it(name: str, convolution: str) -> None:
    assert convolutions(graph()).aliases[name] == convolution


def test_a_dequantised_weight_counts_as_the_weight_it_is() -> None:
    model = graph()
    model.graph.node[0].input[1] = "wa_float"
    model.graph.node.insert(0, helper.make_node("Cast", ["wa"], ["wa_float"], to=TensorProto.FLOAT))
    assert convolutions(model).work == convolutions(graph()).work


def test_a_convolution_without_a_name_goes_by_its_output() -> None:
    model = graph()
    for node in model.graph.node:
        node.name = ""
    assert convolutions(model).work == {"a_out": 2 * 4 * 8 * 8 * 27, "y": 2 * 6 * 4 * 4 * 2}
    assert convolutions(model).aliases["a_relu"] == "a_out"
