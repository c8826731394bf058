"""TensorRT's adapter keeps the rules of TensorRT 10 and 11 and of CUDA, on a simulated runtime; no hardware result."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fixtures import timing
from fixtures.cells import Opened
from harness.engines import tensorrt
from harness.engines.base import Images, Source
from harness.engines.reference import run_graph
from harness.engines.tensorrt import TIMING_SUFFIX, TensorRt, _TensorRtSession
from harness.errors import DetgateError, EngineError, Missing, UsageError
from harness.measure.throughput import summarise
from harness.model.parity import deviations
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared, Settings
from suites.selftest.simulated import cuda
from suites.selftest.simulated import tensorrt as simulated
from suites.selftest.simulated.device import KERNEL_S, Device, Misuse, OutOfMemory
from suites.selftest.simulated.tensorrt import V10, V11, Machine, simulated_tensorrt

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("mini")]

MODELS = ("pisa-mini", pytest.param("paa-mini", marks=pytest.mark.slow))
CONVOLUTIONS = {"pisa-mini": 58, "paa-mini": 63}
PRECISIONS = ("fp32", "fp16", "int8")
BATCH = 2
GPU = "Simulated GPU (compute 9.9)"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Graphs, as the pipeline makes them for TensorRT."""
    return Pipeline(Settings(cache_dir=tmp_path_factory.getbasetemp() / "mini-cache", batch_size=BATCH))


@pytest.fixture(scope="module")
def source_of(pipeline: Pipeline) -> Callable[[str, Precision], Source]:
    """What an engine of a model and precision is built from."""

    def source(model: str, precision: Precision) -> Source:
        fp32 = pipeline.prepare(Cell(model, "fp32", "onnxruntime")).source
        scheme = TensorRt().capabilities.int8_scheme if precision == "int8" else None
        graph = pipeline.fixed(model, precision, scheme, fp32.weights, BATCH).path
        return replace(fp32, precision=precision, graph=graph)

    return source


def quantise(graph: Path, target: Path, images: Images, activations: str = "QInt8", bias: bool = False) -> None:
    """The scheme `s8`: symmetric int8 on both sides of every convolution, its bias as it was; or one that is not."""
    import onnx
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"input": images}]

        def get_next(self) -> dict[str, Images] | None:
            return self.left.pop() if self.left else None

    # A model, not a path: given one, the quantiser writes a file beside the graph, which other processes share.
    q.quantize_static(
        onnx.load(graph),
        str(target),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=q.QuantType[activations],
        weight_type=q.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": bias},
    )


@pytest.fixture(params=[V10, V11])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(version: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with either version; whatever a test does, nothing may be left on it."""
    with simulated_tensorrt(monkeypatch, version) as machine:
        yield machine
        tensorrt._primary_context.cache_clear()
        machine.driver.require_clean()


@pytest.fixture
def v11(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with TensorRT 11, for what no version changes."""
    with simulated_tensorrt(monkeypatch, V11) as machine:
        yield machine
        tensorrt._primary_context.cache_clear()
        machine.driver.require_clean()


@pytest.fixture
def source(source_of: Callable[[str, Precision], Source]) -> Source:
    return source_of("pisa-mini", "fp32")


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> Images:
    """Two photographs, preprocessed."""
    return pipeline.check_images("pisa-mini")


@dataclass(frozen=True)
class Bench:
    """A plan on a simulated machine, its session open."""

    machine: Machine
    session: _TensorRtSession
    source: Source
    plan: Path


def built(source: Source, folder: Path, **options: str) -> Path:
    plan = folder / "a" / "engine.plan"
    plan.parent.mkdir(exist_ok=True)
    TensorRt(options).build(source, plan)
    return plan


def opened(source: Source, plan: Path, **options: str) -> _TensorRtSession:
    session = TensorRt(options).open(source, plan)
    assert isinstance(session, _TensorRtSession)
    return session


@pytest.fixture
def bench(v11: Machine, source: Source, tmp_path: Path) -> Iterator[Bench]:
    plan = built(source, tmp_path)
    with opened(source, plan) as session:
        yield Bench(v11, session, source, plan)


def small(tmp_path: Path, source: Source, kind: int = TensorProto.FLOAT, **outputs: int) -> Source:
    """A source whose graph only casts: outputs of any type and channels, for what real graphs do not have."""
    names = outputs or {"map": kind}
    shape = list(source.input_shape)
    nodes = [helper.make_node("Cast", ["input"], [name], name=f"cast {name}", to=to) for name, to in names.items()]
    ends = [helper.make_tensor_value_info(name, to, shape) for name, to in names.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)], ends)
    path = tmp_path / "small.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return replace(source, graph=path, shapes={"map": tuple(shape)})


def refused(error: type[DetgateError], what: str) -> Any:
    return pytest.raises(error, match=what)


# --- what it computes


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_maps_are_those_of_the_graph_it_was_built_from(
    machine: Machine,
    source_of: Callable[[str, Precision], Source],
    pipeline: Pipeline,
    tmp_path: Path,
    model: str,
    precision: Precision,
) -> None:
    source, images = source_of(model, precision), pipeline.check_images(model)
    with opened(source, built(source, tmp_path)) as session:
        maps = session.infer(images)
    wanted = run_graph(onnx.load(str(source.graph)), images)
    assert list(maps) == list(source.shapes)
    assert max(np.abs(maps[name] - wanted[name]).max() for name in wanted) <= 1e-5


