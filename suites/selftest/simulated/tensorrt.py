"""Takes a version and a simulated driver; gives the module `tensorrt` as of that version, computing in ONNX Runtime.

TensorRT 10 and 11 as published, as far as the adapter calls them: what 11 removed is absent, unknown attributes are
errors, arguments are held to their types. What real TensorRT does silently wrong (a weakly typed network, an unset or
freed tensor address) is Misuse. Plans hold the graph itself, so outputs are ONNX Runtime's own.
"""

import enum
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from harness.engines import base
from suites.selftest.simulated import device as simulated
from suites.selftest.simulated.cuda import Driver, pycuda_modules
from suites.selftest.simulated.device import Device, Misuse, OutOfMemory, Work
from suites.selftest.simulated.layers import layer_information

V10, V11 = "10.13.0.35", "11.3.0.14"
MAGIC = b"simulated plan\n"
KERNEL_S = 1e-3


class Severity(enum.IntEnum):
    """`ILogger.Severity`."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(enum.IntEnum):
    """`tensorrt.DataType`, the types that ONNX graphs here have."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BF16 = 7
    INT64 = 8


DTYPES = {
    1: DataType.FLOAT,
    10: DataType.HALF,
    3: DataType.INT8,
    6: DataType.INT32,
    16: DataType.BF16,
    7: DataType.INT64,
}
ITEM_SIZES = {
    DataType.FLOAT: 4,
    DataType.HALF: 2,
    DataType.INT8: 1,
    DataType.INT32: 4,
    DataType.BF16: 2,
    DataType.INT64: 8,
}
Verbosity = enum.IntEnum("Verbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2})
PoolType = enum.IntEnum("PoolType", {"WORKSPACE": 0})
InformationFormat = enum.IntEnum("InformationFormat", {"ONELINE": 0, "JSON": 1})
IOMode = enum.IntEnum("IOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
FLAGS = {"DEBUG": 2, "GPU_FALLBACK": 3, "REFIT": 4, "DISABLE_TIMING_CACHE": 5, "TF32": 6}
REMOVED_FLAGS = {"FP16": 0, "INT8": 1, "OBEY_PRECISION_CONSTRAINTS": 9, "PREFER_PRECISION_CONSTRAINTS": 10, "BF16": 17}
FLAG_TYPES = {
    10: enum.IntEnum("BuilderFlag", {**REMOVED_FLAGS, **FLAGS}),
    11: enum.IntEnum("BuilderFlag", FLAGS),
}
NETWORK_FLAG_TYPES = {
    8: enum.IntEnum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0}),
    10: enum.IntEnum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}),
    11: enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1}),
}


@dataclass
class Machine:
    """A simulated machine with TensorRT: its state, and the faults that tests set.

    unsupported: operators that the parser refuses. builder_error: why no builder can be made. build_error: what the log
    says when the builder gives nothing. scratch_bytes: device memory that building needs. execute_error: what the log
    says when a batch cannot be started. inspector: text that the inspector gives instead of its own.
    """

    version: str
    driver: Driver
    unsupported: set[str] = field(default_factory=set)
    builder_error: str | None = None
    build_error: str | None = None
    scratch_bytes: int = 1 << 20
    execute_error: str | None = None
    inspector: str | None = None
    timings_offered: list[bytes] = field(default_factory=list)
    configs: "list[Config]" = field(default_factory=list)
    executions: int = 0

    @property
    def device(self) -> Device:
        """The first device."""
        return self.driver.devices[0]

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


