"""The ixRT adapter keeps its runtime's rules, computes what the graph says, tells of failures: on a simulated ixRT."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from fixtures import timing
from fixtures.cells import Opened
from harness.engines import Session, Source, ixrt
from harness.engines.base import Images, Inspection
from harness.engines.ixrt import Ixrt, IxrtSession
from harness.engines.reference import run_graph
from harness.errors import DetgateError, EngineError, Missing, UsageError
from harness.measure.throughput import summarise
from harness.model.parity import deviations
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared, Settings
from suites.selftest.simulated import ixrt as simulated
from suites.selftest.simulated.cudart import cudaError_t, cudaMemcpyKind
from suites.selftest.simulated.device import KERNEL_S, Misuse
from suites.selftest.simulated.ixrt import Binding, BuilderFlag, SimulatedIxrt, installed

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("mini")]

MODELS = ("pisa-mini", pytest.param("paa-mini", marks=pytest.mark.slow))
MODEL = "pisa-mini"
BATCH = 2
LIMIT = 16
HALF = 2e-3  # relative L2 error of the worst output that half precision may make; seen: 6e-4
EXACT = 1e-5
SMALL = 300_000  # bytes of device memory: less than the models need
ADDRESSES = 1 << 20


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Graphs and ONNX Runtime's results."""
    cache = tmp_path_factory.getbasetemp() / "mini-cache"
    return Pipeline(Settings(cache_dir=cache, batch_size=BATCH, limit=LIMIT))


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> Images:
    return pipeline.check_images(MODEL)


def source_of(pipeline: Pipeline, model: str, precision: Precision) -> Source:
    """What ixRT builds from in a precision."""
    prepared = pipeline.prepare(Cell(model, Ixrt().capabilities.builds_from.get(precision, precision), "onnxruntime"))
    return replace(prepared.source, precision=precision)


@pytest.fixture(scope="module")
def source(pipeline: Pipeline) -> Source:
    return source_of(pipeline, MODEL, "fp32")


