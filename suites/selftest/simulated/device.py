"""Takes copies and queued work; gives a simulated accelerator: memory, streams, events, and Misuse where rules break.

Every address is checked against what is allocated. A stream's work is done only when something waits for it: device
memory holds NaN until it is written, and so does a host array that an unfinished copy is meant to fill.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

NAME = "Simulated GPU"
POISON = 0xFF  # NaN in float16 and float32, -1 in int8
FIRST_ADDRESS = 0x7F00_0000_0000
ALIGNMENT = 512
GUARD = 4096  # bytes between allocations, which belong to nobody
COPY_S, KERNEL_S = 1e-4, 1e-3

Bytes = npt.NDArray[np.uint8]
Range = tuple[int, int]


class Misuse(AssertionError):
    """An adapter broke a rule of its runtime; real hardware would compute nonsense, crash or leak."""


class OutOfMemory(RuntimeError):
    """The simulated device has too little memory left; drivers turn this into their own error."""


@dataclass(frozen=True)
class Allocation:
    """Device memory `[address, address + nbytes)` that is in use; `label` says what it is for."""

    address: int
    nbytes: int
    label: str
    memory: Bytes = field(repr=False, compare=False)


@dataclass(frozen=True)
class Work:
    """One piece of queued work; ranges are (address, nbytes) of device memory, checked when it is queued and done."""

    name: str
    do: Callable[[], None]
    reads: Sequence[Range] = ()
    writes: Sequence[Range] = ()
    seconds: float = KERNEL_S


def _overlap(first: Range, second: Range) -> bool:
    return first[0] < second[0] + second[1] and second[0] < first[0] + first[1]


class Device:
    """Memory, streams and events of a simulated device. `now` is its clock in seconds; only finished work moves it."""

    def __init__(
        self, memory_limit: int = 1 << 30, name: str = NAME, compute_capability: tuple[int, int] = (9, 9)
    ) -> None:
        self.name = name
        self.compute_capability = compute_capability
        self.memory_limit = memory_limit
        self.now = 0.0
        self.peak = 0
        self._next = FIRST_ADDRESS
        self._live: dict[int, Allocation] = {}
        self._freed: set[int] = set()
        self._pinned: dict[int, Bytes] = {}
        self._streams: list[Stream] = []
        self._events: list[Event] = []

    # --- memory

    def alloc(self, nbytes: int, label: str = "") -> int:
        """Address of new device memory, full of NaN.

        Raises:
            Misuse: not a positive whole number of bytes. OutOfMemory: the limit is reached.
        """
        if not isinstance(nbytes, int | np.integer) or nbytes <= 0:
            raise Misuse(f"alloc: wanted a positive whole number of bytes, found {nbytes!r}")
        if self.used + int(nbytes) > self.memory_limit:
            raise OutOfMemory(f"out of memory: wanted {nbytes} bytes, {self.memory_limit - self.used} are left")
        address, size = self._next, int(nbytes)
        self._next += -(-(size + GUARD) // ALIGNMENT) * ALIGNMENT
        self._live[address] = Allocation(address, size, label, np.full(size, POISON, np.uint8))
        self.peak = max(self.peak, self.used)
        return address

    def free(self, address: int) -> None:
        """Give memory back.

        Raises:
            Misuse: not the start of an allocation, freed twice, or queued work still uses it.
        """
        found = self._live.get(address)
        if found is None:
            raise Misuse(f"free: {address:#x} was {'freed already' if address in self._freed else 'never allocated'}")
        busy = self._users((address, found.nbytes), writers_only=False)
        if busy:
            raise Misuse(f"free: {address:#x} ({found.label}) is in use by queued work '{busy[0]}'; synchronise first")
        found.memory[:] = POISON
        self._freed.add(address)
        del self._live[address]

    @property
    def used(self) -> int:
        """Bytes allocated now."""
        return sum(one.nbytes for one in self._live.values())

    @property
    def allocated(self) -> list[Allocation]:
        """What is allocated now, oldest first."""
        return list(self._live.values())

    def view(self, address: int, nbytes: int) -> Bytes:
        """The live memory itself, `[nbytes]` uint8, for simulated kernels (inside `Work.do`) and for tests.

        Raises:
            Misuse: not wholly inside one live allocation.
        """
        if not isinstance(address, int | np.integer) or isinstance(address, bool):
            raise Misuse(f"wanted an address, found {address!r}")
        for one in self._live.values():
            offset = int(address) - one.address
            if offset >= 0 and offset + nbytes <= one.nbytes:
                return one.memory[offset : offset + nbytes]
        raise Misuse(f"[{address:#x}, +{nbytes}) is not inside memory that is allocated now")

    # --- host memory and copies

    def pinned_empty(self, shape: tuple[int, ...] | int, dtype: Any) -> npt.NDArray[Any]:
        """A page-locked host array; `unpin` gives it back."""
        array = np.empty(shape, dtype)
        self._pinned[array.ctypes.data] = array.view(np.uint8).reshape(-1) if array.nbytes else np.empty(0, np.uint8)
        array.view(np.uint8).reshape(-1)[:] = POISON
        return array

    def unpin(self, array: npt.NDArray[Any]) -> None:
        """Give page-locked host memory back.

        Raises:
            Misuse: it is not page-locked now.
        """
        if self._pinned.pop(array.ctypes.data, None) is None:
            raise Misuse("unpin: not a page-locked array, or given back already")

    @property
    def pinned(self) -> int:
        """Bytes of host memory that are page-locked now."""
        return sum(one.nbytes for one in self._pinned.values())

    def is_pinned(self, array: npt.NDArray[Any]) -> bool:
        """Whether an array lies inside page-locked host memory."""
        start, end = array.ctypes.data, array.ctypes.data + array.nbytes
        return any(base <= start and end <= base + one.nbytes for base, one in self._pinned.items())

    def copy_in(self, address: int, host: npt.NDArray[Any], stream: "Stream | None" = None) -> None:
        """Host to device: done on return, or queued where a stream is given (then the host array must be page-locked).

        Raises:
            Misuse: not a contiguous array, not inside live memory, or other queued work uses that memory.
        """
        source = self._host(host, "copied to the device")
        target = (int(address), source.nbytes)

        def do() -> None:
            self.view(*target)[:] = source

        self._copy(Work("copy to the device", do, writes=[target], seconds=COPY_S), host, stream)

    def copy_out(self, host: npt.NDArray[Any], address: int, stream: "Stream | None" = None) -> None:
        """Device to host: done on return, or queued where a stream is given; until then the host array holds NaN.

        Raises:
            Misuse: not a contiguous writable array, not inside live memory, or unfinished work still writes there.
        """
        target = self._host(host, "filled from the device")
        if not target.flags.writeable:
            raise Misuse("a host array that is filled from the device must be writable")
        source = (int(address), target.nbytes)

        def do() -> None:
            target[:] = self.view(*source)

        if stream is not None:
            target[:] = POISON
        self._copy(Work("copy to the host", do, reads=[source], seconds=COPY_S), host, stream)

    def copy_within(self, target: int, source: int, nbytes: int, stream: "Stream | None" = None) -> None:
        """Device to device."""

        def do() -> None:
            self.view(target, nbytes)[:] = self.view(source, nbytes)

        work = Work("copy on the device", do, reads=[(source, nbytes)], writes=[(target, nbytes)], seconds=COPY_S)
        if stream is not None:
            stream.enqueue(work)
        else:
            self.run_now(work)

    def _host(self, host: Any, what: str) -> Bytes:
        if not isinstance(host, np.ndarray):
            raise Misuse(f"wanted a numpy array to be {what}, found {type(host).__name__}")
        if not host.flags.c_contiguous:
            raise Misuse(f"a host array that is {what} must be contiguous, found strides {host.strides}")
        return host.reshape(-1).view(np.uint8)

    def _copy(self, work: Work, host: npt.NDArray[Any], stream: "Stream | None") -> None:
        if stream is None:
            self.run_now(work)
            return
        if not self.is_pinned(host):
            raise Misuse(f"{work.name}: an asynchronous copy needs page-locked host memory")
        stream.enqueue(work)

    # --- work

    def check(self, work: Work, own: "Stream | None") -> None:
        """Hold work to live memory, and to what other streams have queued.

        Raises:
            Misuse: freed or foreign memory, memory that another stream's unfinished work writes, or overwritten
                memory that it reads.
        """
        for found in (*work.reads, *work.writes):
            self.view(*found)
        for found in work.reads:
            self._require_idle(work, found, own, writers_only=True)
        for found in work.writes:
            self._require_idle(work, found, own, writers_only=False)

    def _require_idle(self, work: Work, found: Range, own: "Stream | None", writers_only: bool) -> None:
        busy = self._users(found, writers_only, but=own)
        if busy:
            raise Misuse(
                f"{work.name}: {found[0]:#x} is in use by '{busy[0]}', queued on a stream and not finished: synchronise"
            )

    def _users(self, found: Range, writers_only: bool, but: "Stream | None" = None) -> list[str]:
        return [
            work.name
            for stream in self._streams
            if stream is not but
            for work in stream.queue
            if any(_overlap(found, one) for one in (*work.writes, *(() if writers_only else work.reads)))
        ]

    def run_now(self, work: Work) -> None:
        """Do work at once, as synchronous calls do."""
        self.check(work, None)
        work.do()
        self.now += work.seconds

    # --- streams and events

    def stream(self) -> "Stream":
        """A new stream; `destroy` gives it back."""
        made = Stream(self, number=len(self._streams) + 1)
        self._streams.append(made)
        return made

    def event(self) -> "Event":
        """A new event; `destroy` gives it back."""
        made = Event(self)
        self._events.append(made)
        return made

    def synchronise(self) -> None:
        """Finish the work of every stream."""
        for stream in self.streams:
            stream.synchronise()

    @property
    def streams(self) -> "list[Stream]":
        """Streams not destroyed yet."""
        return [one for one in self._streams if one.alive]

    @property
    def events(self) -> "list[Event]":
        """Events not destroyed yet."""
        return [one for one in self._events if one.alive]

    def require_clean(self) -> None:
        """Hold the user to having given everything back.

        Raises:
            Misuse: lists the memory, page-locked memory, streams and events that are left.
        """
        left = [f"{one.nbytes} bytes ({one.label or 'no label'})" for one in self.allocated]
        left += [f"{self.pinned} bytes page-locked"] if self._pinned else []
        left += [f"{len(self.streams)} streams"] if self.streams else []
        left += [f"{len(self.events)} events"] if self.events else []
        if left:
            raise Misuse(f"left on {self.name}: {'; '.join(left)}")


class Stream:
    """Work in order, done when something waits for it. `handle` is a number that C calls take; never 0."""

    def __init__(self, device: Device, number: int) -> None:
        self.device = device
        self.handle = 0x5000 + 16 * number
        self.queue: list[Work] = []
        self.alive = True
        self._captured: list[Work] | None = None

    @property
    def capturing(self) -> bool:
        """Whether work is being captured rather than queued."""
        return self._captured is not None

    def enqueue(self, work: Work) -> None:
        """Queue (or capture) work.

        Raises:
            Misuse: the stream is destroyed, or the work breaks a rule of memory.
        """
        self._require_alive()
        self.device.check(work, self)
        (self.queue if self._captured is None else self._captured).append(work)

    def synchronise(self) -> None:
        """Do all queued work.

        Raises:
            Misuse: the stream is destroyed or capturing, or memory that the work needs was freed.
        """
        self._require_alive()
        if self.capturing:
            raise Misuse("synchronise: the stream is capturing")
        while self.queue:
            self.step()

    def step(self) -> Work:
        """Do the first piece of queued work."""
        work = self.queue.pop(0)
        for found in (*work.reads, *work.writes):
            self.device.view(*found)
        self.device.now += work.seconds
        work.do()
        return work

    def begin_capture(self) -> None:
        """Gather work from now on, and do none of it."""
        self._require_alive()
        if self.capturing:
            raise Misuse("begin_capture: the stream is capturing already")
        self._captured = []

    def end_capture(self) -> list[Work]:
        """What was gathered, for `replay`."""
        self._require_alive()
        if self._captured is None:
            raise Misuse("end_capture: the stream is not capturing")
        work, self._captured = self._captured, None
        return work

    def replay(self, work: Iterable[Work]) -> None:
        """Queue captured work once more."""
        for one in work:
            self.enqueue(one)

    def destroy(self) -> None:
        """Give the stream back.

        Raises:
            Misuse: twice, or with unfinished work.
        """
        self._require_alive()
        if self.queue:
            raise Misuse(f"destroy: the stream has unfinished work '{self.queue[0].name}'")
        self.alive = False

    def _require_alive(self) -> None:
        if not self.alive:
            raise Misuse("the stream is destroyed")


class Event:
    """A mark in a stream; `at` is the device's clock when the stream came there, None until then."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.at: float | None = None
        self.alive = True
        self._stream: Stream | None = None
        self._pending = 0

    def record(self, stream: Stream) -> None:
        """Queue the mark behind the stream's work."""
        self._require_alive()
        self.at, self._stream = None, stream
        self._pending += 1
        stream.enqueue(Work("event", self._reached, seconds=0.0))

    def _reached(self) -> None:
        self.at = self.device.now
        self._pending -= 1

    def synchronise(self) -> None:
        """Do the stream's work up to the mark.

        Raises:
            Misuse: destroyed, or never recorded.
        """
        self._require_alive()
        if self._stream is None:
            raise Misuse("event: synchronised but never recorded")
        while self._pending and self._stream.queue:
            self._stream.step()

    def seconds_since(self, start: "Event") -> float:
        """Seconds between two marks that were reached.

        Raises:
            Misuse: one of them was not recorded, or its stream has not come there.
        """
        self._require_alive()
        start._require_alive()
        if self.at is None or start.at is None:
            raise Misuse("event: time asked for before the stream came there; synchronise first")
        return self.at - start.at

    def destroy(self) -> None:
        """Give the event back.

        Raises:
            Misuse: twice.
        """
        self._require_alive()
        self.alive = False

    def _require_alive(self) -> None:
        if not self.alive:
            raise Misuse("the event is destroyed")
