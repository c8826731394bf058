"""Takes nothing; gives the words every engine speaks: Capabilities, Source, Engine, Session, Inspection."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from harness.engines.option import Option
from harness.errors import EngineError, InvalidRun, UsageError
from harness.model.checkpoint import Weights
from harness.model.graph import Int8Scheme
from harness.model.registry import ModelSpec, Precision
from harness.model.work import convolutions_of

T = TypeVar("T")
Images = npt.NDArray[np.float32]
Maps = dict[str, npt.NDArray[np.float32]]
DeviceTimer = Literal["cuda events", "time_evaluator"]

# Share of the convolutions' multiply-accumulates that must run in the type an engine claims; the rest may be layers a
# runtime keeps wider.
NATIVE_SHARE = 0.95
NAMED = 5
UNKNOWN, NOT_INSPECTABLE = "unknown", "not inspectable"
LIST_OPTIONS = "python -m harness list options"


def first_line(error: Exception) -> str:
    """The first line of an error's text, or the name of an error that has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def time_calls(call: Callable[[], object], calls: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each of `calls` calls."""
    seconds = []
    for _ in range(calls):
        start = clock()
        call()
        seconds.append(clock() - start)
    return seconds


def import_fault(package: str) -> str | None:
    """Why a package cannot be used here, None when it can; imports it, for a broken install shows in no other way."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # folders that an uninstalled package left behind have no origin
        return f"{package} is not installed"
    return _broken(package)


@functools.cache
def _broken(package: str) -> str | None:
    """Asked once per process: Python remembers what it has imported, but tries a broken package again each time."""
    try:
        importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: a shared library that the package loads itself
        return f"{package} is installed but cannot be imported: {first_line(error)}"
    return None


def opened(held: T | None) -> T:
    """What an open session holds.

    Raises:
        EngineError: nothing, since the session is closed.
    """
    if held is None:
        raise EngineError("the session is closed", "open the engine again")
    return held


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; suites ask for these and never for a name.

    computes: for each precision it takes, the type its convolutions run in on this device. The same type: the precision
        is native. Another one (`fp16 -> fp32`): it is stored, weights are kept in it and computed wider.
    source: whether it builds from an ONNX graph or from the torch module itself.
    device: where it runs; decides the default batch.
    int8_scheme: the QDQ scheme it wants, None when it has no int8.
    builds_from: the graph of another precision that it builds one from, with a flag of its own (`fp16 -> fp32`).
    inspection: its runtime tells what each layer ran in; without, a precision is proved by its effect on the outputs.
    repeatable: it claims the same bits for the same images in every call, thread and session, also of a file built
        again; without, they may differ by what `harness.tolerances.RELATIONS` allows the precision.
    """

    computes: Mapping[Precision, str]
    source: Literal["graph", "module"]
    device: Literal["cpu", "accelerator"]
    int8_scheme: Int8Scheme | None = None
    builds_from: Mapping[Precision, Precision] = field(default_factory=dict)
    inspection: bool = True
    repeatable: bool = False

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions this engine has cells for."""
        return tuple(self.computes)

    def native(self, precision: Precision) -> bool:
        """Whether the precision is computed in, not only stored."""
        return self.computes[precision] == precision


@dataclass(frozen=True)
class Layer:
    """One convolution as it ran: its name, the type it computed in, and its multiply-accumulates in one call."""

    name: str
    dtype: str
    work: int


@dataclass(frozen=True)
class Source:
    """What an engine is built from: a fixed-batch graph, or a module's model file and weights; with names and shapes.

    shapes: of the outputs, by name, each `[batch, C, h, w]`.
    """

    spec: ModelSpec
    precision: Precision
    batch: int
    weights: Weights | None
    graph: Path | None
    shapes: Mapping[str, tuple[int, ...]]
    models_directory: Path

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """`[batch, 3, height, width]`."""
        return (self.batch, 3, self.spec.input.height, self.spec.input.width)

    def layers(self, types: Iterable[tuple[str, str]]) -> tuple[Layer, ...]:
        """Every convolution of the graph, in the type that the runtime says under any name of `aliases`.

        One that the runtime does not mention ran in `unknown`. Where the graph is not here, as with an engine file
        that the user gave, the runtime's own layers count alike.
        """
        if self.graph is None:
            return tuple(Layer(name, dtype, 1) for name, dtype in dict(types).items())
        known = convolutions_of(self.graph)
        ran = {known.aliases[name]: dtype for name, dtype in types if name in known.aliases}
        return tuple(Layer(name, ran.get(name, UNKNOWN), work) for name, work in known.work.items())


@dataclass(frozen=True)
class Inspection:
    """What really ran: the device and every convolution; `layers` is None where the runtime does not tell."""

    device: str
    layers: tuple[Layer, ...] | None

    @property
    def work(self) -> dict[str, int]:
        """Multiply-accumulates by the type they ran in, most first."""
        found: Counter[str] = Counter()
        for layer in self.layers or ():
            found[layer.dtype] += layer.work
        return dict(found.most_common())

    @property
    def dominant(self) -> str:
        """The type in which most of the work ran."""
        return next(iter(self.work), NOT_INSPECTABLE if self.layers is None else "none")

    def require_device(self, claimed: Literal["cpu", "accelerator"], cell: str) -> None:
        """Hold the run to the kind of device that the engine claims.

        Raises:
            InvalidRun: an accelerator was asked for and the CPU computed, or the other way round.
        """
        if (self.device == "cpu") is not (claimed == "cpu"):
            raise InvalidRun(
                f"{cell}: wanted to run on {'the CPU' if claimed == 'cpu' else 'an accelerator'}, ran on {self.device}",
                "the runtime fell back: see what it printed above, and which --engine-option names the device",
            )

    def require(self, claimed: str, cell: str) -> None:
        """Hold the run to what the engine claims for its precision.

        Raises:
            InvalidRun: less than 95 % of the convolutions' work ran in the claimed type; names the others.
        """
        if self.layers is None:
            return
        total = sum(self.work.values())
        if total and self.work.get(claimed, 0) >= NATIVE_SHARE * total:
            return
        shares = ", ".join(f"{work / total:.0%} in {dtype}" for dtype, work in self.work.items()) or "none at all"
        others = [layer.name for layer in self.layers if layer.dtype != claimed]
        named = f" ({', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''})" if others else ""
        wanted = f"{NATIVE_SHARE:.0%} of convolution work in {claimed}"
        raise InvalidRun(
            f"{cell}: wanted {wanted}, found {shares} on {self.device}{named}",
            "the engine does not run what it is called: build it from the right graph, or correct its capabilities",
        )


class Session(ABC):
    """An opened engine; a context manager that frees what it holds. Not for use by two threads at once."""

    device_timer: ClassVar[DeviceTimer | None] = None
    """What `device_seconds` reads; None where the runtime offers no clock of its device."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(self, images: Images) -> Maps:
        """Head maps by output name, for exactly one batch of images `[batch, 3, H, W]` float32.

        Raises:
            EngineError: images of another shape or type, or not finite; or outputs other than the model's.
        """
        wanted = self.source.input_shape
        if images.shape != wanted or images.dtype != np.float32:
            raise EngineError(
                f"wanted images {wanted} float32, found {images.shape} {images.dtype}",
                "pad the last batch to the engine's batch, or build for another --batch-size",
            )
        # Quantised and rectified, NaN becomes an ordinary number, and that a box.
        if not np.isfinite(images).all():
            rows = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
            raise EngineError(
                f"NaN or Inf in the images of rows {', '.join(map(str, rows))}: wanted finite values",
                "look at what preprocesses them",
            )
        maps = self._infer(np.ascontiguousarray(images))
        found = {name: maps[name].shape for name in maps}
        if found != dict(self.source.shapes):
            raise EngineError(
                f"wanted outputs {dict(self.source.shapes)}, found {found}",
                "the engine was not built from this model's graph: clear the cache or mend --engine-file",
            )
        return maps

    def time(self, images: Images, calls: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
        """Seconds of each of `calls` runs, inputs and outputs resident, synchronised inside the timed call."""
        return time_calls(self.prepare(images), calls, clock)

    def device_seconds(self, images: Images, calls: int) -> list[float]:
        """Seconds of each of `calls` runs on the device's own clock, without copies; none without `device_timer`."""
        return []

    @abstractmethod
    def _infer(self, images: Images) -> Maps: ...

    @abstractmethod
    def prepare(self, images: Images) -> Callable[[], None]:
        """A call that runs one batch with inputs and outputs resident where the engine computes, and waits for it."""

    def read_back(self) -> Maps | None:
        """Head maps of the last call that `prepare` gave, on the host; None where the runtime does not keep them."""
        return None

    def transfer(self, images: Images) -> Callable[[], None]:
        """A call that takes images from the host, runs them and brings the outputs back."""

        def call() -> None:
            self.infer(images)

        return call

    def memory(self) -> int | None:
        """Bytes held on the device; None where the runtime does not tell."""
        return None

    @abstractmethod
    def inspect(self) -> Inspection:
        """What really ran."""

    @abstractmethod
    def close(self) -> None:
        """Free what the session holds. Calling it twice does nothing."""


class Engine(ABC):
    """One inference engine: how to know whether it is here, how to build its file, how to open that."""

    name: ClassVar[str]
    file_suffix: ClassVar[str]
    verified: ClassVar[str] = "simulated only"
    """Where it was seen to run; simulated runtimes prove nothing about hardware."""
    known_options: ClassVar[Mapping[str, Option]] = {}
    """What `--engine-option ENGINE.KEY=VALUE` may set, by key."""
    takes_turns = False
    """Another process computes between the calls: no thread of this one may spin until the next."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        """Raises UsageError where an option has another key or value than `known_options` allow."""
        self.options = dict(options or {})
        for key, value in self.options.items():
            known = self.known_options.get(key)
            if known is None:
                names = ", ".join(self.known_options)
                raise UsageError(
                    f"engine option {self.name}.{key}: wanted one of {names or 'none, it has no options'}", LIST_OPTIONS
                )
            if not known.takes(value):
                raise UsageError(
                    f"engine option {self.name}.{key}: wanted {known.values}, found '{value}'", LIST_OPTIONS
                )

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this engine can do, with its options as set."""

    @abstractmethod
    def available(self) -> str | None:
        """None when it can run here, else what is missing."""

    @abstractmethod
    def version(self) -> str:
        """Version of the runtime; part of every engine's cache key."""

    @abstractmethod
    def build(self, source: Source, target: Path) -> None:
        """Write the engine file.

        Raises:
            EngineError: the runtime refused the graph.
        """

    @abstractmethod
    def open(self, source: Source, file: Path) -> Session:
        """Open an engine file that `build` wrote.

        Raises:
            EngineError: not an engine file of this runtime and version, or the device asked for is not here.
        """

    @property
    def remedy(self) -> str:
        """The command that makes this engine available."""
        return f"pip install -e '.[{self.name}]'"

    def code(self) -> str:
        """SHA-256 of the engine's module: what another recipe built is not what this one would."""
        return hashlib.sha256(Path(inspect.getfile(type(self))).read_bytes()).hexdigest()

    def option(self, key: str) -> str:
        """The option `key`, its default where it is not set."""
        return self.options.get(key, self.known_options[key].default)

    def number(self, key: str) -> int | None:
        """The option `key`, or its default, as a number; None where that is the runtime's own."""
        value = self.option(key)
        return int(value) if value.isdecimal() else None

    def flags(self) -> dict[str, str]:
        """Build flags; part of every engine's cache key."""
        return dict(self.options)

    def device_bytes(self) -> int | None:
        """Bytes of the accelerator's memory that are in use, by whatever process; None where that is not told."""
        return None
