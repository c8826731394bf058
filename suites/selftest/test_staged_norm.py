"""Group norm in stages: the same function with less rounding, and nothing else of a graph touched."""

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from harness.engines import get_engine
from harness.engines.reference import run_graph
from harness.model.staged_norm import staged_norm
from harness.pipeline import Cell, Pipeline

pytestmark = pytest.mark.selftest

GROUPS, LENGTH = 4, 80_000
EPSILON = 1e-3
KINDS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def group_norm(opset: int = 17, length: int | str = LENGTH, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """One InstanceNormalization of `[N, 4, length]`, as torch exports a group norm of four groups."""
    scale = onnx.numpy_helper.from_array(np.linspace(0.5, 2, GROUPS).astype(KINDS[kind]), "scale")
    bias = onnx.numpy_helper.from_array(np.linspace(-1, 1, GROUPS).astype(KINDS[kind]), "bias")
    node = helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"], epsilon=EPSILON)
    x, y = (helper.make_tensor_value_info(name, kind, ["n", GROUPS, length]) for name in "xy")
    graph = helper.make_graph([node], "norm", [x], [y], [scale, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = InferenceSession(model.SerializeToString()).run(None, {"x": values})[0]
    return found


def exactly(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    x = values.astype(np.float64)
    normal = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + EPSILON)
    scaled: npt.NDArray[np.float64] = (
        normal * np.linspace(0.5, 2, GROUPS)[:, None] + np.linspace(-1, 1, GROUPS)[:, None]
    )
    return scaled


@pytest.fixture
def values() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(17, 1, (2, GROUPS, LENGTH)).astype(np.float32)


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_staged_it_is_the_same_function_to_float32s_rounding(opset: int, values: npt.NDArray[np.float32]) -> None:
    model = staged_norm(group_norm(opset))
    onnx.checker.check_model(model)
    assert "InstanceNormalization" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, values), exactly(values), rtol=0, atol=2e-5)


def test_the_runtimes_own_is_less_exact(values: npt.NDArray[np.float32]) -> None:
    staged, own = run(staged_norm(group_norm()), values), run(group_norm(), values)
    assert abs(own - exactly(values)).max() > 5 * abs(staged - exactly(values)).max()


@pytest.mark.parametrize(
    "model",
    [group_norm(length=80_001), group_norm(length="any"), group_norm(kind=TensorProto.FLOAT16)],
    ids=["odd length", "unknown length", "float16"],
)
def test_what_does_not_fit_stays_as_it_is(model: onnx.ModelProto) -> None:
    assert staged_norm(model) == model


def test_onnx_runtime_on_the_cpu_builds_the_staged_one(pipeline: Pipeline) -> None:
    prepared = pipeline.prepare(Cell("paa-mini", "fp32", "onnxruntime"))
    assert prepared.source.graph is not None
    assert "InstanceNormalization" in {node.op_type for node in onnx.load(prepared.source.graph).graph.node}
    assert "InstanceNormalization" not in {node.op_type for node in onnx.load(prepared.file.path).graph.node}


def test_the_reference_that_engines_are_held_to_computes_the_staged_one(values: npt.NDArray[np.float32]) -> None:
    found = run_graph(group_norm(), values)["y"]
    np.testing.assert_array_equal(found, run(staged_norm(group_norm()), values))


def test_it_does_so_for_the_graph_as_it_is_exported(pipeline: Pipeline) -> None:
    graph = onnx.load(pipeline.exported("paa-mini", pipeline.checkpoint("paa-mini")).path)
    images = pipeline.check_images("paa-mini")[:2]
    found, staged = run_graph(graph, images), staged_norm(onnx.shape_inference.infer_shapes(graph, data_prop=True))
    assert "InstanceNormalization" not in {node.op_type for node in staged.graph.node}
    wanted = InferenceSession(staged.SerializeToString()).run(None, {graph.graph.input[0].name: images})
    assert all((one == other).all() for one, other in zip(found.values(), wanted, strict=True))


def test_a_providers_own_group_norm_is_left_to_it() -> None:
    assert "group_norm" not in get_engine("onnxruntime", {"provider": "cuda"}).flags()
