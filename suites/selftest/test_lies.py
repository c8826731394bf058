"""Lies that an engine or a file may tell, and what is said of each, engine by engine: `LIES` and `REPLACED`.

All go through the pipeline as a user's cell does, with the real runtime where it is here, else a simulated one. An
engine has no row where the lie needs a precision, a device or a file that it does not have. A file of other weights
shows only where the model's checkpoint or ONNX is here: else one of the right shapes is taken for what it is called.
"""

import gc
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from harness.accuracy_run import measure_accuracy
from harness.engines import aotinductor, get_engine, igie, ixrt, openvino
from harness.engines import onnxruntime as onnxruntime_engine
from harness.engines.base import Images, Maps
from harness.engines.onnxruntime import PROVIDERS
from harness.errors import DetgateError
from harness.model.checkpoint import RANDOM_WEIGHTS
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Settings
from suites.selftest.conftest import Command
from suites.selftest.simulated import ixrt as simulated_ixrt
from suites.selftest.simulated import tvm as simulated_igie
from suites.selftest.simulated.ixrt import roughened
from suites.selftest.simulated.runtimes import RUNTIMES, installed

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("mini")]

MODEL, OTHER = "pisa-mini", "paa-mini"
BATCH = 2
GRAPH_STEPS = ("onnx", "simplified", "fp16", "graph")


@dataclass(frozen=True)
class Stage:
    """An engine, here or simulated, and all that is needed to lie with it."""

    runtime: str
    settings: Settings
    folder: Path
    patch: pytest.MonkeyPatch

    @property
    def engine(self) -> str:
        return RUNTIMES.get(self.runtime, self.runtime)

    def pipeline(self, **changes: Any) -> Pipeline:
        return Pipeline(replace(self.settings, **changes))

    def measure(self, precision: Precision = "fp32", model: str = MODEL, **changes: Any) -> None:
        """As `pytest -m accuracy` measures a cell, with the settings changed."""
        measure_accuracy(self.pipeline(limit=BATCH, **changes), Cell(model, precision, self.engine))

    def file(self, precision: Precision = "fp32") -> Path:
        """The engine file of an honest cell."""
        return self.pipeline().prepare(Cell(MODEL, precision, self.engine)).file.path

    def fresh(self) -> Path:
        """A cache with the graphs that are made, and no engine."""
        for step in GRAPH_STEPS:
            (self.settings.cache_dir / step).mkdir(parents=True, exist_ok=True)
            (self.folder / step).symlink_to(self.settings.cache_dir / step)
        return self.folder

    def with_option(self, key: str, value: str) -> dict[str, Any]:
        return {"engine_options": {self.engine: {key: value}}}


# --- the lies


def fp32_file_named_fp16(stage: Stage) -> None:
    stage.measure("fp16", engine_file=stage.file("fp32"))


def int8_file_named_fp16(stage: Stage) -> None:
    stage.measure("fp16", engine_file=stage.file("int8"))


def fp32_file_named_int8(stage: Stage) -> None:
    stage.measure("int8", engine_file=stage.file("fp32"))


def builder_computes_fp32(stage: Stage) -> None:
    """Asked for fp16, it builds fp32 and says nothing."""
    stage.patch.setattr(Pipeline, "typed", lambda made, model, _precision, _scheme, w: made.simplified(model, w))
    stage.patch.setattr(simulated_ixrt, "_typed", lambda model, _config: model)
    stage.patch.setattr(simulated_igie.graph, "to_fp16", lambda model: model)
    stage.measure("fp16", cache_dir=stage.fresh())


def builder_takes_its_own_default(stage: Stage) -> None:
    """Nobody tells it a precision: its own default is a few bits."""
    stage.patch.setattr(ixrt, "_ask_precision", lambda *_: None)
    stage.patch.setattr(simulated_igie.graph, "to_fp16", roughened)
    stage.measure("fp16", cache_dir=stage.fresh())


def accelerator_that_is_not_there(stage: Stage) -> None:
    stage.measure(**stage.with_option(*ACCELERATORS[stage.engine]))


ACCELERATORS = {"onnxruntime": ("provider", "cuda"), "openvino": ("device", "gpu"), "aotinductor": ("device", "cuda")}


