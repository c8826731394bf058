"""Takes a simulated device; gives a simulated IGIE (Iluvatar's `tvm`) that checks how it is used.

It computes through ONNX Runtime on the CPU: where fp16 is asked for, the graph converted to float16. Where no precision
is asked for, weights are rounded to a few steps: a forgotten precision shows in the maps.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from harness.model import graph
from suites.selftest.simulated.device import KERNEL_S, Device, Misuse, OutOfMemory, Work
from suites.selftest.simulated.ixrt import GPU, modules_replaced, roughened

VERSION = "0.12.0+simulated"
MAGIC = b"SIMULATED-IGIE-LIBRARY\0"
KIND = "iluvatar"
TARGET_OPTIONS = "-libs=cudnn,cublas,ixinfer"
MODULES = (
    "tvm",
    "tvm.target",
    "tvm.nd",
    "tvm.runtime",
    "tvm.relay",
    "tvm.relay.import_model",
    "tvm.contrib",
    "tvm.contrib.graph_executor",
)
NUMPY = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}


class TVMError(RuntimeError):
    """What the simulated runtime raises where TVM would."""


@dataclass
class Faults:
    """What goes wrong. `outputs` changes the numbers of the outputs that an executor gives."""

    raises: dict[str, Exception] = field(default_factory=dict)
    writes_nothing: bool = False
    outputs: Callable[[list[int]], list[int]] = list


@dataclass(frozen=True)
class Target:
    kind: Any = field(default_factory=lambda: SimpleNamespace(name=KIND))


@dataclass(frozen=True)
class Imported:
    """A module as the importer gives it."""

    model: onnx.ModelProto
    params: dict[str, Any]


class SimulatedIgie:
    """One installed simulated IGIE, the handle that tests hold; `version` and the GPU's name go into every library."""

    def __init__(self, device: Device, version: str = VERSION, devices: int = 1) -> None:
        self.device = device
        self.version = version
        self.devices = devices
        self.faults = Faults()
        self.built: list[str] = []
        self.modules = self._modules()

    def _modules(self) -> dict[str, ModuleType]:
        names = (
            "",
            ".target",
            ".nd",
            ".runtime",
            ".relay",
            ".relay.import_model",
            ".contrib",
            ".contrib.graph_executor",
        )
        made = {f"tvm{name}": ModuleType(f"tvm{name}") for name in names}
        for name, module in made.items():
            module.__spec__ = ModuleSpec(name, None, origin="simulated", is_package=True)
            module.__dict__["__path__"] = []
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, module)
        vars(made["tvm"]).update(__version__=self.version, TVMError=TVMError, device=self._device)
        vars(made["tvm.target"]).update(iluvatar=self._target)
        vars(made["tvm.nd"]).update(array=self._array)
        vars(made["tvm.runtime"]).update(load_module=self._load_module)
        vars(made["tvm.relay"]).update(build=self._build)
        vars(made["tvm.relay.import_model"]).update(import_model_to_igie=self._import)
        vars(made["tvm.contrib.graph_executor"]).update(GraphModule=self._graph_module)
        return made

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

    def _target(self, model: str, options: str) -> Target:
        self.raise_for("target")
        require((model, options) == ("MR", TARGET_OPTIONS), f"unknown target {model!r} {options!r}")
        return Target()

    def _device(self, kind: str, index: int) -> "TvmDevice":
        require(kind == KIND and isinstance(index, int), f"unknown device {kind!r} {index!r}")
        return TvmDevice(self, index)

    def _array(self, host: Any, device: "TvmDevice") -> "NDArray":
        require(isinstance(device, TvmDevice), "nd.array wants a device: without one it makes an array on the CPU")
        require(isinstance(host, np.ndarray) and host.flags.c_contiguous, "nd.array wants a contiguous numpy array")
        self.raise_for("array")
        made = NDArray(self, host.shape, host.dtype, "nd.array")
        self.device.copy_in(made.address, host)
        return made

    def _import(self, path: str, shapes: dict[str, tuple[int, ...]], backend: str) -> tuple[Imported, dict[str, Any]]:
        require(isinstance(path, str), f"import_model_to_igie wants a str, not {type(path).__name__}")
        require(backend == "igie", f"unknown backend {backend!r}")
        self.raise_for("import")
        try:
            model = onnx.load(path)
            onnx.checker.check_model(model)
        except Exception as error:
            raise TVMError(
                f"cannot import {path}: {str(error).splitlines()[0] if str(error) else 'no ONNX'}"
            ) from error
        value = next(iter(model.graph.input))
        found = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)}
        require(shapes == found, f"import_model_to_igie: the graph's inputs are {found}, found {shapes}")
        params: dict[str, Any] = {}
        return Imported(model, params), params

    def _build(self, module: Imported, *, target: Target, params: Any, precision: str | None = None) -> "Factory":
        require(isinstance(module, Imported) and isinstance(target, Target), "build wants a module and a target")
        require(params is module.params, "build with parameters of another module")
        require(precision in (None, "fp32", "fp16"), f"unknown precision {precision!r}")
        self.raise_for("build")
        self._workspace(2 * module.model.ByteSize())
        self.built.append(str(precision))
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in module.model.graph.initializer)
        if precision is None:
            return Factory(self, roughened(module.model))
        return Factory(self, graph.to_fp16(module.model) if precision == "fp16" and not half else module.model)

    def _workspace(self, nbytes: int) -> None:
        try:
            self.device.free(self.device.alloc(nbytes, "workspace of the compiler"))
        except OutOfMemory as error:
            raise TVMError(str(error)) from error

    def _load_module(self, path: str) -> "Library":
        require(isinstance(path, str), f"load_module wants a str, not {type(path).__name__}")
        self.raise_for("load_module")
        content = Path(path).read_bytes()
        header, _, body = content.removeprefix(MAGIC).partition(b"\n")
        if not content.startswith(MAGIC):
            raise OSError(f"{path}: invalid ELF header")
        told = json.loads(header)
        if told["sha256"] != hashlib.sha256(body).hexdigest():
            raise OSError(f"{path}: file too short")
        if (told["version"], told["gpu"]) != (self.version, self.device.name):
            raise TVMError(f"{path}: of version {told['version']} for {told['gpu']}")
        model = onnx.ModelProto()
        model.ParseFromString(body)
        return Library(self, model)

    def _graph_module(self, made: "Instance") -> "GraphModule":
        require(isinstance(made, Instance), 'GraphModule wants library["default"](device)')
        return GraphModule(made.simulated, made.model)