def test_maps_given_away_stay_as_they_are(bench: Bench, images: Images) -> None:
    first = bench.session.infer(images)
    kept = {name: values.copy() for name, values in first.items()}
    bench.session.infer(np.zeros_like(images))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_images_that_are_not_contiguous_give_the_same_maps(bench: Bench, images: Images) -> None:
    strided = np.asfortranarray(images)
    assert not strided.flags.c_contiguous
    wanted, found = bench.session.infer(images), bench.session.infer(strided)
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


def test_half_precision_outputs_are_widened(v11: Machine, source: Source, images: Images, tmp_path: Path) -> None:
    half = small(tmp_path, source, TensorProto.FLOAT16)
    with opened(half, built(half, tmp_path)) as session:
        found = session.infer(images)["map"]
    assert found.dtype == np.float32
    assert np.array_equal(found, images.astype(np.float16).astype(np.float32))


def test_two_sessions_live_side_by_side(
    bench: Bench, images: Images, source_of: Callable[[str, Precision], Source]
) -> None:
    other = source_of("pisa-mini", "fp16")
    with opened(other, built(other, bench.plan.parent)) as second:
        first_maps, second_maps = bench.session.infer(images), second.infer(images)
        assert np.array_equal(bench.session.infer(images)["cls_8"], first_maps["cls_8"])
    assert not np.array_equal(first_maps["cls_8"], second_maps["cls_8"])
    assert np.array_equal(bench.session.infer(images)["cls_8"], first_maps["cls_8"])


def test_the_context_that_others_use_is_left_as_it_was(bench: Bench, images: Images) -> None:
    from pycuda import driver

    theirs = driver.Device(0).make_context()
    bench.session.infer(images)
    assert bench.machine.driver.stack == [theirs]
    driver.Context.pop()


def test_a_second_device_is_used_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, source: Source, images: Images, tmp_path: Path
) -> None:
    with simulated_tensorrt(monkeypatch, V11, devices=2) as machine:
        with opened(source, built(source, tmp_path, device="1"), device="1") as session:
            session.infer(images)
            assert [device.used > 0 for device in machine.driver.devices] == [False, True]
        machine.driver.require_clean()


# --- how it is built


def test_precision_is_the_graphs_and_tf32_is_off(machine: Machine, source: Source, tmp_path: Path) -> None:
    built(source, tmp_path)
    assert machine.configs[-1]._flags == set()


def test_options_reach_the_builder(v11: Machine, source: Source, tmp_path: Path) -> None:
    built(source, tmp_path, workspace_mb="64", optimization_level="5")
    config = v11.configs[-1]
    assert config.builder_optimization_level == 5
    assert config.get_memory_pool_limit(simulated.PoolType.WORKSPACE) == 64 << 20


def test_the_first_build_begins_a_timing_cache_beside_the_plan(v11: Machine, source: Source, tmp_path: Path) -> None:
    plan = built(source, tmp_path)
    assert v11.timings_offered == [b""]
    assert plan.with_suffix(TIMING_SUFFIX).read_bytes().startswith(b"simulated timings 11")


def test_a_later_build_starts_from_the_newest_timings(v11: Machine, source: Source, tmp_path: Path) -> None:
    known = built(source, tmp_path).with_suffix(TIMING_SUFFIX).read_bytes()
    (tmp_path / "b").mkdir()
    TensorRt().build(source, tmp_path / "b" / "engine.plan")
    assert v11.timings_offered[-1] == known


def test_timings_of_a_build_that_is_not_done_are_left_alone(v11: Machine, source: Source, tmp_path: Path) -> None:
    (tmp_path / ".b").mkdir()
    (tmp_path / ".b" / f"engine{TIMING_SUFFIX}").write_bytes(b"half of")
    built(source, tmp_path)
    assert v11.timings_offered == [b""]


