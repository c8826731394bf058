"""Takes an ONNX graph; gives IGIE on an Iluvatar GPU: a compiled library as engine file. Unverified on hardware.

IGIE is a fork of TVM and installs as the package `tvm`. What is used of it is what Iluvatar's own programs use
(DeepSparkInference `igie_common` and `pisa/igie`), but for what TVM documents and they have no need of: `device.exist`,
`device.device_name` and `device.sync`.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

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
from harness.errors import EngineError, Missing

RUNTIME = "tvm"
# The target of Iluvatar's own programs.
TARGET: Mapping[str, str] = {"model": "MR", "options": "-libs=cudnn,cublas,ixinfer"}
# What TVM raises (its own TVMError is a RuntimeError); an attribute that is not there is another TVM than IGIE's.
REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, ImportError, MemoryError)

REBUILD = "build it again with this IGIE: remove the file, or leave --engine-file out"
LOOK_AT_DEVICE = "see with `ixsmi` whether the GPU is well and has memory left; or set a smaller --batch-size"


class Igie(Engine):
    """IGIE. It has a precision setting of its own: fp16 engines are built from the fp32 graph.

    No int8: Iluvatar's programs build it from symmetric QOperator graphs, which detgate does not make.
    Outputs are known by position only: it is held to the graph's order of outputs, and each shape to the model's.
    """

    name = "igie"
    file_suffix = ".so"
    known_options: ClassVar = {"device": Option("number of the GPU", "0")}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            computes={"fp32": "fp32", "fp16": "fp16"},
            builds_from={"fp16": "fp32"},
            inspection=False,
            source="graph",
            device="accelerator",
        )

    @property
    def device(self) -> int:
        """Number of the GPU that is asked for."""
        return self.number("device") or 0

    def available(self) -> str | None:
        fault = _runtime_fault()
        if fault is not None:
            return fault
        try:
            device = self._target_device()[1]
            found = bool(device.exist)
        except REFUSALS as error:
            return f"no Iluvatar GPU answers: {first_line(error)}"
        return None if found else f"wanted GPU {self.device}, tvm finds no Iluvatar GPU of that number"

    @property
    def remedy(self) -> str:
        return (
            "pip uninstall -y apache-tvm && pip install IGIE_WHEEL (the one of Iluvatar's IXUCA SDK, whose package is "
            "called tvm; in an environment without another TVM); then `ixsmi` must list the GPU"
        )

    def version(self) -> str:
        return str(self._runtime().__version__)

    def flags(self) -> dict[str, str]:
        """The options as set, and the target that engines are compiled for."""
        return {**self.options, **{f"target.{key}": value for key, value in TARGET.items()}}

    def _runtime(self) -> Any:
        fault = _runtime_fault()
        if fault is not None:
            raise Missing(fault, self.remedy)
        return importlib.import_module(RUNTIME)

    def _target_device(self) -> tuple[Any, Any]:
        """The target to compile for and the device to run on."""
        tvm = importlib.import_module(RUNTIME)
        target = tvm.target.iluvatar(**TARGET)
        return target, tvm.device(target.kind.name, self.device)

    def _require_available(self) -> Any:
        fault = self.available()
        if fault is not None:
            raise Missing(fault, self.remedy)
        return self._runtime()

    def build(self, source: Source, target: Path) -> None:
        """Write the library that IGIE compiles of the graph, in the precision named in the call.

        Raises:
            EngineError: IGIE refused the graph, could not compile it, or wrote no library.
        """
        assert source.graph is not None
        tvm = self._require_available()
        refused = f"igie {tvm.__version__} refused {source.graph} in {source.precision}"
        with _told(refused, "check the graph with onnx.checker; see which operator the message names"):
            frontend = importlib.import_module("tvm.relay.import_model")
            shapes = {source.spec.input.name: source.input_shape}
            module, params = frontend.import_model_to_igie(str(source.graph), shapes, backend="igie")
            compiled = tvm.relay.build(
                module, target=self._target_device()[0], params=params, precision=source.precision
            )
            compiled.export_library(str(target))
        if not target.is_file() or target.stat().st_size == 0:
            raise EngineError(
                f"{refused}: wanted a library, found no file that export_library wrote",
                "see what IGIE printed above; the linker that it calls must be installed",
            )

    def open(self, source: Source, file: Path) -> "IgieSession":
        tvm = self._require_available()
        device = self._target_device()[1]
        session = IgieSession(source, device, file)
        try:
            session.load(tvm)
        except BaseException:
            session.close()
            raise
        return session


def _runtime_fault() -> str | None:
    """Why `tvm` is not a usable IGIE, None when it is."""
    fault = import_fault(RUNTIME)
    if fault is not None:
        return f"{fault} (wanted Iluvatar's IGIE, a package of that name)"
    tvm: Any = importlib.import_module(RUNTIME)
    if hasattr(getattr(tvm, "target", None), "iluvatar"):
        return None
    version = getattr(tvm, "__version__", "unknown")
    return f"the package tvm {version} is another TVM (wanted Iluvatar's IGIE, which has tvm.target.iluvatar)"


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Turn what TVM raises into an error of the engine."""
    try:
        yield
    except REFUSALS as error:
        raise EngineError(f"{what}: {type(error).__name__}: {first_line(error)}", remedy) from error


