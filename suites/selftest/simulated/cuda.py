"""Takes simulated devices; gives the simulated modules `pycuda`, `pycuda.driver` and `pycuda.autoinit`.

Only what the adapters call, after PyCUDA's published interface. What real CUDA leaves undefined is Misuse here: memory
of a destroyed context, a stream that is not this context's, a free without an allocation, work without a context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from suites.selftest.simulated import device as simulated
from suites.selftest.simulated.device import Misuse, OutOfMemory


class Error(Exception):
    """Base of what `pycuda.driver` raises."""


class CudaMemoryError(Error):
    """`pycuda.driver.MemoryError`."""


class LogicError(Error):
    """`pycuda.driver.LogicError`."""


class LaunchError(Error):
    """`pycuda.driver.LaunchError`."""


class CudaRuntimeError(Error):
    """`pycuda.driver.RuntimeError`."""


@dataclass
class Driver:
    """The state behind `pycuda.driver`, and the faults that tests set.

    driver_version: what the installed driver supports, 1000 * major + 10 * minor. built_for: PyCUDA's own CUDA.
    init_error: text of the error of `init`, None for none. capture_error: the same for `end_capture`.
    graphs: whether this PyCUDA has CUDA graphs. launch_error: raised by the next `synchronize` of a stream.
    """

    devices: Sequence[simulated.Device]
    driver_version: int = 13000
    built_for: tuple[int, int, int] = (13, 0, 0)
    init_error: str | None = None
    capture_error: str | None = None
    launch_error: str | None = None
    graphs: bool = True
    initialised: bool = False
    stack: "list[Context]" = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    @property
    def current(self) -> "Context":
        """The context on top of the stack.

        Raises:
            Misuse: there is none.
        """
        if not self.stack:
            raise Misuse("no CUDA context is current: push one first")
        return self.stack[-1]

    def require_clean(self) -> None:
        """Hold the user to an empty stack, nothing left on the devices, and memory freed rather than forgotten.

        Raises:
            Misuse: names what is left.
        """
        if self.stack:
            raise Misuse(f"{len(self.stack)} contexts are still pushed")
        if self.forgotten:
            raise Misuse(f"never freed, only forgotten: {', '.join(self.forgotten)}")
        for device in self.devices:
            device.require_clean()

    def stream_of(self, handle: Any) -> "simulated.Stream":
        """The live stream of the current context with that handle.

        Raises:
            Misuse: no whole number, the default stream, destroyed, or of another device.
        """
        if not isinstance(handle, int) or isinstance(handle, bool):
            raise Misuse(f"wanted a stream's handle, found {handle!r}")
        for stream in self.current.device.streams:
            if stream.handle == handle:
                return stream
        raise Misuse(f"no stream with handle {handle:#x} on the current device")


class Context:
    """`pycuda.driver.Context`; primary contexts are counted, and only destroyed with the last `detach`."""

    driver: Driver

    def __init__(self, device: simulated.Device) -> None:
        self.device = device
        self.valid = True

    def push(self) -> None:
        self.require_valid()
        self.driver.stack.append(self)

    @classmethod
    def pop(cls) -> None:
        if not cls.driver.stack:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        cls.driver.stack.pop()

    def detach(self) -> None:
        self.require_valid()
        if self.device.allocated:
            raise Misuse(f"context detached with {self.device.used} bytes allocated")
        self.valid = False
        self.driver.stack[:] = [one for one in self.driver.stack if one is not self]

    def require_valid(self) -> None:
        if not self.valid:
            raise Misuse("the context is destroyed")


class Owned:
    """What belongs to the context that was current when it was made."""

    driver: Driver

    def __init__(self) -> None:
        self.context = self.driver.current

    def require_current(self, what: str) -> None:
        self.context.require_valid()
        if self.driver.current.device is not self.context.device:
            raise Misuse(f"{what} belongs to another context than the current one")


class DeviceAllocation(Owned):
    """Device memory; `int(allocation)` is its address."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.address: int | None = None
        try:
            self.address = self.context.device.alloc(nbytes, "pycuda")
        except OutOfMemory as error:
            raise CudaMemoryError(f"cuMemAlloc failed: {error}") from error
        self.nbytes = nbytes

    def __int__(self) -> int:
        if self.address is None:
            raise Misuse("address of device memory that was freed")
        return self.address

    def free(self) -> None:
        self.context.require_valid()
        if self.address is None:
            raise Misuse("device memory freed twice")
        self.context.device.free(self.address)
        self.address = None

    def __del__(self) -> None:
        if self.address is not None and self.context.valid:
            self.driver.forgotten.append(f"{self.nbytes} bytes of device memory")
            self.free()


