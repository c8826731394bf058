"""Takes nothing; gives the words every engine speaks: Capabilities, Source, Engine, Session, Inspection."""

import functools
import importlib
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from harness.errors import EngineError, InvalidRun, UsageError
from harness.model.checkpoint import Weights
from harness.model.graph import Int8Scheme
from harness.model.registry import ModelSpec, Precision

Images = npt.NDArray[np.float32]
Maps = dict[str, npt.NDArray[np.float32]]

# Share of the convolutions that must run in the type an engine claims; the rest may be layers a runtime keeps wider.
NATIVE_SHARE = 0.95


def first_line(error: Exception) -> str:
    """The first line of an error's text, or the name of an error that has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; suites ask for these and never for a name.

    computes: for each precision it takes, the type its convolutions run in (`fp16 -> fp32`: weights stored in half
        precision, computed in single).
    source: whether it builds from an ONNX graph or from the torch module itself.
    device: where it runs; decides the default batch.
    int8_scheme: the QDQ scheme it wants, None when it has no int8.
    options: keys that `--engine-option ENGINE.KEY=VALUE` may set, with one line on each.
    """

    computes: Mapping[Precision, str]
    source: Literal["graph", "module"]
    device: Literal["cpu", "accelerator"]
    int8_scheme: Int8Scheme | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions this engine has cells for."""
        return tuple(self.computes)


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


@dataclass(frozen=True)
class Inspection:
    """What really ran: the device, and how many convolutions computed in each type (`{"fp32": 58}`)."""

    device: str
    convolutions: Mapping[str, int]

    def require(self, claimed: str, cell: str) -> None:
        """Hold the run to what the engine claims for its precision.

        Raises:
            InvalidRun: fewer than 95 % of the convolutions ran in the claimed type.
        """
        total = sum(self.convolutions.values())
        native = self.convolutions.get(claimed, 0)
        if total == 0 or native < NATIVE_SHARE * total:
            ran = ", ".join(f"{count} in {dtype}" for dtype, count in self.convolutions.items()) or "none at all"
            raise InvalidRun(
                f"{cell}: wanted {NATIVE_SHARE:.0%} of convolutions in {claimed}, found {ran} on {self.device}",
                "the engine does not run what it is called: build it from the right graph, or correct its capabilities",
            )

    @property
    def dominant(self) -> str:
        """The type in which most convolutions ran."""
        return max(self.convolutions, key=lambda dtype: self.convolutions[dtype], default="none")


class Session(ABC):
    """An opened engine; a context manager that frees what it holds. Not for use by two threads at once."""

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
            EngineError: images of another shape or type, or outputs other than the model's.
        """
        wanted = self.source.input_shape
        if images.shape != wanted or images.dtype != np.float32:
            raise EngineError(
                f"wanted images {wanted} float32, found {images.shape} {images.dtype}",
                "pad the last batch to the engine's batch, or build for another --batch-size",
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
        call = self.prepare(images)
        seconds = []
        for _ in range(calls):
            start = clock()
            call()
            seconds.append(clock() - start)
        return seconds

    @abstractmethod
    def _infer(self, images: Images) -> Maps: ...

    @abstractmethod
    def prepare(self, images: Images) -> Callable[[], None]:
        """A call that runs one batch with inputs and outputs resident where the engine computes, and waits for it."""

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

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self.options = dict(options or {})
        unknown = sorted(set(self.options) - set(self.capabilities.options))
        if unknown:
            known = ", ".join(f"{self.name}.{key} ({text})" for key, text in self.capabilities.options.items())
            raise UsageError(
                f"--engine-option {self.name}.{unknown[0]}: unknown key", f"known: {known or 'none for this engine'}"
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

    def flags(self) -> dict[str, str]:
        """Build flags; part of every engine's cache key."""
        return dict(self.options)