def test_timings_that_go_while_they_are_read_are_begun_anew(
    v11: Machine, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Path) -> bytes:
        raise FileNotFoundError

    built(source, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", gone)
        assert tensorrt._known_timings(tmp_path / "a" / "engine.plan") == b""


@pytest.mark.parametrize("known", [b"garbage", b"simulated timings 10.0"])
def test_timings_that_tensorrt_refuses_are_begun_anew(
    v11: Machine, source: Source, tmp_path: Path, known: bytes
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"engine{TIMING_SUFFIX}").write_bytes(known)
    plan = built(source, tmp_path)
    assert v11.timings_offered == [known, b""]
    assert plan.with_suffix(TIMING_SUFFIX).read_bytes().startswith(f"simulated timings {V11}".encode())


def test_the_gpu_is_part_of_the_cache_key(v11: Machine) -> None:
    engine = TensorRt({"workspace_mb": "64", "cuda_graph": "off", "device": "0"})
    assert engine.flags() == {"workspace_mb": "64", "gpu": GPU}


def test_the_version_is_the_packages(machine: Machine, version: str) -> None:
    assert TensorRt().version() == version


# --- what ran


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_every_convolution_is_told_by_its_onnx_name_and_type(
    machine: Machine, source_of: Callable[[str, Precision], Source], tmp_path: Path, model: str, precision: Precision
) -> None:
    source = source_of(model, precision)
    with opened(source, built(source, tmp_path)) as session:
        types, inspection = session.layer_types(), session.inspect()
    wanted = [node.name for node in onnx.load(str(source.graph)).graph.node if node.op_type == "Conv"]
    assert dict(types) == dict.fromkeys(wanted, precision)
    assert inspection.layers is not None
    assert [layer.dtype for layer in inspection.layers] == [precision] * CONVOLUTIONS[model]
    assert inspection.device == GPU


def test_without_a_graph_the_plan_names_the_convolutions(bench: Bench) -> None:
    wanted = bench.session.layer_types()
    bench.session.source = replace(bench.source, graph=None)
    assert bench.session.layer_types() == wanted


def test_an_engine_that_was_built_with_tf32_says_so(
    machine: Machine, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated.Config, "clear_flag", lambda *_: None)
    with opened(source, built(source, tmp_path)) as session:
        assert list(session.inspect().work) == ["tf32"]


def test_a_convolution_that_no_layer_names_is_unknown(bench: Bench) -> None:
    bench.machine.inspector = json.dumps({"Layers": [layer("/other/Conv")]})
    assert set(bench.session.layer_types().values()) == {"unknown"}


def layer(names: str, reads: Any = "Float", kind: str = "CaskConvolution", **fields: Any) -> dict[str, Any]:
    inputs = [reads if isinstance(reads, dict) else {"Format/Datatype": reads}]
    metadata = "\x1f".join(f"[ONNX Layer: {name}]" for name in names.split())
    return {"Name": names.replace(" ", " + "), "LayerType": kind, "Inputs": inputs, "Metadata": metadata, **fields}


@pytest.mark.parametrize(
    ("told", "type_"),
    [
        (layer("/a/Conv", "Row major linear FP32"), "fp32"),
        (layer("/a/Conv", "Two wide channel vectorized row major FP16 format"), "fp16"),
        (layer("/a/Conv", "Half"), "fp16"),
        (layer("/a/Conv", "BFloat16"), "bf16"),
        (layer("/a/Conv", "Float8"), "fp8"),
        (layer("/a/Conv", {"Format": "kCHW32", "DataType": "Int8"}), "int8"),
        (layer("/a/Conv", {"Format": "kLINEAR", "Datatype": "FP16"}), "fp16"),
        (layer("/a/Conv", "Int8", Weights={"Type": "Int8", "Count": 9}), "int8"),
        (layer("/a/Conv", "Int8", Weights={"Type": "Half", "Count": 9}), "fp16"),
        (layer("/a/Conv", "Half", Weights={"Type": "Int8", "Count": 9}), "fp16"),
        (layer("/a/Conv", "Half", TacticName="sm80_xmma_fprop_implicit_gemm_i8f32_i8i32_f32_nhwc"), "int8"),
        (layer("/a/Conv", "Float", TacticName="sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_n"), "tf32"),
        (layer("/a/Conv", "Float", TacticName="cutlass_conv_kernel"), "fp32"),
        (layer("/b/Relu /a/Conv", "Half"), "fp16"),
        (layer("/a/Conv", "Half", kind="kgen"), "fp16"),
        (layer("/a/Conv", "Half", kind="Reformat"), "unknown"),
        (layer("/a/Conv", "N/A due to dynamic shapes"), "unknown"),
        ({**layer("/b/Relu /a/Conv", "Half"), "Metadata": ""}, "fp16"),
        ({"Name": "/a/Conv", "LayerType": "conv"}, "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.get("TacticName", value.get("Inputs"))),
)
def test_a_layers_type_is_read_from_its_kernel_weights_and_input(told: dict[str, Any], type_: str) -> None:
    assert tensorrt._convolution_types([told], ["/a/Conv"]) == {"/a/Conv": type_}


def test_of_several_kernels_of_one_convolution_the_widest_counts() -> None:
    layers = [layer("/a/Conv", "Int8"), layer("/a/Conv", "Half"), layer("/a/Conv", "Float", kind="Reformat")]
    assert tensorrt._convolution_types(layers, ["/a/Conv"]) == {"/a/Conv": "fp16"}


def test_of_a_convolutions_layers_those_that_convolve_count() -> None:
    layers = [layer("/a/Conv", "Float", kind="PointWise"), layer("/a/Conv", "Int8")]
    assert tensorrt._convolution_types(layers, ["/a/Conv"]) == {"/a/Conv": "int8"}


def test_a_convolutions_layer_that_names_none_goes_by_its_own_name() -> None:
    assert tensorrt._convolution_types([layer("fused", "Half")], None) == {"fused": "fp16"}


# --- timed calls


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_a_prepared_call_runs_one_batch_and_no_copies(
    v11: Machine, source: Source, images: Images, tmp_path: Path, mode: str
) -> None:
    with opened(source, built(source, tmp_path), cuda_graph=mode) as session:
        call = session.prepare(images)
        before, executions = v11.device.now, v11.executions
        call()
        assert v11.device.now - before == pytest.approx(KERNEL_S)
        assert v11.executions == executions + 1
        assert session.launches_graph is (mode != "off")


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_what_a_prepared_call_computed_can_be_read_back(
    v11: Machine, source: Source, images: Images, tmp_path: Path, mode: str
) -> None:
    with opened(source, built(source, tmp_path), cuda_graph=mode) as session:
        session.infer(images[::-1])
        session.prepare(images)()
        assert deviations(session.read_back(), session.infer(images))[0].relative == 0


def test_a_prepared_call_can_be_timed(bench: Bench, images: Images) -> None:
    assert [seconds > 0 for seconds in bench.session.time(images, 2)] == [True, True]


def test_a_transfer_copies_both_ways(bench: Bench, images: Images) -> None:
    call = bench.session.transfer(images)
    before = bench.machine.device.now
    call()
    copies = 1 + len(bench.source.shapes)
    assert bench.machine.device.now - before == pytest.approx(KERNEL_S + copies * 1e-4)


def test_device_seconds_are_those_between_events(bench: Bench, images: Images) -> None:
    assert bench.session.device_seconds(images, 3) == pytest.approx([KERNEL_S] * 3)


def test_beside_its_judged_speed_stand_copies_cuda_events_and_memory(
    bench: Bench, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "BESIDE_S", 0)
    prepared = cast(Prepared, SimpleNamespace(engine=TensorRt(), source=bench.source))
    opened, compute = Opened(prepared, bench.session, "fp32", "gpu"), summarise([KERNEL_S] * 10, BATCH)
    found = timing.beside(opened, images, compute, lambda: bench.machine.device.now)
    assert found.transfer is not None
    assert found.device is not None
    assert found.transfer.fps < found.device.fps == pytest.approx(compute.fps)
    assert (found.device_timer, found.memory_bytes) == ("cuda events", bench.session.memory())


def test_maps_are_right_after_a_graph_was_captured(bench: Bench, images: Images) -> None:
    wanted = bench.session.infer(images)
    bench.session.prepare(np.zeros_like(images))()
    found = bench.session.infer(images)
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


def test_a_graph_is_captured_once(bench: Bench, images: Images) -> None:
    bench.session.prepare(images)
    captured = bench.session._graph
    bench.session.device_seconds(images, 1)
    assert bench.session._graph is captured


def no_capture(driver: cuda.Driver) -> None:
    driver.capture_error = "operation failed due to a previous error during capture"


@pytest.mark.parametrize("api", [True, False], ids=["capture fails", "PyCUDA without graphs"])
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_graph_that_cannot_be_captured(
    monkeypatch: pytest.MonkeyPatch, source: Source, images: Images, tmp_path: Path, api: bool, mode: str
) -> None:
    with simulated_tensorrt(monkeypatch, V11, graphs=api) as machine:
        no_capture(machine.driver)
        with opened(source, built(source, tmp_path), cuda_graph=mode) as session:
            if mode == "on":
                with refused(EngineError, "wanted a CUDA graph, which cannot be captured: ") as caught:
                    session.prepare(images)
                assert caught.value.remedy == "--engine-option tensorrt.cuda_graph=auto"
                del caught  # with it go the simulated calls' own frames, which hold the stream
            else:
                session.prepare(images)()
                assert not session.launches_graph
            assert session.infer(images)["cls_8"].shape == source.shapes["cls_8"]
        machine.driver.require_clean()


def test_memory_is_what_the_plan_and_its_tensors_hold(
    machine: Machine, source: Source, images: Images, tmp_path: Path
) -> None:
    with opened(source, built(source, tmp_path)) as session:
        weights = next(one.nbytes for one in machine.device.allocated if one.label == "weights")
        assert session.memory() == machine.device.used - weights


def test_on_the_first_tensorrt_10_memory_has_its_old_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, engine = bench.session.memory(), bench.session._engine
    assert engine is not None
    with monkeypatch.context() as patch:
        patch.setattr(bench.session, "_engine", SimpleNamespace(device_memory_size=engine._scratch))
        assert bench.session.memory() == wanted


def test_what_of_the_device_is_in_use_tells_a_session_that_stays(
    machine: Machine, source: Source, tmp_path: Path
) -> None:
    plan, before = built(source, tmp_path), TensorRt().device_bytes()
    with opened(source, plan) as session:
        assert TensorRt().device_bytes() - before >= session.memory()
    assert TensorRt().device_bytes() == before == machine.device.used


def test_what_is_read_back_was_left_by_a_timed_call(bench: Bench, images: Images) -> None:
    call = bench.session.prepare(images)
    assert all(np.isnan(maps).all() for maps in bench.session.read_back().values())
    call()
    wanted = bench.session.infer(images)
    call()
    assert all(np.array_equal(maps, wanted[name]) for name, maps in bench.session.read_back().items())


# --- the end of a session

USES: dict[str, Callable[[_TensorRtSession, Images], object]] = {
    "infer": lambda session, images: session.infer(images),
    "prepare": lambda session, images: session.prepare(images),
    "transfer": lambda session, images: session.transfer(images),
    "device_seconds": lambda session, images: session.device_seconds(images, 1),
    "inspect": lambda session, _: session.inspect(),
    "memory": lambda session, _: session.memory(),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_session_refuses(bench: Bench, images: Images, use: str) -> None:
    bench.session.close()
    with refused(EngineError, "the session is closed"):
        USES[use](bench.session, images)


def test_a_prepared_call_refuses_after_the_session_was_closed(bench: Bench, images: Images) -> None:
    call = bench.session.prepare(images)
    bench.session.close()
    with refused(EngineError, "the session is closed"):
        call()


def test_closing_frees_everything_and_closing_twice_does_nothing(bench: Bench, images: Images) -> None:
    bench.session.prepare(images)()
    bench.session.close()
    bench.machine.driver.require_clean()
    bench.session.close()


# --- what fails, and how it says so


def test_images_of_another_shape_than_the_plans_are_refused(bench: Bench, images: Images) -> None:
    bench.session.source = replace(bench.source, batch=2 * BATCH)
    with refused(EngineError, r"does not take images \(4, .*wanted \(2, "):
        bench.session.infer(np.concatenate([images, images]))


@pytest.mark.parametrize("use", ["prepare", "transfer", "device_seconds"])
@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: x.astype(np.float64)], ids=["shape", "type"])
def test_timed_images_of_another_shape_or_type_are_refused(
    bench: Bench, images: Images, change: Callable[[Images], Images], use: str
) -> None:
    with refused(EngineError, "does not take images"):
        USES[use](bench.session, change(images))


def test_a_plan_that_lacks_an_output_is_refused(bench: Bench, images: Images) -> None:
    bench.session.source = replace(bench.source, shapes={**bench.source.shapes, "iou_8": (2, 9, 24, 40)})
    with refused(EngineError, "lacks the outputs iou_8"):
        bench.session.infer(images)


def test_a_plan_with_outputs_beyond_the_models_is_refused(bench: Bench, images: Images) -> None:
    fewer = {name: shape for name, shape in bench.source.shapes.items() if name != "cls_8"}
    bench.session.source = replace(bench.source, shapes=fewer)
    with refused(EngineError, "wanted outputs .* found .*cls_8"):
        bench.session.infer(images)


def test_a_plan_for_another_input_is_refused(v11: Machine, source: Source, tmp_path: Path) -> None:
    plan = built(source, tmp_path)
    spec = source.spec.model_copy(update={"input": source.spec.input.model_copy(update={"name": "pixels"})})
    with refused(EngineError, "engine.plan: wanted input 'pixels', found input"):
        opened(replace(source, spec=spec), plan)


def test_a_plan_with_outputs_in_another_type_is_refused(v11: Machine, source: Source, tmp_path: Path) -> None:
    odd = small(tmp_path, source, TensorProto.INT32)
    with refused(EngineError, "'map' is .*: wanted fp32 or fp16 of a fixed shape"):
        opened(odd, built(odd, tmp_path))


def test_a_parser_failure_names_the_node(machine: Machine, source: Source, tmp_path: Path) -> None:
    machine.unsupported = {"Resize"}
    with refused(EngineError, r"tensorrt 1[01]\..* refused .*onnx: Resize '/neck/Resize.*No importer registered"):
        built(source, tmp_path)


def test_a_graph_that_cannot_be_read_is_refused(machine: Machine, source: Source, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"garbage" * 100)
    with refused(EngineError, "tensorrt .* refused .*broken.onnx: .*Failed to parse"):
        built(replace(source, graph=tmp_path / "broken.onnx"), tmp_path)


def test_a_parser_that_says_nothing_is_told_as_such(
    v11: Machine, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated.OnnxParser, "parse_from_file", lambda *_: False)
    with refused(EngineError, "its parser does not say why"):
        built(source, tmp_path)


def test_unsigned_activations_are_refused(v11: Machine, source: Source, images: Images, tmp_path: Path) -> None:
    assert source.graph is not None
    quantise(source.graph, tmp_path / "unsigned.onnx", images, activations="QUInt8")
    with refused(EngineError, "QuantizeLinear '.*zero point must be int8 and 0"):
        built(replace(source, graph=tmp_path / "unsigned.onnx"), tmp_path)


def test_a_quantised_bias_is_refused(v11: Machine, source: Source, images: Images, tmp_path: Path) -> None:
    assert source.graph is not None
    quantise(source.graph, tmp_path / "bias.onnx", images, bias=True)
    with refused(EngineError, "DequantizeLinear '.*bias.*wanted int8 values"):
        built(replace(source, graph=tmp_path / "bias.onnx"), tmp_path)


def test_a_graph_for_another_batch_is_refused(v11: Machine, source: Source, tmp_path: Path) -> None:
    with refused(EngineError, r"wanted inputs \{'input': \(3, .*found \{'input': \(2, "):
        built(replace(source, batch=3), tmp_path)


BUILD_FAULTS: dict[str, Callable[[Machine], None]] = {
    "the builder gives nothing": lambda machine: setattr(machine, "build_error", "Error Code 10: no implementation"),
    "out of memory": lambda machine: setattr(machine, "scratch_bytes", 1 << 40),
    "no builder": lambda machine: setattr(machine, "builder_error", "CUDA initialization failure with error: 35"),
}
SAID = {
    "the builder gives nothing": "built nothing from .*: Error Code 10: no implementation",
    "out of memory": "built nothing from .*Cuda Runtime .out of memory: wanted 1099511627776 bytes",
    "no builder": "cannot make a builder: CUDA initialization failure with error: 35",
}


@pytest.mark.parametrize("fault", BUILD_FAULTS)
def test_a_build_that_fails_says_what_the_log_said_and_leaves_nothing(
    machine: Machine, pipeline: Pipeline, source: Source, fault: str
) -> None:
    BUILD_FAULTS[fault](machine)
    before = entries(pipeline)
    # An option that no other test gives: else their engine might be found in the cache.
    settings = replace(pipeline.settings, engine_options={"tensorrt": {"optimization_level": "1"}})
    with refused(EngineError, SAID[fault]) as caught:
        Pipeline(settings).prepare(Cell("pisa-mini", "fp32", "tensorrt"))
    assert caught.value.remedy
    assert entries(pipeline) == before
    assert machine.device.allocated == []


def entries(pipeline: Pipeline) -> list[Path]:
    return sorted(path for path in (pipeline.settings.cache_dir / "engine").glob("*/*"))


def test_a_builder_that_says_nothing_is_told_as_such(v11: Machine, source: Source, tmp_path: Path) -> None:
    v11.builder_error = ""
    with refused(EngineError, "cannot make a builder: its log says nothing"):
        built(source, tmp_path)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, "the plan is cut short"), (lambda _: b"garbage" * 9, "Magic tag does not match"), (lambda _: b"", "Magic")],
    ids=["truncated", "garbage", "empty"],
)
def test_a_damaged_plan_is_refused(
    machine: Machine, source: Source, tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    plan = built(source, tmp_path)
    plan.write_bytes(damage(plan.read_bytes()))
    with refused(EngineError, f"on {GPU.replace('(', '.').replace(')', '.')} cannot open .*: .*{said}") as caught:
        opened(source, plan)
    assert "build it again here" in caught.value.remedy


def test_a_plan_that_cannot_be_read_is_refused(v11: Machine, source: Source, tmp_path: Path) -> None:
    with refused(EngineError, "cannot read .*nowhere.plan: .*No such file"):
        opened(source, tmp_path / "nowhere.plan")


def test_a_plan_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, source: Source, tmp_path: Path) -> None:
    with simulated_tensorrt(monkeypatch, V10):
        plan = built(source, tmp_path)
    with simulated_tensorrt(monkeypatch, V11) as machine:
        with refused(EngineError, f"expecting library version {V11} got {V10}, please rebuild") as caught:
            opened(source, plan)
        machine.driver.require_clean()
    assert "only on the TensorRT version and the kind of GPU that built it" in caught.value.remedy