class PagelockedHostAllocation(Owned):
    """The `base` of a page-locked array."""

    def __init__(self, shape: Any, dtype: npt.DTypeLike) -> None:
        super().__init__()
        self.array: npt.NDArray[Any] | None = self.context.device.pinned_empty(shape, dtype)
        self.__array_interface__ = self.array.__array_interface__

    def free(self) -> None:
        if self.array is None:
            raise Misuse("page-locked memory freed twice")
        self.array.view(np.uint8)[:] = simulated.POISON
        self.context.device.unpin(self.array)
        self.kept, self.array = self.array, None

    def __del__(self) -> None:
        if self.array is not None:
            self.driver.forgotten.append(f"{self.array.nbytes} bytes of page-locked memory")
            self.free()


class Stream(Owned):
    """A stream; destroyed with its last reference, as PyCUDA's are."""

    def __init__(self, flags: int = 0) -> None:
        super().__init__()
        self.work = self.context.device.stream()

    @property
    def handle(self) -> int:
        return self.work.handle

    def synchronize(self) -> None:
        self.require_current("the stream")
        self.work.synchronise()
        if self.driver.launch_error is not None:
            raise LaunchError(self.driver.launch_error)

    def __del__(self) -> None:
        self.work.destroy()


class CapturingStream(Stream):
    """A stream of a PyCUDA that has CUDA graphs."""

    def begin_capture(self) -> None:
        self.require_current("the stream")
        self.work.begin_capture()

    def end_capture(self) -> "Graph":
        self.require_current("the stream")
        work = self.work.end_capture()
        if self.driver.capture_error is not None:
            raise LogicError(f"cuStreamEndCapture failed: {self.driver.capture_error}")
        return Graph(work)


class Graph:
    """A captured graph."""

    def __init__(self, work: list[simulated.Work]) -> None:
        self.work = work

    def instantiate(self) -> "GraphExec":
        return GraphExec(self.work)


class GraphExec:
    """A graph that can be launched."""

    def __init__(self, work: list[simulated.Work]) -> None:
        self.work = work

    def launch(self, stream: Stream) -> None:
        stream.require_current("the stream")
        stream.work.replay(self.work)


class Event(Owned):
    """An event; destroyed with its last reference."""

    def __init__(self, flags: int = 0) -> None:
        super().__init__()
        self.mark = self.context.device.event()

    def record(self, stream: Stream) -> "Event":
        stream.require_current("the stream")
        self.require_current("the event")
        self.mark.record(stream.work)
        return self

    def synchronize(self) -> "Event":
        self.mark.synchronise()
        return self

    def time_till(self, end: "Event") -> float:
        """Milliseconds."""
        return end.mark.seconds_since(self.mark) * 1e3

    def __del__(self) -> None:
        self.mark.destroy()


