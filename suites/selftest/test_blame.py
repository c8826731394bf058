"""`python -m harness blame`: the layer that was damaged is the one that is named; a healthy cell has none.

The whole proof, 20 places and full-size graphs, is `python -m suites.selftest.blames`.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harness import chain
from harness.__main__ import main
from harness.blame.case import AROUND, Blame, bounds
from harness.blame.layers import Layers, shapes_of
from harness.blame.ranges import ranges
from harness.blame.search import Bounds, Search
from harness.blame.sides import Side
from harness.detect.run import load_batch, parts_of
from harness.engines.onnxruntime import OnnxRuntime
from harness.engines.reference import run_graph
from harness.errors import GraphError
from harness.model.registry import SHIPPED_BASELINES
from harness.pipeline import EMBEDDED, Cell, Pipeline, Settings
from harness.report.blame import bar
from harness.sides.arguments import is_cell
from harness.tolerances import LAYER_BOUND
from suites.selftest.blames.plant import Kind
from suites.selftest.blames.prove import Bench, damaged_build, places, with_a_wrong_scale
from suites.selftest.faults.graphs import edit

pytestmark = pytest.mark.selftest

CELL = "pisa-mini-fp32-onnxruntime"
ONE = Cell("pisa-mini", "fp32", "onnxruntime")
WEIGHT, NODE = "detector.neck.fpn_convs.1.conv.weight", "/neck/fpn_convs.1/conv/Conv"
SATURATED_NODE = "/bbox_head/cls_convs.1/activate_2/Relu"
SATURATED = f"{SATURATED_NODE}_output_0"
SIZE = 8


# --- graphs small enough to see through


def constant(name: str, values: object) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def chain_of_layers(factors: list[float], normalised: bool = False) -> onnx.ModelProto:
    """`image` times each factor in turn (`by_0`, `by_1` ...); the last product over its own maximum, if wanted."""
    nodes, before, constants = [], "image", []
    for i, factor in enumerate(factors):
        constants.append(constant(f"factor_{i}", np.float32(factor)))
        nodes.append(helper.make_node("Mul", [before, f"factor_{i}"], [f"by_{i}"], f"multiply_{i}"))
        before = f"by_{i}"
    if normalised:
        nodes.append(helper.make_node("ReduceMax", [before], ["most"], "maximum", keepdims=1))
        nodes.append(helper.make_node("Div", [before, "most"], ["share"], "normalise"))
        before = "share"
    nodes.append(helper.make_node("Relu", [before], ["out"], "last"))
    shape = (1, 3, SIZE, SIZE)
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("image", "out")]
    model = helper.make_model(
        helper.make_graph(nodes, "chain", *ends, constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    return model


def searched(good: onnx.ModelProto, bad: onnx.ModelProto, layer: float = 1e-5) -> tuple[str, bool, Side]:
    suspect = Side.of("suspect", bad, run_graph)
    images = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    found = Search(Side.of("reference", good, run_graph), suspect, images, Bounds(layer, 1e-4), lambda line: None).run()
    return found.layer.name, found.seen.departs, suspect


@pytest.mark.parametrize("place", [0, 9, 20, 39])
def test_the_layer_whose_constant_is_wrong_is_found_wherever_it_is(place: int) -> None:
    factors = [1.01] * 40
    wrong = [*factors[:place], 1.03, *factors[place + 1 :]]
    assert searched(chain_of_layers(factors), chain_of_layers(wrong))[:2] == (f"multiply_{place}", True)


def test_of_two_wrong_layers_the_first_in_depth_order_is_found() -> None:
    factors = [1.01] * 20
    wrong = [*factors[:5], 1.03, *factors[6:15], 2.0, *factors[16:]]
    assert searched(chain_of_layers(factors), chain_of_layers(wrong))[0] == "multiply_5"


def test_an_error_that_a_normalisation_behind_takes_away_is_found_all_the_same() -> None:
    factors = [1.01] * 20
    wrong = [*factors[:5], 1.03, *factors[6:]]
    found = searched(chain_of_layers(factors, normalised=True), chain_of_layers(wrong, normalised=True))
    assert found[:2] == ("multiply_5", True)


def test_where_nothing_is_wrong_no_layer_departs() -> None:
    model = chain_of_layers([1.01] * 20)
    assert not searched(model, model)[1]


def test_the_search_runs_few_parts_and_not_each_layer() -> None:
    factors = [1.01] * 200
    wrong = [*factors[:150], 1.03, *factors[151:]]
    name, departs, suspect = searched(chain_of_layers(factors), chain_of_layers(wrong))
    assert (name, departs) == ("multiply_150", True)
    assert suspect.runs <= 3 * 8 + 1


def test_an_error_within_what_the_precision_explains_is_no_departure() -> None:
    factors = [1.01] * 20
    wrong = [*factors[:5], 1.011, *factors[6:]]
    assert searched(chain_of_layers(factors), chain_of_layers(wrong), layer=2e-3)[:2] == ("multiply_5", False)


def test_an_engine_that_departs_only_where_it_holds_several_layers_is_not_healthy() -> None:
    def fuses_wrongly(model: onnx.ModelProto, images: Any) -> Any:
        made = run_graph(model, images)
        several = sum(node.op_type == "Mul" for node in model.graph.node) > 1
        return {name: values * np.float32(1.5) for name, values in made.items()} if several else made

    model = chain_of_layers([1.01] * 20)
    reference, suspect = Side.of("reference", model, run_graph), Side.of("suspect", model, fuses_wrongly)
    images = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    found = Search(reference, suspect, images, Bounds(1e-5, 1e-4), lambda line: None).run()
    assert not found.seen.departs
    assert found.together is not None
    assert not Blame(Cell("pisa-mini", "fp32", "onnxruntime"), [], None, found=found).healthy


def test_graphs_without_a_common_tensor_are_refused() -> None:
    with pytest.raises(GraphError, match="the two graphs share no tensor but the image"):
        Layers(Side.of("one", chain_of_layers([1.0]), run_graph).graph, {"image": (1, 3, SIZE, SIZE)})


def test_what_only_stores_values_belongs_to_the_layer_behind_it() -> None:
    model = chain_of_layers([1.0, 2.0])
    for name, kind in (("step", np.float32(0.1)), ("zero", np.uint8(0))):
        model.graph.initializer.append(constant(name, kind))
    model.graph.node[1].input[0] = "restored"
    model.graph.node.insert(
        1, helper.make_node("DequantizeLinear", ["stored", "step", "zero"], ["restored"], "restore")
    )
    model.graph.node.insert(1, helper.make_node("QuantizeLinear", ["by_0", "step", "zero"], ["stored"], "store"))
    graph = Side.of("int8", model, run_graph).graph
    layers = {layer.name: layer for layer in Layers(graph, shapes_of(graph)).layers}
    assert list(layers) == ["multiply_0", "multiply_1", "last"]
    assert (layers["multiply_1"].inputs, set(layers["multiply_1"].nodes)) == (
        ("by_0",),
        {"store", "restore", "multiply_1"},
    )


# --- ranges


def test_ranges_tell_inf_zeros_and_what_the_quantiser_cannot_hold() -> None:
    nodes = [helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["y"])]
    ends = [[helper.make_tensor_value_info(n, k, (4,))] for n, k in (("x", TensorProto.FLOAT), ("y", TensorProto.INT8))]
    constants = [constant("step", np.float32(0.5)), constant("zero", np.int8(0))]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, constants))
    (found,) = ranges(model, {"x": np.array([0, -64, 63.5, np.inf], np.float32)}, "suspect")
    assert (found.low, found.high, found.inf, found.nan) == (-64, 63.5, 0.25, 0)
    assert (found.zeros, found.saturated) == (0.25, 0.75)


# --- faults in real graphs, planted in what an engine builds


@pytest.fixture(scope="module")
def bench(session_cache: Path) -> Bench:
    return Bench(Pipeline(Settings(cache_dir=session_cache, batch_size=1)))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_damaged_layer_is_named_and_alone_shows_the_same_error(bench: Bench, kind: Kind) -> None:
    found = bench.prove("pisa-mini", kind, "onnxruntime", 0)
    assert (found.right, found.departs, found.alone_again) == (True, True, True), found


@pytest.mark.slow
@pytest.mark.parametrize("models", [["pisa-mini", "paa-mini"], ["pisa", "paa"]], ids=["mini", "full size"])
def test_nineteen_of_twenty_damaged_layers_are_named(bench: Bench, models: list[str]) -> None:
    found = [bench.prove(*place) for place in places(models, ["onnxruntime", "openvino"], of_each=2)]
    assert len(found) == 20
    assert sum(one.right and one.alone_again for one in found) >= 19, [one for one in found if not one.right]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("same_graph", [True, False])
def test_no_layer_explains_as_much_as_the_whole_graph(precision: str, same_graph: bool) -> None:
    found = bounds(same_graph, precision)  # type: ignore[arg-type]
    assert found.layer <= found.of(10) <= found.of(1000) <= found.whole


# --- the command


def larger(model: onnx.ModelProto) -> None:
    """One tensor of weights by two per cent, in a graph that has it."""
    if any(tensor.name == WEIGHT for tensor in model.graph.initializer):
        edit(model, WEIGHT, lambda values: values * np.float32(1.02))


@contextmanager
def damaged_engine() -> Iterator[None]:
    """ONNX Runtime, whose builder damages one layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntime, "build", damaged_build(OnnxRuntime.build, larger))
        patch.setattr(OnnxRuntime, "version", lambda self: "one weight x 1.02")  # is not taken for the true one
        yield