def test_a_plan_of_another_gpu_is_refused(v11: Machine, source: Source, tmp_path: Path) -> None:
    plan = built(source, tmp_path)
    v11.device.compute_capability = (8, 6)
    with refused(EngineError, r"incompatible device, expecting compute 8\.6 got 9\.9"):
        opened(source, plan)


def test_another_gpu_builds_a_plan_of_its_own(v11: Machine, pipeline: Pipeline, tmp_path: Path) -> None:
    cell = Cell("pisa-mini", "fp32", "tensorrt")
    first = Pipeline(pipeline.settings).prepare(cell).file
    assert Pipeline(pipeline.settings).prepare(cell).file.path == first.path
    v11.device.name = "Another simulated GPU"
    assert Pipeline(pipeline.settings).prepare(cell).file.path != first.path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_device_with_too_little_memory_is_told_and_left_clean(
    v11: Machine, source: Source, tmp_path: Path, share: float
) -> None:
    plan = built(source, tmp_path)
    with opened(source, plan):
        needed = v11.device.used
    v11.device.memory_limit = int(share * needed)
    with refused(EngineError, "engine.plan.*(out of memory)") as caught:
        opened(source, plan)
    assert caught.value.remedy
    v11.driver.require_clean()


def test_a_runtime_that_cannot_be_made_is_told(v11: Machine, source: Source, tmp_path: Path) -> None:
    plan = built(source, tmp_path)
    v11.builder_error = "CUDA initialization failure with error: 35"
    with refused(EngineError, "cannot make a runtime: CUDA initialization failure") as caught:
        opened(source, plan)
    assert "nvidia-smi" in caught.value.remedy


