"""Takes an ONNX graph; gives ixRT on an Iluvatar GPU: its plan as engine file, run by bindings. Unverified on hardware.

The wheel `ixrt` installs a package named `tensorrt` whose interface is like TensorRT 8's. What is used of it is what
Iluvatar's own programs use (DeepSparkInference `ixrt_common`, ixrtexec), but for what TensorRT 8 documents and they
have no need of: `clear_flag` and `get_flag` of the builder's configuration, and the parser's list of errors.
"""

import ctypes
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.engines.base import (
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
from harness.errors import DetgateError, EngineError, Missing
from harness.model.graph import Int8Scheme
from harness.model.registry import Precision

RUNTIME, CUDA = "tensorrt", "cuda.cudart"
PLUGINS = Path("lib", "libixrt_plugin.so")
# NVIDIA's package of the same name began with version 5; ixRT's own versions are at 1 (`1.0.0a0+corex.4.3.0`).
FIRST_NVIDIA_VERSION = 5
# Asked for at every build, one by one: Iluvatar's build program falls to int8 where no precision is named.
PRECISION_FLAGS = ("FP16", "INT8")
WANTED_FLAGS: Mapping[Precision, frozenset[str]] = {
    "fp32": frozenset(),
    "fp16": frozenset({"FP16"}),
    "int8": frozenset({"INT8"}),
}
# ixRT quantises symmetrically only, as Iluvatar's own quantiser does (DeepSparkInference `ixrt_common/quant.py`).
INT8_SCHEME: Int8Scheme = "s8"
# What ixRT's and CUDA's bindings raise; an attribute that is not there is an interface other than this adapter's.
REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, MemoryError)

REBUILD = "build it again with this ixRT on this GPU: remove the file, or leave --engine-file out"
LESS_MEMORY = "see with `ixsmi` what else uses the GPU; leave it more memory, or set a smaller --batch-size"
LOOK_AT_DEVICE = "see with `ixsmi` whether the GPU is well, then run the same command again"


