"""Each graph step keeps inputs, outputs and results within its bound, and a step that does not is caught."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness.engines.reference import run_graph
from harness.errors import GraphError
from harness.model import graph
from harness.model.graph import check_interface, checked, fix_batch, simplify, to_fp16, to_int8
from harness.model.parity import deviations, first_shift
from harness.tolerances import TOLERANCES

pytestmark = pytest.mark.selftest

Array = npt.NDArray[np.float32]
CHANNELS, SIZE = 4, 16
INPUT = (3, SIZE, SIZE)
OUTPUTS = {"cls_1": (CHANNELS, SIZE, SIZE), "box_2": (2, SIZE // 2, SIZE // 2)}


def tensor(name: str, *shape: int, scale: float = 1.0) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).normal(0, scale, shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def two_convolutions(weight_scale: float = 0.3) -> onnx.ModelProto:
    """A head of two convolutions and an identity that onnxsim removes, with a dynamic batch."""
    nodes = [
        helper.make_node("Identity", ["input"], ["same"]),
        helper.make_node("Conv", ["same", "w1", "b1"], ["cls_1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["cls_1"], ["positive"]),
        helper.make_node("Conv", ["positive", "w2"], ["box_2"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    weights = [
        tensor("w1", CHANNELS, 3, 3, 3, scale=weight_scale),
        tensor("b1", CHANNELS),
        tensor("w2", 2, CHANNELS, 2, 2, scale=weight_scale),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in ({"input": INPUT} | OUTPUTS).items()
    }
    made = helper.make_graph(nodes, "tiny", [values["input"]], [values["cls_1"], values["box_2"]], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def model() -> onnx.ModelProto:
    return two_convolutions()


@pytest.fixture(scope="module")
def images() -> Array:
    return np.random.default_rng(0).normal(0, 1, (2, *INPUT)).astype(np.float32)


STEPS: dict[str, Callable[[onnx.ModelProto, Array], onnx.ModelProto]] = {
    "simplify": lambda model, _images: simplify(model),
    "fp16": lambda model, _images: to_fp16(model),
    "int8": lambda model, images: to_int8(model, [images], "u8s8"),
}


def types(values: Any) -> set[int]:
    return {value.type.tensor_type.elem_type for value in values}


# --- what every step keeps


@pytest.mark.parametrize("step", STEPS)
def test_a_step_keeps_names_in_their_order(model: onnx.ModelProto, images: Array, step: str) -> None:
    after = STEPS[step](model, images)
    assert [v.name for v in (*after.graph.input, *after.graph.output)] == ["input", *OUTPUTS]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_keeps_inputs_and_outputs_in_float32(model: onnx.ModelProto, images: Array, step: str) -> None:
    after = STEPS[step](model, images)
    assert types((*after.graph.input, *after.graph.output)) == {TensorProto.FLOAT}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_keeps_the_batch_dynamic(model: onnx.ModelProto, images: Array, step: str) -> None:
    after = STEPS[step](model, images)
    assert [len(maps) for maps in run_graph(after, images[:1]).values()] == [1, 1]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_leaves_the_graph_it_was_given_alone(model: onnx.ModelProto, images: Array, step: str) -> None:
    before = model.SerializeToString(deterministic=True)
    STEPS[step](model, images)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("step", STEPS)
def test_a_step_stays_within_its_bound(model: onnx.ModelProto, images: Array, step: str) -> None:
    checked(step, model, STEPS[step](model, images), images, run_graph)


@pytest.mark.parametrize("step", STEPS)
def test_a_steps_result_is_a_valid_graph(model: onnx.ModelProto, images: Array, step: str) -> None:
    onnx.checker.check_model(STEPS[step](model, images), full_check=True)


# --- what each step changes


def test_simplify_removes_what_does_nothing(model: onnx.ModelProto) -> None:
    assert [node.op_type for node in simplify(model).graph.node] == ["Conv", "Relu", "Conv"]


def test_fp16_holds_its_weights_in_half_precision(model: onnx.ModelProto) -> None:
    assert {weight.data_type for weight in to_fp16(model).graph.initializer} == {TensorProto.FLOAT16}


def test_fp16_differs_from_fp32(model: onnx.ModelProto, images: Array) -> None:
    shift = deviations(run_graph(model, images), run_graph(to_fp16(model), images))[0]
    assert 0 < shift.relative < TOLERANCES["fp16"].relative


def test_int8_quantises_every_convolution(model: onnx.ModelProto, images: Array) -> None:
    made = to_int8(model, [images], "u8s8").graph
    weights = [node.input[1] for node in made.node if node.op_type == "Conv"]
    makers = {output: node.op_type for node in made.node for output in node.output}
    assert [makers[weight] for weight in weights] == ["DequantizeLinear"] * 2


def test_int8_weights_lie_in_the_reduced_range(model: onnx.ModelProto, images: Array) -> None:
    made = to_int8(model, [images], "u8s8").graph
    weights = [
        numpy_helper.to_array(w) for w in made.initializer if w.data_type == TensorProto.INT8 and len(w.dims) == 4
    ]
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) in (63, 64)


def test_int8_scales_each_channel_by_itself(model: onnx.ModelProto, images: Array) -> None:
    made = to_int8(model, [images], "u8s8").graph
    scales = {tuple(w.dims) for w in made.initializer if w.name.startswith("w1") and w.name.endswith("scale")}
    assert scales == {(CHANNELS,)}


def test_the_symmetric_scheme_has_no_zero_point_and_no_integer_bias(model: onnx.ModelProto, images: Array) -> None:
    made = to_int8(model, [images], "s8").graph
    points = [numpy_helper.to_array(w) for w in made.initializer if w.name.endswith("zero_point")]
    assert points
    assert {str(point.dtype) for point in points} == {"int8"}
    assert all((point == 0).all() for point in points)
    biases = [node.input[2] for node in made.node if node.op_type == "Conv" and len(node.input) > 2]
    assert all(w.data_type == TensorProto.FLOAT for w in made.initializer if w.name in biases)
    assert run_graph(made_of(made), images).keys() == OUTPUTS.keys()


def made_of(made: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_int8_without_calibration_images_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(GraphError, match="needs calibration images, found none"):
        to_int8(model, [], "u8s8")


def test_int8_leaves_no_filter_on_the_log(model: onnx.ModelProto, images: Array) -> None:
    import logging

    before = list(logging.getLogger().filters)
    to_int8(model, [images], "u8s8")
    assert logging.getLogger().filters == before


# --- the batch


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_fixed_batch_is_in_every_shape(model: onnx.ModelProto, batch: int) -> None:
    fixed = fix_batch(model, batch).graph
    assert {v.type.tensor_type.shape.dim[0].dim_value for v in (*fixed.input, *fixed.output)} == {batch}


def test_a_fixed_batch_changes_no_figure(model: onnx.ModelProto, images: Array) -> None:
    assert first_shift(run_graph(model, images), run_graph(fix_batch(model, 2), images), 0.0) is None


def test_a_fixed_batch_takes_no_other(model: onnx.ModelProto, images: Array) -> None:
    with pytest.raises(GraphError, match="does not run the graph on 1 images"):
        run_graph(fix_batch(model, 2), images[:1])


def test_fixing_the_batch_leaves_the_dynamic_graph_alone(model: onnx.ModelProto) -> None:
    fix_batch(model, 2)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


# --- the check between steps


def scaled(factor: float) -> Callable[[onnx.ModelProto, Array], dict[str, Array]]:
    """Runs graphs; every second one comes out larger by `factor` in one output."""
    calls = iter(range(2))

    def run(model: onnx.ModelProto, images: Array) -> dict[str, Array]:
        outputs = run_graph(model, images)
        return outputs | ({"box_2": outputs["box_2"] * np.float32(factor)} if next(calls) else {})

    return run


@pytest.mark.parametrize("step", TOLERANCES)
def test_a_step_that_is_off_by_more_than_its_bound_is_caught(model: onnx.ModelProto, images: Array, step: str) -> None:
    with pytest.raises(GraphError, match=f"step '{step}' changed output 'box_2': wanted relative L2 error at most"):
        checked(step, model, model, images, scaled(1 + 1.1 * TOLERANCES[step].relative + 1e-6))


@pytest.mark.parametrize("step", ["simplify", "fp16", "int8"])
def test_a_step_that_is_off_by_less_than_its_bound_passes(model: onnx.ModelProto, images: Array, step: str) -> None:
    checked(step, model, model, images, scaled(1 + 0.9 * TOLERANCES[step].relative))


def renamed(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[1].output[0] = model.graph.node[2].input[0] = "scores"


def without_stride(model: onnx.ModelProto) -> None:
    attribute = next(a for a in model.graph.node[3].attribute if a.name == "strides")
    attribute.ints[:] = [1, 1]
    del model.graph.output[1].type.tensor_type.shape.dim[:]


def not_finite(model: onnx.ModelProto) -> None:
    broken = np.full((2, CHANNELS, 2, 2), np.inf, np.float32)
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(broken, "w2"))


def in_another_order(model: onnx.ModelProto) -> None:
    model.graph.output.reverse()


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (renamed, "wanted outputs cls_1, box_2, found scores, box_2"),
        (in_another_order, "wanted outputs cls_1, box_2, found box_2, cls_1"),
        (without_stride, "wanted shape (2, 2, 8, 8), found shape (2, 2, 15, 15)"),
        (not_finite, "'box_2': wanted finite values, found NaN or Inf"),
    ],
)
def test_a_step_that_breaks_the_outputs_is_caught(
    model: onnx.ModelProto, images: Array, damage: Callable[[onnx.ModelProto], None], wanted: str
) -> None:
    after = two_convolutions()
    damage(after)
    with pytest.raises(GraphError) as caught:
        checked("fp16", model, after, images, run_graph)
    assert wanted in caught.value.cause


def test_a_graph_that_was_broken_before_is_not_the_steps_fault(images: Array) -> None:
    before = two_convolutions()
    not_finite(before)
    with pytest.raises(GraphError, match="NaN or Inf in output 'box_2' already before step 'simplify'") as caught:
        checked("simplify", before, two_convolutions(), images, run_graph)
    assert caught.value.remedy.startswith("look at the weights, or at the ONNX")


def test_weights_beyond_half_precision_are_caught(images: Array) -> None:
    large = two_convolutions(weight_scale=1e5)
    with pytest.raises(GraphError, match="step 'fp16' changed output"):
        checked("fp16", large, to_fp16(large), images, run_graph)


def test_int8_calibrated_on_other_images_is_caught(model: onnx.ModelProto, images: Array) -> None:
    dark = to_int8(model, [images * np.float32(0.01)], "u8s8")
    with pytest.raises(GraphError, match="step 'int8' changed output"):
        checked("int8", model, dark, images, run_graph)


# --- reading, and what a file must offer


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def test_a_graph_is_read_as_it_was_written(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert graph.load(saved(model, tmp_path / "a.onnx")) == model


def _invalid(path: Path) -> None:
    model = two_convolutions()
    model.graph.node[1].input[0] = "nothing makes this"
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("not an ONNX file"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(two_convolutions().SerializeToString()[:-40]),
        _invalid,
        lambda path: None,
    ],
    ids=["text", "empty", "cut short", "invalid", "absent"],
)
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path / "a.onnx")
    with pytest.raises(GraphError, match=r"a\.onnx is not a usable ONNX model"):
        graph.load(tmp_path / "a.onnx")


def test_a_graph_that_offers_what_the_head_needs_is_accepted(model: onnx.ModelProto) -> None:
    check_interface(model, Path("a.onnx"), "input", INPUT, OUTPUTS)


def test_outputs_may_come_in_any_order(model: onnx.ModelProto) -> None:
    check_interface(model, Path("a.onnx"), "input", INPUT, dict(reversed(OUTPUTS.items())))


def test_outputs_need_not_state_their_shape(model: onnx.ModelProto) -> None:
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    check_interface(model, Path("a.onnx"), "input", INPUT, OUTPUTS)


def test_a_weight_that_is_listed_as_input_is_none(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [CHANNELS]))
    check_interface(model, Path("a.onnx"), "input", INPUT, OUTPUTS)


@pytest.mark.parametrize(
    ("name", "size", "outputs", "cause"),
    [
        ("image", INPUT, OUTPUTS, "wanted input 'image' and outputs cls_1, box_2; found input and cls_1, box_2"),
        (
            "input",
            INPUT,
            {"cls_1": OUTPUTS["cls_1"]},
            "outputs cls_1; found input and cls_1, box_2",
        ),
        ("input", INPUT, OUTPUTS | {"iou_1": (1, 1, 1)}, "outputs cls_1, box_2, iou_1; found input and cls_1, box_2"),
        ("input", (3, SIZE, 32), OUTPUTS, "'input': wanted shape [?, 3, 16, 32], found [?, 3, 16, 16]"),
        ("input", (1, SIZE, SIZE), OUTPUTS, "'input': wanted shape [?, 1, 16, 16], found [?, 3, 16, 16]"),
        ("input", INPUT, OUTPUTS | {"box_2": (4, 8, 8)}, "'box_2': wanted shape [?, 4, 8, 8], found [?, 2, 8, 8]"),
    ],
    ids=["input name", "output too many", "output missing", "width", "channels", "boxes"],
)
def test_a_graph_that_offers_something_else_is_refused(
    model: onnx.ModelProto, name: str, size: tuple[int, ...], outputs: dict[str, tuple[int, ...]], cause: str
) -> None:
    with pytest.raises(GraphError) as caught:
        check_interface(model, Path("a.onnx"), name, size, outputs)
    assert cause in caught.value.cause


@pytest.mark.parametrize("batch", [1, 8])
def test_a_graph_with_a_fixed_batch_is_refused(model: onnx.ModelProto, batch: int) -> None:
    with pytest.raises(GraphError, match=r"'input': wanted shape \[\?, 3, 16, 16\], found"):
        check_interface(fix_batch(model, batch), Path("a.onnx"), "input", INPUT, OUTPUTS)