def test_a_batch_that_cannot_be_started_is_told(bench: Bench, images: Images) -> None:
    bench.machine.execute_error = "Error Code 3: API Usage Error"
    with refused(EngineError, "tensorrt could not start a batch: Error Code 3: API Usage Error"):
        bench.session.infer(images)


def test_a_device_that_fails_while_it_runs_is_told_and_given_back(bench: Bench, images: Images) -> None:
    bench.machine.driver.launch_error = "cuStreamSynchronize failed: an illegal memory access was encountered"
    with refused(EngineError, "failed on Simulated GPU .*illegal memory access"):
        bench.session.infer(images)
    bench.session.close()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (json.dumps({"Layers": ["/a/Conv", "/b/Conv"]}), "does not say what its 2 layers compute in"),
        (json.dumps({"Layers": []}), "does not say what its 0 layers compute in"),
        ("", "inspector gave no layers"),
        ("{}", "inspector gave no layers"),
        ("[]", "inspector gave no layers"),
    ],
)
def test_an_inspector_without_layer_information_is_told(bench: Bench, told: str, said: str) -> None:
    bench.machine.inspector = told
    with refused(EngineError, said) as caught:
        bench.session.inspect()
    assert "build it again" in caught.value.remedy


def test_a_plan_without_detailed_profiling_says_so(
    machine: Machine, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt as module

    coarse = SimpleNamespace(DETAILED=module.ProfilingVerbosity.LAYER_NAMES_ONLY)
    monkeypatch.setattr(module, "ProfilingVerbosity", coarse)
    with (
        opened(source, built(source, tmp_path)) as session,
        refused(EngineError, "built without detailed profiling"),
    ):
        session.inspect()


def test_control_characters_in_the_inspectors_words_do_no_harm(bench: Bench) -> None:
    wanted = bench.session.layer_types()
    layers = {"Layers": [layer(f"{name} /x/Relu") for name in wanted]}
    bench.machine.inspector = json.dumps(layers).replace("\\u001f", "\x1f")
    assert bench.session.layer_types() == wanted


# --- what is not here


@pytest.mark.parametrize(
    ("version", "said", "remedy"),
    [
        ("8.6.1", "TensorRT 8.6.1 is installed, wanted 10 or newer", "pip install 'tensorrt>=10'"),
        ("unknown", "TensorRT unknown is installed, wanted 10 or newer", "pip install 'tensorrt>=10'"),
    ],
)
def test_an_older_tensorrt_is_refused(
    monkeypatch: pytest.MonkeyPatch, source: Source, tmp_path: Path, version: str, said: str, remedy: str
) -> None:
    with simulated_tensorrt(monkeypatch, "8.6.1"):
        import tensorrt as module

        vars(module)["__version__"] = version
        engine = TensorRt()
        assert str(engine.available()).startswith(said)
        assert engine.remedy.startswith(remedy)
        with refused(Missing, said):
            engine.build(source, tmp_path / "engine.plan")


DRIVERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "too old": ({"driver_version": 12040}, "is for CUDA 12, PyCUDA was built for CUDA 13", "update the driver"),
    "broken": ({"init_error": "system has unsupported display driver"}, "cannot be used: cuInit failed", "nvidia-smi"),
    "no device": ({"devices": 0}, "no CUDA device is present", "nvidia-smi"),
}


