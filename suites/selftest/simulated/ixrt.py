"""Takes a simulated device and a folder; gives a simulated ixRT (the package `tensorrt`) that checks how it is used.

It computes through ONNX Runtime on the CPU: where fp16 is asked for, the graph converted to float16; for int8, the QDQ
graph as it is. Where no precision is asked for, it computes in a few bits only: a forgotten flag shows in the maps.
"""

import ctypes
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from harness.engines import base
from harness.model import graph
from suites.selftest.simulated.cudart import NAME as CUDART
from suites.selftest.simulated.cudart import Cudart
from suites.selftest.simulated.device import Device, Misuse, OutOfMemory, Work

GPU = "Simulated MR-V100"
VERSION = "1.0.0+simulated"
MAGIC = b"SIMULATED-IXRT-PLAN\0"
GARBAGE_LEVELS = 3


class NetworkDefinitionCreationFlag(IntEnum):
    EXPLICIT_BATCH = 0


class BuilderFlag(IntEnum):
    FP16 = 0
    INT8 = 1
    BF16 = 2


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2


NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT8: np.int8}
TYPES = {TensorProto.FLOAT: DataType.FLOAT, TensorProto.FLOAT16: DataType.HALF, TensorProto.INT8: DataType.INT8}


class Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, severity: int = WARNING) -> None:
        if severity not in range(5):
            raise TypeError(f"Logger: no severity {severity!r}")


class HostMemory(bytes):
    """A plan as the builder gives it."""


@dataclass
class ParserError:
    text: str
    index: int = -1

    def node(self) -> int:
        return self.index

    def desc(self) -> str:
        return self.text


@dataclass
class Faults:
    """What goes wrong. `ports` changes an engine's bindings; `lacking` are operators that the parser does not have."""

    lacking: tuple[str, ...] = ()
    silent_parser: bool = False
    builds_nothing: bool = False
    deaf_flags: tuple[BuilderFlag, ...] = ()
    plugins_refuse: bool = False
    plugins_unloadable: bool = False
    no_context: bool = False
    execution_fails: bool = False
    raises: dict[str, Exception] = field(default_factory=dict)
    ports: Callable[[list["Binding"]], list["Binding"]] = list


@dataclass(frozen=True)
class Binding:
    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: DataType = DataType.FLOAT
    computed: str | None = None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(NUMPY[self.dtype]).itemsize


class SimulatedIxrt:
    """One installed simulated ixRT, the handle that tests hold; `version` and `device.name` go into every plan."""

    def __init__(self, device: Device, cudart: Cudart, folder: Path, version: str = VERSION) -> None:
        self.device = device
        self.cudart = cudart
        self.version = version
        self.faults = Faults()
        self.file = folder / "tensorrt" / "__init__.py"
        self.plugins = self.file.parent / "lib" / "libixrt_plugin.so"
        self.loaded_library = False
        self.plugins_started = False
        self.plans: list[str] = []
        self.module = self._module()

    def _module(self) -> ModuleType:
        made = ModuleType("tensorrt")
        made.__file__ = str(self.file)
        made.__spec__ = ModuleSpec("tensorrt", None, origin=str(self.file))
        made.__dict__["__version__"] = self.version
        for known in (NetworkDefinitionCreationFlag, BuilderFlag, DataType, Logger):
            made.__dict__[known.__name__] = known
        made.__dict__.update(
            init_libnvinfer_plugins=self._init_plugins,
            Builder=lambda logger: Builder(self, logger),
            OnnxParser=lambda network, logger: OnnxParser(self, network, logger),
            Runtime=lambda logger: Runtime(self, logger),
            nptype=lambda dtype: NUMPY[DataType(dtype)],
        )
        return made

    def load_library(self, path: str) -> None:
        """`ctypes.CDLL` of the plugin library."""
        if self.faults.plugins_unloadable or not self.plugins.is_file():
            raise OSError(f"{path}: cannot open shared object file")
        self.loaded_library = True

    def _init_plugins(self, logger: Logger, namespace: str) -> bool:
        require(isinstance(logger, Logger) and namespace == "", "init_libnvinfer_plugins wants a logger and ''")
        require(self.loaded_library, "init_libnvinfer_plugins before libixrt_plugin.so was loaded")
        self.raise_for("init_libnvinfer_plugins")
        self.plugins_started = not self.faults.plugins_refuse
        return self.plugins_started

    def raise_for(self, call: str) -> None:
        """Raise what the test has set for this call."""
        error = self.faults.raises.get(call)
        if error is not None:
            raise type(error)(*error.args)  # a new one: the given one would keep each traceback

    def require_clean(self) -> None:
        """Hold the adapter to having given everything back.

        Raises:
            Misuse: what is left.
        """
        self.device.require_clean()


