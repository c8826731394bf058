"""Every engine speaks the same words, computes what torch computes, says what really ran, and never falls back."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from harness.accuracy_run import measure_accuracy
from harness.engines import ENGINES, Engine, Inspection, Session, base, get_engine, onnxruntime, openvino, torch
from harness.engines.base import Images, Layer, Maps
from harness.engines.table import parse_options
from harness.errors import CheckpointError, DetgateError, EngineError, InvalidRun, Missing, UsageError
from harness.model.parity import deviations
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared, Settings
from suites.selftest.fakes import CLOCK, FakeEngine, Workplace, clock

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("mini")]

MODEL = "pisa-mini"
BATCH = 2
CELLS = [
    Cell(MODEL, precision, name)
    for name in ENGINES
    if get_engine(name).available() is None
    for precision in get_engine(name).capabilities.precisions
]
GRAPH_ENGINES = ("onnxruntime", "openvino")
# Relative L2 error of the worst raw output on photographs; seen: 7e-7, 6e-4 and 0.07.
PARITY = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.15}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    cache = tmp_path_factory.getbasetemp() / "mini-cache"
    return Pipeline(Settings(cache_dir=cache, batch_size=BATCH))


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> Images:
    """Two photographs, preprocessed."""
    return pipeline.check_images(MODEL)


@pytest.fixture(scope="module")
def reference(pipeline: Pipeline, images: Images) -> Maps:
    """What torch computes."""
    with pipeline.opened(pipeline.prepare(Cell(MODEL, "fp32", "torch"))) as session:
        return session.infer(images)


def param(cell: Cell) -> Any:
    """Here: AOTInductor compiles for half a minute, and a CPU computes fp16 in fp32; `make gate` judges both too."""
    slow = cell.engine == "aotinductor" or cell.precision == "fp16"
    return pytest.param(cell, id=cell.id, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module", params=[param(cell) for cell in CELLS])
def prepared(request: pytest.FixtureRequest, pipeline: Pipeline) -> Prepared:
    return pipeline.prepare(request.param)


@pytest.fixture
def session(prepared: Prepared) -> Iterator[Session]:
    with prepared.engine.open(prepared.source, prepared.file.path) as session:
        yield session


@pytest.fixture
def inspected(prepared: Prepared, session: Session) -> Inspection:
    """What an engine whose runtime tells what ran says of it."""
    if not prepared.engine.capabilities.inspection:
        pytest.skip(f"{prepared.cell.engine} does not tell what ran")
    return session.inspect()


def prepared_fp32(pipeline: Pipeline, name: str) -> Prepared:
    return pipeline.prepare(Cell(MODEL, "fp32", name))


# --- every engine


def test_an_engine_computes_what_torch_computes(
    prepared: Prepared, session: Session, images: Images, reference: Maps
) -> None:
    worst = deviations(reference, session.infer(images))[0]
    assert worst.relative <= PARITY[prepared.cell.precision], worst


def test_outputs_are_float32_head_maps_in_the_heads_order(
    prepared: Prepared, session: Session, images: Images, pipeline: Pipeline
) -> None:
    maps = session.infer(images)
    assert list(maps) == list(pipeline.head(MODEL).output_names)
    assert {values.dtype for values in maps.values()} == {np.dtype(np.float32)}


def test_each_image_of_a_batch_has_its_own_row(session: Session, images: Images) -> None:
    forward, backward = session.infer(images), session.infer(images[::-1])
    worst = deviations({name: maps[::-1] for name, maps in forward.items()}, backward)[0]
    assert worst.relative < 1e-5


def test_a_second_call_gives_the_same_and_leaves_the_first_alone(session: Session, images: Images) -> None:
    first = session.infer(images)
    kept = {name: maps.copy() for name, maps in first.items()}
    session.infer(np.zeros_like(images))
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: x[..., 1:], lambda x: x.astype(np.float64)])
def test_images_of_another_shape_or_type_are_refused(
    session: Session, images: Images, change: Callable[[Images], Images]
) -> None:
    with pytest.raises(EngineError, match="wanted images"):
        session.infer(change(images))


def test_outputs_of_another_shape_than_the_models_are_refused(prepared: Prepared, images: Images) -> None:
    source = replace(prepared.source, shapes={**prepared.source.shapes, "cls_8": (1, 2, 3, 4)})
    with (
        prepared.engine.open(source, prepared.file.path) as session,
        pytest.raises(EngineError, match="wanted outputs"),
    ):
        session.infer(images)


def test_where_it_ran_is_where_the_engine_claims(prepared: Prepared, session: Session) -> None:
    assert (session.inspect().device == "cpu") is (prepared.engine.capabilities.device == "cpu")


def test_what_ran_is_what_the_engine_claims(prepared: Prepared, inspected: Inspection) -> None:
    claimed = prepared.engine.capabilities.computes[prepared.cell.precision]
    assert inspected.dominant == claimed
    inspected.require(claimed, prepared.cell.id)


def test_an_engine_tells_its_layers_exactly_when_it_says_so(prepared: Prepared, session: Session) -> None:
    assert (session.inspect().layers is not None) is prepared.engine.capabilities.inspection


def test_another_claim_than_what_ran_is_invalid(prepared: Prepared, inspected: Inspection) -> None:
    computes = prepared.engine.capabilities.computes[prepared.cell.precision]
    other = "int8" if computes == "fp32" else "fp32"
    with pytest.raises(InvalidRun, match=f"wanted 95% of convolution work in {other}, found .* in {computes} on "):
        inspected.require(other, prepared.cell.id)


def test_a_prepared_call_can_be_timed(session: Session, images: Images) -> None:
    seconds = session.time(images, calls=2)
    assert [second > 0 for second in seconds] == [True, True]


def test_what_a_prepared_call_computed_can_be_read_back(session: Session, images: Images) -> None:
    assert session.read_back() is None
    session.prepare(images)()
    assert deviations(session.infer(images), session.read_back() or {})[0].relative == 0


def test_a_prepared_call_keeps_the_images_that_it_was_given(session: Session, images: Images) -> None:
    call = session.prepare(images.copy())
    _overwriting = [np.full_like(images, 7) for _ in range(4)]  # in the memory of the copy, where that was let go of
    call()
    assert deviations(session.infer(images), session.read_back() or {})[0].relative == 0


def test_images_that_hold_nan_are_refused(session: Session, images: Images) -> None:
    broken = images.copy()
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(EngineError, match="NaN or Inf in the images of rows 1"):
        session.infer(broken)


@pytest.mark.parametrize(
    "use",
    [lambda s, x: s.infer(x), lambda s, x: s.prepare(x), lambda s, _: s.inspect()],
    ids=["infer", "prepare", "inspect"],
)
def test_a_closed_session_refuses(session: Session, images: Images, use: Callable[[Session, Images], object]) -> None:
    with session as entered:
        assert entered is session
    with pytest.raises(EngineError, match="the session is closed"):
        use(session, images)


def test_closing_twice_does_nothing(session: Session) -> None:
    session.close()
    session.close()


def test_the_engine_file_has_the_engines_suffix(prepared: Prepared) -> None:
    assert prepared.file.path.name == f"{prepared.cell.id}.b{BATCH}{prepared.engine.file_suffix}"


# --- files that do not fit


@pytest.mark.parametrize(("name", "error"), [("torch", CheckpointError)] + [(n, EngineError) for n in GRAPH_ENGINES])
def test_a_file_that_is_no_engine_is_refused(
    pipeline: Pipeline, tmp_path: Path, name: str, error: type[DetgateError]
) -> None:
    file = tmp_path / "garbage"
    file.write_bytes(b"garbage" * 100)
    prepared = prepared_fp32(pipeline, name)
    with pytest.raises(error, match="garbage"):
        prepared.engine.open(prepared.source, file)


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_a_graph_that_the_runtime_cannot_read_is_refused(pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    graph = tmp_path / "broken.onnx"
    graph.write_bytes(b"garbage" * 100)
    prepared = prepared_fp32(pipeline, name)
    with pytest.raises(EngineError, match=f"{name} .* refused .*broken.onnx"):
        prepared.engine.build(replace(prepared.source, graph=graph), tmp_path / "target")


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_an_engine_that_lacks_an_output_is_refused(pipeline: Pipeline, images: Images, name: str) -> None:
    prepared = prepared_fp32(pipeline, name)
    source = replace(prepared.source, shapes={**prepared.source.shapes, "iou_8": (BATCH, 9, 24, 40)})
    with (
        prepared.engine.open(source, prepared.file.path) as session,
        pytest.raises(EngineError, match="lacks the outputs iou_8"),
    ):
        session.infer(images)


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_an_engine_of_another_batch_is_refused(pipeline: Pipeline, images: Images, name: str) -> None:
    prepared = prepared_fp32(pipeline, name)
    source = replace(prepared.source, batch=2 * BATCH)
    with (
        prepared.engine.open(source, prepared.file.path) as session,
        pytest.raises(EngineError, match="does not take images"),
    ):
        session.infer(np.concatenate([images, images]))


def test_what_openvino_refuses_while_it_runs_is_an_error_of_the_engine(
    pipeline: Pipeline, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise RuntimeError("\nout of memory\nin node 7")

    prepared = prepared_fp32(pipeline, "openvino")
    monkeypatch.setattr(openvino._OpenVinoSession, "_request", lambda *_: SimpleNamespace(infer=fails))
    with (
        prepared.engine.open(prepared.source, prepared.file.path) as session,
        pytest.raises(EngineError, match=r"openvino failed on images .*: out of memory"),
    ):
        session.infer(images)


# --- options


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_threads_do_not_change_what_is_computed(pipeline: Pipeline, images: Images, reference: Maps, name: str) -> None:
    prepared, engine = prepared_fp32(pipeline, name), get_engine(name, {"threads": "1"})
    with engine.open(prepared.source, prepared.file.path) as session:
        assert deviations(reference, session.infer(images))[0].relative <= PARITY["fp32"]


@pytest.mark.parametrize("name", GRAPH_ENGINES)
def test_threads_that_are_no_number_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.threads: wanted a whole number, found 'many'"):
        get_engine(name, {"threads": "many"})


@pytest.mark.parametrize("name", ENGINES)
def test_an_unknown_option_names_those_that_are_known(name: str) -> None:
    known = ", ".join(get_engine(name).known_options) or "none, it has no options"
    with pytest.raises(UsageError, match=f"engine option {name}.colour: wanted one of {known}"):
        get_engine(name, {"colour": "red"})


OPTIONS = [(name, key) for name in ENGINES for key in get_engine(name).known_options]


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_every_value_that_an_option_claims_is_taken_and_another_is_not(name: str, key: str) -> None:
    option = get_engine(name).known_options[key]
    for value in option.choices or ("0", "3"):
        assert get_engine(name, {key: value}).option(key) == value
    for wrong in ("", "-1", "1.5", "\N{SUPERSCRIPT TWO}", "CPU"):
        with pytest.raises(UsageError, match=f"{name}.{key}: wanted {option.values}, found '{wrong}'"):
            get_engine(name, {key: wrong})


@pytest.mark.parametrize(
    ("name", "key", "wanted"),
    [("openvino", "threads", 0), ("tensorrt", "workspace_mb", 0), ("tensorrt", "optimization_level", None)],
)
def test_what_is_not_set_is_the_default_that_is_told(name: str, key: str, wanted: int | None) -> None:
    assert get_engine(name).number(key) == wanted


def test_a_wrong_value_is_refused_where_the_engine_is_not_installed() -> None:
    with pytest.raises(UsageError, match=r"tensorrt.optimization_level: wanted 0, 1, 2, 3, 4 or 5, found '9'"):
        parse_options(["tensorrt.optimization_level=9"])


def test_options_are_build_flags() -> None:
    assert get_engine("openvino", {"threads": "2"}).flags() == {"threads": "2"}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], {}),
        (["openvino.threads=2"], {"openvino": {"threads": "2"}}),
        (["onnxruntime.provider=cuda", "onnxruntime.threads=1"], {"onnxruntime": {"provider": "cuda", "threads": "1"}}),
    ],
)
def test_engine_options_are_parsed(values: list[str], wanted: dict[str, dict[str, str]]) -> None:
    assert parse_options(values) == wanted


@pytest.mark.parametrize(
    "value", ["threads=2", "openvino.threads", "openvino.=2", "openvino.threads=", "tpu.threads=2", ""]
)
def test_engine_options_of_another_form_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"wanted ENGINE\.KEY=VALUE with ENGINE one of torch"):
        parse_options([value])


# --- the table of engines


def test_an_engine_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(UsageError, match="no engine 'tpu'; known: torch"):
        get_engine("tpu")


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_called_as_in_the_table(name: str) -> None:
    assert get_engine(name).name == name


@pytest.mark.parametrize("name", sorted({cell.engine for cell in CELLS}))
def test_an_engine_that_is_here_has_a_version(name: str) -> None:
    assert re.match(r"\d+\.\d+", get_engine(name).version())


def test_the_engines_that_are_installed_for_development_are_here() -> None:
    assert {cell.engine for cell in CELLS} >= {"torch", *GRAPH_ENGINES}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_names_its_int8_scheme_exactly_when_it_takes_int8_graphs(name: str) -> None:
    able = get_engine(name).capabilities
    assert (able.int8_scheme is not None) is ("int8" in able.precisions and able.source == "graph")


@pytest.mark.parametrize("module", [torch, onnxruntime, openvino])
def test_an_engine_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    name = str(vars(module)["__name__"]).rpartition(".")[2]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert get_engine(name).available() == f"{name} is not installed"


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_the_remedy_of_an_engine_is_one_command(name: str) -> None:
    assert re.fullmatch(rf"pip install -e ('\.\[{name}\]'|\.)", get_engine(name).remedy)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_the_folder_that_an_uninstalled_package_left_is_no_engine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: ModuleSpec(package, None, is_package=True))
    assert get_engine(name).available() == f"{name} is not installed"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `brokenruntime` that cannot be imported and notes every attempt in the returned file."""
    attempts = tmp_path / "attempts"
    count = f"with open({str(attempts)!r}, 'a') as file: file.write('x')"
    program = f"{count}\nraise OSError('libbroken.so: cannot open\\nat all')"
    (tmp_path / "brokenruntime.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    base._broken.cache_clear()
    return attempts


def test_a_package_that_cannot_be_imported_gives_the_first_line_of_its_error(broken: Path) -> None:
    wanted = "brokenruntime is installed but cannot be imported: libbroken.so: cannot open"
    assert base.import_fault("brokenruntime") == wanted


def test_a_package_that_cannot_be_imported_is_tried_once(broken: Path) -> None:
    for _ in range(3):
        base.import_fault("brokenruntime")
    assert broken.read_text() == "x"


def test_an_error_without_text_is_called_by_its_name() -> None:
    assert base.first_line(ImportError()) == "ImportError"


def test_onnxruntime_knows_its_version_under_whatever_name_it_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", absent)
    assert re.match(r"\d+\.\d+", get_engine("onnxruntime").version())


def absent(name: str) -> None:
    raise PackageNotFoundError(name)


def test_a_version_that_cannot_be_found_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(Missing, match="onnxruntime is not installed"):
        get_engine("onnxruntime").version()


def test_knowing_all_engines_imports_no_runtime() -> None:
    program = (
        "import sys\nfrom harness.engines import ENGINES, get_engine\n"
        "for name in ENGINES: get_engine(name).capabilities\n"
        "print({'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- ONNX Runtime's provider

GPU_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
TF32_OFF = ("NVIDIA_TF32_OVERRIDE", "0")


def on(provider: str) -> Engine:
    return get_engine("onnxruntime", {"provider": provider})


@pytest.fixture(params=GPU_PROVIDERS)
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A provider that this ONNX Runtime does not have."""
    monkeypatch.setenv(*TF32_OFF)
    if on(request.param).available() is None:
        pytest.skip(f"this ONNX Runtime has {request.param}")
    return str(request.param)


def test_a_provider_that_is_not_there_makes_the_engine_unavailable(provider: str) -> None:
    assert str(on(provider).available()).startswith(f"onnxruntime has no {GPU_PROVIDERS[provider]} (it has ")


def test_a_provider_that_is_not_there_has_a_remedy_of_its_own(provider: str) -> None:
    assert on(provider).remedy == "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


def test_a_cell_whose_provider_is_not_there_is_missing(provider: str, pipeline: Pipeline) -> None:
    asked = Pipeline(replace(pipeline.settings, engine_options={"onnxruntime": {"provider": provider}}))
    with pytest.raises(Missing, match=f"onnxruntime has no {GPU_PROVIDERS[provider]}"):
        asked.prepare(Cell(MODEL, "fp32", "onnxruntime"))


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_provider_that_is_not_there_is_no_silent_fallback(provider: str, pipeline: Pipeline) -> None:
    prepared = prepared_fp32(pipeline, "onnxruntime")
    with pytest.raises(EngineError, match="fallback to CPU EP has been explicitly disabled") as caught:
        on(provider).open(prepared.source, prepared.file.path)
    assert "CUDA, cuDNN" in caught.value.remedy


@pytest.mark.parametrize(
    ("provider", "gets"),
    [
        ("cuda", ["CPUExecutionProvider"]),
        ("tensorrt", ["CPUExecutionProvider"]),
        ("tensorrt", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
    ],
)
def test_a_session_on_another_provider_than_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, provider: str, gets: list[str]
) -> None:
    wanted = f"asked for {GPU_PROVIDERS[provider]}, onnxruntime fell back to {', '.join(gets)}"
    with pytest.raises(EngineError, match=wanted) as caught:
        asked_for(monkeypatch, prepared_fp32(pipeline, "onnxruntime"), provider, gets=gets)
    assert "install the provider's libraries" in caught.value.remedy


def asked_for(
    monkeypatch: pytest.MonkeyPatch, prepared: Prepared, provider: str, gets: list[str] | None = None
) -> SimpleNamespace:
    """What ONNX Runtime is asked for when the engine is opened on that provider, or gets others; and the session."""
    asked = SimpleNamespace()

    def session(_model: str, options: Any, providers: list[Any], **named: Any) -> SimpleNamespace:
        vars(asked).update(options=options, providers=providers, named=named)
        return SimpleNamespace(get_providers=lambda: gets or [providers[0][0], "CPUExecutionProvider"])

    monkeypatch.setattr("onnxruntime.InferenceSession", session)
    asked.session = on(provider).open(prepared.source, prepared.file.path)
    return asked


@pytest.mark.parametrize(
    "error",
    [
        state.EPFail("TensorRT EP could not build engine for fused node"),
        RuntimeError("Failed to load library libonnxruntime_providers_tensorrt.so: libnvinfer.so.10: cannot open"),
        RuntimeError("Invalid provider option: trt_engine_cache_enable"),
    ],
    ids=["a graph TensorRT refuses", "a library that does not load", "an option it does not know"],
)
def test_what_tensorrts_provider_refuses_is_an_error_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, error: Exception
) -> None:
    def refuse(*_arguments: Any, **_named: Any) -> None:
        raise error

    prepared = prepared_fp32(pipeline, "onnxruntime")
    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(EngineError, match=re.escape(f"refused {prepared.file.path}: {error}")) as caught:
        on("tensorrt").open(prepared.source, prepared.file.path)
    assert "the TensorRT that onnxruntime-gpu was built for" in caught.value.remedy


@pytest.mark.parametrize("provider", GPU_PROVIDERS)
def test_on_an_accelerator_no_node_may_move_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, provider: str
) -> None:
    asked = asked_for(monkeypatch, prepared_fp32(pipeline, "onnxruntime"), provider)
    assert asked.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


@pytest.mark.parametrize("provider", ["cpu", *GPU_PROVIDERS])
def test_onnxruntimes_own_retry_on_the_cpu_is_off(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, provider: str
) -> None:
    asked = asked_for(monkeypatch, prepared_fp32(pipeline, "onnxruntime"), provider)
    assert asked.named == {"enable_fallback": 0}


@pytest.mark.parametrize(
    ("provider", "wanted"),
    [
        ("cpu", ("CPUExecutionProvider", {})),
        ("cuda", ("CUDAExecutionProvider", {"use_tf32": "0"})),
        (
            "tensorrt",
            (
                "TensorrtExecutionProvider",
                {
                    "trt_fp16_enable": "False",
                    "trt_int8_enable": "False",
                    "trt_engine_cache_enable": "False",
                    "trt_timing_cache_enable": "False",
                },
            ),
        ),
    ],
)
def test_one_provider_is_asked_for_with_nothing_that_narrows_types_or_goes_stale(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, provider: str, wanted: tuple[str, dict[str, str]]
) -> None:
    assert asked_for(monkeypatch, prepared_fp32(pipeline, "onnxruntime"), provider).providers == [wanted]


@pytest.mark.parametrize(
    ("provider", "fp16", "device", "int8_scheme", "inspection"),
    [
        ("cpu", "fp32", "cpu", "u8s8", True),
        ("cuda", "fp16", "accelerator", "u8s8", True),
        ("tensorrt", "fp16", "accelerator", "s8", False),
    ],
)
def test_the_provider_decides_what_is_claimed(
    provider: str, fp16: str, device: str, int8_scheme: str, inspection: bool
) -> None:
    able = on(provider).capabilities
    assert (able.computes["fp16"], able.device, able.int8_scheme) == (fp16, device, int8_scheme)
    assert able.inspection is inspection


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(UsageError, match=r"onnxruntime\.provider: wanted cpu, cuda or tensorrt, found 'tpu'"):
        on("tpu").available()


@pytest.fixture
def tensorrt_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that says it has TensorRT, where nothing is set for TF32."""
    present = [*GPU_PROVIDERS.values(), "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: present)
    monkeypatch.delenv(TF32_OFF[0], raising=False)


@pytest.mark.usefixtures("tensorrt_provider")
def test_tensorrts_provider_with_tf32_off_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*TF32_OFF)
    assert on("tensorrt").available() is None


@pytest.mark.usefixtures("tensorrt_provider")
@pytest.mark.parametrize("found", ["", "1"])
def test_tensorrts_provider_is_not_run_in_tf32(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setenv(TF32_OFF[0], found)
    wanted = f"computes float32 in TF32: wanted NVIDIA_TF32_OVERRIDE=0, found '{found}'"
    assert on("tensorrt").available() == f"TensorrtExecutionProvider {wanted}"
    assert on("tensorrt").remedy == "export NVIDIA_TF32_OVERRIDE=0"


@pytest.mark.usefixtures("tensorrt_provider")
def test_another_provider_asks_nothing_of_tf32s_variable() -> None:
    assert on("cuda").available() is None


def test_tensorrts_engine_file_is_the_graph_itself(pipeline: Pipeline, tmp_path: Path) -> None:
    source = prepared_fp32(pipeline, "onnxruntime").source
    assert source.graph is not None
    on("tensorrt").build(source, tmp_path / "engine.onnx")
    assert (tmp_path / "engine.onnx").read_bytes() == source.graph.read_bytes()


def test_of_what_tensorrts_provider_ran_nothing_is_claimed_to_be_known(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
) -> None:
    session = asked_for(monkeypatch, prepared_fp32(pipeline, "onnxruntime"), "tensorrt").session
    assert session.inspect() == Inspection("cuda", None)


@pytest.mark.usefixtures("tensorrt_provider")
@pytest.mark.parametrize(("precision", "least"), [("fp16", "0.0001"), ("int8", "0.02")])
def test_tensorrts_provider_that_computes_in_fp32_after_all_is_caught_by_its_outputs(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, precision: Precision, least: str
) -> None:
    fp32 = prepared_fp32(pipeline, "onnxruntime")
    monkeypatch.setenv(*TF32_OFF)
    asked = Pipeline(replace(pipeline.settings, engine_options={"onnxruntime": {"provider": "tensorrt"}}))
    prepared = asked.prepare(Cell(MODEL, precision, "onnxruntime"))
    ran = onnxruntime.OnnxRuntime()._session(fp32.source.graph, onnxruntime.OnnxRuntime()._options())
    monkeypatch.setattr(onnxruntime.OnnxRuntime, "_session", lambda *_: ran)
    with pytest.raises(InvalidRun, match=f"output .* off the fp32 graph's: wanted {least} to .* of {precision}"):
        asked.opened(prepared).__enter__()


# --- the types that ONNX Runtime's convolutions compute in


def convolution(kind: str, weight: int | None, made_by: onnx.NodeProto | None = None) -> onnx.GraphProto:
    nodes = [made_by] if made_by else []
    nodes.append(helper.make_node(kind, ["x", "w"], ["y"]))
    weights = [] if weight is None else [helper.make_tensor("w", weight, [1, 1, 1, 1], [1.0])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    return helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)


def cast(to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", ["v"], ["w"], to=to)


@pytest.mark.parametrize(
    ("graph", "computes"),
    [
        (convolution("Conv", TensorProto.FLOAT), "fp32"),
        (convolution("FusedConv", TensorProto.FLOAT), "fp32"),
        (convolution("Conv", TensorProto.FLOAT16), "fp16"),
        (convolution("QLinearConv", None), "int8"),
        (convolution("Conv", None, cast(TensorProto.FLOAT)), "fp32"),
        (convolution("Conv", None, cast(TensorProto.FLOAT16)), "fp16"),
        (convolution("Conv", None, helper.make_node("DequantizeLinear", ["v"], ["w"])), "fp32"),
        (convolution("Conv", None), "fp32"),
    ],
    ids=["float", "fused", "half", "quantised", "cast", "cast-to-half", "dequantised", "input"],
)
def test_the_type_of_a_convolution_is_read_from_the_optimised_graph(graph: onnx.GraphProto, computes: str) -> None:
    assert [dtype for _, dtype in onnxruntime._convolution_types(graph)] == [computes]


def test_other_operators_are_not_counted() -> None:
    assert not onnxruntime._convolution_types(convolution("Relu", TensorProto.FLOAT))


# --- what every engine inherits


def layers(work: Mapping[str, int]) -> tuple[Layer, ...]:
    """One convolution for each type, with that work."""
    return tuple(Layer(f"conv_in_{dtype}", dtype, amount) for dtype, amount in work.items())


@pytest.mark.parametrize(
    ("work", "enough"),
    [({"fp16": 95, "fp32": 5}, True), ({"fp16": 94, "fp32": 6}, False), ({"fp32": 1}, False), ({}, False)],
    ids=str,
)
def test_nearly_all_work_must_run_in_the_claimed_type(work: dict[str, int], enough: bool) -> None:
    refused = False
    try:
        Inspection("cpu", layers(work)).require("fp16", "a cell")
    except InvalidRun:
        refused = True
    assert refused is not enough


@pytest.mark.parametrize(
    ("work", "found"),
    [
        ({"fp32": 20, "int8": 80}, r"80% in int8, 20% in fp32 on cuda \(conv_in_fp32, conv_in_int8\)"),
        ({}, "none at all on cuda"),
    ],
    ids=str,
)
def test_a_wrong_precision_names_cell_device_layers_and_what_ran(work: Mapping[str, int], found: str) -> None:
    with pytest.raises(InvalidRun, match=f"a cell: wanted 95% of convolution work in fp16, found {found}"):
        Inspection("cuda", layers(work)).require("fp16", "a cell")


@pytest.mark.parametrize(("work", "most"), [({"fp32": 2, "int8": 5}, "int8"), ({}, "none")], ids=str)
def test_the_dominant_type_is_that_of_most_work(work: Mapping[str, int], most: str) -> None:
    assert Inspection("cpu", layers(work)).dominant == most


def test_what_cannot_be_inspected_says_so_and_is_not_held_to_a_claim() -> None:
    inspection = Inspection("cuda", None)
    inspection.require("fp16", "a cell")
    assert inspection.dominant == "not inspectable"


def test_every_convolution_of_the_graph_is_accounted_for(inspected: Inspection) -> None:
    found = inspected.layers
    assert found is not None
    assert len(found) >= 34
    assert all(layer.work > 0 and layer.dtype != "unknown" for layer in found)


def test_a_graphs_work_is_that_of_the_module(pipeline: Pipeline) -> None:
    totals = set()
    for engine in ("torch", "onnxruntime", "openvino"):
        prepared = prepared_fp32(pipeline, engine)
        with prepared.engine.open(prepared.source, prepared.file.path) as opened:
            totals.add(sum(layer.work for layer in opened.inspect().layers or ()))
    assert len(totals) == 1


def test_a_convolution_that_the_runtime_does_not_mention_ran_in_unknown(pipeline: Pipeline) -> None:
    source = prepared_fp32(pipeline, "onnxruntime").source
    names = [layer.name for layer in source.layers([])]
    found = source.layers([(names[0], "fp32"), ("something else", "fp16")])
    assert {layer.dtype for layer in found[1:]} == {"unknown"}
    assert found[0].dtype == "fp32"


def test_without_a_graph_the_runtimes_own_layers_count_alike(pipeline: Pipeline) -> None:
    source = replace(prepared_fp32(pipeline, "onnxruntime").source, graph=None)
    assert source.layers([("a", "fp32"), ("b", "int8")]) == (Layer("a", "fp32", 1), Layer("b", "int8", 1))


def test_calls_are_timed_by_the_given_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLOCK, "calls", 0)
    source = SimpleNamespace(precision="fp32")
    session = FakeEngine().open(source, tmp_path)  # type: ignore[arg-type]
    assert session.time(np.zeros((1, 3, 64, 64), np.float32), 3, clock) == pytest.approx([0.1, 0.1, 0.1])


def test_the_fake_engine_passes_the_checks_that_real_ones_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fake", "suites.selftest.fakes:FakeEngine")
    pipeline = Pipeline(Workplace.make(tmp_path).settings())
    assert measure_accuracy(pipeline, Cell("toy", "fp16", "fake")).metrics.map_50_95 == 1.0