def require(condition: bool, rule: str) -> None:
    """Raise Misuse unless the adapter kept the rule."""
    if not condition:
        raise Misuse(f"IGIE: {rule}")


@dataclass(frozen=True)
class TvmDevice:
    simulated: SimulatedIgie
    index: int

    @property
    def exist(self) -> bool:
        self.simulated.raise_for("exist")
        return self.index < self.simulated.devices

    @property
    def device_name(self) -> str:
        self.simulated.raise_for("device_name")
        return self.simulated.device.name

    def sync(self) -> None:
        self.simulated.raise_for("sync")
        self.simulated.device.synchronise()


class NDArray:
    """An array on the device; its memory lives as long as it does."""

    def __init__(self, simulated: SimulatedIgie, shape: tuple[int, ...], dtype: Any, label: str) -> None:
        self.address = 0
        self.simulated, self.shape, self.dtype = simulated, tuple(shape), np.dtype(dtype)
        try:
            self.address = simulated.device.alloc(self.nbytes, label)
        except OutOfMemory as error:
            raise TVMError(str(error)) from error

    def __del__(self) -> None:
        if self.address:
            self.simulated.device.free(self.address)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def place(self) -> tuple[int, int]:
        return self.address, self.nbytes

    @property
    def values(self) -> npt.NDArray[Any]:
        """The device memory itself, for simulated kernels."""
        return self.simulated.device.view(*self.place).view(self.dtype).reshape(self.shape)

    def asnumpy(self) -> npt.NDArray[Any]:
        self.simulated.raise_for("asnumpy")
        host = np.empty(self.shape, self.dtype)
        self.simulated.device.copy_out(host, self.address)
        return host


@dataclass(frozen=True)
class Factory:
    """What `relay.build` gives."""

    simulated: SimulatedIgie
    model: onnx.ModelProto

    def export_library(self, path: str) -> None:
        require(isinstance(path, str) and path.endswith(".so"), f"export_library wants the path of a .so, not {path!r}")
        self.simulated.raise_for("export_library")
        if self.simulated.faults.writes_nothing:
            return
        body = self.model.SerializeToString()
        told = {"version": self.simulated.version, "gpu": self.simulated.device.name}
        header = json.dumps({**told, "sha256": hashlib.sha256(body).hexdigest()})
        Path(path).write_bytes(MAGIC + header.encode() + b"\n" + body)