@pytest.fixture(scope="module")
def plan(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 engine file."""
    folder = tmp_path_factory.mktemp("plan")
    with installed(folder):
        Ixrt().build(source, folder / "good.engine")
    return folder / "good.engine"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[SimulatedIxrt]:
    """A simulated ixRT, of which nothing is left when the test is over."""
    with installed(tmp_path) as made:
        yield made
        made.require_clean()


@pytest.fixture
def session(runtime: SimulatedIxrt, source: Source, plan: Path) -> Iterator[IxrtSession]:
    with Ixrt().open(source, plan) as opened:
        yield opened


def refused(call: Callable[[], object], error: type[DetgateError] = EngineError) -> str:
    """The message of the error that a call must raise; it names a remedy."""
    with pytest.raises(error) as caught:
        call()
    told, remedy = str(caught.value), caught.value.remedy
    del caught  # its traceback would keep what the call held
    assert remedy
    return told


# --- it computes what the graph says


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("precision", "bound"), [("fp32", EXACT), ("fp16", HALF), ("int8", EXACT)])
def test_maps_are_those_of_onnx_runtime_on_the_same_graph(
    pipeline: Pipeline, runtime: SimulatedIxrt, tmp_path: Path, model: str, precision: Precision, bound: float
) -> None:
    source, images = source_of(pipeline, model, precision), pipeline.check_images(model)
    assert source.graph is not None
    Ixrt().build(source, tmp_path / "e.engine")
    with Ixrt().open(source, tmp_path / "e.engine") as session:
        worst = deviations(run_graph(onnx.load(str(source.graph)), images), session.infer(images))[0]
    assert worst.relative <= bound, worst
    assert runtime.plans == [precision]


def test_fp16_is_built_from_the_fp32_graph_and_shows_in_the_maps(
    pipeline: Pipeline, runtime: SimulatedIxrt, source: Source, images: Images, tmp_path: Path
) -> None:
    half = replace(source, precision="fp16")
    Ixrt().build(half, tmp_path / "e.engine")
    with Ixrt().open(half, tmp_path / "e.engine") as session:
        assert deviations(run_graph(onnx.load(str(source.graph)), images), session.infer(images))[0].relative > EXACT


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_forgotten_precision_shows_in_the_maps(
    pipeline: Pipeline,
    runtime: SimulatedIxrt,
    images: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
) -> None:
    source = source_of(pipeline, MODEL, precision)
    monkeypatch.setattr(ixrt, "_ask_precision", lambda *_: None)
    Ixrt().build(source, tmp_path / "e.engine")
    with Ixrt().open(source, tmp_path / "e.engine") as session:
        worst = deviations(run_graph(onnx.load(str(source.graph)), images), session.infer(images))[0]
    assert worst.relative > 10 * HALF
    assert runtime.plans == ["nothing asked for"]


@pytest.fixture
def judged(pipeline: Pipeline, runtime: SimulatedIxrt) -> Pipeline:
    """A pipeline of a machine with the runtime."""
    return Pipeline(pipeline.settings)


def test_a_failed_build_leaves_no_engine_in_the_cache(judged: Pipeline, runtime: SimulatedIxrt) -> None:
    runtime.faults.builds_nothing = True
    assert "built nothing" in refused(lambda: judged.prepare(Cell(MODEL, "fp32", "ixrt")))
    assert not list((judged.settings.cache_dir / "engine").rglob("*fp32-ixrt*"))


# --- what a session gives


def test_outputs_are_new_float32_maps_in_the_models_order(session: IxrtSession, source: Source, images: Images) -> None:
    first, second = session.infer(images), session.infer(images)
    assert list(first) == list(source.shapes)
    assert all(values.dtype == np.float32 and values.flags.writeable for values in first.values())
    assert not any(np.shares_memory(first[name], second[name]) for name in first)


def test_a_second_batch_leaves_the_first_ones_maps_alone(session: IxrtSession, images: Images) -> None:
    first = session.infer(images)
    kept = {name: values.copy() for name, values in first.items()}
    session.infer(np.zeros_like(images))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_a_half_precision_binding_is_converted_on_the_host(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    half = simulated.DataType.HALF
    with Ixrt().open(source, plan) as session:
        wanted = session.infer(images)
    runtime.faults.ports = lambda ports: [port if port.is_input else replace(port, dtype=half) for port in ports]
    with Ixrt().open(source, plan) as session:
        found = session.infer(images)
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    assert EXACT < deviations(wanted, found)[0].relative < HALF


def test_outputs_are_known_by_name_in_whatever_order_they_are_bound(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    with Ixrt().open(source, plan) as session:
        wanted = session.infer(images)
    runtime.faults.ports = lambda ports: ports[::-1]
    with Ixrt().open(source, plan) as session:
        assert deviations(wanted, session.infer(images))[0].relative == 0


@pytest.mark.parametrize("make", [Session.prepare, IxrtSession.transfer], ids=["prepare", "transfer"])
def test_a_timed_call_takes_images_that_are_not_contiguous(
    session: IxrtSession, images: Images, make: Callable[..., Callable[[], None]]
) -> None:
    made = getattr(session, make.__name__)(images[:, :, ::-1, ::-1])
    assert made() is None


def test_a_prepared_call_copies_nothing(session: IxrtSession, runtime: SimulatedIxrt, images: Images) -> None:
    call = session.prepare(images)
    before = list(runtime.cudart.calls)
    call()
    assert runtime.cudart.calls[len(before) :] == ["cudaDeviceSynchronize"]


def test_what_a_prepared_call_computed_can_be_read_back(session: IxrtSession, images: Images) -> None:
    session.infer(images[::-1])
    session.prepare(images)()
    assert deviations(session.read_back(), session.infer(images))[0].relative == 0


def test_a_transfer_copies_in_and_every_output_out(
    session: IxrtSession, runtime: SimulatedIxrt, source: Source, images: Images
) -> None:
    call = session.transfer(images)
    before = runtime.cudart.calls.count("cudaMemcpy")
    call()
    assert runtime.cudart.calls.count("cudaMemcpy") - before == 1 + len(source.shapes)


def test_calls_can_be_timed(session: IxrtSession, images: Images) -> None:
    assert all(second > 0 for second in session.time(images, calls=2))


def test_beside_its_judged_speed_stand_copies_and_memory_but_no_clock_of_the_device(
    runtime: SimulatedIxrt, session: IxrtSession, source: Source, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "BESIDE_S", 0)
    prepared = cast(Prepared, SimpleNamespace(engine=Ixrt(), source=source))
    compute = summarise([KERNEL_S] * 10, source.batch)
    found = timing.beside(Opened(prepared, session, "fp32", "gpu"), images, compute, lambda: runtime.device.now)
    assert found.transfer is not None
    assert found.transfer.fps < compute.fps
    assert (found.device, found.device_timer, found.memory_bytes) == (None, None, session.memory())


def test_what_ran_is_the_simulated_gpu_and_nothing_is_known_of_its_layers(session: IxrtSession) -> None:
    assert session.inspect() == Inspection("Simulated MR-V100", None)
    assert not Ixrt().capabilities.inspection


def test_memory_is_what_opening_took(runtime: SimulatedIxrt, session: IxrtSession) -> None:
    assert session.memory() == runtime.device.used > sum(np.prod(s) * 4 for s in session.source.shapes.values())


def test_what_of_the_device_is_in_use_tells_a_session_that_stays(runtime: SimulatedIxrt, session: IxrtSession) -> None:
    assert Ixrt().device_bytes() == runtime.device.used > 0
    session.close()
    assert Ixrt().device_bytes() == runtime.device.used == 0


def test_memory_is_unknown_where_cuda_does_not_tell(runtime: SimulatedIxrt, session: IxrtSession) -> None:
    runtime.cudart.fail("cudaMemGetInfo", cudaError_t.cudaErrorInvalidValue)
    assert session.memory() is Ixrt().device_bytes() is None


USES: dict[str, Callable[[IxrtSession, Images], object]] = {
    "infer": lambda session, images: session.infer(images),
    "prepare": lambda session, images: session.prepare(images),
    "transfer": lambda session, images: session.transfer(images),
    "memory": lambda session, _: session.memory(),
    "inspect": lambda session, _: session.inspect(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closed_session_refuses(
    runtime: SimulatedIxrt, session: IxrtSession, images: Images, use: Callable[[IxrtSession, Images], object]
) -> None:
    session.close()
    runtime.require_clean()
    assert "the session is closed" in refused(lambda: use(session, images))


@pytest.mark.parametrize("make", ["prepare", "transfer"])
def test_a_call_that_outlives_its_session_refuses(session: IxrtSession, images: Images, make: str) -> None:
    call = getattr(session, make)(images)
    session.close()
    assert "the session is closed" in refused(call)


def test_closing_frees_everything_once(runtime: SimulatedIxrt, session: IxrtSession, images: Images) -> None:
    session.infer(images)
    session.close()
    session.close()
    runtime.require_clean()


# --- engines that do not fit


def test_an_engine_of_another_batch_is_refused(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    other = replace(source, batch=2 * BATCH)
    with Ixrt().open(other, plan) as session:
        told = refused(lambda: session.infer(np.zeros(other.input_shape, np.float32)))
    assert "does not take images (4, 3," in told
    assert "'input' (2, 3," in told


def test_an_engine_with_another_input_is_refused(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    runtime.faults.ports = lambda ports: [replace(ports[0], name="pixels"), *ports[1:]]
    with Ixrt().open(source, plan) as session:
        assert "its inputs are 'pixels'" in refused(lambda: session.infer(images))


def test_an_engine_without_an_input_is_refused(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    runtime.faults.ports = lambda ports: ports[1:]
    with Ixrt().open(source, plan) as session:
        assert "its inputs are none" in refused(lambda: session.infer(images))


def test_an_engine_that_takes_bytes_is_refused(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    runtime.faults.ports = lambda ports: [replace(ports[0], dtype=simulated.DataType.INT8), *ports[1:]]
    with Ixrt().open(source, plan) as session:
        assert "int8" in refused(lambda: session.prepare(images))


def test_an_engine_that_lacks_an_output_is_refused(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    runtime.faults.ports = lambda ports: ports[:-1]
    with Ixrt().open(source, plan) as session:
        assert f"lacks the outputs {list(source.shapes)[-1]}" in refused(lambda: session.infer(images))


def test_an_engine_with_one_output_more_is_refused(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    runtime.faults.ports = lambda ports: [*ports, replace(ports[-1], name="spare")]
    with Ixrt().open(source, plan) as session:
        assert "wanted outputs" in refused(lambda: session.infer(images))


def test_an_output_of_another_shape_is_refused(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    runtime.faults.ports = lambda ports: [*ports[:-1], replace(ports[-1], shape=(BATCH, 1, 1, 1))]
    with Ixrt().open(source, plan) as session:
        assert "wanted outputs" in refused(lambda: session.infer(images))


def test_a_dynamic_shape_is_refused(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.faults.ports = lambda ports: [*ports[:-1], replace(ports[-1], shape=(-1, 4, 5, 6))]
    assert "wanted a fixed shape, found (-1, 4, 5, 6)" in refused(lambda: Ixrt().open(source, plan))


@pytest.mark.parametrize(
    "change",
    [lambda ports: ports[:-1], lambda ports: [*ports[:-1], replace(ports[-1], name="other")]],
    ids=["one less", "renamed"],
)
def test_a_plan_of_other_outputs_than_the_graphs_is_not_kept(
    runtime: SimulatedIxrt,
    source: Source,
    tmp_path: Path,
    change: Callable[[list[Binding]], list[Binding]],
) -> None:
    runtime.faults.ports = change
    assert "other inputs and outputs" in refused(lambda: Ixrt().build(source, tmp_path / "e.engine"))
    assert not (tmp_path / "e.engine").exists()


# --- files that are no engines


def damaged(plan: Path, folder: Path, how: str) -> Path:
    content = {
        "truncated": plan.read_bytes()[:-1000],
        "garbage": b"garbage" * 100,
        "empty": b"",
        "half a header": plan.read_bytes()[:30],
    }[how]
    (folder / "bad.engine").write_bytes(content)
    return folder / "bad.engine"


@pytest.mark.parametrize("how", ["truncated", "garbage", "empty", "half a header"])
def test_a_damaged_file_is_refused(
    runtime: SimulatedIxrt, source: Source, plan: Path, tmp_path: Path, how: str
) -> None:
    told = refused(lambda: Ixrt().open(source, damaged(plan, tmp_path, how)))
    assert "cannot open" in told
    assert "build it again" in told


def test_a_file_that_is_not_there_is_refused(runtime: SimulatedIxrt, source: Source, tmp_path: Path) -> None:
    assert "No such file" in refused(lambda: Ixrt().open(source, tmp_path / "none.engine"))


def test_an_engine_of_another_version_is_refused(source: Source, plan: Path, tmp_path: Path) -> None:
    with installed(tmp_path, version="1.1.0+simulated") as other:
        assert "of another ixRT or GPU" in refused(lambda: Ixrt().open(source, plan))
        other.require_clean()


def test_an_engine_of_another_gpu_is_refused(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.device.name = "Simulated BI-V150"
    assert "of another ixRT or GPU" in refused(lambda: Ixrt().open(source, plan))


# --- builds that fail


def build(source: Source, folder: Path) -> Callable[[], None]:
    return lambda: Ixrt().build(source, folder / "e.engine")


def test_the_parser_names_the_nodes_that_it_lacks(runtime: SimulatedIxrt, source: Source, tmp_path: Path) -> None:
    runtime.faults.lacking = ("Resize",)
    told = refused(build(source, tmp_path))
    node = next(node for node in onnx.load(str(source.graph)).graph.node if node.op_type == "Resize")
    assert f"node '{node.name}' (Resize): no importer registered for op: Resize" in told
    assert not (tmp_path / "e.engine").exists()


def test_a_node_without_a_name_is_called_by_its_output(runtime: SimulatedIxrt, source: Source, tmp_path: Path) -> None:
    model = onnx.load(str(source.graph))
    node = next(node for node in model.graph.node if node.op_type == "Resize")
    node.name = ""
    onnx.save(model, str(tmp_path / "nameless.onnx"))
    runtime.faults.lacking = ("Resize",)
    told = refused(build(replace(source, graph=tmp_path / "nameless.onnx"), tmp_path))
    assert f"node '{node.output[0]}' (Resize)" in told


def test_a_parser_that_does_not_say_why_is_told_so(runtime: SimulatedIxrt, source: Source, tmp_path: Path) -> None:
    runtime.faults.lacking, runtime.faults.silent_parser = ("Conv",), True
    assert "it does not say why" in refused(build(source, tmp_path))


def test_a_graph_that_is_none_is_refused(runtime: SimulatedIxrt, source: Source, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"garbage" * 100)
    told = refused(build(replace(source, graph=tmp_path / "broken.onnx"), tmp_path))
    assert "cannot parse" in told
    assert "the file: " in told


def test_a_builder_that_gives_nothing_is_told(runtime: SimulatedIxrt, source: Source, tmp_path: Path) -> None:
    runtime.faults.builds_nothing = True
    assert "built nothing from" in refused(build(source, tmp_path))
    assert not (tmp_path / "e.engine").exists()


def test_too_little_memory_to_build_is_told(source: Source, tmp_path: Path) -> None:
    with installed(tmp_path, memory_limit=SMALL) as small:
        told = refused(build(source, tmp_path))
        small.require_clean()
    assert "built nothing" in told
    assert "--batch-size" in told


def test_a_plan_that_cannot_be_read_back_is_not_kept(
    runtime: SimulatedIxrt, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated.Runtime, "deserialize_cuda_engine", lambda *_: None)
    assert "cannot read the plan it has just built" in refused(build(source, tmp_path))
    assert not (tmp_path / "e.engine").exists()


@pytest.mark.parametrize(
    ("precision", "deaf", "found"), [("fp16", BuilderFlag.FP16, "none"), ("int8", BuilderFlag.INT8, "none")]
)
def test_a_flag_that_does_not_take_fails_the_build(
    pipeline: Pipeline, runtime: SimulatedIxrt, tmp_path: Path, precision: Precision, deaf: BuilderFlag, found: str
) -> None:
    runtime.faults.deaf_flags = (deaf,)
    told = refused(build(source_of(pipeline, MODEL, precision), tmp_path))
    assert f"wanted the builder flags {deaf.name}, found {found} set" in told


def test_a_flag_that_cannot_be_cleared_fails_the_build(
    runtime: SimulatedIxrt, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = lambda _, flag: flag is BuilderFlag.INT8  # noqa: E731
    monkeypatch.setattr(simulated.BuilderConfig, "get_flag", stuck)
    assert "wanted the builder flags none, found INT8 set" in refused(build(source, tmp_path))


@pytest.mark.parametrize(
    "call", ["parse_from_file", "build_serialized_network", "num_bindings", "init_libnvinfer_plugins"]
)
@pytest.mark.parametrize("error", [RuntimeError("\nit broke\nat all"), MemoryError(), AttributeError("no such thing")])
def test_what_ixrt_raises_is_an_error_of_the_engine(
    runtime: SimulatedIxrt, source: Source, tmp_path: Path, call: str, error: Exception
) -> None:
    runtime.faults.raises[call] = error
    told = refused(build(source, tmp_path))
    assert type(error).__name__ in told
    assert "at all" not in told
    assert not (tmp_path / "e.engine").exists()


# --- runs that fail


@pytest.mark.parametrize("limit", [2_000_000, 4_000_000, 6_000_000])
def test_too_little_memory_to_open_is_told_and_leaves_none_in_use(
    source: Source, plan: Path, tmp_path: Path, limit: int
) -> None:
    with installed(tmp_path, memory_limit=limit) as small:
        told = refused(lambda: Ixrt().open(source, plan))
        small.require_clean()
    assert "cudaMalloc: wanted cudaSuccess, found cudaErrorMemoryAllocation (2)" in told or "too large for its" in told


def test_no_execution_context_is_told(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.faults.no_context = True
    assert "wanted an execution context, found none" in refused(lambda: Ixrt().open(source, plan))


@pytest.mark.parametrize("call", ["deserialize_cuda_engine", "create_execution_context", "num_bindings"])
def test_what_ixrt_raises_while_opening_is_told(runtime: SimulatedIxrt, source: Source, plan: Path, call: str) -> None:
    runtime.faults.raises[call] = AttributeError(f"no attribute '{call}'")
    assert f"AttributeError: no attribute '{call}'" in refused(lambda: Ixrt().open(source, plan))


def test_an_execution_that_fails_is_told(runtime: SimulatedIxrt, session: IxrtSession, images: Images) -> None:
    runtime.faults.execution_fails = True
    assert "execute_v2 failed on GPU 0" in refused(lambda: session.infer(images))


def test_an_execution_that_raises_is_told(runtime: SimulatedIxrt, session: IxrtSession, images: Images) -> None:
    runtime.faults.raises["execute_v2"] = RuntimeError("illegal instruction")
    assert "failed while it ran: RuntimeError: illegal instruction" in refused(lambda: session.infer(images))


@pytest.mark.parametrize("call", ["cudaSetDevice", "cudaMalloc", "cudaGetDeviceCount"])
@pytest.mark.parametrize("how", [cudaError_t.cudaErrorIllegalAddress, RuntimeError("libcudart.so: not found")], ids=str)
def test_a_cuda_call_that_fails_while_opening_is_told(
    runtime: SimulatedIxrt, source: Source, plan: Path, call: str, how: cudaError_t | Exception
) -> None:
    runtime.cudart.fail(call, how)
    told = refused(lambda: Ixrt().open(source, plan), DetgateError)
    assert call in told
    assert "cudaErrorIllegalAddress (700)" in told or "RuntimeError: libcudart.so: not found" in told


def test_a_buffer_that_cannot_be_had_frees_those_before_it(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.cudart.fail("cudaMalloc", cudaError_t.cudaErrorMemoryAllocation, after=3)
    assert "cudaErrorMemoryAllocation" in refused(lambda: Ixrt().open(source, plan))
    assert runtime.cudart.calls.count("cudaFree") == 3


def test_the_first_failure_is_told_when_freeing_fails_too(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.cudart.fail("cudaMalloc", cudaError_t.cudaErrorMemoryAllocation, after=1)
    runtime.cudart.fail("cudaFree", cudaError_t.cudaErrorIllegalAddress)
    assert "cudaErrorMemoryAllocation" in refused(lambda: Ixrt().open(source, plan))
    free_what_is_left(runtime)


@pytest.mark.parametrize("call", ["cudaMemcpy", "cudaDeviceSynchronize"])
def test_a_cuda_call_that_fails_while_running_is_told(
    runtime: SimulatedIxrt, session: IxrtSession, images: Images, call: str
) -> None:
    runtime.cudart.fail(call, cudaError_t.cudaErrorIllegalAddress)
    assert f"{call}: wanted cudaSuccess, found cudaErrorIllegalAddress (700)" in refused(lambda: session.infer(images))
    runtime.device.synchronise()


def test_a_copy_back_that_fails_is_told(runtime: SimulatedIxrt, session: IxrtSession, images: Images) -> None:
    runtime.cudart.fail("cudaMemcpy", cudaError_t.cudaErrorIllegalAddress, after=1)
    assert "cudaMemcpy: wanted cudaSuccess" in refused(lambda: session.infer(images))


def test_a_device_that_does_not_tell_its_name_is_told(runtime: SimulatedIxrt, session: IxrtSession) -> None:
    runtime.cudart.fail("cudaGetDeviceProperties", cudaError_t.cudaErrorInvalidDevice)
    assert "cudaGetDeviceProperties: wanted cudaSuccess" in refused(session.inspect)


def test_a_buffer_that_cannot_be_freed_is_told_and_the_others_are_freed(
    runtime: SimulatedIxrt, source: Source, plan: Path
) -> None:
    session = Ixrt().open(source, plan)
    runtime.cudart.fail("cudaFree", cudaError_t.cudaErrorIllegalAddress, after=2)
    assert "cudaFree: wanted cudaSuccess" in refused(session.close)
    assert len(runtime.device.allocated) == len(source.shapes) + 1 - 2
    free_what_is_left(runtime)


def free_what_is_left(runtime: SimulatedIxrt) -> None:
    """cudaMalloc's memory that the adapter could not free."""
    for left in runtime.device.allocated:
        if left.label == "cudaMalloc":
            runtime.device.free(left.address)


# --- rules of the runtime: breaking one is loud


def test_a_read_without_synchronising_is_a_misuse(
    runtime: SimulatedIxrt, session: IxrtSession, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ixrt._Cuda.call

    def skipping(self: ixrt._Cuda, name: str, *given: Any) -> Any:
        return None if name == "cudaDeviceSynchronize" else call(self, name, *given)

    monkeypatch.setattr(ixrt._Cuda, "call", skipping)
    with pytest.raises(Misuse, match="not finished: synchronise"):
        session.infer(images)
    monkeypatch.undo()
    runtime.device.synchronise()


def test_a_freed_buffer_is_a_misuse(runtime: SimulatedIxrt, session: IxrtSession, images: Images) -> None:
    session.infer(images)
    runtime.device.free(session._addresses.pop())
    session._addresses.append(ADDRESSES)
    with pytest.raises(Misuse, match="not inside memory that is allocated"):
        session.infer(images)
    session._addresses.pop()


def test_addresses_in_another_order_than_the_bindings_are_a_misuse(
    runtime: SimulatedIxrt, session: IxrtSession, images: Images
) -> None:
    session._addresses.reverse()
    with pytest.raises(Misuse):
        session.infer(images)


def test_one_address_too_few_is_a_misuse(session: IxrtSession, images: Images) -> None:
    call = session.prepare(images)
    address = session._addresses.pop()
    with pytest.raises(Misuse, match="execute_v2 wants 11 addresses, found 10"):
        call()
    session._addresses.append(address)


def test_one_address_for_two_bindings_is_a_misuse(session: IxrtSession, images: Images) -> None:
    call = session.prepare(images)
    address = session._addresses[-1]
    session._addresses[-1] = session._addresses[1]
    with pytest.raises(Misuse, match="two bindings share memory"):
        call()
    session._addresses[-1] = address


def test_an_input_that_was_never_copied_is_a_misuse(session: IxrtSession) -> None:
    with pytest.raises(Misuse, match="input 'input' holds NaN"):
        session._run()


def test_closing_waits_for_what_still_runs(runtime: SimulatedIxrt, source: Source, plan: Path, images: Images) -> None:
    session = Ixrt().open(source, plan)
    session._fitting(images)()
    session.context.execute_v2(session._addresses)
    session.close()
    runtime.require_clean()


def test_closing_while_something_runs_is_a_misuse(
    runtime: SimulatedIxrt, source: Source, plan: Path, images: Images
) -> None:
    session = Ixrt().open(source, plan)
    session._fitting(images)()
    session.context.execute_v2(session._addresses)
    runtime.cudart.fail("cudaDeviceSynchronize", cudaError_t.cudaErrorIllegalAddress)
    with pytest.raises(Misuse, match="in use by queued work 'execute_v2'"):
        session.close()
    runtime.device.synchronise()
    free_what_is_left(runtime)


@pytest.mark.parametrize(
    ("copy", "rule"),
    [
        (lambda c, a, h: c.cudaMemcpy(a, h, h.nbytes, 1), "wanted a direction of cudaMemcpyKind"),
        (lambda c, a, h: c.cudaMemcpy(a, h, h.nbytes // 2, cudaMemcpyKind.cudaMemcpyHostToDevice), "wanted the 64 byt"),
        (lambda c, a, h: c.cudaMemcpy(a, h.tobytes(), 64, cudaMemcpyKind.cudaMemcpyHostToDevice), "of bytes to int"),
        (lambda c, a, h: c.cudaMemcpy(a, h.T[::2], 32, cudaMemcpyKind.cudaMemcpyHostToDevice), "must be contiguous"),
        (lambda c, a, h: c.cudaMemcpy(h, a, 64, cudaMemcpyKind.cudaMemcpyHostToDevice), "of int to ndarray"),
        (lambda c, a, h: c.cudaMemcpy(a + 1, h, 64, cudaMemcpyKind.cudaMemcpyHostToDevice), "not inside memory"),
        (lambda c, a, h: c.cudaFree(a + 1), "never allocated"),
    ],
)
def test_the_simulated_copies_are_strict(
    runtime: SimulatedIxrt, copy: Callable[[Any, int, Any], object], rule: str
) -> None:
    cudart = importlib.import_module("cuda.cudart")
    cudart.cudaSetDevice(0)
    _, address = cudart.cudaMalloc(64)
    with pytest.raises(Misuse, match=rule):
        copy(cudart, address, np.zeros((4, 4), np.float32))
    cudart.cudaFree(address)


def test_memory_before_a_device_was_chosen_is_a_misuse(runtime: SimulatedIxrt) -> None:
    with pytest.raises(Misuse, match="before cudaSetDevice"):
        importlib.import_module("cuda.cudart").cudaMalloc(64)


def test_plugins_before_their_library_are_a_misuse(runtime: SimulatedIxrt) -> None:
    package: Any = importlib.import_module("tensorrt")
    with pytest.raises(Misuse, match=r"before libixrt_plugin\.so was loaded"):
        package.init_libnvinfer_plugins(package.Logger(), "")


def test_int8_without_a_quantised_graph_is_a_misuse(runtime: SimulatedIxrt, source: Source, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="neither Q/DQ nor dynamic ranges"):
        Ixrt().build(replace(source, precision="int8"), tmp_path / "e.engine")


def test_a_half_precision_graph_in_fp32_builds_nothing(
    pipeline: Pipeline, runtime: SimulatedIxrt, tmp_path: Path
) -> None:
    half = pipeline.prepare(Cell(MODEL, "fp16", "onnxruntime")).source
    assert "built nothing" in refused(build(replace(half, precision="fp32"), tmp_path))


# --- what must be here


def lacking(name: str) -> None:
    """`find_spec` where neither a package nor its parent is installed."""
    if "." in name:
        raise ModuleNotFoundError(f"No module named '{name.partition('.')[0]}'")


def test_a_machine_without_ixrt_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lacking)
    told = str(Ixrt().available())
    assert "tensorrt is not installed (wanted Iluvatar's ixRT" in told
    assert "cuda.cudart is not installed" in told
    assert "ixRT" in refused(Ixrt().version, Missing)
    assert "corex" in Ixrt().remedy


def test_where_all_is_here_ixrt_is_available(runtime: SimulatedIxrt) -> None:
    assert Ixrt().available() is None
    assert Ixrt().version() == simulated.VERSION


def test_nvidias_package_of_the_same_name_is_refused(source: Source, tmp_path: Path) -> None:
    with installed(tmp_path, version="10.13.0.35") as nvidia:
        nvidia.plugins.unlink()
        assert "tensorrt 10.13.0.35 is NVIDIA's TensorRT (wanted Iluvatar's ixRT" in refused(
            lambda: Ixrt().build(source, tmp_path / "e.engine"), Missing
        )


def test_a_plugin_library_that_is_missing_is_told(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.plugins.unlink()
    told = refused(lambda: Ixrt().open(source, plan), Missing)
    assert f"plugin library is missing: wanted {runtime.plugins} beside tensorrt {simulated.VERSION}" in told


def test_a_plugin_library_that_does_not_load_is_told(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.faults.plugins_unloadable = True
    assert "does not load: " in refused(lambda: Ixrt().open(source, plan))


def test_plugins_that_do_not_start_are_told(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.faults.plugins_refuse = True
    assert "init_libnvinfer_plugins failed" in refused(lambda: Ixrt().open(source, plan))


@pytest.mark.parametrize(("count", "found"), [(0, "cudaErrorNoDevice"), (2, "wanted GPU 3, found 2 Iluvatar GPU")])
def test_a_gpu_that_is_not_here_is_told(runtime: SimulatedIxrt, count: int, found: str) -> None:
    runtime.cudart.devices = count
    assert found in str(Ixrt({"device": "3"}).available())


def test_another_gpu_can_be_chosen(runtime: SimulatedIxrt, source: Source, plan: Path) -> None:
    runtime.cudart.devices = 2
    with Ixrt({"device": "1"}).open(source, plan):
        assert runtime.cudart.chosen == 1


def test_a_gpu_that_is_no_number_is_refused() -> None:
    assert "ixrt.device: wanted a whole number" in refused(lambda: Ixrt({"device": "first"}), UsageError)


def test_capabilities_say_what_is_built_from_what() -> None:
    able = Ixrt().capabilities
    assert dict(able.computes) == {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
    assert (able.device, able.int8_scheme) == ("accelerator", "s8")
    assert dict(Ixrt().capabilities.builds_from) == {"fp16": "fp32"}