@pytest.mark.parametrize("case", DRIVERS)
def test_a_driver_or_device_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    given, said, remedy = DRIVERS[case]
    with simulated_tensorrt(monkeypatch, V11, **given):
        engine = TensorRt()
        assert said in str(engine.available())
        assert engine.remedy.startswith(remedy)
        with refused(Missing, said):
            engine.flags()


def test_a_device_beyond_the_last_is_told(v11: Machine) -> None:
    engine = TensorRt({"device": "3"})
    assert engine.available() == "CUDA device 3 is asked for, 1 present"
    assert engine.remedy.startswith("--engine-option tensorrt.device=0;")


@pytest.mark.parametrize("package", ["tensorrt", "pycuda"])
def test_a_package_that_is_not_installed_is_told(v11: Machine, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find_spec(name))
    engine = TensorRt()
    assert engine.available() == f"{package} is not installed"
    assert engine.remedy == "pip install -e '.[tensorrt]'"


def test_a_machine_without_the_drivers_library_is_told(v11: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    assert TensorRt().available() is None
    tensorrt.import_fault.__globals__["_broken"].cache_clear()
    monkeypatch.setattr("importlib.import_module", lambda name: fails(name) if name == "pycuda.driver" else None)
    engine = TensorRt()
    assert "pycuda.driver is installed but cannot be imported: libcuda.so.1" in str(engine.available())
    assert "install NVIDIA's driver" in engine.remedy


def test_a_version_that_cannot_be_found_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with refused(Missing, "tensorrt is not installed"):
        TensorRt().version()


def test_what_is_here_is_available(machine: Machine) -> None:
    assert TensorRt().available() is None
    assert TensorRt().remedy == "pip install -e '.[tensorrt]'"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "first"}, "tensorrt.device: wanted a whole number, found 'first'"),
        ({"workspace_mb": "-1"}, "tensorrt.workspace_mb: wanted a whole number, found '-1'"),
        ({"optimization_level": "9"}, "tensorrt.optimization_level: wanted 0, 1, 2, 3, 4 or 5, found '9'"),
        ({"cuda_graph": "yes"}, "tensorrt.cuda_graph: wanted auto, on or off, found 'yes'"),
    ],
)
def test_an_option_without_a_valid_value_is_refused(options: dict[str, str], said: str) -> None:
    with refused(UsageError, said):
        TensorRt(options)