@pytest.fixture
def damaged() -> Iterator[None]:
    with damaged_engine():
        yield


@dataclass(frozen=True)
class Told:
    """What the command left of the damaged cell."""

    code: int
    json: dict[str, Any]
    folder: Path
    page: str


@pytest.fixture(scope="module")
def told(session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    out, said = tmp_path_factory.mktemp("blame"), io.StringIO()
    page = out / "page.html"
    with damaged_engine(), redirect_stdout(said):
        words = ["--cache-dir", session_cache, "--batch-size", 2, "--out", out, "--html", page, "--format", "json"]
        code = main(["blame", CELL, *map(str, words)])
    return Told(code, json.loads(said.getvalue()), out / CELL, page.read_text(encoding="utf-8"))


@pytest.fixture
def options(session_cache: Path, tmp_path: Path) -> list[str]:
    return ["--cache-dir", str(session_cache), "--batch-size", "2", "--out", str(tmp_path / "blame")]


def test_the_command_names_the_hop_and_the_layer(told: Told) -> None:
    assert told.code == 1
    assert told.json["verdict"].startswith("fp32 graph -> onnxruntime breaks: output '")
    assert told.json["verdict"].endswith(f"the first layer that departs is {NODE} (Conv)")


def test_it_tells_the_layer_its_ranges_and_the_runs(told: Told) -> None:
    layer = told.json["layer"]
    assert (layer["name"], layer["departs"], layer["attributes"][:9]) == (NODE, True, "dilations")
    assert {one["side"] for one in layer["ranges"]} == {"reference", "suspect"}
    assert 0 < layer["runs"]["suspect"] < 30


def test_the_errors_around_the_layer_begin_with_it(told: Told) -> None:
    before = {one["layer"]: one["relative"] for one in told.json["layer"]["nearby"]}
    assert before.pop(NODE) == pytest.approx(0.02, rel=0.05)
    assert max(list(before.values())[:AROUND]) < LAYER_BOUND[True, "fp32"]


def test_the_folder_shows_the_error_alone(told: Told, damaged: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blame", str(told.folder)]) == 1
    assert capsys.readouterr().out.startswith(f"DEPARTS {NODE} (Conv) alone in {CELL}: 0.0")


def test_the_folder_shows_none_in_a_healthy_engine(told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blame", str(told.folder)]) == 0
    assert capsys.readouterr().out.startswith(f"HOLDS {NODE}")


def test_the_page_needs_nothing_from_elsewhere(told: Told) -> None:
    assert "<svg" in told.page
    assert NODE in told.page
    assert not any(word in told.page for word in ("<script", "<link", "src=", "@import"))


def test_another_cell_can_be_the_reference(
    damaged: None, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["blame", CELL, "--against", "pisa-mini-fp32-openvino", *options]) == 1
    said = capsys.readouterr().out
    assert f"the first layer that departs is {NODE} (Conv)" in said
    assert "reference  pisa-mini-fp32-openvino" in said


@pytest.mark.parametrize("which", [CELL, pytest.param("paa-mini-int8-onnxruntime", marks=pytest.mark.slow)])
def test_a_healthy_cell_has_no_layer_that_departs(
    which: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["blame", which, *options]) == 0
    assert "no hop breaks; no layer that was run alone departs" in capsys.readouterr().out


def test_where_the_typed_graph_lost_it_the_fp32_graph_is_the_reference(
    monkeypatch: pytest.MonkeyPatch, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chain, "typed", with_a_wrong_scale(tmp_path / "wrong.onnx"))
    assert main(["blame", "pisa-mini-int8-onnxruntime", *options]) == 1
    said = capsys.readouterr().out
    assert "the first layer that departs is /backbone/relu/Relu (Relu)" in said
    assert "reference  the fp32 graph in ONNX Runtime" in said


def test_the_search_sees_the_batch_that_is_furthest_off(
    monkeypatch: pytest.MonkeyPatch, session_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline(Settings(cache_dir=session_cache, batch_size=1))
    parts, spec = parts_of(chain.shown(pipeline, ONE.model), 1), pipeline.input_spec(ONE.model)
    side = Side.of("healthy", onnx.load(str(pipeline.prepare(ONE).source.graph)), run_graph)
    most = [float(side.values(load_batch(part, spec, 1).images, [SATURATED])[SATURATED].max()) for part in parts]
    assert np.argmax(most) > 0, "the first image is the brightest there: choose another layer"

    def saturates(model: onnx.ModelProto) -> None:
        """Nothing above what the first image needs; the other images are cut."""
        place = next((i for i, node in enumerate(model.graph.node) if SATURATED in node.output), None)
        if place is None:
            return
        model.graph.node[place].output[0] = "unsaturated"
        model.graph.initializer.append(constant("most", np.float32(most[0])))
        model.graph.node.insert(place + 1, helper.make_node("Min", ["unsaturated", "most"], [SATURATED], "saturation"))

    monkeypatch.setattr(OnnxRuntime, "build", damaged_build(OnnxRuntime.build, saturates))
    monkeypatch.setattr(OnnxRuntime, "version", lambda self: "saturates")
    words = ["--cache-dir", session_cache, "--batch-size", 1, "--out", tmp_path]
    assert main(["blame", CELL, *map(str, words)]) == 1
    said = capsys.readouterr().out
    assert "fp32 graph -> onnxruntime breaks" in said
    assert f"the first layer that departs is {SATURATED_NODE} (" in said


def test_an_engine_file_that_is_given_is_not_taken_for_what_is_built_here(
    options: list[str], session_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with damaged_engine():
        file = Pipeline(Settings(cache_dir=session_cache, batch_size=2)).prepare(ONE).file.path
    assert main(["blame", CELL, "--engine-file", str(file), *options]) == 1
    said = capsys.readouterr().out
    assert "fp32 graph -> onnxruntime breaks" in said
    assert f"{file} cannot be taken apart: leave --engine-file out" in said
    assert not (tmp_path / "blame").exists()


def test_without_a_checkpoint_another_cell_can_be_the_reference_too(
    monkeypatch: pytest.MonkeyPatch, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "data").symlink_to(EMBEDDED / "data")
    monkeypatch.setattr("harness.pipeline.EMBEDDED", tmp_path / "mini")
    assert main(["blame", CELL, "--against", "pisa-mini-fp32-openvino", *options]) == 0
    assert "reference  pisa-mini-fp32-openvino" in capsys.readouterr().out


def test_an_option_may_give_an_engine_a_precision() -> None:
    name, options = "pisa-fp16-aotinductor", {"aotinductor": {"device": "cuda"}}
    assert is_cell(name, SHIPPED_BASELINES, options)
    assert not is_cell(name, SHIPPED_BASELINES, {})


def test_a_cell_is_not_taken_for_the_folder_of_its_name(
    told: Told, monkeypatch: pytest.MonkeyPatch, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(told.folder.parent)
    assert main(["blame", CELL, *options]) == 0
    assert "no hop breaks" in capsys.readouterr().out
    assert main(["blame", f"./{CELL}"]) == 0
    assert capsys.readouterr().out.startswith(f"HOLDS {NODE}")


def test_an_engine_without_a_graph_has_hops_alone(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blame", "pisa-mini-fp32-torch", *options]) == 0
    assert "no hop breaks; torch runs torch's module: there is no graph" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pisa-mini-fp33-onnxruntime"], "is no cell"),
        (["suites"], "suites holds no layer: layer.json"),
        ([CELL, "--against", "paa-mini-fp32-onnxruntime"], "are of different models"),
        ([CELL, "--against", "pisa-mini-fp32-torch"], "runs no graph that could be looked into"),
        ([CELL, "--against", CELL, "--engine-file", __file__], "an engine file cannot be taken apart"),
        (["pisa-mini-int8-torch"], "torch has no int8, only fp32"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    words: list[str], said: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["blame", *words, *options]) == 4
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("relative", "length"), [(0, 0), (1e-8, 0), (1e-4, 12), (1.0, 24), (np.inf, 24), (np.nan, 24)])
def test_a_bar_is_longer_for_a_larger_error(relative: float, length: int) -> None:
    assert len(bar(relative)) == length