def accelerator_that_falls_back(stage: Stage) -> None:
    """The runtime says that it has the accelerator, and computes on the CPU."""
    honest, session = stage.file(), onnxruntime.InferenceSession

    def cpu_session(model: Any, _options: object, **_asked: object) -> Any:
        return session(model, providers=[PROVIDERS["cpu"].name])

    stage.patch.setattr("onnxruntime.InferenceSession", cpu_session)
    stage.patch.setattr("onnxruntime.get_available_providers", lambda: [one.name for one in PROVIDERS.values()])
    stage.patch.setitem(openvino.DEVICES, "gpu", "CPU")
    stage.patch.setattr("torch.cuda.is_available", lambda: True)
    stage.patch.setattr(aotinductor.AotInductor, "build", lambda _self, _source, target: shutil.copy(honest, target))
    stage.measure(cache_dir=stage.fresh(), **stage.with_option(*ACCELERATORS[stage.engine]))


def file_of_another_model(stage: Stage) -> None:
    stage.measure(model=OTHER, engine_file=stage.file())


def file_of_other_weights(stage: Stage) -> None:
    """The same model trained otherwise: every name and shape is right."""
    source = stage.pipeline().prepare(Cell(MODEL, "fp32", stage.engine)).source
    if source.graph is not None:
        fixed = stage.pipeline().fixed(MODEL, "fp32", None, RANDOM_WEIGHTS, BATCH)
        source = replace(source, graph=fixed.path)
    engine = get_engine(stage.engine)
    file = stage.folder / f"other{engine.file_suffix}"
    engine.build(replace(source, weights=RANDOM_WEIGHTS), file)
    stage.measure(engine_file=file)


def file_of_another_batch(stage: Stage) -> None:
    stage.measure(engine_file=stage.file(), batch_size=2 * BATCH)


def only_the_first_image_is_computed(stage: Stage) -> None:
    for session in (ixrt.IxrtSession, igie.IgieSession):
        stage.patch.setattr(session, "_infer", repeating_the_first(session._infer))
    stage.measure()


def repeating_the_first(infer: Callable[[Any, Images], Maps]) -> Callable[[Any, Images], Maps]:
    def repeated(session: Any, images: Images) -> Maps:
        return {name: maps[[0] * len(maps)] for name, maps in infer(session, images).items()}

    return repeated


def checkpoint_changed_under_its_name(stage: Stage) -> None:
    path = stage.pipeline().checkpoint(MODEL).path
    assert path is not None
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    (stage.folder / path.name).write_bytes(changed)
    stage.patch.setattr("harness.pipeline.EMBEDDED", stage.folder / "nothing")
    stage.measure(checkpoints=stage.folder)


# --- lies that find nobody who would use them


def onnx_changed_under_its_name(stage: Stage) -> list[str]:
    """The ids of the engines that are built once the graph has changed."""
    cell, mine = Cell(MODEL, "fp32", stage.engine), stage.folder / "mine.onnx"
    pipeline = stage.pipeline()
    model = onnx.load(str(pipeline.simplified(MODEL, pipeline.checkpoint(MODEL)).path))
    onnx.save(model, str(mine))
    stage.pipeline(onnx=mine).prepare(cell)
    kernel = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(2), kernel.name))
    onnx.save(model, str(mine))
    return rebuilt(stage.pipeline(onnx=mine), cell)


def engine_swapped_in_the_cache(stage: Stage) -> list[str]:
    """The ids of the engines that are built once another model's engine lies in the place of this one's."""
    cell, cache = Cell(MODEL, "fp32", stage.engine), stage.fresh()
    mine, other = (stage.pipeline(cache_dir=cache).prepare(replace(cell, model=name)) for name in (MODEL, OTHER))
    size = mine.file.path.stat().st_size  # kept: it is the hash that must tell
    mine.file.path.write_bytes(other.file.path.read_bytes().ljust(size, b"\0")[:size])
    return rebuilt(stage.pipeline(cache_dir=cache), cell)


def rebuilt(pipeline: Pipeline, cell: Cell) -> list[str]:
    pipeline.prepare(cell)
    return pipeline.engines_built


# --- what is said of each, by which engine


def off(precision: str, engine: str, distance: str) -> str:
    """Its outputs are not at the distance from the fp32 graph's that the precision explains."""
    return rf"InvalidRun: {MODEL}-{precision}-{engine}: output '\w+' is {distance} \(relative L2\) off the fp32 graph's"


def ran(precision: str, engine: str, found: str, wanted: str = "") -> str:
    """Its convolutions computed in another type than the engine claims."""
    work = f"wanted 95% of convolution work in {wanted or precision}, found 100% in {found} on "
    return f"InvalidRun: {MODEL}-{precision}-{engine}: {work}"


def on_the_cpu(engine: str) -> str:
    return f"InvalidRun: {MODEL}-fp32-{engine}: wanted to run on an accelerator, ran on cpu"


def given(engine: str, fault: str) -> str:
    return rf"UsageError: --engine-file \S+/{MODEL}-fp32-{engine}\.b{BATCH}\.\w+ cannot be used: .*{fault}"


