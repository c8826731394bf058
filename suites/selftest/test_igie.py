"""The IGIE adapter keeps its runtime's rules, computes what the graph says, tells of failures: on a simulated IGIE."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from fixtures import timing
from fixtures.cells import Opened
from harness.engines import Source, igie
from harness.engines.base import Images, Inspection
from harness.engines.igie import Igie, IgieSession
from harness.engines.reference import run_graph
from harness.errors import DetgateError, EngineError, Missing, UsageError
from harness.measure.throughput import summarise
from harness.model.parity import deviations
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared, Settings
from suites.selftest.simulated import tvm as simulated
from suites.selftest.simulated.device import KERNEL_S, Misuse
from suites.selftest.simulated.tvm import SimulatedIgie, TVMError, installed

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("mini")]

MODELS = ("pisa-mini", pytest.param("paa-mini", marks=pytest.mark.slow))
MODEL = "pisa-mini"
BATCH = 2
LIMIT = 16
HALF = 2e-3  # relative L2 error of the worst output that half precision may make; seen: 6e-4
EXACT = 1e-5
SMALL = 300_000  # bytes of device memory: less than the models need


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Graphs and ONNX Runtime's results."""
    cache = tmp_path_factory.getbasetemp() / "mini-cache"
    return Pipeline(Settings(cache_dir=cache, batch_size=BATCH, limit=LIMIT))


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> Images:
    return pipeline.check_images(MODEL)


def source_of(pipeline: Pipeline, model: str, precision: Precision) -> Source:
    """What IGIE builds from in a precision."""
    prepared = pipeline.prepare(Cell(model, Igie().capabilities.builds_from.get(precision, precision), "onnxruntime"))
    return replace(prepared.source, precision=precision)


@pytest.fixture(scope="module")
def source(pipeline: Pipeline) -> Source:
    return source_of(pipeline, MODEL, "fp32")


