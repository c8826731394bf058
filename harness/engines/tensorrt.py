"""Takes a typed ONNX graph; gives NVIDIA TensorRT 10 and 11: its plan as engine file, and what each convolution ran in.

Precision is the graph's: networks are strongly typed, no precision flag is ever set, and TF32 is off. Written against
the published Python interfaces of TensorRT and PyCUDA and held to them by a simulated runtime; unverified on hardware.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from harness.engines.base import (
    UNKNOWN,
    Capabilities,
    Engine,
    Images,
    Inspection,
    Maps,
    Session,
    Source,
    first_line,
    import_fault,
    opened,
)
from harness.engines.option import Option
from harness.errors import EngineError, Missing
from harness.model.work import convolutions_of

if TYPE_CHECKING:
    import tensorrt

OLDEST = 10
ALWAYS_STRONGLY_TYPED = 11
INSTALL = "pip install -e '.[tensorrt]'"
TIMING_SUFFIX = ".timing"
# Options that change how an engine file is run, not what is in it.
RUN_OPTIONS = ("device", "cuda_graph")

BUILD_AGAIN = "build it again here: remove the file, or leave --engine-file out"
ONNX_NAMES = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# Kernels are named after their operands, then what they multiply in and accumulate in: `_f32f32_tf32f32_f32_`.
TACTIC_TYPE = re.compile(r"_(?:tf32|bf16|f32|f16|i8)+_(tf32|bf16|f32|f16|i8)(?:f32|f16|i32)_")
TACTIC_TYPES = {"tf32": "tf32", "bf16": "bf16", "f32": "fp32", "f16": "fp16", "i8": "int8"}
# How the inspector spells types, alone or in a sentence ("Thirty-two wide ... Int8 format"); narrow ones first,
# because "bfloat16" and "float8" hold "float".
SPELLINGS = {
    "int8": "int8",
    "fp8": "fp8",
    "float8": "fp8",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "half": "fp16",
    "fp32": "fp32",
    "float": "fp32",
}
TYPE_FIELDS = ("Format/Datatype", "Datatype", "DataType", "Format")  # TensorRT 10 has the first, 11 the others
COPIES = ("Reformat", "NoOp", "Constant")  # layers that compute nothing, though they bear the names of their neighbours
# Where several kernels share one convolution, the widest type counts.
WIDEST_FIRST = (UNKNOWN, "fp32", "tf32", "bf16", "fp16", "fp8", "int8")

Layer = Mapping[str, Any]
T = TypeVar("T")


class TensorRt(Engine):
    """NVIDIA TensorRT on one CUDA device, with memory, streams and events through PyCUDA."""

    name = "tensorrt"
    file_suffix = ".plan"
    known_options: ClassVar = {
        "device": Option("index of the CUDA device", "0"),
        "workspace_mb": Option("most MiB of scratch memory that a layer may use; 0 means TensorRT's own limit", "0"),
        "optimization_level": Option("0 builds fastest, 5 runs fastest", "TensorRT's own", tuple("012345")),
        "cuda_graph": Option("timed calls launch a CUDA graph; auto: if it is captured", "auto", ("auto", "on", "off")),
    }

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            computes={"fp32": "fp32", "fp16": "fp16", "int8": "int8"},
            source="graph",
            device="accelerator",
            int8_scheme="s8",
        )

    # --- is it here

    def available(self) -> str | None:
        fault = self._fault()
        return fault[0] if fault else None

    @property
    def remedy(self) -> str:
        fault = self._fault()
        return fault[1] if fault else INSTALL

    def _fault(self) -> tuple[str, str] | None:
        """What is missing here and the command that mends it; packages first, then the driver, then the device."""
        return _package_fault() or _driver_fault() or self._device_fault()

    def _device_fault(self) -> tuple[str, str] | None:
        from pycuda import driver

        count = driver.Device.count()
        if count == 0:
            return "no CUDA device is present", "nvidia-smi -L shows the devices; run where there is one"
        if self.index >= count:
            remedy = "--engine-option tensorrt.device=0; nvidia-smi -L shows the devices"
            return f"CUDA device {self.index} is asked for, {count} present", remedy
        return None

    def version(self) -> str:
        fault = import_fault("tensorrt")
        if fault is not None:
            raise Missing(fault, INSTALL)
        import tensorrt

        return str(tensorrt.__version__)

    def flags(self) -> dict[str, str]:
        """Build options, and the GPU: a plan runs only on the kind of GPU it was built on."""
        built = {key: value for key, value in self.options.items() if key not in RUN_OPTIONS}
        return {**built, "gpu": self._cuda().gpu}

    # --- options

    @property
    def index(self) -> int:
        """Which CUDA device."""
        return self.number("device") or 0

    @property
    def cuda_graph(self) -> str:
        """`auto`, `on` or `off`."""
        return self.option("cuda_graph")

    def device_bytes(self) -> int:
        """Bytes of the GPU's memory that are in use, by whatever process.

        Raises:
            EngineError: the device failed.
        """
        cuda = self._cuda()
        try:
            with cuda.current():
                free, total = cuda.driver.mem_get_info()
        except cuda.driver.Error as error:
            raise EngineError(
                f"{cuda.gpu} does not tell how much of its memory is in use: {first_line(error)}",
                "see the driver's log with dmesg, then run the same command again",
            ) from error
        return int(total - free)

    def _cuda(self) -> "_Cuda":
        """The device asked for.

        Raises:
            Missing: it, its driver or a package is not here.
        """
        fault = self._fault()
        if fault is not None:
            raise Missing(*fault)
        from pycuda import driver

        return _Cuda(driver, self.index)

    # --- build

    def build(self, source: Source, target: Path) -> None:
        """Write the plan to `target`, and the timing cache of its kernels beside it, which speeds up the next build.

        Raises:
            Missing: no TensorRT 10 or newer, driver or device.
            EngineError: the parser or the builder refused the graph; names the nodes, or what the log said last.
        """
        cuda = self._cuda()
        with cuda.current():
            plan, timing = self._built(source, _known_timings(target))
        target.write_bytes(plan)
        target.with_suffix(TIMING_SUFFIX).write_bytes(timing)

    def _built(self, source: Source, timings: bytes) -> tuple[bytes, bytes]:
        """Plan and timing cache; what TensorRT holds meanwhile is let go before the caller leaves the device."""
        import tensorrt as trt

        logger = _make_logger()
        builder = _made(lambda: trt.Builder(logger), "a builder", logger)
        network = builder.create_network(_network_flags(self.version()))
        parser = trt.OnnxParser(network, logger)
        _parse(parser, source, self.version())
        _require_shape(network, source)
        config = builder.create_builder_config()
        self._configure(config)
        _attach_timings(config, timings)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(
                f"tensorrt {self.version()} built nothing from {source.graph}: {_last(logger)}",
                "see which layer the message names; out of memory: free the GPU, set a smaller --batch-size, "
                "or --engine-option tensorrt.workspace_mb=1024",
            )
        return bytes(memoryview(plan)), bytes(memoryview(config.get_timing_cache().serialize()))

    def _configure(self, config: "tensorrt.IBuilderConfig") -> None:
        """TF32 off, names and types of layers kept for `inspect`, and the options."""
        import tensorrt as trt

        config.clear_flag(trt.BuilderFlag.TF32)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        workspace = self.number("workspace_mb")
        if workspace:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
        level = self.number("optimization_level")
        if level is not None:
            config.builder_optimization_level = level

    # --- open

    def open(self, source: Source, file: Path) -> Session:
        """Open a plan on the device.

        Raises:
            Missing: no TensorRT 10 or newer, driver or device.
            EngineError: a plan that is damaged, of another TensorRT version or GPU; or too little memory is left.
        """
        cuda = self._cuda()
        try:
            plan = file.read_bytes()
        except OSError as error:
            raise EngineError(f"cannot read {file}: {first_line(error)}", BUILD_AGAIN) from error
        session = _TensorRtSession(source, file, cuda, self.cuda_graph)
        try:
            session.load(plan, self.version())
        except BaseException:
            session.close()
            raise
        return session


# --- what must be here


def _package_fault() -> tuple[str, str] | None:
    fault = import_fault("tensorrt")
    if fault is not None:
        return fault, INSTALL
    import tensorrt

    version = str(tensorrt.__version__)
    if _major(version) < OLDEST:
        return (
            f"TensorRT {version} is installed, wanted {OLDEST} or newer: older ones have no strongly typed networks",
            f"pip install 'tensorrt>={OLDEST}' (other vendors' packages of this name have engines of their own)",
        )
    fault = import_fault("pycuda")
    return (fault, INSTALL) if fault is not None else None


def _driver_fault() -> tuple[str, str] | None:
    fault = import_fault("pycuda.driver")
    if fault is not None:
        return fault, f"nvidia-smi; where it fails, install NVIDIA's driver; where it does not: {INSTALL}"
    from pycuda import driver

    try:
        driver.init()
    except driver.Error as error:
        return (
            f"the CUDA driver cannot be used: {first_line(error)}",
            "nvidia-smi shows the driver; install or update it",
        )
    found, wanted = driver.get_driver_version() // 1000, driver.get_version()[0]
    if found < wanted:
        return (
            f"the NVIDIA driver is for CUDA {found}, PyCUDA was built for CUDA {wanted}",
            f"update the driver to one for CUDA {wanted}; nvidia-smi shows the present one",
        )
    return None


def _major(version: str) -> int:
    digits = re.match(r"\d+", version)
    return int(digits[0]) if digits else 0


# --- the device


@functools.cache
def _primary_context(driver: ModuleType, index: int) -> Any:
    """The device's primary context, which torch and TensorRT use as well; kept until the process ends, as theirs is."""
    return driver.Device(index).retain_primary_context()