NOTHING, HUNDREDTHS, MUCH = r"\d\.\de-0[5-9]", r"\d\.\de-02", r"\d\.\de[-+]0[01]"
LACKS_IOU, WANTED_OUTPUTS = "lacks the outputs iou_", r"wanted outputs .*\(4, 90, .*found .*\(2, 90, "
ANOTHER_SIZE, ANOTHER_BATCH = (rf"does not take images \({size}" for size in ("2, 3, 256, 256", "4, 3, 192, 320"))
ANOTHER_CHECKPOINT = "CheckpointError: .*: wanted SHA-256 6df1db12"

LIES: dict[Callable[[Stage], None], dict[str, str]] = {
    fp32_file_named_fp16: {
        "onnxruntime": off("fp16", "onnxruntime", NOTHING),
        "openvino": off("fp16", "openvino", NOTHING),
        "tensorrt 10": ran("fp16", "tensorrt", "fp32"),
        "tensorrt 11": ran("fp16", "tensorrt", "fp32"),
        "ixrt": off("fp16", "ixrt", NOTHING),
        "igie": off("fp16", "igie", NOTHING),
    },
    int8_file_named_fp16: {
        "onnxruntime": ran("fp16", "onnxruntime", "int8", wanted="fp32"),
        "openvino": ran("fp16", "openvino", "int8", wanted="fp32"),
        "tensorrt 10": ran("fp16", "tensorrt", "int8"),
        "tensorrt 11": ran("fp16", "tensorrt", "int8"),
        "ixrt": off("fp16", "ixrt", HUNDREDTHS),
    },
    fp32_file_named_int8: {
        "onnxruntime": ran("int8", "onnxruntime", "fp32"),
        "openvino": ran("int8", "openvino", "fp32"),
        "tensorrt 10": ran("int8", "tensorrt", "fp32"),
        "tensorrt 11": ran("int8", "tensorrt", "fp32"),
        "ixrt": off("int8", "ixrt", NOTHING),
    },
    builder_computes_fp32: {
        "tensorrt 10": ran("fp16", "tensorrt", "fp32"),
        "tensorrt 11": ran("fp16", "tensorrt", "fp32"),
        "ixrt": off("fp16", "ixrt", NOTHING),
        "igie": off("fp16", "igie", NOTHING),
    },
    builder_takes_its_own_default: {"ixrt": off("fp16", "ixrt", MUCH), "igie": off("fp16", "igie", MUCH)},
    accelerator_that_is_not_there: {
        "onnxruntime": "Missing: onnxruntime has no CUDAExecutionProvider",
        "openvino": "Missing: openvino finds no GPU",
        "aotinductor": "Missing: torch .* finds no CUDA device",
    },
    accelerator_that_falls_back: {
        "onnxruntime": "EngineError: asked for CUDAExecutionProvider, onnxruntime fell back to CPUExecutionProvider",
        "openvino": on_the_cpu("openvino"),
        "aotinductor": on_the_cpu("aotinductor"),
    },
    file_of_another_model: {
        "torch": "CheckpointError: .* does not fit 'paa-mini': 19 missing keys",
        "onnxruntime": given("onnxruntime", LACKS_IOU),
        "openvino": given("openvino", ANOTHER_SIZE),
        "aotinductor": given("aotinductor", "wanted 15 outputs, found 10"),
        "tensorrt 10": given("tensorrt", LACKS_IOU),
        "tensorrt 11": given("tensorrt", LACKS_IOU),
        "ixrt": given("ixrt", ANOTHER_SIZE),
        "igie": given("igie", ANOTHER_SIZE),
    },
    file_of_other_weights: {
        "torch": off("fp32", "torch", MUCH),
        "onnxruntime": off("fp32", "onnxruntime", MUCH),
        "openvino": off("fp32", "openvino", MUCH),
        "aotinductor": off("fp32", "aotinductor", MUCH),
        "tensorrt 10": off("fp32", "tensorrt", MUCH),
        "tensorrt 11": off("fp32", "tensorrt", MUCH),
        "ixrt": off("fp32", "ixrt", MUCH),
        "igie": off("fp32", "igie", MUCH),
    },
    file_of_another_batch: {
        "onnxruntime": given("onnxruntime", ANOTHER_BATCH),
        "openvino": given("openvino", ANOTHER_BATCH),
        "aotinductor": given("aotinductor", WANTED_OUTPUTS),
        "tensorrt 10": given("tensorrt", ANOTHER_BATCH),
        "tensorrt 11": given("tensorrt", ANOTHER_BATCH),
        "ixrt": given("ixrt", ANOTHER_BATCH),
        "igie": given("igie", ANOTHER_BATCH),
    },
    # Where a runtime tells its layers, outputs are not compared: there it is AP that falls, see below.
    only_the_first_image_is_computed: {"ixrt": off("fp32", "ixrt", MUCH), "igie": off("fp32", "igie", MUCH)},
    checkpoint_changed_under_its_name: {
        "torch": ANOTHER_CHECKPOINT,
        "aotinductor": ANOTHER_CHECKPOINT,
        "onnxruntime": ANOTHER_CHECKPOINT,
    },
}
GRAPH_ENGINES = ("onnxruntime", "openvino", *RUNTIMES)
# What is changed or swapped behind detgate's back is not used: another engine is built.
REPLACED: dict[Callable[[Stage], list[str]], tuple[str, ...]] = {
    onnx_changed_under_its_name: GRAPH_ENGINES,
    engine_swapped_in_the_cache: ("torch", "aotinductor", *GRAPH_ENGINES),
}
# Each compiles for half a minute.
SLOW = {
    (lie, "aotinductor")
    for lie in (
        file_of_other_weights,
        file_of_another_model,
        file_of_another_batch,
        accelerator_that_falls_back,
        engine_swapped_in_the_cache,
    )
}