# --- an adapter that breaks a rule is caught


def test_work_without_a_context_is_misuse(bench: Bench, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tensorrt._Cuda, "current", lambda _: nullcontext())
        with pytest.raises(Misuse, match="no CUDA context is current"):
            bench.session.infer(images)


def test_maps_read_before_the_stream_has_come_there_are_not_the_maps(
    bench: Bench, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cuda.Stream, "synchronize", lambda _: None)
        maps = bench.session.infer(images)
    assert all(np.isnan(values).all() for values in maps.values())


def test_device_memory_read_before_the_stream_has_come_there_is_misuse(bench: Bench, images: Images) -> None:
    from pycuda import driver

    session, buffer = bench.session, bench.session._buffers["cls_8"]
    with session._running():
        session._copy_in(images)
        session._enqueue(session._stream)
        with pytest.raises(Misuse, match="in use by 'execute', queued on a stream and not finished"):
            driver.memcpy_dtoh(buffer.host, buffer.device)


def test_memory_freed_while_the_stream_needs_it_is_misuse(bench: Bench, images: Images) -> None:
    session = bench.session
    with session._running():
        session._copy_in(images)
        session._enqueue(session._stream)
        with pytest.raises(Misuse, match="in use by queued work"):
            session._buffers["cls_8"].device.free()
        session._stream.synchronize()