def require(condition: bool, rule: str) -> None:
    """Raise Misuse unless the adapter kept the rule."""
    if not condition:
        raise Misuse(f"ixRT: {rule}")


class Network:
    def __init__(self) -> None:
        self.model: onnx.ModelProto | None = None


class BuilderConfig:
    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.asked = False
        self._flags: set[BuilderFlag] = set()

    def set_flag(self, flag: BuilderFlag) -> None:
        self._ask(flag)
        if flag not in self._faults.deaf_flags:
            self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._ask(flag)
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        require(isinstance(flag, BuilderFlag), f"get_flag of {flag!r}")
        return flag in self._flags

    def _ask(self, flag: BuilderFlag) -> None:
        require(isinstance(flag, BuilderFlag), f"unknown builder flag {flag!r}")
        self.asked = True


class Builder:
    def __init__(self, simulated: SimulatedIxrt, logger: Logger) -> None:
        require(isinstance(logger, Logger), "Builder wants a logger")
        self._simulated = simulated

    def create_network(self, flags: int) -> Network:
        require(flags == 1 << NetworkDefinitionCreationFlag.EXPLICIT_BATCH, f"networks are EXPLICIT_BATCH, not {flags}")
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self._simulated.faults)

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None:
        simulated = self._simulated
        require(isinstance(network, Network) and isinstance(config, BuilderConfig), "build wants network and config")
        require(network.model is not None, "build of a network that nothing was parsed into")
        simulated.raise_for("build_serialized_network")
        built = _typed(network.model, config)
        if simulated.faults.builds_nothing or built is None or not self._has_memory(built):
            return None
        precision = _precision(config)
        simulated.plans.append(precision)
        content = built.SerializeToString()
        header = {
            "version": simulated.version,
            "gpu": simulated.device.name,
            "precision": precision,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        return HostMemory(MAGIC + json.dumps(header).encode() + b"\n" + content)

    def _has_memory(self, model: onnx.ModelProto) -> bool:
        try:
            workspace = self._simulated.device.alloc(2 * model.ByteSize(), "workspace of the builder")
        except OutOfMemory:
            return False
        self._simulated.device.free(workspace)
        return True


def _precision(config: BuilderConfig) -> str:
    if not config.asked:
        return "nothing asked for"
    set_flags = [flag.name.lower() for flag in (BuilderFlag.INT8, BuilderFlag.FP16) if config.get_flag(flag)]
    return "+".join(set_flags) or "fp32"


def _typed(model: onnx.ModelProto, config: BuilderConfig) -> onnx.ModelProto | None:
    """The graph as it will be computed; None where ixRT would build nothing."""
    quantised = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    if not config.asked:
        return roughened(model)
    if half and not config.get_flag(BuilderFlag.FP16):
        return None
    if config.get_flag(BuilderFlag.INT8):
        require(quantised, "INT8 asked for, but the graph has neither Q/DQ nor dynamic ranges")
        return model
    return model if half or not config.get_flag(BuilderFlag.FP16) else graph.to_fp16(model)


def roughened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in a few steps, as after a quantisation that nobody calibrated."""
    rough = onnx.ModelProto()
    rough.CopyFrom(model)
    for tensor in rough.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            step = max(float(np.abs(values).max()), 1e-6) / GARBAGE_LEVELS
            tensor.CopyFrom(numpy_helper.from_array((np.round(values / step) * step).astype(np.float32), tensor.name))
    return rough


class OnnxParser:
    def __init__(self, simulated: SimulatedIxrt, network: Network, logger: Logger) -> None:
        require(isinstance(network, Network) and isinstance(logger, Logger), "OnnxParser wants network and logger")
        require(simulated.plugins_started, "a parser before the plugins were started")
        self._simulated, self._network = simulated, network
        self._errors: list[ParserError] = []

    def parse_from_file(self, path: str) -> bool:
        require(isinstance(path, str), f"parse_from_file wants a str, not {type(path).__name__}")
        self._simulated.raise_for("parse_from_file")
        try:
            model = onnx.load(path)
            onnx.checker.check_model(model)
        except Exception as error:  # noqa: BLE001
            self._errors.append(ParserError(str(error).splitlines()[0] if str(error) else "not an ONNX file"))
            return False
        self._errors = [
            ParserError(f"no importer registered for op: {node.op_type}", index)
            for index, node in enumerate(model.graph.node)
            if node.op_type in self._simulated.faults.lacking
        ]
        if self._errors:
            self._errors = [] if self._simulated.faults.silent_parser else self._errors
            return False
        self._network.model = model
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class Runtime:
    def __init__(self, simulated: SimulatedIxrt, logger: Logger) -> None:
        require(isinstance(logger, Logger), "Runtime wants a logger")
        self._simulated = simulated

    def deserialize_cuda_engine(self, content: bytes) -> "CudaEngine | None":
        simulated = self._simulated
        require(isinstance(content, bytes), f"deserialize_cuda_engine wants bytes, not {type(content).__name__}")
        require(simulated.plugins_started, "an engine is read before the plugins were started")
        simulated.raise_for("deserialize_cuda_engine")
        model = _read_plan(simulated, content)
        if model is None:
            return None
        try:
            return CudaEngine(simulated, model)
        except OutOfMemory:
            return None


def _read_plan(simulated: SimulatedIxrt, content: bytes) -> onnx.ModelProto | None:
    header, newline, body = content.removeprefix(MAGIC).partition(b"\n")
    if not content.startswith(MAGIC) or not newline:
        return None
    told = json.loads(header)
    known = (told["version"], told["gpu"]) == (simulated.version, simulated.device.name)
    if not known or told["sha256"] != hashlib.sha256(body).hexdigest():
        return None
    model = onnx.ModelProto()
    model.ParseFromString(body)
    return model


def _bindings(model: onnx.ModelProto) -> list[Binding]:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return [
        Binding(
            value.name,
            is_input,
            tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim),
            TYPES[value.type.tensor_type.elem_type],
            value.name,
        )
        for is_input, values in ((True, inputs), (False, model.graph.output))
        for value in values
    ]


class CudaEngine:
    """Weights on the device, and bindings by number."""

    def __init__(self, simulated: SimulatedIxrt, model: onnx.ModelProto) -> None:
        self._weights = 0
        self.simulated = simulated
        self.bindings = simulated.faults.ports(_bindings(model))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        content = model.SerializeToString()
        self.computing = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._weights = simulated.device.alloc(len(content), "weights of an engine")

    def __del__(self) -> None:
        if self._weights:
            self.simulated.device.free(self._weights)

    @property
    def num_bindings(self) -> int:
        self.simulated.raise_for("num_bindings")
        return len(self.bindings)

    def binding_is_input(self, index: int) -> bool:
        return self.bindings[index].is_input

    def get_binding_name(self, index: int) -> str:
        return self.bindings[index].name

    def get_binding_dtype(self, index: int) -> DataType:
        return self.bindings[index].dtype

    def get_binding_shape(self, index: int) -> tuple[int, ...]:
        return self.bindings[index].shape

    def create_execution_context(self) -> "ExecutionContext | None":
        self.simulated.raise_for("create_execution_context")
        return None if self.simulated.faults.no_context else ExecutionContext(self)


class ExecutionContext:
    """Queues the computation: its outputs are there once the device is synchronised."""

    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._device = engine.simulated.device
        self._stream = self._device.stream()

    def __del__(self) -> None:
        self._stream.destroy()  # queued work holds the context: there is none left here

    def execute_v2(self, bindings: list[int]) -> bool:
        engine = self._engine
        engine.simulated.raise_for("execute_v2")
        require(isinstance(bindings, list), f"execute_v2 wants a list of addresses, found {type(bindings).__name__}")
        wanted, found = len(engine.bindings), len(bindings)
        require(wanted == found, f"execute_v2 wants {wanted} addresses, found {found}")
        if engine.simulated.faults.execution_fails:
            return False
        bound = [(one, (address, one.nbytes)) for one, address in zip(engine.bindings, bindings, strict=True)]
        starts = sorted(place for _, place in bound)
        apart = all(a + size <= b for (a, size), (b, _) in pairwise(starts))
        require(apart, "two bindings share memory")
        reads = [place for one, place in bound if one.is_input]
        writes = [place for one, place in bound if not one.is_input]
        self._stream.enqueue(Work("execute_v2", lambda: self._compute(bound), reads=reads, writes=writes))
        return True

    def _compute(self, bound: list[tuple[Binding, tuple[int, int]]]) -> None:
        inputs = {one.computed: self._array(one, place) for one, place in bound if one.is_input}
        for name, values in inputs.items():
            require(not np.isnan(values).any(), f"input '{name}' holds NaN: nothing was copied there")
        outputs = [(one, place) for one, place in bound if not one.is_input]
        results = self._engine.computing.run([one.computed for one, _ in outputs], inputs)
        for (one, place), values in zip(outputs, results, strict=True):
            flat = values.astype(NUMPY[one.dtype]).reshape(-1)
            self._array(one, place).reshape(-1)[:] = np.resize(flat, int(np.prod(one.shape)))

    def _array(self, binding: Binding, place: tuple[int, int]) -> Any:
        return self._device.view(*place).view(NUMPY[binding.dtype]).reshape(binding.shape)


@contextmanager
def modules_replaced(**made: ModuleType) -> Iterator[None]:
    """`sys.modules` with these in place of what was there under their names."""
    names = {name.replace("__", "."): module for name, module in made.items()}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    base._broken.cache_clear()
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        base._broken.cache_clear()


@contextmanager
def installed(folder: Path, version: str = VERSION, memory_limit: int = 1 << 30) -> Iterator[SimulatedIxrt]:
    """A simulated ixRT and `cuda.cudart`, importable until the block ends; the package seems to lie in `folder`."""
    device = Device(memory_limit, name=GPU)
    cudart = Cudart(device)
    simulated = SimulatedIxrt(device, cudart, folder, version)
    simulated.plugins.parent.mkdir(parents=True, exist_ok=True)
    simulated.plugins.write_bytes(b"simulated")
    parent, child = ModuleType("cuda"), cudart.module()
    parent.__spec__ = ModuleSpec("cuda", None, is_package=True)
    child.__spec__ = ModuleSpec(CUDART, None, origin="simulated")
    vars(parent).update(__path__=[], cudart=child)
    real = ctypes.CDLL

    def load(name: Any, *arguments: Any, **named: Any) -> Any:
        return simulated.load_library(name) if Path(str(name)) == simulated.plugins else real(name, *arguments, **named)

    with modules_replaced(tensorrt=simulated.module, cuda=parent, cuda__cudart=child), mock.patch("ctypes.CDLL", load):
        yield simulated