def case(lie: Callable[[Stage], object], runtime: str, *said: str) -> Any:
    # TensorRT 10 is told from 11 by nothing that is said here.
    marks = [pytest.mark.slow] if (lie, runtime) in SLOW or runtime == "tensorrt 10" else []
    return pytest.param(lie, runtime, *said, id=f"{lie.__name__}-{runtime}", marks=marks)


@pytest.fixture
def stage_of(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Stage]]:
    """Sets the stage for a runtime, which is there until the test ends."""
    settings = Settings(cache_dir=tmp_path_factory.getbasetemp() / "mini-cache", batch_size=BATCH)
    with ExitStack() as here:

        def stage(runtime: str) -> Stage:
            if runtime in RUNTIMES:
                here.enter_context(installed(runtime, tmp_path))
            return Stage(runtime, settings, tmp_path, monkeypatch)

        yield stage


def told(lie: Callable[[Stage], None], stage: Stage) -> str:
    """The kind and cause of the error that a lie ends in."""
    with pytest.raises(DetgateError) as caught:
        lie(stage)
    said = f"{type(caught.value).__name__}: {caught.value.cause}"
    del caught  # its traceback holds the pipeline that remembers it, and so what was on the device
    gc.collect()
    return said


@pytest.mark.parametrize(
    ("lie", "runtime", "said"), [case(lie, *row) for lie, table in LIES.items() for row in table.items()]
)
def test_a_lie_is_caught(
    stage_of: Callable[[str], Stage], lie: Callable[[Stage], None], runtime: str, said: str
) -> None:
    assert re.match(said, told(lie, stage_of(runtime)))


@pytest.mark.parametrize(
    ("lie", "runtime"), [case(lie, runtime) for lie, runtimes in REPLACED.items() for runtime in runtimes]
)
def test_what_was_replaced_is_not_used(
    stage_of: Callable[[str], Stage], lie: Callable[[Stage], list[str]], runtime: str
) -> None:
    assert lie(stage_of(runtime)) == [f"{MODEL}-fp32-{RUNTIMES.get(runtime, runtime)}"]


def test_images_that_an_inspected_engine_does_not_compute_cost_ap(stage_of: Callable[[str], Stage]) -> None:
    stage, cell = stage_of("onnxruntime"), Cell(MODEL, "fp32", "onnxruntime")
    honest = measure_accuracy(stage.pipeline(limit=8), cell).metrics.map_50_95
    session = onnxruntime_engine._OnnxRuntimeSession
    stage.patch.setattr(session, "_infer", repeating_the_first(session._infer))
    assert measure_accuracy(stage.pipeline(limit=8), cell).metrics.map_50_95 < 0.7 * honest


def test_the_gate_calls_a_lie_invalid_and_names_the_cell(
    stage_of: Callable[[str], Stage], suites_command: Command, tmp_path: Path
) -> None:
    stage = stage_of("onnxruntime")
    cell = ("--model", MODEL, "--precision", "fp16", "--engine", stage.engine, "--engine-file", stage.file("fp32"))
    places = ("--cache-dir", stage.settings.cache_dir, "--results", tmp_path / "results.json")
    outcome = suites_command("-m", "accuracy", *cell, *places, "--batch-size", BATCH, "--limit", BATCH)
    assert outcome.returncode == 1
    assert re.search(rf"INVALID {MODEL}-fp16-onnxruntime .* off the fp32 graph's: wanted 0.0001 to", outcome.stdout)