class Ixrt(Engine):
    """ixRT. It has a precision flag of its own: fp16 engines are built from the fp32 graph, int8 from a QDQ graph.

    The Python package tells nothing of what its layers compute in: `inspect` knows the device only.
    """

    name = "ixrt"
    file_suffix = ".engine"
    known_options: ClassVar = {"device": Option("number of the GPU", "0")}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            computes={"fp32": "fp32", "fp16": "fp16", "int8": "int8"},
            builds_from={"fp16": "fp32"},
            inspection=False,
            source="graph",
            device="accelerator",
            int8_scheme=INT8_SCHEME,
        )

    @property
    def device(self) -> int:
        """Number of the GPU that is asked for."""
        return self.number("device") or 0

    def available(self) -> str | None:
        return "; ".join(fault for fault in (_runtime_fault(), self._device_fault()) if fault) or None

    def device_bytes(self) -> int | None:
        """Bytes of the GPU's memory that are in use, by whatever process; None where CUDA does not tell."""
        cuda = _Cuda()
        cuda.call("cudaSetDevice", self.device)
        return cuda.used_bytes()

    def _device_fault(self) -> str | None:
        fault = _cuda_fault()
        if fault is not None:
            return fault
        try:
            count = _Cuda().call("cudaGetDeviceCount")
        except EngineError as error:
            return f"no Iluvatar GPU answers: {error.cause}"
        return None if self.device < count else f"wanted GPU {self.device}, found {count} Iluvatar GPUs"

    @property
    def remedy(self) -> str:
        return (
            "pip uninstall -y tensorrt && pip install ixrt-*+corex*.whl cuda_python-*+corex*.whl "
            "(wheels of Iluvatar's IXUCA SDK, in an environment without NVIDIA's); then `ixsmi` must list the GPU"
        )

    def version(self) -> str:
        return str(self._runtime().__version__)

    def _runtime(self) -> Any:
        fault = _runtime_fault()
        if fault is not None:
            raise Missing(fault, self.remedy)
        return importlib.import_module(RUNTIME)

    def _started(self) -> "tuple[Any, Any, _Cuda]":
        """ixRT with its plugins loaded, a logger, and the GPU chosen.

        Raises:
            Missing: ixRT or the GPU is not here. EngineError: the plugins do not load.
        """
        fault = self.available()
        if fault is not None:
            raise Missing(fault, self.remedy)
        runtime, cuda = self._runtime(), _Cuda()
        cuda.call("cudaSetDevice", self.device)
        plugins = _plugins_of(runtime)
        try:
            ctypes.CDLL(str(plugins), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise EngineError(f"ixrt: {plugins} does not load: {first_line(error)}", self.remedy) from error
        with _told("its plugins do not start", self.remedy):
            logger = runtime.Logger(runtime.Logger.WARNING)
            if not runtime.init_libnvinfer_plugins(logger, ""):
                raise EngineError(f"ixrt {runtime.__version__}: init_libnvinfer_plugins failed", self.remedy)
        return runtime, logger, cuda

    def build(self, source: Source, target: Path) -> None:
        """Write ixRT's plan of the graph, with the precision asked for flag by flag.

        Raises:
            EngineError: the parser refused a node (named), a flag did not take, the builder gave nothing, or the plan
                has other inputs and outputs than the model.
        """
        assert source.graph is not None
        runtime, logger, _ = self._started()
        with _told(f"refused {source.graph}", "check the graph with onnx.checker; see what ixRT printed above"):
            builder = runtime.Builder(logger)
            network = builder.create_network(1 << int(runtime.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
            parser = runtime.OnnxParser(network, logger)
            if not parser.parse_from_file(str(source.graph)):
                raise _parse_error(runtime, parser, source.graph)
            config = builder.create_builder_config()
            _ask_precision(runtime, config, source.precision)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise EngineError(
                    f"ixrt {runtime.__version__} built nothing from {source.graph} in {source.precision}",
                    f"see what it printed above; if memory ran out, {LESS_MEMORY}",
                )
            _require_interface(_read_back(runtime, logger, plan), source)
        target.write_bytes(plan)

    def open(self, source: Source, file: Path) -> "IxrtSession":
        runtime, logger, cuda = self._started()
        session = IxrtSession(source, cuda, self.device, file)
        try:
            session.load(runtime, logger)
        except BaseException:
            with suppress(EngineError):  # the first failure is the one to tell of
                session.close()
            raise
        return session


def _runtime_fault() -> str | None:
    """Why `tensorrt` is not a usable ixRT, None when it is."""
    fault = import_fault(RUNTIME)
    if fault is not None:
        return f"{fault} (wanted Iluvatar's ixRT, a package of that name)"
    runtime: Any = importlib.import_module(RUNTIME)
    if _plugins_of(runtime).is_file():
        return None
    version = str(getattr(runtime, "__version__", "unknown"))
    major = version.partition(".")[0]
    if major.isdigit() and int(major) >= FIRST_NVIDIA_VERSION:
        return f"the package tensorrt {version} is NVIDIA's TensorRT (wanted Iluvatar's ixRT, a package of that name)"
    return f"ixRT's plugin library is missing: wanted {_plugins_of(runtime)} beside tensorrt {version}"


def _plugins_of(runtime: Any) -> Path:
    return Path(str(runtime.__file__)).parent / PLUGINS


def _cuda_fault() -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NVIDIA's cuda-python says that it will call this module otherwise
            return import_fault(CUDA)
    except ModuleNotFoundError:  # the package that holds it is not there either
        return f"{CUDA} is not installed"


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Turn what ixRT raises into an error of the engine."""
    try:
        yield
    except REFUSALS as error:
        raise EngineError(f"ixrt: {what}: {type(error).__name__}: {first_line(error)}", remedy) from error


def _ask_precision(runtime: Any, config: Any, precision: Precision) -> None:
    """Set the flags of a precision, clear the others, and read back that they took.

    Raises:
        EngineError: names the flags that were wanted and those that are set.
    """
    wanted = WANTED_FLAGS[precision]
    flags = {name: getattr(runtime.BuilderFlag, name) for name in PRECISION_FLAGS}
    for name, flag in flags.items():
        (config.set_flag if name in wanted else config.clear_flag)(flag)
    taken = {name for name, flag in flags.items() if config.get_flag(flag)}
    if taken != wanted:
        raise EngineError(
            f"{precision}: wanted the builder flags {_listed(wanted)}, found {_listed(taken)} set",
            "this ixRT does not take its flags: name its version to Iluvatar, or choose another --precision",
        )


def _listed(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _parse_error(runtime: Any, parser: Any, graph: Path) -> EngineError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = "; ".join(f"{_node_name(graph, error.node())}: {error.desc()}" for error in errors[:3])
    return EngineError(
        f"ixrt {runtime.__version__} cannot parse {graph}: {told or 'it does not say why'}",
        "ixRT lacks this operator or its attributes: export the graph without it, or update the IXUCA SDK",
    )


def _node_name(graph: Path, index: int) -> str:
    if index < 0:
        return "the file"
    import onnx

    node = onnx.load(str(graph), load_external_data=False).graph.node[index]
    return f"node '{node.name or node.output[0]}' ({node.op_type})"


@dataclass(frozen=True)
class Port:
    """One binding of an engine: its shape in elements, `[batch, C, h, w]`, and its type in device memory."""

    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def _ports(runtime: Any, engine: Any) -> list[Port]:
    """The engine's bindings, in the order that `execute_v2` takes their addresses."""
    return [
        Port(
            str(engine.get_binding_name(index)),
            bool(engine.binding_is_input(index)),
            tuple(int(size) for size in engine.get_binding_shape(index)),
            np.dtype(runtime.nptype(engine.get_binding_dtype(index))),
        )
        for index in range(engine.num_bindings)
    ]


def _read_back(runtime: Any, logger: Any, plan: Any) -> list[Port]:
    """The bindings of a plan that was just built."""
    reader = runtime.Runtime(logger)
    engine = reader.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"ixrt {runtime.__version__} cannot read the plan it has just built", LESS_MEMORY)
    return _ports(runtime, engine)


def _require_interface(ports: Sequence[Port], source: Source) -> None:
    """Hold a plan to the model's input and outputs.

    Raises:
        EngineError: names both.
    """
    wanted = {source.spec.input.name: source.input_shape, **source.shapes}
    found = {port.name: port.shape for port in ports}
    if found != wanted:
        raise EngineError(
            f"ixrt built an engine of other inputs and outputs: wanted {wanted}, found {found}",
            "build from this model's graph for this --batch-size; see what ixRT printed above",
        )


class _Cuda:
    """Device memory through `cuda.cudart`: every return code is checked."""

    def __init__(self) -> None:
        self.cudart: Any = importlib.import_module(CUDA)

    def call(self, name: str, *arguments: Any) -> Any:
        """What a call of the CUDA runtime gives besides its status.

        Raises:
            EngineError: names the call and its return code.
        """
        remedy = LESS_MEMORY if name == "cudaMalloc" else LOOK_AT_DEVICE
        try:
            status, *values = getattr(self.cudart, name)(*arguments)
        except REFUSALS as error:
            raise EngineError(f"{name} failed: {type(error).__name__}: {first_line(error)}", remedy) from error
        if status != self.cudart.cudaError_t.cudaSuccess:
            raise EngineError(f"{name}: wanted cudaSuccess, found {_status_name(status)}", remedy)
        return values[0] if len(values) == 1 else tuple(values)

    def copy_in(self, address: int, host: npt.NDArray[Any]) -> None:
        """Host to device, done on return."""
        self.call("cudaMemcpy", address, host, host.nbytes, self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def copy_out(self, host: npt.NDArray[Any], address: int) -> None:
        """Device to host, done on return."""
        self.call("cudaMemcpy", host, address, host.nbytes, self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def used_bytes(self) -> int | None:
        """Bytes of device memory that are in use, by whatever process; None where the runtime does not tell."""
        try:
            free, total = self.call("cudaMemGetInfo")
        except EngineError:
            return None
        return int(total) - int(free)


def _status_name(status: Any) -> str:
    return f"{getattr(status, 'name', 'code')} ({int(status)})"


class IxrtSession(Session):
    """An ixRT engine with its buffers on the GPU. Inference is synchronised before anything is read."""

    def __init__(self, source: Source, cuda: _Cuda, device: int, file: Path) -> None:
        super().__init__(source)
        self._cuda = cuda
        self._device = device
        self._file = file
        self._used_before = cuda.used_bytes()
        self._logger: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._ports: list[Port] = []
        self._addresses: list[int] = []

    def load(self, runtime: Any, logger: Any) -> None:
        """Read the engine file and allocate a buffer for each binding.

        Raises:
            EngineError: the file is no engine of this version and GPU, or memory is short.
        """
        refused = f"ixrt {runtime.__version__} cannot open {self._file} on GPU {self._device}"
        try:
            content = self._file.read_bytes()
        except OSError as error:
            raise EngineError(f"{refused}: {first_line(error)}", REBUILD) from error
        with _told(f"cannot open {self._file}", REBUILD):
            self._logger = logger  # must outlive what it was given to
            self._runtime = runtime.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            if self._engine is None:
                raise EngineError(
                    f"{refused}: damaged, of another ixRT or GPU, or too large for its memory (ixRT printed which)",
                    REBUILD,
                )
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"{refused}: wanted an execution context, found none", LESS_MEMORY)
            self._ports = _ports(runtime, self._engine)
        for port in self._ports:
            self._addresses.append(int(self._cuda.call("cudaMalloc", self._size_of(port))))

    def _size_of(self, port: Port) -> int:
        if port.nbytes <= 0:
            raise EngineError(
                f"{self._file}: '{port.name}': wanted a fixed shape, found {port.shape}",
                "build it for a fixed batch and input size",
            )
        return port.nbytes

    @property
    def context(self) -> Any:
        """ixRT's execution context.

        Raises:
            EngineError: the session is closed.
        """
        return opened(self._context)

    def _infer(self, images: Images) -> Maps:
        upload, outputs = self._fitting(images), self._host_outputs()
        upload()
        self._run()
        return self._maps(outputs)

    def _maps(self, outputs: Sequence[tuple[Port, int, npt.NDArray[Any]]]) -> Maps:
        """Copies every output to its host memory; gives them by name, the model's in their order first."""
        self._download(outputs)
        maps = {port.name: host.astype(np.float32, copy=False) for port, _, host in outputs}
        ordered = [name for name in self.source.shapes if name in maps]
        return {name: maps[name] for name in (*ordered, *(name for name in maps if name not in self.source.shapes))}

    def _fitting(self, images: Images) -> Callable[[], None]:
        """A call that copies these images to the GPU.

        Raises:
            EngineError: the engine is closed, takes another input, or lacks outputs of the model.
        """
        opened(self._context)
        inputs = [(port, address) for port, address in zip(self._ports, self._addresses, strict=True) if port.is_input]
        wanted = (self.source.spec.input.name, images.shape)
        if [(port.name, port.shape) for port, _ in inputs] != [wanted] or inputs[0][0].dtype.kind != "f":
            found = "; ".join(f"'{port.name}' {port.shape} {port.dtype}" for port, _ in inputs) or "none"
            raise EngineError(
                f"{self._file} does not take images {images.shape} as '{wanted[0]}': its inputs are {found}",
                "build it for this model, batch and input size: remove the file, or leave --engine-file out",
            )
        missing = sorted(set(self.source.shapes) - {port.name for port in self._ports if not port.is_input})
        if missing:
            raise EngineError(
                f"{self._file} lacks the outputs {', '.join(missing)}", "build it from this model's graph"
            )
        (port, address), *_ = inputs
        host = np.ascontiguousarray(images, dtype=port.dtype)

        def upload() -> None:
            opened(self._context)
            self._cuda.copy_in(address, host)

        return upload

    def _host_outputs(self) -> list[tuple[Port, int, npt.NDArray[Any]]]:
        """New host memory for each output, with its binding and device address."""
        bound = zip(self._ports, self._addresses, strict=True)
        return [(port, address, np.empty(port.shape, port.dtype)) for port, address in bound if not port.is_input]

    def _run(self) -> None:
        with _told(f"{self._file} failed while it ran", LOOK_AT_DEVICE):
            done = self.context.execute_v2(self._addresses)
        if not done:
            raise EngineError(f"{self._file}: execute_v2 failed on GPU {self._device}", LOOK_AT_DEVICE)
        self._cuda.call("cudaDeviceSynchronize")

    def _download(self, outputs: Sequence[tuple[Port, int, npt.NDArray[Any]]]) -> None:
        for _, address, host in outputs:
            self._cuda.copy_out(host, address)

    def prepare(self, images: Images) -> Callable[[], None]:
        self._fitting(images)()
        return self._run

    def read_back(self) -> Maps:
        opened(self._context)
        return self._maps(self._host_outputs())

    def transfer(self, images: Images) -> Callable[[], None]:
        """A call that copies one batch `[batch, 3, H, W]` in, runs it, waits, and copies every output out.

        Raises:
            EngineError: as `infer`.
        """
        upload, outputs = self._fitting(images), self._host_outputs()

        def call() -> None:
            upload()
            self._run()
            self._download(outputs)

        return call

    def memory(self) -> int | None:
        """Bytes of device memory that are in use since the engine was opened; None where CUDA does not tell.

        Other users of the same GPU count too: `cudaMemGetInfo` knows only the whole.
        """
        opened(self._context)
        now = self._cuda.used_bytes()
        return None if now is None or self._used_before is None else now - self._used_before

    def inspect(self) -> Inspection:
        """The GPU's name. ixRT's Python package has no engine inspector: nothing is known of its convolutions."""
        opened(self._context)
        name = self._cuda.call("cudaGetDeviceProperties", self._device).name
        return Inspection(name.decode(errors="replace").strip("\0") if isinstance(name, bytes) else str(name), None)

    def close(self) -> None:
        """Wait for what still runs, then free context, engine and every buffer. Calling it twice does nothing.

        Raises:
            EngineError: a buffer could not be freed; the others are.
        """
        if self._context is not None:
            with suppress(EngineError):  # a GPU that failed says so again, and is given back anyway
                self._cuda.call("cudaDeviceSynchronize")
        self._context = self._engine = self._runtime = self._logger = None
        addresses, self._addresses = self._addresses, []
        failures: list[DetgateError] = []
        for address in addresses:
            try:
                self._cuda.call("cudaFree", address)
            except EngineError as error:
                failures.append(error)
        if failures:
            raise failures[0]