@dataclass(frozen=True)
class _Cuda:
    """One CUDA device through `pycuda.driver`."""

    driver: Any
    index: int

    @contextmanager
    def current(self) -> Iterator[None]:
        """The device's context on top of this thread's stack, and off it again: others find theirs as they left it."""
        _primary_context(self.driver, self.index).push()
        try:
            yield
        finally:
            self.driver.Context.pop()

    @property
    def gpu(self) -> str:
        """`NVIDIA H200 (compute 9.0)`."""
        device = self.driver.Device(self.index)
        major, minor = device.compute_capability()
        return f"{device.name()} (compute {major}.{minor})"


class _Buffer:
    """A tensor of the engine: device memory, and page-locked host memory of the same shape and type."""

    def __init__(self, driver: Any, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.host: npt.NDArray[Any] = driver.pagelocked_empty(shape, dtype)
        try:
            self.device = driver.mem_alloc(self.host.nbytes)
        except driver.Error:
            self._unpin()
            raise

    def free(self) -> None:
        self.device.free()
        self._unpin()

    def _unpin(self) -> None:
        base: Any = self.host.base  # what PyCUDA made the array from
        base.free()


# --- building


def _make_logger() -> "tensorrt.ILogger":
    """A logger that keeps warnings and errors in `messages`, for the errors that tell them."""
    import tensorrt as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                self.messages.append(msg)

    return Logger()


def _last(logger: "tensorrt.ILogger") -> str:
    """What TensorRT said last."""
    messages: list[str] = vars(logger)["messages"]
    return next((message for message in reversed(messages) if message.strip()), "its log says nothing")


def _made(make: Callable[[], T], what: str, logger: "tensorrt.ILogger") -> T:
    """What TensorRT's constructor makes; where it can make nothing, its bindings raise a TypeError.

    Raises:
        EngineError: says what the log said.
    """
    try:
        return make()
    except TypeError as error:
        raise EngineError(
            f"tensorrt cannot make {what}: {_last(logger)}",
            "nvidia-smi shows driver and memory in use; the driver must be as new as TensorRT's CUDA",
        ) from error


def _network_flags(version: str) -> int:
    """Flags of a strongly typed network: TensorRT 10 must be asked for it, 11 knows no other."""
    import tensorrt as trt

    if _major(version) >= ALWAYS_STRONGLY_TYPED:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(parser: "tensorrt.OnnxParser", source: Source, version: str) -> None:
    if parser.parse_from_file(str(source.graph)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = "; ".join(f"{error.node_operator()} '{error.node_name()}': {error.desc()}" for error in errors[:3])
    raise EngineError(
        f"tensorrt {version} refused {source.graph}: {told or 'its parser does not say why'}",
        "see which node the message names: export the model without that operator, or update TensorRT",
    )


def _require_shape(network: "tensorrt.INetworkDefinition", source: Source) -> None:
    found = {network.get_input(i).name: _sizes(network.get_input(i).shape) for i in range(network.num_inputs)}
    wanted = {source.spec.input.name: source.input_shape}
    if found != wanted:
        raise EngineError(
            f"{source.graph}: wanted inputs {wanted}, found {found}",
            "build from a graph for exactly this batch: detgate makes it from --onnx FILE or the checkpoint",
        )


def _sizes(dims: "tensorrt.Dims") -> tuple[int, ...]:
    return tuple(dims[i] for i in range(len(dims)))


def _known_timings(target: Path) -> bytes:
    """The newest timing cache beside the plan or beside plans built before it; empty where there is none."""
    # Hidden folders are those of builds that are not done; a file may go while we look, when a cache is cleared.
    files = {target.with_suffix(TIMING_SUFFIX), *target.parent.parent.glob(f"[!.]*/*{TIMING_SUFFIX}")}
    with suppress(OSError):
        newest = max(filter(Path.is_file, files), key=lambda file: file.stat().st_mtime_ns, default=None)
        return newest.read_bytes() if newest else b""
    return b""


def _attach_timings(config: "tensorrt.IBuilderConfig", known: bytes) -> "tensorrt.ITimingCache":
    """Give the builder what is known; TensorRT checks version and GPU itself, and what it refuses is begun anew."""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


# --- running


class _TensorRtSession(Session):
    """A plan on the device. Every tensor has device memory of its own until `close`; one stream does all work."""

    device_timer = "cuda events"

    def __init__(self, source: Source, file: Path, cuda: _Cuda, cuda_graph: str) -> None:
        super().__init__(source)
        self._file, self._cuda, self._mode = file, cuda, cuda_graph
        self._buffers: dict[str, _Buffer] = {}
        self._inputs: list[str] = []
        self._logger: tensorrt.ILogger | None = None
        self._runtime: tensorrt.Runtime | None = None
        self._engine: tensorrt.ICudaEngine | None = None
        self._context: tensorrt.IExecutionContext | None = None
        self._stream: Any = None
        self._capture_stream: Any = None
        self._graph: Any = None

    # --- opening

    def load(self, plan: bytes, version: str) -> None:
        """Bring the plan to the device and give each of its tensors memory.

        Raises:
            EngineError: TensorRT refuses the plan, or the device has too little memory. `close` frees what is there.
        """
        driver = self._cuda.driver
        with self._cuda.current():
            try:
                self._load(plan, version)
                for name in self._names():
                    self._buffers[name] = self._buffer(name)
                    self._execution.set_tensor_address(name, int(self._buffers[name].device))
                self._stream = driver.Stream()
            except driver.Error as error:
                raise EngineError(
                    f"{self._file}: the device has no memory for it: {first_line(error)}",
                    "nvidia-smi shows who uses the GPU; or set a smaller --batch-size",
                ) from error

    def _load(self, plan: bytes, version: str) -> None:
        import tensorrt as trt

        logger = self._logger = _make_logger()
        self._runtime = _made(lambda: trt.Runtime(logger), "a runtime", logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"tensorrt {version} on {self._cuda.gpu} cannot open {self._file}: {_last(logger)}",
                f"{BUILD_AGAIN}; a plan runs only on the TensorRT version and the kind of GPU that built it",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{self._file}: tensorrt {version} made no execution context: {_last(logger)}",
                "out of memory: nvidia-smi shows who uses the GPU; or set a smaller --batch-size",
            )

    def _names(self) -> list[str]:
        """Names of all inputs and outputs; notes which are inputs."""
        import tensorrt as trt

        engine = self._opened
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if self._inputs != [self.source.spec.input.name]:
            raise EngineError(
                f"{self._file}: wanted input '{self.source.spec.input.name}', found {', '.join(self._inputs)}",
                "the engine was not built from this model's graph: mend --engine-file",
            )
        return names

    def _buffer(self, name: str) -> _Buffer:
        import tensorrt as trt

        known = {trt.DataType.FLOAT: np.float32, trt.DataType.HALF: np.float16}
        dtype, shape = self._opened.get_tensor_dtype(name), _sizes(self._opened.get_tensor_shape(name))
        if dtype not in known or min(shape, default=0) < 1:
            raise EngineError(
                f"{self._file}: '{name}' is {dtype} {shape}: wanted fp32 or fp16 of a fixed shape",
                "build it from a graph for exactly one batch, with inputs and outputs in fp32 or fp16",
            )
        return _Buffer(self._cuda.driver, shape, known[dtype])

    @property
    def _opened(self) -> "tensorrt.ICudaEngine":
        return opened(self._engine)

    @property
    def _execution(self) -> "tensorrt.IExecutionContext":
        assert self._context is not None  # asked for in `_running` only, which refuses closed sessions
        return self._context

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The device made current; its failures, which may show in a later call than made them, become EngineErrors."""
        _ = self._opened
        with self._cuda.current():
            try:
                yield
            except self._cuda.driver.Error as error:
                raise EngineError(
                    f"{self._file} failed on {self._cuda.gpu}: {first_line(error)}",
                    "open it again; where it fails again, see the driver's log with dmesg and run compute-sanitizer",
                ) from error

    # --- one batch

    def _infer(self, images: Images) -> Maps:
        outputs = self._outputs()
        with self._running():
            self._copy_in(images)
            self._enqueue(self._stream)
        return self._downloaded(outputs)

    def read_back(self) -> Maps:
        return self._downloaded(self._outputs())

    def _downloaded(self, outputs: list[str]) -> Maps:
        driver = self._cuda.driver
        with self._running():
            for name in outputs:
                driver.memcpy_dtoh_async(self._buffers[name].host, self._buffers[name].device, self._stream)
            self._stream.synchronize()
        return {name: np.array(self._buffers[name].host, np.float32) for name in outputs}

    def _outputs(self) -> list[str]:
        """The model's outputs in their order, then those that the plan has beyond them."""
        _ = self._opened
        present = [name for name in self._buffers if name not in self._inputs]
        missing = [name for name in self.source.shapes if name not in present]
        if missing:
            raise EngineError(
                f"{self._file} lacks the outputs {', '.join(missing)}", "build it from this model's graph"
            )
        return sorted(present, key=[*self.source.shapes, *present].index)

    def _copy_in(self, images: Images) -> None:
        """Queue the copy of a batch to the device.

        Raises:
            EngineError: images of another shape or type than the plan's input.
        """
        buffer = self._buffers[self._inputs[0]]
        if images.shape != buffer.host.shape or images.dtype != np.float32:
            raise EngineError(
                f"{self._file} does not take images {images.shape} {images.dtype}: wanted {buffer.host.shape} float32",
                "build it for this batch and input size",
            )
        np.copyto(buffer.host, images, casting="same_kind")
        self._cuda.driver.memcpy_htod_async(buffer.device, buffer.host, self._stream)

    def _enqueue(self, stream: Any) -> None:
        if not self._execution.execute_async_v3(stream.handle):
            assert self._logger is not None
            raise EngineError(
                f"{self._file}: tensorrt could not start a batch: {_last(self._logger)}",
                "see what the message names; leave more memory, or set a smaller --batch-size",
            )

    def _launch(self) -> None:
        """Queue one batch on the stream: as a CUDA graph where there is one."""
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue(self._stream)

    # --- timed calls

    def prepare(self, images: Images) -> Callable[[], None]:
        """A call that launches one batch, resident on the device, and waits for it; a CUDA graph where there is one.

        Raises:
            EngineError: images that the plan does not take; or `cuda_graph=on`, and it cannot be captured.
        """
        self._make_resident(images)

        def call() -> None:
            with self._running():
                self._launch()
                self._stream.synchronize()

        return call

    def transfer(self, images: Images) -> Callable[[], None]:
        """A call as `prepare` gives it that also copies the batch in and all maps out, through page-locked memory.

        Raises:
            EngineError: as `prepare`.
        """
        self._make_resident(images)
        driver, batch = self._cuda.driver, self._buffers[self._inputs[0]]
        maps = [self._buffers[name] for name in self._outputs()]

        def call() -> None:
            with self._running():
                driver.memcpy_htod_async(batch.device, batch.host, self._stream)
                self._launch()
                for one in maps:
                    driver.memcpy_dtoh_async(one.host, one.device, self._stream)
                self._stream.synchronize()

        return call

    def device_seconds(self, images: Images, calls: int) -> list[float]:
        """Seconds that each of `calls` batches computed, between two events on the device: no copies, no launch.

        Raises:
            EngineError: as `prepare`.
        """
        self._make_resident(images)
        seconds = []
        with self._running():
            start, end = self._cuda.driver.Event(), self._cuda.driver.Event()
            for _ in range(calls):
                start.record(self._stream)
                self._launch()
                end.record(self._stream)
                end.synchronize()
                seconds.append(start.time_till(end) / 1e3)
        return seconds

    def _make_resident(self, images: Images) -> None:
        """Bring a batch to the device, run it once, and capture the CUDA graph if there is to be one.

        The outputs of that run are overwritten with NaN: what is read back later was left by a timed call.
        """
        with self._running():
            self._copy_in(images)
            self._enqueue(self._stream)  # kernels are loaded by their first launch, which may not be captured
            self._stream.synchronize()
            if self._graph is None and self._mode != "off":
                self._capture()
            for name in self._outputs():
                self._buffers[name].host.fill(np.nan)
                self._cuda.driver.memcpy_htod_async(self._buffers[name].device, self._buffers[name].host, self._stream)
            self._stream.synchronize()

    @property
    def launches_graph(self) -> bool:
        """Whether timed calls launch a CUDA graph; known after the first `prepare`."""
        return self._graph is not None

    def _capture(self) -> None:
        """Capture one batch as a CUDA graph and launch it once; where that fails, `auto` goes on without.

        Raises:
            EngineError: `cuda_graph=on`.
        """
        driver = self._cuda.driver
        try:
            self._capture_stream = driver.Stream()
            self._graph = self._captured()
            self._graph.launch(self._stream)
            self._stream.synchronize()
        except (AttributeError, TypeError, EngineError, driver.Error) as error:
            # AttributeError and TypeError: a PyCUDA without graphs, or with other ones than these
            self._graph = None
            if self._mode == "on":
                raise EngineError(
                    f"{self._file}: wanted a CUDA graph, which cannot be captured: {first_line(error)}",
                    "--engine-option tensorrt.cuda_graph=auto",
                ) from error
        finally:
            self._capture_stream = None

    def _captured(self) -> Any:
        self._capture_stream.begin_capture()
        try:
            self._enqueue(self._capture_stream)
        finally:
            graph = self._capture_stream.end_capture()
        return graph.instantiate()

    # --- what ran

    def memory(self) -> int:
        """Bytes of device memory that a batch needs: TensorRT's activations and scratch, and inputs and outputs.

        The weights come on top; TensorRT does not tell their size, which is near that of the plan file.
        """
        engine = self._opened
        # 10.0 has only the old name, 11 only the new one
        scratch = getattr(engine, "device_memory_size_v2", None)
        buffers = sum(buffer.host.nbytes for buffer in self._buffers.values())
        return int(engine.device_memory_size if scratch is None else scratch) + buffers

    def inspect(self) -> Inspection:
        """The GPU, and the type each convolution computed in; `unknown` where no layer names it.

        Raises:
            EngineError: the plan was built without the details of its layers.
        """
        return Inspection(self._cuda.gpu, self.source.layers(self.layer_types().items()))

    def layer_types(self) -> Mapping[str, str]:
        """For each convolution, by its name in the ONNX graph, the type that it multiplied in.

        `fp32`, `tf32`, `bf16`, `fp16`, `fp8`, `int8`; `unknown` where no layer of the plan names it. Without a graph
        (a plan given with --engine-file) the convolutions are those that the plan names.

        Raises:
            EngineError: as `inspect`.
        """
        wanted = None if self.source.graph is None else list(convolutions_of(self.source.graph).work)
        return _convolution_types(self._layers(), wanted)

    def _layers(self) -> list[Layer]:
        import tensorrt as trt

        with self._running():
            told = self._opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        try:
            layers = json.loads(told, strict=False)["Layers"]  # some versions write control characters as they are
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{self._file}: TensorRT's inspector gave no layers: {first_line(error)}", BUILD_AGAIN
            ) from error
        if not layers or not all(isinstance(layer, dict) for layer in layers):
            raise EngineError(
                f"{self._file} does not say what its {len(layers)} layers compute in: built without detailed profiling",
                f"{BUILD_AGAIN}; or build it with trtexec --profilingVerbosity=detailed",
            )
        return list(layers)

    # --- the end

    def close(self) -> None:
        """Free device memory, page-locked memory and the stream. Calling it twice does nothing."""
        if self._logger is None:
            return
        with self._cuda.current():
            if self._stream is not None:
                with suppress(self._cuda.driver.Error):  # a device that failed says so again, and is given back anyway
                    self._stream.synchronize()
            self._graph = self._capture_stream = None
            for buffer in self._buffers.values():
                buffer.free()
            self._buffers.clear()
            self._context = self._engine = self._runtime = self._logger = None
            self._stream = None


# --- what the inspector says


def _convolution_types(layers: list[Layer], wanted: list[str] | None) -> dict[str, str]:
    """The type of each convolution; `wanted` are the graph's, None those that the layers themselves name."""
    computing = [layer for layer in layers if layer.get("LayerType") not in COPIES]
    convolving = [layer for layer in computing if _is_convolution(layer)]
    if wanted is None:
        named = [_named_convolutions(layer) for layer in convolving]
        wanted = list(dict.fromkeys(name for names in named for name in names))
    # Fused into something that is not called a convolution, it still runs in that layer's type.
    first, second = _types_by_name(convolving), _types_by_name(computing)
    found = {name: first.get(name) or second.get(name) or [UNKNOWN] for name in wanted}
    return {name: min(types, key=WIDEST_FIRST.index) for name, types in found.items()}


def _types_by_name(layers: list[Layer]) -> dict[str, list[str]]:
    types: dict[str, list[str]] = {}
    for layer in layers:
        for name in {*_onnx_names(layer), str(layer.get("Name"))}:
            types.setdefault(name, []).append(_computes(layer))
    return types


def _is_convolution(layer: Layer) -> bool:
    kind = " ".join(str(layer.get(key, "")) for key in ("LayerType", "ParameterType", "TacticName")).lower()
    return "conv" in kind or "fprop" in kind


def _onnx_names(layer: Layer) -> list[str]:
    """ONNX nodes that a layer was made of, from its metadata; else from its name, joined by plus signs."""
    return ONNX_NAMES.findall(str(layer.get("Metadata", ""))) or str(layer.get("Name", "")).split(" + ")


def _named_convolutions(layer: Layer) -> list[str]:
    """Of the nodes in a convolution's layer those called so (`/backbone/conv1/Conv`), else the layer's own name."""
    names = [name for name in _onnx_names(layer) if name.rpartition("/")[2].startswith("Conv")]
    return names or [str(layer.get("Name"))]


def _computes(layer: Layer) -> str:
    """The type that a layer multiplies in: its kernel's name tells it, else the types of first input and weights."""
    tactic = TACTIC_TYPE.search(str(layer.get("TacticName", "")))
    if tactic:
        return TACTIC_TYPES[tactic[1]]
    inputs = layer.get("Inputs") or [{}]
    weights = _spelled(str((layer.get("Weights") or {}).get("Type", "")))
    reads = _spelled(" ".join(str(inputs[0].get(key, "")) for key in TYPE_FIELDS))
    return weights if reads == "int8" and weights != UNKNOWN else reads


def _spelled(text: str) -> str:
    return next((ours for theirs, ours in SPELLINGS.items() if theirs in text.lower()), UNKNOWN)