def test_a_batch_on_memory_that_was_freed_is_misuse(bench: Bench, images: Images) -> None:
    session = bench.session
    address = session._buffers["cls_8"].device
    address.free()
    with pytest.raises(Misuse, match="not inside memory that is allocated now"):
        session.infer(images)
    with pytest.raises(Misuse, match="freed twice"):
        address.free()
    session._buffers["cls_8"].device = SimpleNamespace(free=lambda: None)


def test_a_batch_without_all_addresses_is_misuse(bench: Bench, images: Images) -> None:
    context: Any = bench.session._context
    del context._addresses["box_8"]
    with pytest.raises(Misuse, match="no address set for box_8"):
        bench.session.infer(images)


@pytest.mark.parametrize(("handle", "said"), [(0, "no stream with handle 0x0"), ("7", "wanted a stream's handle")])
def test_a_batch_on_a_stream_that_is_none_is_misuse(bench: Bench, handle: Any, said: str) -> None:
    with pytest.raises(Misuse, match=said), bench.session._running():
        bench.session._enqueue(SimpleNamespace(handle=handle))


def test_work_on_what_another_stream_has_not_finished_is_misuse(bench: Bench, images: Images) -> None:
    from pycuda import driver

    session = bench.session
    with session._running():
        session._copy_in(images)
        other = driver.Stream()
        with pytest.raises(Misuse, match="in use by 'copy to the device', queued on a stream and not finished"):
            session._enqueue(other)
        session._stream.synchronize()


def test_a_copy_that_is_not_contiguous_or_not_page_locked_is_misuse(bench: Bench, images: Images) -> None:
    from pycuda import driver

    buffer, stream = bench.session._buffers["input"], bench.session._stream
    with bench.session._running():
        with pytest.raises(Misuse, match="must be contiguous"):
            driver.memcpy_htod(buffer.device, np.asfortranarray(images))
        with pytest.raises(Misuse, match="page-locked"):
            driver.memcpy_htod_async(buffer.device, images, stream)


@pytest.mark.parametrize("flag", ["FP16", "INT8", "BF16", "OBEY_PRECISION_CONSTRAINTS"])
def test_flags_that_tensorrt_11_removed_are_not_there(v11: Machine, flag: str) -> None:
    import tensorrt as module

    with pytest.raises(AttributeError, match=flag):
        getattr(module.BuilderFlag, flag)
    with pytest.raises(AttributeError, match="EXPLICIT_BATCH"):
        _ = module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH


def test_a_weakly_typed_network_is_misuse_on_10(
    monkeypatch: pytest.MonkeyPatch, source: Source, tmp_path: Path
) -> None:
    monkeypatch.setattr(tensorrt, "_network_flags", lambda _: 0)
    with simulated_tensorrt(monkeypatch, V10), pytest.raises(Misuse, match="weakly typed"):
        built(source, tmp_path)


def test_settings_that_the_builder_does_not_know_are_errors(v11: Machine, source: Source, tmp_path: Path) -> None:
    built(source, tmp_path)
    with pytest.raises(AttributeError, match="max_workspace_size"):
        v11.configs[-1].max_workspace_size = 1  # type: ignore[attr-defined]


def test_a_session_that_is_not_closed_is_found(v11: Machine, source: Source, tmp_path: Path) -> None:
    session = opened(source, built(source, tmp_path))
    with pytest.raises(Misuse, match=r"left on Simulated GPU: .*\(weights\).*page-locked.*1 streams"):
        v11.driver.require_clean()
    session.close()


def test_memory_that_is_forgotten_rather_than_freed_is_found(v11: Machine) -> None:
    from pycuda import driver

    assert TensorRt().available() is None
    with TensorRt()._cuda().current():
        memory = driver.mem_alloc(64)
        del memory
        gc.collect()
    with pytest.raises(Misuse, match="never freed, only forgotten: 64 bytes of device memory"):
        v11.driver.require_clean()
    v11.driver.forgotten.clear()


def test_a_destroyed_context_is_misuse(v11: Machine) -> None:
    assert TensorRt().available() is None
    context = tensorrt._primary_context(TensorRt()._cuda().driver, 0)
    context.detach()
    with pytest.raises(Misuse, match="the context is destroyed"):
        context.push()


def test_the_simulated_device_has_only_so_much_memory() -> None:
    with pytest.raises(OutOfMemory, match="wanted 11 bytes, 10 are left"):
        Device(memory_limit=10).alloc(11)