class Bound:
    """Has the machine; like the real bindings' objects it takes no attributes that it does not know."""

    machine: Machine

    def _known(self, name: str) -> bool:
        return (
            name.startswith("_") or name in vars(type(self)) or any(name in vars(kind) for kind in type(self).__mro__)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._known(name):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        super().__setattr__(name, value)


class ILogger:
    """Base of loggers; must be initialised."""

    Severity = Severity

    def __init__(self) -> None:
        self.initialised = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


def _checked_logger(logger: Any) -> ILogger:
    if not isinstance(logger, ILogger) or not vars(logger).get("initialised"):
        raise Misuse("wanted an ILogger whose own __init__ was called")
    return logger


def _checked(value: Any, wanted: type, what: str) -> Any:
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TypeError(f"{what}(): incompatible function arguments: wanted {wanted.__name__}, found {value!r}")
    return value


class HostMemory(bytearray):
    """`IHostMemory`: a buffer."""

    @property
    def nbytes(self) -> int:
        return len(self)


class Dims:
    """Not a tuple, though it has a length and items."""

    def __init__(self, sizes: Any) -> None:
        self._sizes = tuple(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> int:
        return int(self._sizes[index])


def tensor_of(value: onnx.ValueInfoProto) -> SimpleNamespace:
    """Name, shape (-1 where dynamic) and type of a graph's input or output."""
    kind = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
    return SimpleNamespace(name=value.name, shape=Dims(shape), dtype=DTYPES[kind.elem_type])


# --- building


class Builder(Bound):
    """`tensorrt.Builder`."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = _checked_logger(logger)
        _ = self.machine.driver.current  # without a context it would build on device 0, whatever was asked for
        if self.machine.builder_error is not None:
            logger.log(Severity.ERROR, self.machine.builder_error)
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> "Network":
        known = sum(1 << int(flag) for flag in NETWORK_FLAG_TYPES[self.machine.major])
        if _checked(flags, int, "create_network") & ~known:
            raise Misuse(f"create_network: unknown flags {flags:#b}")
        return _bind(Network, self.machine)(flags)

    def create_builder_config(self) -> "Config":
        config: Config = _bind(Config, self.machine)()
        self.machine.configs.append(config)
        return config

    def build_serialized_network(self, network: "Network", config: "Config") -> HostMemory | None:
        _checked(network, Network, "build_serialized_network")
        _checked(config, Config, "build_serialized_network")
        machine, graph = self.machine, network._graph
        self._logger.log(Severity.INFO, "a simulated build begins")
        if graph is None:
            raise Misuse("build: nothing was parsed into the network")
        if not network.strongly_typed:
            raise Misuse("build: the network is weakly typed, so the graph's precision would be ignored")
        if machine.build_error is not None:
            self._logger.log(Severity.ERROR, machine.build_error)
            return None
        try:
            machine.driver.current.device.free(machine.driver.current.device.alloc(machine.scratch_bytes, "builder"))
        except OutOfMemory as error:
            self._logger.log(Severity.ERROR, f"[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime ({error})")
            return None
        if config._timings is not None:
            config._timings._learn(graph)
        return HostMemory(_plan(machine, network, config))


class Network(Bound):
    """`tensorrt.INetworkDefinition`."""

    def __init__(self, flags: int) -> None:
        self._strong = self.machine.major >= 11 or bool(flags & 1 << 1)
        self._graph: onnx.ModelProto | None = None
        self._data = b""

    @property
    def strongly_typed(self) -> bool:
        return self._strong

    @property
    def num_inputs(self) -> int:
        return len(self._parsed.graph.input)

    def get_input(self, index: int) -> SimpleNamespace:
        return tensor_of(self._parsed.graph.input[_checked(index, int, "get_input")])

    @property
    def _parsed(self) -> onnx.ModelProto:
        if self._graph is None:
            raise Misuse("the network is empty: nothing was parsed into it")
        return self._graph


class Config(Bound):
    """`tensorrt.IBuilderConfig`. TF32 is on and layers have only names, unless told otherwise."""

    profiling_verbosity = Verbosity.LAYER_NAMES_ONLY
    builder_optimization_level = 3

    def __init__(self) -> None:
        self._flags = {self.flag_type.TF32}
        self._pools: dict[PoolType, int] = {}
        self._timings: TimingCache | None = None

    @property
    def flag_type(self) -> Any:
        return FLAG_TYPES[self.machine.major]

    def set_flag(self, flag: Any) -> None:
        self._flags.add(_checked(flag, self.flag_type, "set_flag"))

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(_checked(flag, self.flag_type, "clear_flag"))

    def get_flag(self, flag: Any) -> bool:
        return _checked(flag, self.flag_type, "get_flag") in self._flags

    def set_memory_pool_limit(self, pool: PoolType, pool_size: int) -> None:
        if _checked(pool_size, int, "set_memory_pool_limit") <= 0:
            raise Misuse("set_memory_pool_limit: wanted a positive number of bytes")
        self._pools[_checked(pool, PoolType, "set_memory_pool_limit")] = pool_size

    def get_memory_pool_limit(self, pool: PoolType) -> int:
        return self._pools.get(pool, self.machine.device.memory_limit)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> "TimingCache | None":
        data = bytes(memoryview(serialized_timing_cache))
        self.machine.timings_offered.append(data)
        if data and not data.startswith(b"simulated timings"):
            return None
        return _bind(TimingCache, self.machine)(data)  # type: ignore[no-any-return]

    def set_timing_cache(self, cache: "TimingCache", ignore_mismatch: bool) -> bool:
        _checked(cache, TimingCache, "set_timing_cache")
        if not ignore_mismatch and not cache._fits():
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> "TimingCache | None":
        return self._timings


class TimingCache(Bound):
    """`tensorrt.ITimingCache`: a header with the version, and the digests of graphs built with it."""

    def __init__(self, data: bytes) -> None:
        self._lines = data.split(b"\n") if data else [f"simulated timings {self.machine.version}".encode()]

    def _fits(self) -> bool:
        return self._lines[0] == f"simulated timings {self.machine.version}".encode()

    def _learn(self, graph: onnx.ModelProto) -> None:
        self._lines.append(hashlib.sha256(graph.SerializeToString()).hexdigest().encode())

    def serialize(self) -> HostMemory:
        return HostMemory(b"\n".join(self._lines))


class OnnxParser(Bound):
    """`tensorrt.OnnxParser`."""

    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network = _checked(network, Network, "OnnxParser")
        self._logger = _checked_logger(logger)
        self._errors: list[ParserError] = []

    def parse_from_file(self, model: str) -> bool:
        _checked(model, str, "parse_from_file")
        try:
            graph = onnx.load(model)
            onnx.checker.check_model(graph)
        except Exception as error:  # noqa: BLE001  what is wrong with a file is told in a parser error, whatever it is
            self._refuse("", "", f"Failed to parse the ONNX model: {type(error).__name__}")
            return False
        zeros = {tensor.name: tensor for tensor in graph.graph.initializer}
        for node in graph.graph.node:
            if node.op_type in self.machine.unsupported:
                self._refuse(node.name, node.op_type, "No importer registered for op")
            elif node.op_type == "QuantizeLinear" and not _symmetric(zeros.get(node.input[2])):
                self._refuse(node.name, node.op_type, "Assertion failed: zero point must be int8 and 0")
            elif node.op_type == "DequantizeLinear" and not _symmetric(zeros.get(node.input[2])):
                self._refuse(node.name, node.op_type, "Assertion failed: wanted int8 values with zero point 0")
        if not self._errors:
            self._network._graph = graph
        return not self._errors

    def _refuse(self, name: str, operator: str, text: str) -> None:
        self._errors.append(ParserError(name, operator, text))
        self._logger.log(Severity.ERROR, text)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> "ParserError":
        return self._errors[_checked(index, int, "get_error")]


def _symmetric(zero_point: onnx.TensorProto | None) -> bool:
    if zero_point is None or zero_point.data_type != onnx.TensorProto.INT8:
        return False
    return not onnx.numpy_helper.to_array(zero_point).any()


@dataclass(frozen=True)
class ParserError:
    """`tensorrt.ParserError`: methods, not attributes."""

    _name: str
    _operator: str
    _text: str

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator

    def desc(self) -> str:
        return self._text


def _plan(machine: Machine, network: Network, config: Config) -> bytes:
    """Header (one line of JSON), digest, graph."""
    device, graph = machine.driver.current.device, network._parsed.SerializeToString()
    header = {
        "version": machine.version,
        "compute": list(device.compute_capability),
        "verbosity": int(config.profiling_verbosity),
        "tf32": config.get_flag(config.flag_type.TF32),
        "sha256": hashlib.sha256(graph).hexdigest(),
    }
    return MAGIC + json.dumps(header).encode() + b"\n" + graph


# --- running


class Runtime(Bound):
    """`tensorrt.Runtime`."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = _checked_logger(logger)
        _ = self.machine.driver.current
        if self.machine.builder_error is not None:
            logger.log(Severity.ERROR, self.machine.builder_error)
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "CudaEngine | None":
        data = bytes(memoryview(serialized_engine))
        head, _, graph = data.removeprefix(MAGIC).partition(b"\n")
        fault = "Magic tag does not match" if not data.startswith(MAGIC) else self._fault(head, graph)
        try:
            if fault is None:
                return _bind(CudaEngine, self.machine)(self._logger, json.loads(head), graph)  # type: ignore[no-any-return]
        except OutOfMemory as error:
            fault = str(error)
        self._logger.log(Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: {fault}")
        return None

    def _fault(self, head: bytes, graph: bytes) -> str | None:
        header, device = json.loads(head), self.machine.driver.current.device
        if header["version"] != self.machine.version:
            return (
                "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                f"{self.machine.version} got {header['version']}, please rebuild."
            )
        if tuple(header["compute"]) != device.compute_capability:
            wanted, found = (".".join(map(str, c)) for c in (device.compute_capability, header["compute"]))
            return (
                f"The engine plan file is generated on an incompatible device, expecting compute {wanted} got {found}"
            )
        if header["sha256"] != hashlib.sha256(graph).hexdigest():
            return "Serialization (Serialization assertion stdVersionRead failed: the plan is cut short)"
        return None


class CudaEngine(Bound):
    """`tensorrt.ICudaEngine`: holds its weights on the device."""

    def __init__(self, logger: ILogger, header: dict[str, Any], graph: bytes) -> None:
        self._logger, self._header = logger, header
        self._device = self.machine.driver.current.device
        self._graph = onnx.load_from_string(graph)
        values = [*self._graph.graph.input, *self._graph.graph.output]
        self._tensors = {value.name: tensor_of(value) for value in values}
        self._session: Any = None
        self._weights: int | None = None
        self._weights = self._device.alloc(len(graph), "weights")

    def __del__(self) -> None:
        if self._weights is not None:
            self._device.free(self._weights)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[_checked(index, int, "get_tensor_name")]

    def get_tensor_mode(self, name: str) -> IOMode:
        inputs = {value.name for value in self._graph.graph.input}
        return IOMode.INPUT if self._tensor(name).name in inputs else IOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._tensor(name).shape)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensor(name).dtype)

    def _tensor(self, name: str) -> SimpleNamespace:
        if _checked(name, str, "tensor") not in self._tensors:
            raise Misuse(f"the engine has no tensor '{name}'")
        return self._tensors[name]

    def _nbytes(self, name: str) -> int:
        tensor = self._tensor(name)
        return int(np.prod([tensor.shape[i] for i in range(len(tensor.shape))])) * ITEM_SIZES[tensor.dtype]

    def create_execution_context(self) -> "ExecutionContext | None":
        try:
            return _bind(ExecutionContext, self.machine)(self)  # type: ignore[no-any-return]
        except OutOfMemory as error:
            self._logger.log(Severity.ERROR, f"IExecutionContext: {error}")
            return None

    def create_engine_inspector(self) -> "EngineInspector":
        return _bind(EngineInspector, self.machine)(self)  # type: ignore[no-any-return]

    @property
    def _scratch(self) -> int:
        return 4 * max(self._nbytes(name) for name in self._tensors)

    def _run(self, images: Any) -> dict[str, Any]:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                self._graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        names = [value.name for value in self._graph.graph.output]
        feed = {self._graph.graph.input[0].name: images}
        return dict(zip(names, self._session.run(names, feed), strict=True))


class CudaEngine10(CudaEngine):
    """TensorRT 10 still has the old name of the scratch's size."""

    @property
    def device_memory_size(self) -> int:
        return self._scratch

    @property
    def device_memory_size_v2(self) -> int:
        return self._scratch


class CudaEngine11(CudaEngine):
    """TensorRT 11 has only the new one."""

    @property
    def device_memory_size_v2(self) -> int:
        return self._scratch


class ExecutionContext(Bound):
    """`tensorrt.IExecutionContext`: holds scratch memory; keeps its engine alive."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._memory: int | None = None
        self._memory = engine._device.alloc(engine._scratch, "scratch")

    def __del__(self) -> None:
        if self._memory is not None:
            self._engine._device.free(self._memory)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        engine = self._engine
        engine._device.view(_checked(memory, int, "set_tensor_address"), engine._nbytes(name))
        if memory % 256:
            raise Misuse(f"set_tensor_address: {memory:#x} is not aligned to 256 bytes")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        machine, engine = self._engine.machine, self._engine
        stream = machine.driver.stream_of(stream_handle)
        missing = set(engine._tensors) - set(self._addresses)
        if missing:
            raise Misuse(f"execute_async_v3: no address set for {', '.join(sorted(missing))}")
        if machine.execute_error is not None:
            engine._logger.log(Severity.ERROR, machine.execute_error)
            return False
        assert self._memory is not None
        ranges = {name: (address, engine._nbytes(name)) for name, address in self._addresses.items()}
        inputs = [name for name in ranges if engine.get_tensor_mode(name) == IOMode.INPUT]
        reads = [ranges[name] for name in inputs]
        writes = [*(ranges[name] for name in ranges if name not in inputs), (self._memory, engine._scratch)]
        stream.enqueue(Work("execute", lambda: self._compute(ranges, inputs[0]), reads, writes, KERNEL_S))
        return True

    def _compute(self, ranges: dict[str, simulated.Range], input_name: str) -> None:
        engine = self._engine
        engine.machine.executions += 1
        sizes = engine.get_tensor_shape(input_name)
        shape = [sizes[i] for i in range(len(sizes))]
        dtype = np.float16 if engine.get_tensor_dtype(input_name) == DataType.HALF else np.float32
        images = engine._device.view(*ranges[input_name]).view(dtype).reshape(shape)
        for name, values in engine._run(images).items():
            engine._device.view(*ranges[name])[:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)


class EngineInspector(Bound):
    """`tensorrt.EngineInspector`."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: InformationFormat) -> str:
        _checked(format, InformationFormat, "get_engine_information")
        if self.machine.inspector is not None:
            return self.machine.inspector
        header = self._engine._header
        detailed = header["verbosity"] == Verbosity.DETAILED
        return json.dumps(layer_information(self._engine._graph, self.machine.major, header["tf32"], detailed))


# --- the module


def _bind(kind: type, machine: Machine) -> Any:
    if kind is CudaEngine:
        kind = CudaEngine11 if machine.major >= 11 else CudaEngine10
    return type(kind.__name__, (kind,), {"machine": machine})


def tensorrt_module(machine: Machine) -> ModuleType:
    """`tensorrt` of the machine's version."""
    module = ModuleType("tensorrt", "simulated")
    vars(module).update(
        __version__=machine.version,
        ILogger=ILogger,
        Builder=_bind(Builder, machine),
        OnnxParser=_bind(OnnxParser, machine),
        Runtime=_bind(Runtime, machine),
        NetworkDefinitionCreationFlag=NETWORK_FLAG_TYPES[machine.major],
        ProfilingVerbosity=Verbosity,
        MemoryPoolType=PoolType,
        LayerInformationFormat=InformationFormat,
        TensorIOMode=IOMode,
        DataType=DataType,
    )
    if machine.major in FLAG_TYPES:
        vars(module)["BuilderFlag"] = FLAG_TYPES[machine.major]
    return module


@contextmanager
def simulated_tensorrt(
    monkeypatch: pytest.MonkeyPatch, version: str, devices: int = 1, memory_limit: int = 1 << 30, **driver: Any
) -> Iterator[Machine]:
    """The modules in `sys.modules` for as long as the context lasts, which ends in a check that all was given back."""
    state = Driver([Device(memory_limit) for _ in range(devices)], **driver)
    machine = Machine(version, state)
    modules = {"tensorrt": tensorrt_module(machine), **pycuda_modules(state)}
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            module.__spec__ = ModuleSpec(name, None, origin="simulated")
            patch.setitem(sys.modules, name, module)
        base._broken.cache_clear()
        try:
            yield machine
        finally:
            base._broken.cache_clear()