@dataclass(frozen=True)
class Library:
    """What `load_module` gives."""

    simulated: SimulatedIgie
    model: onnx.ModelProto

    def __getitem__(self, name: str) -> Callable[[TvmDevice], "Instance"]:
        require(name == "default", f"the library has no function {name!r}")
        return self._instance

    def _instance(self, device: TvmDevice) -> "Instance":
        require(isinstance(device, TvmDevice), "the library wants a device")
        return Instance(self.simulated, self.model)


@dataclass(frozen=True)
class Instance:
    """A library's graph on a device."""

    simulated: SimulatedIgie
    model: onnx.ModelProto


class GraphModule:
    """Runs a graph; `run` queues it, and its outputs are there once the device is synchronised."""

    def __init__(self, simulated: SimulatedIgie, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        content = model.SerializeToString()
        self._simulated = simulated
        self._stream = None
        self._computing = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._inputs = {value.name: self._allocated(value) for value in model.graph.input}
        self._outputs = {value.name: self._allocated(value) for value in model.graph.output}
        self._stream = simulated.device.stream()

    def __del__(self) -> None:
        if self._stream is not None:  # queued work holds the executor: there is none left here
            self._stream.destroy()

    @property
    def module(self) -> Any:
        """The runtime module below; made anew, for an executor must not hold itself."""
        return SimpleNamespace(time_evaluator=self._time_evaluator)

    def _allocated(self, value: onnx.ValueInfoProto) -> NDArray:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        return NDArray(self._simulated, shape, NUMPY[tensor.elem_type], f"'{value.name}' of an executor")

    def set_input(self, name: str, value: NDArray) -> None:
        self._simulated.raise_for("set_input")
        if name not in self._inputs:
            raise TVMError(f"Could not find '{name}' in graph's inputs")
        require(isinstance(value, NDArray), f"set_input wants an array on the device, not {type(value).__name__}")
        bound = self._inputs[name]
        if bound.shape != value.shape:
            raise ValueError(f"array shape {value.shape} does not match the shape of NDArray {bound.shape}")
        require(bound.dtype == value.dtype, f"'{name}' is {bound.dtype}, found {value.dtype}")
        self._simulated.device.copy_within(bound.address, value.address, bound.nbytes)

    def run(self) -> None:
        self._simulated.raise_for("run")
        reads = [one.place for one in self._inputs.values()]
        writes = [one.place for one in self._outputs.values()]
        assert self._stream is not None
        self._stream.enqueue(Work("run", self._compute, reads=reads, writes=writes))

    def _compute(self) -> None:
        for name, one in self._inputs.items():
            require(not np.isnan(one.values).any(), f"input '{name}' holds NaN: nothing was copied there")
        inputs = {name: one.values for name, one in self._inputs.items()}
        for one, values in zip(self._outputs.values(), self._computing.run(list(self._outputs), inputs), strict=True):
            one.values[...] = values

    @property
    def _given(self) -> list[int]:
        return self._simulated.faults.outputs(list(range(len(self._outputs))))

    def get_num_outputs(self) -> int:
        return len(self._given)

    def get_output(self, index: int) -> NDArray:
        return list(self._outputs.values())[self._given[index]]

    def _time_evaluator(self, name: str, device: TvmDevice, number: int, repeat: int) -> Callable[[], Any]:
        require(name == "run" and isinstance(device, TvmDevice), f"time_evaluator of {name!r} on {device!r}")
        require(number > 0 and repeat > 0, f"time_evaluator of {number} x {repeat} runs")
        return lambda: self._timed(device, number, repeat)

    def _timed(self, device: TvmDevice, number: int, repeat: int) -> Any:
        """Seconds on the device's clock; one run stands for all, so that tests need not wait."""
        self._simulated.raise_for("time_evaluator")
        self.run()
        device.sync()
        return SimpleNamespace(results=(KERNEL_S,) * repeat, runs=number)


@contextmanager
def installed(version: str = VERSION, memory_limit: int = 1 << 30, devices: int = 1) -> Iterator[SimulatedIgie]:
    """A simulated IGIE, importable as `tvm` until the block ends."""
    simulated = SimulatedIgie(Device(memory_limit, name=GPU), version, devices)
    with modules_replaced(**{name.replace(".", "__"): module for name, module in simulated.modules.items()}):
        yield simulated