@pytest.fixture(scope="module")
def library(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp32 engine file."""
    file = tmp_path_factory.mktemp("library") / "good.so"
    with installed():
        Igie().build(source, file)
    return file


@pytest.fixture
def runtime() -> Iterator[SimulatedIgie]:
    """A simulated IGIE, of which nothing is left when the test is over."""
    with installed() as made:
        yield made
        made.require_clean()


@pytest.fixture
def session(runtime: SimulatedIgie, source: Source, library: Path) -> Iterator[IgieSession]:
    with Igie().open(source, library) as opened:
        yield opened


def refused(call: Callable[[], object], error: type[DetgateError] = EngineError) -> str:
    """The message of the error that a call must raise; it names a remedy."""
    with pytest.raises(error) as caught:
        call()
    told, remedy = str(caught.value), caught.value.remedy
    del caught  # its traceback would keep what the call held
    assert remedy
    return told


def deviation(source: Source, session: IgieSession, images: Images) -> float:
    """Relative L2 error of the worst output, against ONNX Runtime on the graph that the engine was built from."""
    assert source.graph is not None
    return deviations(run_graph(onnx.load(str(source.graph)), images), session.infer(images))[0].relative


# --- it computes what the graph says


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 0, EXACT), ("fp16", EXACT, HALF)])
def test_maps_are_those_of_onnx_runtime_on_the_same_graph(
    pipeline: Pipeline,
    runtime: SimulatedIgie,
    tmp_path: Path,
    model: str,
    precision: Precision,
    least: float,
    most: float,
) -> None:
    source = source_of(pipeline, model, precision)
    Igie().build(source, tmp_path / "e.so")
    with Igie().open(source, tmp_path / "e.so") as session:
        assert least <= deviation(source, session, pipeline.check_images(model)) <= most
    assert runtime.built == [precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_forgotten_precision_shows_in_the_maps(
    pipeline: Pipeline, runtime: SimulatedIgie, images: Images, tmp_path: Path, precision: Precision
) -> None:
    source = source_of(pipeline, MODEL, precision)
    relay: Any = import_module("tvm.relay")
    relay.build = lambda module, *, target, params, precision: runtime._build(module, target=target, params=params)
    Igie().build(source, tmp_path / "e.so")
    with Igie().open(source, tmp_path / "e.so") as session:
        assert deviation(source, session, images) > 10 * HALF
    assert runtime.built == ["None"]


@pytest.fixture
def judged(pipeline: Pipeline, runtime: SimulatedIgie) -> Pipeline:
    """A pipeline of a machine with the runtime."""
    return Pipeline(pipeline.settings)


def test_a_failed_build_leaves_no_engine_in_the_cache(judged: Pipeline, runtime: SimulatedIgie) -> None:
    runtime.faults.raises["build"] = TVMError("cannot compile")
    assert "cannot compile" in refused(lambda: judged.prepare(Cell(MODEL, "fp32", "igie")))
    assert not list((judged.settings.cache_dir / "engine").rglob("*fp32-igie*"))


# --- what a session gives


def test_outputs_are_new_float32_maps_in_the_models_order(session: IgieSession, source: Source, images: Images) -> None:
    first, second = session.infer(images), session.infer(images)
    assert list(first) == list(source.shapes)
    assert all(values.dtype == np.float32 and values.flags.writeable for values in first.values())
    assert not any(np.shares_memory(first[name], second[name]) for name in first)


def test_a_second_batch_leaves_the_first_ones_maps_alone(session: IgieSession, images: Images) -> None:
    first = session.infer(images)
    kept = {name: values.copy() for name, values in first.items()}
    session.infer(np.zeros_like(images))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def with_outputs(source: Source, folder: Path, order: Callable[[list[Any]], list[Any]]) -> Source:
    """The same graph with its outputs in another order."""
    model = onnx.load(str(source.graph))
    outputs = order(list(model.graph.output))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, str(folder / "other.onnx"))
    return replace(source, graph=folder / "other.onnx")


def test_outputs_are_named_by_the_order_of_the_graph(
    runtime: SimulatedIgie, source: Source, images: Images, tmp_path: Path
) -> None:
    other = with_outputs(source, tmp_path, lambda outputs: outputs[::-1])
    Igie().build(other, tmp_path / "e.so")
    with Igie().open(other, tmp_path / "e.so") as session:
        assert deviation(source, session, images) <= EXACT


def test_without_the_graph_outputs_are_in_the_models_order(
    runtime: SimulatedIgie, source: Source, library: Path, images: Images
) -> None:
    with Igie().open(replace(source, graph=None), library) as session:
        assert deviation(source, session, images) <= EXACT


@pytest.mark.parametrize("make", ["prepare", "transfer"])
def test_a_timed_call_takes_images_that_are_not_contiguous(session: IgieSession, images: Images, make: str) -> None:
    assert getattr(session, make)(images[:, :, ::-1, ::-1])() is None


def test_a_prepared_call_runs_and_waits(session: IgieSession, runtime: SimulatedIgie, images: Images) -> None:
    call = session.prepare(images)
    before = runtime.device.now
    call()
    assert runtime.device.now - before == pytest.approx(KERNEL_S)


def test_what_a_prepared_call_computed_can_be_read_back(session: IgieSession, images: Images) -> None:
    session.infer(images[::-1])
    session.prepare(images)()
    assert deviations(session.read_back(), session.infer(images))[0].relative == 0


def test_a_transfer_copies_in_and_every_output_out(
    session: IgieSession, runtime: SimulatedIgie, source: Source, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(runtime.device, "copy_out", counting(copied, "out", runtime.device.copy_out))
    monkeypatch.setattr(runtime.device, "copy_in", counting(copied, "in", runtime.device.copy_in))
    session.transfer(images)()
    assert copied == ["in"] + ["out"] * len(source.shapes)


def counting(noted: list[str], what: str, call: Callable[..., None]) -> Callable[..., None]:
    def noting(*arguments: Any) -> None:
        noted.append(what)
        call(*arguments)

    return noting


def test_calls_can_be_timed(session: IgieSession, images: Images) -> None:
    assert all(second > 0 for second in session.time(images, calls=2))


def test_device_seconds_are_those_of_each_run(session: IgieSession, images: Images) -> None:
    assert session.device_seconds(images, 3) == [KERNEL_S] * 3


def test_device_seconds_are_asked_of_time_evaluator_run_by_run(
    session: IgieSession, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}

    def evaluator(_self: object, _name: str, _device: object, **named: int) -> Callable[[], SimpleNamespace]:
        asked.update(named)
        return lambda: SimpleNamespace(results=(0.25, 0.75))

    monkeypatch.setattr(simulated.GraphModule, "_time_evaluator", evaluator)
    assert session.device_seconds(images, 2) == [0.25, 0.75]
    assert asked == {"number": 1, "repeat": 2}


def test_beside_its_judged_speed_stand_copies_and_time_evaluator(
    runtime: SimulatedIgie, session: IgieSession, source: Source, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "BESIDE_S", 0)
    prepared = cast(Prepared, SimpleNamespace(engine=Igie(), source=source))
    compute = summarise([KERNEL_S] * 10, source.batch)
    found = timing.beside(Opened(prepared, session, "fp32", "gpu"), images, compute, lambda: runtime.device.now)
    assert found.transfer is not None
    assert found.transfer.fps < compute.fps
    assert (found.device, found.device_timer, found.memory_bytes) == (compute, "time_evaluator", None)


def test_what_ran_is_the_simulated_gpu_and_nothing_is_known_of_its_layers(session: IgieSession) -> None:
    assert session.inspect() == Inspection("Simulated MR-V100", None)
    assert session.memory() is None
    assert not Igie().capabilities.inspection


USES: dict[str, Callable[[IgieSession, Images], object]] = {
    "infer": lambda session, images: session.infer(images),
    "prepare": lambda session, images: session.prepare(images),
    "prepared": lambda session, images: session._run(),
    "transfer": lambda session, images: session.transfer(images)(),
    "device_seconds": lambda session, images: session.device_seconds(images, 1),
    "memory": lambda session, _: session.memory(),
    "inspect": lambda session, _: session.inspect(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_closed_session_refuses(
    runtime: SimulatedIgie, session: IgieSession, images: Images, use: Callable[[IgieSession, Images], object]
) -> None:
    session.close()
    runtime.require_clean()
    assert "the session is closed" in refused(lambda: use(session, images))


@pytest.mark.parametrize("make", ["prepare", "transfer"])
def test_a_call_that_outlives_its_session_refuses(
    runtime: SimulatedIgie, session: IgieSession, images: Images, make: str
) -> None:
    call = getattr(session, make)(images)
    session.close()
    runtime.require_clean()
    assert "the session is closed" in refused(call)


def test_closing_frees_everything_once(runtime: SimulatedIgie, session: IgieSession, images: Images) -> None:
    session.infer(images)
    session.close()
    session.close()
    runtime.require_clean()


# --- engines that do not fit


def test_an_engine_of_another_batch_is_refused(runtime: SimulatedIgie, source: Source, library: Path) -> None:
    other = replace(source, batch=2 * BATCH)
    with Igie().open(other, library) as session:
        told = refused(lambda: session.infer(np.zeros(other.input_shape, np.float32)))
    assert "does not take images (4, 3," in told
    assert "does not match the shape of NDArray (2, 3," in told


def test_an_engine_with_another_input_is_refused(
    runtime: SimulatedIgie, source: Source, library: Path, images: Images
) -> None:
    spec = source.spec.model_copy(update={"input": source.spec.input.model_copy(update={"name": "pixels"})})
    with Igie().open(replace(source, spec=spec), library) as session:
        assert "Could not find 'pixels'" in refused(lambda: session.infer(images))


@pytest.mark.parametrize("change", [lambda given: given[:-1], lambda given: [*given, 0]], ids=["one less", "one more"])
def test_another_number_of_outputs_is_refused(
    runtime: SimulatedIgie, session: IgieSession, images: Images, change: Callable[[list[int]], list[int]]
) -> None:
    runtime.faults.outputs = change
    told = refused(lambda: session.infer(images))
    assert "wanted 10 outputs (" in told
    assert f"found {len(change(list(range(10))))}" in told


@pytest.mark.parametrize(
    "change",
    [lambda given: given[::-1], lambda given: [given[1], given[0], *given[2:]]],
    ids=["reversed", "first two swapped"],
)
def test_outputs_in_another_order_are_refused(
    runtime: SimulatedIgie, session: IgieSession, images: Images, change: Callable[[list[int]], list[int]]
) -> None:
    runtime.faults.outputs = change
    assert "gives its outputs in another order than its graph" in refused(lambda: session.infer(images))


def test_an_output_twice_is_refused(runtime: SimulatedIgie, session: IgieSession, images: Images) -> None:
    runtime.faults.outputs = lambda given: [given[0], given[0], *given[2:]]
    assert "wanted outputs" in refused(lambda: session.infer(images))


def test_a_graph_that_lacks_an_output_is_refused(
    runtime: SimulatedIgie, source: Source, images: Images, tmp_path: Path
) -> None:
    other = with_outputs(source, tmp_path, lambda outputs: outputs[:-1])
    Igie().build(other, tmp_path / "e.so")
    with Igie().open(other, tmp_path / "e.so") as session:
        assert f"lacks the outputs {list(source.shapes)[-1]}" in refused(lambda: session.infer(images))


def test_a_graph_with_one_output_more_is_refused(
    runtime: SimulatedIgie, source: Source, library: Path, images: Images
) -> None:
    known = dict(list(source.shapes.items())[:-1])
    with Igie().open(replace(source, shapes=known), library) as session:
        assert "wanted outputs" in refused(lambda: session.infer(images))


# --- files that are no engines


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda whole: whole[:-1000], "file too short"),
        (lambda _: b"garbage" * 100, "invalid ELF header"),
        (lambda _: b"", "invalid ELF header"),
        (lambda whole: whole[:30], "JSONDecodeError"),
    ],
    ids=["truncated", "garbage", "empty", "half a header"],
)
def test_a_damaged_file_is_refused(
    runtime: SimulatedIgie,
    source: Source,
    library: Path,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    found: str,
) -> None:
    file = tmp_path / "bad.so"
    file.write_bytes(damage(library.read_bytes()))
    told = refused(lambda: Igie().open(source, file))
    assert f"cannot open {file}" in told
    assert found in told
    assert "build it again" in told


def test_a_file_that_is_not_there_is_refused(runtime: SimulatedIgie, source: Source, tmp_path: Path) -> None:
    assert "No such file" in refused(lambda: Igie().open(source, tmp_path / "none.so"))


def test_an_engine_of_another_version_is_refused(source: Source, library: Path) -> None:
    with installed(version="0.13.0+simulated") as other:
        assert f"of version {simulated.VERSION}" in refused(lambda: Igie().open(source, library))
        other.require_clean()


def test_an_engine_of_another_gpu_is_refused(runtime: SimulatedIgie, source: Source, library: Path) -> None:
    runtime.device.name = "Simulated BI-V150"
    assert "for Simulated MR-V100" in refused(lambda: Igie().open(source, library))


# --- builds that fail


def build(source: Source, folder: Path) -> Callable[[], None]:
    return lambda: Igie().build(source, folder / "e.so")


def test_a_graph_that_is_none_is_refused(runtime: SimulatedIgie, source: Source, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"garbage" * 100)
    told = refused(build(replace(source, graph=tmp_path / "broken.onnx"), tmp_path))
    assert f"igie {simulated.VERSION} refused" in told
    assert "TVMError: cannot import" in told


@pytest.mark.parametrize("call", ["import", "build", "export_library"])
@pytest.mark.parametrize(
    "error", [TVMError("\nno kernel\nat all"), NotImplementedError("operator Foo"), MemoryError(), KeyError("conv")]
)
def test_what_tvm_raises_is_an_error_of_the_engine(
    runtime: SimulatedIgie, source: Source, tmp_path: Path, call: str, error: Exception
) -> None:
    runtime.faults.raises[call] = error
    told = refused(build(source, tmp_path))
    assert f"in fp32: {type(error).__name__}: " in told
    assert "at all" not in told
    assert not (tmp_path / "e.so").exists()


def test_a_library_that_was_not_written_is_told(runtime: SimulatedIgie, source: Source, tmp_path: Path) -> None:
    runtime.faults.writes_nothing = True
    assert "wanted a library, found no file" in refused(build(source, tmp_path))


def test_an_empty_library_is_told(runtime: SimulatedIgie, source: Source, tmp_path: Path) -> None:
    runtime.faults.writes_nothing = True
    (tmp_path / "e.so").touch()
    assert "wanted a library, found no file" in refused(build(source, tmp_path))


def test_too_little_memory_to_build_is_told(source: Source, tmp_path: Path) -> None:
    with installed(memory_limit=SMALL) as small:
        assert "out of memory" in refused(build(source, tmp_path))
        small.require_clean()


def test_a_tvm_without_the_importer_is_told(
    runtime: SimulatedIgie, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tvm.relay.import_model", None)
    assert "tvm.relay.import_model" in refused(build(source, tmp_path))


# --- runs that fail


@pytest.mark.parametrize("limit", [1_000_000, 2_000_000])
def test_too_little_memory_to_open_is_told_and_leaves_none_in_use(source: Source, library: Path, limit: int) -> None:
    with installed(memory_limit=limit) as small:
        assert "out of memory" in refused(lambda: Igie().open(source, library))
        small.require_clean()


def test_too_little_memory_for_the_images_is_told(source: Source, library: Path, images: Images) -> None:
    with installed(memory_limit=3_000_000) as small:
        with Igie().open(source, library) as session:
            assert "out of memory" in refused(lambda: session.infer(images))
        small.require_clean()


def test_a_graph_that_cannot_be_read_any_more_closes_what_was_opened(
    runtime: SimulatedIgie, source: Source, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_source: Source) -> list[str]:
        raise EngineError("the graph is gone", "make it again")

    monkeypatch.setattr(igie, "_output_names", fails)
    with pytest.raises(EngineError, match="the graph is gone") as caught:
        Igie().open(source, library)
    runtime.require_clean()  # while the error, and with it what the call held, is alive
    assert caught.value.remedy == "make it again"


@pytest.mark.parametrize("call", ["array", "set_input", "run", "sync", "asnumpy"])
def test_a_call_that_fails_while_running_is_told(
    runtime: SimulatedIgie, session: IgieSession, images: Images, call: str
) -> None:
    runtime.faults.raises[call] = TVMError(f"{call}: ixError 700")
    assert f"TVMError: {call}: ixError 700" in refused(lambda: session.infer(images))
    runtime.faults.raises.clear()


def test_a_device_that_does_not_tell_its_name_is_told(runtime: SimulatedIgie, session: IgieSession) -> None:
    runtime.faults.raises["device_name"] = AttributeError("device_name")
    assert "the GPU does not tell its name" in refused(session.inspect)


def test_a_time_evaluator_that_fails_is_told(runtime: SimulatedIgie, session: IgieSession, images: Images) -> None:
    runtime.faults.raises["time_evaluator"] = TVMError("no timer")
    told = refused(lambda: session.device_seconds(images, 1))
    assert "cannot be timed by time_evaluator: TVMError: no timer" in told


def test_closing_waits_for_what_still_runs(
    runtime: SimulatedIgie, source: Source, library: Path, images: Images
) -> None:
    session = Igie().open(source, library)
    session._upload(images)
    session.executor.run()
    session.close()
    runtime.require_clean()


def test_a_device_that_fails_while_it_is_closed_is_let_go(
    runtime: SimulatedIgie, session: IgieSession, images: Images
) -> None:
    session.infer(images)
    runtime.faults.raises["sync"] = TVMError("gone")
    session.close()
    runtime.require_clean()


# --- rules of the runtime: breaking one is loud


def test_a_read_without_synchronising_is_a_misuse(
    runtime: SimulatedIgie, session: IgieSession, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated.TvmDevice, "sync", lambda _: None)
    with pytest.raises(Misuse, match="not finished: synchronise"):
        session.infer(images)
    monkeypatch.undo()


def test_a_second_batch_before_the_first_is_done_is_a_misuse(
    runtime: SimulatedIgie, session: IgieSession, images: Images
) -> None:
    session._upload(images)
    session.executor.run()
    with pytest.raises(Misuse, match="in use by 'run'"):
        session._upload(images)


def test_an_input_that_was_never_copied_is_a_misuse(session: IgieSession) -> None:
    with pytest.raises(Misuse, match="input 'input' holds NaN"):
        session._run()


def test_a_freed_array_is_a_misuse(runtime: SimulatedIgie, session: IgieSession, images: Images) -> None:
    bound = session.executor._inputs["input"]
    runtime.device.free(bound.address)
    with pytest.raises(Misuse, match="not inside memory that is allocated"):
        session.infer(images)
    bound.address = 0


STRICT: dict[str, tuple[Callable[[Any, Images], object], str]] = {
    "strides": (lambda tvm, x: tvm.nd.array(x[:, :, ::-1], tvm.device("iluvatar", 0)), "wants a contiguous"),
    "array on the cpu": (lambda tvm, x: tvm.nd.array(x, None), "without one it makes an array on the CPU"),
    "no array": (lambda tvm, x: tvm.nd.array(x.tolist(), tvm.device("iluvatar", 0)), "wants a contiguous numpy array"),
    "target": (lambda tvm, _: tvm.target.iluvatar(model="BI", options="-libs=cudnn"), "unknown target 'BI'"),
    "device": (lambda tvm, _: tvm.device("cuda", 0), "unknown device 'cuda'"),
    "path": (lambda tvm, _: tvm.runtime.load_module(Path("e.so")), "load_module wants a str"),
    "instance": (lambda tvm, _: tvm.contrib.graph_executor.GraphModule(object()), "GraphModule wants library"),
    "backend": (lambda tvm, _: tvm.relay.import_model.import_model_to_igie("e", {}, "tensorrt"), "unknown backend"),
    "module": (lambda tvm, _: tvm.relay.build(None, target=None, params=None), "wants a module and a target"),
}


@pytest.mark.parametrize(("call", "rule"), STRICT.values(), ids=STRICT)
def test_the_simulated_igie_is_strict(
    runtime: SimulatedIgie, images: Images, call: Callable[[Any, Images], object], rule: str
) -> None:
    with pytest.raises(Misuse, match=rule):
        call(import_module("tvm"), images)


@pytest.mark.parametrize(
    ("use", "rule"),
    [
        (lambda session, x: session.executor.set_input("input", x), "wants an array on the device, not ndarray"),
        (lambda session, x: session._upload(x.astype(np.float64)), "'input' is float32, found float64"),
        (lambda session, _: session.executor.module.time_evaluator("go", None, number=1, repeat=1), "of 'go'"),
        (lambda session, _: session.executor.module.time_evaluator("run", session._device, 0, 1), "of 0 x 1 runs"),
    ],
)
def test_the_simulated_executor_is_strict(
    session: IgieSession, images: Images, use: Callable[[IgieSession, Images], object], rule: str
) -> None:
    with pytest.raises(Misuse, match=rule):
        use(session, images)


def test_another_input_shape_than_the_graphs_is_a_misuse(
    runtime: SimulatedIgie, source: Source, tmp_path: Path
) -> None:
    with pytest.raises(Misuse, match="the graph's inputs are"):
        Igie().build(replace(source, batch=1), tmp_path / "e.so")


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_an_unknown_precision_is_a_misuse(
    runtime: SimulatedIgie, source: Source, tmp_path: Path, precision: Any
) -> None:
    with pytest.raises(Misuse, match=f"unknown precision '{precision}'"):
        Igie().build(replace(source, precision=precision), tmp_path / "e.so")


def test_a_library_of_another_suffix_is_a_misuse(runtime: SimulatedIgie, source: Source, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"wants the path of a \.so"):
        Igie().build(source, tmp_path / "e.engine")


# --- what must be here


def test_a_machine_without_igie_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert Igie().available() == "tvm is not installed (wanted Iluvatar's IGIE, a package of that name)"
    assert "IGIE" in refused(Igie().version, Missing)
    assert "IGIE_WHEEL" in Igie().remedy


def test_where_all_is_here_igie_is_available(runtime: SimulatedIgie) -> None:
    assert Igie().available() is None
    assert Igie().version() == simulated.VERSION


def test_another_tvm_is_refused(runtime: SimulatedIgie, source: Source, tmp_path: Path) -> None:
    del vars(import_module("tvm.target"))["iluvatar"]
    told = refused(build(source, tmp_path), Missing)
    assert f"the package tvm {simulated.VERSION} is another TVM (wanted Iluvatar's IGIE" in told


@pytest.mark.parametrize("call", ["exist", "target"])
def test_a_device_that_does_not_answer_is_told(
    runtime: SimulatedIgie, source: Source, library: Path, call: str
) -> None:
    runtime.faults.raises[call] = TVMError("driver not loaded")
    assert "no Iluvatar GPU answers: driver not loaded" in refused(lambda: Igie().open(source, library), Missing)


def test_a_gpu_that_is_not_here_is_told(runtime: SimulatedIgie) -> None:
    assert "wanted GPU 1, tvm finds no Iluvatar GPU of that number" in str(Igie({"device": "1"}).available())


def test_another_gpu_can_be_chosen(source: Source, library: Path) -> None:
    with installed(devices=2), Igie({"device": "1"}).open(source, library) as session:
        assert session._device.index == 1


def test_a_gpu_that_is_no_number_is_refused() -> None:
    assert "igie.device: wanted a whole number" in refused(lambda: Igie({"device": "first"}), UsageError)


def test_capabilities_say_what_is_built_from_what() -> None:
    able = Igie().capabilities
    assert dict(able.computes) == {"fp32": "fp32", "fp16": "fp16"}
    assert (able.device, able.int8_scheme) == ("accelerator", None)
    assert dict(Igie().capabilities.builds_from) == {"fp16": "fp32"}


def test_the_target_is_a_build_flag() -> None:
    wanted = {"device": "0", "target.model": "MR", "target.options": "-libs=cudnn,cublas,ixinfer"}
    assert Igie({"device": "0"}).flags() == wanted