class Device:
    """`pycuda.driver.Device`."""

    driver: Driver

    def __init__(self, index: int) -> None:
        self.require_initialised()
        if not 0 <= index < len(self.driver.devices):
            raise LogicError("cuDeviceGet failed: invalid device ordinal")
        self.device = self.driver.devices[index]

    @classmethod
    def require_initialised(cls) -> None:
        if not cls.driver.initialised:
            raise LogicError("cuDeviceGetCount failed: initialization error")

    @classmethod
    def count(cls) -> int:
        cls.require_initialised()
        return len(cls.driver.devices)

    def name(self) -> str:
        return self.device.name

    def compute_capability(self) -> tuple[int, int]:
        return self.device.compute_capability

    def total_memory(self) -> int:
        return self.device.memory_limit

    def retain_primary_context(self) -> Context:
        """Not made current, other than by `make_context`."""
        return self._bound_context()(self.device)

    def make_context(self) -> Context:
        context = self._bound_context()(self.device)
        context.push()
        return context

    def _bound_context(self) -> type[Context]:
        return type("Context", (Context,), {"driver": self.driver})


def pycuda_modules(driver: Driver) -> dict[str, ModuleType]:
    """`pycuda` and its submodules, bound to that state."""
    bound: dict[str, Any] = {"driver": driver}
    stream = CapturingStream if driver.graphs else Stream
    module = ModuleType("pycuda.driver", "simulated")
    vars(module).update(
        Error=Error,
        MemoryError=CudaMemoryError,
        LogicError=LogicError,
        LaunchError=LaunchError,
        RuntimeError=CudaRuntimeError,
        Device=type("Device", (Device,), bound),
        Context=type("Context", (Context,), bound),
        Stream=type("Stream", (stream,), bound),
        Event=type("Event", (Event,), bound),
        DeviceAllocation=type("DeviceAllocation", (DeviceAllocation,), bound),
        **_functions(driver),
    )
    package, autoinit = ModuleType("pycuda", "simulated"), ModuleType("pycuda.autoinit", "simulated")
    vars(package).update(driver=module, autoinit=autoinit, VERSION_TEXT="simulated", __path__=[])
    return {"pycuda": package, "pycuda.driver": module, "pycuda.autoinit": autoinit}


def _functions(driver: Driver) -> dict[str, Any]:
    allocation = type("DeviceAllocation", (DeviceAllocation,), {"driver": driver})
    host_allocation = type("PagelockedHostAllocation", (PagelockedHostAllocation,), {"driver": driver})

    def init(flags: int = 0) -> None:
        if driver.init_error is not None:
            raise CudaRuntimeError(f"cuInit failed: {driver.init_error}")
        driver.initialised = True

    def address_of(memory: Any) -> int:
        if not isinstance(memory, DeviceAllocation | int):
            raise Misuse(f"wanted device memory, found {type(memory).__name__}")
        return int(memory)

    def queue_of(stream: Any) -> simulated.Stream | None:
        if stream is None:
            return None
        if not isinstance(stream, Stream):
            raise Misuse(f"wanted a Stream, found {type(stream).__name__}")
        stream.require_current("the stream")
        return stream.work

    def memcpy_htod(dest: Any, src: Any) -> None:
        driver.current.device.copy_in(address_of(dest), src)

    def memcpy_dtoh(dest: Any, src: Any) -> None:
        driver.current.device.copy_out(dest, address_of(src))

    def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
        driver.current.device.copy_in(address_of(dest), src, queue_of(stream))

    def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
        driver.current.device.copy_out(dest, address_of(src), queue_of(stream))

    def mem_get_info() -> tuple[int, int]:
        device = driver.current.device
        return device.memory_limit - device.used, device.memory_limit

    return {
        "init": init,
        "get_version": lambda: driver.built_for,
        "get_driver_version": lambda: driver.driver_version,
        "mem_alloc": lambda nbytes: allocation(nbytes),
        "mem_get_info": mem_get_info,
        "pagelocked_empty": lambda shape, dtype, order="C", mem_flags=0: np.asarray(host_allocation(shape, dtype)),
        "memcpy_htod": memcpy_htod,
        "memcpy_dtoh": memcpy_dtoh,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
    }