def _output_names(source: Source) -> list[str]:
    """Outputs in the order of the graph the engine is built from; in the model's where that is not at hand."""
    if source.graph is None:
        return list(source.shapes)
    import onnx

    return [value.name for value in onnx.load(str(source.graph), load_external_data=False).graph.output]


class IgieSession(Session):
    """A graph executor of an IGIE library. Inference is synchronised before anything is read."""

    device_timer = "time_evaluator"

    def __init__(self, source: Source, device: Any, file: Path) -> None:
        super().__init__(source)
        self._device = device
        self._file = file
        self._tvm: Any = None
        self._executor: Any = None
        self._names: list[str] = []

    def load(self, tvm: Any) -> None:
        """Read the library and set its graph up on the GPU.

        Raises:
            EngineError: the file is no library of this IGIE, or memory is short.
        """
        refused = f"igie {tvm.__version__} cannot open {self._file}"
        try:
            with _told(refused, REBUILD):
                graph_executor = importlib.import_module("tvm.contrib.graph_executor")
                library = tvm.runtime.load_module(str(self._file))
                self._executor = graph_executor.GraphModule(library["default"](self._device))
        except OSError as error:
            raise EngineError(f"{refused}: {first_line(error)}", REBUILD) from error
        self._tvm = tvm
        self._names = _output_names(self.source)

    @property
    def executor(self) -> Any:
        """TVM's graph executor.

        Raises:
            EngineError: the session is closed.
        """
        return opened(self._executor)

    def _infer(self, images: Images) -> Maps:
        self._upload(images)
        self._run()
        return self._download()

    def _upload(self, images: Images) -> None:
        """Copy images `[batch, 3, H, W]` float32 to the engine's input."""
        name = self.source.spec.input.name
        with _told(
            f"{self._file} does not take images {images.shape} as '{name}'",
            "build it for this model, batch and input size: remove the file, or leave --engine-file out",
        ):
            self.executor.set_input(name, self._tvm.nd.array(np.ascontiguousarray(images), self._device))

    def _run(self) -> None:
        with _told(f"{self._file} failed while it ran", LOOK_AT_DEVICE):
            self.executor.run()
            self._device.sync()

    def _download(self) -> Maps:
        """New float32 arrays, named by position.

        Raises:
            EngineError: another number of outputs than the graph's, or a shape that shows another order.
        """
        with _told(f"{self._file}: its outputs cannot be read", LOOK_AT_DEVICE):
            count = int(self.executor.get_num_outputs())
            self._require_count(count)
            found = [np.asarray(self.executor.get_output(i).asnumpy(), dtype=np.float32) for i in range(count)]
        maps = dict(zip(self._names, found, strict=True))
        self._require_order(maps)
        return {name: maps[name] for name in (*self.source.shapes, *(set(maps) - set(self.source.shapes)))}

    def _require_count(self, count: int) -> None:
        missing = sorted(set(self.source.shapes) - set(self._names))
        if missing:
            raise EngineError(
                f"{self._file} lacks the outputs {', '.join(missing)}: its graph has {', '.join(self._names)}",
                "build it from this model's graph",
            )
        if count != len(self._names):
            raise EngineError(
                f"{self._file}: wanted {len(self._names)} outputs ({', '.join(self._names)}), found {count}",
                "the engine was not built from this model's graph: clear the cache or mend --engine-file",
            )

    def _require_order(self, maps: Maps) -> None:
        wanted = {name: self.source.shapes[name] for name in maps if name in self.source.shapes}
        found = {name: maps[name].shape for name in wanted}
        if found != wanted and sorted(found.values()) == sorted(wanted.values()):
            raise EngineError(
                f"{self._file} gives its outputs in another order than its graph: wanted {wanted}, found {found}",
                "outputs have no names in IGIE: build the engine from this graph, or mend --engine-file",
            )

    def prepare(self, images: Images) -> Callable[[], None]:
        self._upload(images)
        return self._run

    def read_back(self) -> Maps:
        return self._download()

    def device_seconds(self, images: Images, calls: int) -> list[float]:
        """Seconds of each of `calls` runs by TVM's `time_evaluator` on `run`: no copies.

        Iluvatar's published FPS is batch / the mean that the same timer gives of 100 runs, without their spread
        (`number=100, repeat=1`). Source: DeepSparkInference, `pisa/igie/inference.py`.

        Raises:
            EngineError: images that the engine does not take, the session is closed, or the runtime failed.
        """
        self._upload(images)
        with _told(f"{self._file} cannot be timed by time_evaluator", LOOK_AT_DEVICE):
            timer = self.executor.module.time_evaluator("run", self._device, number=1, repeat=calls)
            return [float(seconds) for seconds in timer().results]

    def memory(self) -> int | None:
        """None: the executor does not tell what device memory it holds."""
        opened(self._executor)
        return None

    def inspect(self) -> Inspection:
        """The GPU's name. Nothing of IGIE's interface that is known tells what a layer computes in."""
        opened(self._executor)
        with _told("the GPU does not tell its name", LOOK_AT_DEVICE):
            return Inspection(str(self._device.device_name), None)

    def close(self) -> None:
        """Wait for what still runs, then let go of the executor, which frees its memory. Twice does nothing."""
        if self._executor is not None:
            with suppress(*REFUSALS):  # a GPU that failed says so again, and is given back anyway
                self._device.sync()
        self._executor = self._tvm = None
