"""Takes one image's raw maps as numpy arrays; gives their `Entries` after one read of memory, shared by the cores."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.detect.decode.boxes import Maps
from harness.detect.decode.entries import FloatArray, IndexArray
from harness.detect.decode.scores import class_logit_floors, logit_floor
from harness.errors import NotFinite

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec

Values = npt.NDArray[Any]
Task = Callable[[], None]

# A chunk is read from memory once and then from the cache; smaller ones would have threads wait for Python's lock more
# often. Rows whose extremes ask for it are looked at again.
ROW = 1024
CHUNK = 512 * ROW
# With fewer, waking a helper takes longer than the tasks.
TASKS_PER_HELPER = 20
# More helpers would wait for the memory, not for a core.
MAX_HELPERS = 3


@dataclass(frozen=True)
class _Format:
    """A floating-point type by its bit patterns, which compare without rules for NaN and without widening float16.

    As unsigned integers positive numbers come first, then +Inf, positive NaNs, negative numbers away from zero, -Inf
    and negative NaNs. As signed integers positive NaNs come last.
    """

    unsigned: type[np.unsignedinteger[Any]]
    signed: type[np.signedinteger[Any]]
    plus_inf: int
    minus_inf: int


_FORMATS = {
    np.dtype(np.float32): _Format(np.uint32, np.int32, 0x7F800000, 0xFF800000),
    np.dtype(np.float16): _Format(np.uint16, np.int16, 0x7C00, 0xFC00),
}


class HostEntries:
    """`Entries` of one row of numpy maps that `check_outputs` has accepted."""

    def __init__(self, outputs: Maps, row: int, head: "HeadSpec") -> None:
        """Find them.

        Raises:
            NotFinite: NaN or Inf anywhere in the row.
        """
        self._head = head
        self._maps = {name: np.ascontiguousarray(outputs[name][row]) for name in head.output_names}
        classes = self._class_scans()
        others = [Scan(name, values) for name, values in self._maps.items() if not name.startswith("cls")]
        share([task for scan in (*classes, *others) for task in scan.tasks()])
        for scan in (*classes, *others):
            scan.require_finite()
        found = [scan.found() for scan in classes]
        self.counts = tuple(len(indices) for indices, _ in found)
        self.indices: IndexArray = np.concatenate([indices for indices, _ in found])
        self.logits: FloatArray = np.concatenate([logits for _, logits in found])
        self.iou_logits: FloatArray = np.empty(0, np.float32)
        if head.family == "paa":
            self.iou_logits = self._gather("iou", 1, np.arange(len(self.indices)))[0]

    def deltas(self, positions: IndexArray) -> FloatArray:
        """See `Entries.deltas`."""
        return self._gather("box", 4, positions)

    def _class_scans(self) -> "list[FloorScan] | list[FloorsScan]":
        head, names = self._head, [f"cls_{stride}" for stride in self._head.strides]
        if head.family == "anchor":
            return [FloorScan(name, self._maps[name], logit_floor(head.score_thr)) for name in names]
        iou_maps = [self._maps[f"iou_{stride}"].reshape(head.num_anchors, -1) for stride in head.strides]
        iou_logits = np.concatenate(iou_maps, axis=1).astype(np.float32, copy=False)
        ends = np.cumsum([iou_map.shape[1] for iou_map in iou_maps])
        floors = np.split(class_logit_floors(iou_logits, head.score_thr), ends[:-1], axis=1)
        return [FloorsScan(name, self._maps[name], floor) for name, floor in zip(names, floors, strict=True)]

    def _gather(self, kind: str, depth: int, positions: IndexArray) -> FloatArray:
        """`[depth, k]`: what the maps of a kind, with `depth` channels for each anchor, say of the entries' anchors."""
        ends = np.searchsorted(positions, np.cumsum(self.counts))
        parts = []
        for stride, chosen in zip(self._head.strides, np.split(self.indices[positions], ends[:-1]), strict=True):
            values = self._maps[f"{kind}_{stride}"]
            num_cells = values[0].size
            channels = chosen // num_cells
            first = (channels // self._head.num_classes * depth - channels) * num_cells + chosen
            parts.append(values.reshape(-1).take(first + np.arange(depth)[:, None] * num_cells))
        return np.concatenate(parts, axis=1).astype(np.float32, copy=False)


class Scan:
    """The highest bit patterns of one map, chunk by chunk; they tell whether all of it is finite."""

    def __init__(self, name: str, values: Values) -> None:
        self._name = name
        self._format = _FORMATS[values.dtype]
        self._values = values.reshape(-1)
        self._bits = self._values.view(self._format.unsigned)
        self._negative_highs: list[int] = []
        self._positive_highs: list[int] = []

    def tasks(self) -> list[Task]:
        """Read the map: one task for each chunk, in any order, on any thread."""
        return [functools.partial(self.read, start) for start in range(0, len(self._bits), CHUNK)]

    def read(self, start: int) -> None:
        """Note the chunk's highest patterns of either sign."""
        chunk = self._bits[start : start + CHUNK]
        self._negative_highs.append(chunk.max())
        self._positive_highs.append(chunk.view(self._format.signed).max())

    def require_finite(self) -> None:
        """After all tasks.

        Raises:
            NotFinite: NaN or Inf in what was read.
        """
        negative, positive = max(self._negative_highs), max(self._positive_highs, default=0)
        if negative >= self._format.minus_inf or positive >= self._format.plus_inf:
            raise NotFinite(self._name)

    def _taken(self, indices: IndexArray) -> tuple[IndexArray, FloatArray]:
        logits = self._values[indices].astype(np.float32, copy=False)
        if not np.isfinite(logits).all():
            raise NotFinite(self._name)
        return indices, logits

    def _floor_bits(self, floors: npt.ArrayLike) -> Values:
        """The bit patterns below which logits exceed their floors, +Inf and positive NaNs among them.

        A floor is rounded to the map's type and then lowered by one unit; one that is not negative counts as -0: all
        positive logits exceed it, and their scores decide.
        """
        with np.errstate(over="ignore"):
            bits = np.asarray(floors).astype(self._values.dtype).view(self._format.unsigned)
        lowered: Values = np.minimum(bits + self._format.unsigned(1), self._format.unsigned(self._format.minus_inf))
        minus_zero = self._format.unsigned(self._format.minus_inf & ~self._format.plus_inf)
        return np.where(bits < minus_zero, minus_zero, lowered)


class FloorScan(Scan):
    """Class logits above one floor: they lie in rows whose lowest bit pattern is below the floor's own."""

    def __init__(self, name: str, values: Values, floor: float) -> None:
        super().__init__(name, values)
        self._floor = self._floor_bits(floor)
        self._lows = np.empty(len(self._bits) // ROW, self._format.unsigned)

    def read(self, start: int) -> None:
        """Note the chunk's highest pattern and the lowest of each of its whole rows."""
        chunk = self._bits[start : start + CHUNK]
        rows = chunk[: len(chunk) // ROW * ROW].reshape(-1, ROW)
        np.minimum.reduce(rows, axis=1, out=self._lows[start // ROW : start // ROW + len(rows)])
        self._negative_highs.append(chunk.max())

    def found(self) -> tuple[IndexArray, FloatArray]:
        """After all tasks: indices `[K]`, ascending, and float32 logits `[K]`.

        Raises:
            NotFinite: +Inf or NaN among them.
        """
        whole = len(self._lows) * ROW
        rows = np.flatnonzero(self._lows < self._floor)
        inside = np.flatnonzero(self._bits[:whole].reshape(-1, ROW)[rows] < self._floor)
        behind = np.flatnonzero(self._bits[whole:] < self._floor)
        return self._taken(np.concatenate([rows[inside // ROW] * ROW + inside % ROW, behind + whole]))


class FloorsScan(Scan):
    """Class logits above a floor for each anchor, `floors` `[A, H * W]`."""

    def __init__(self, name: str, values: Values, floors: FloatArray) -> None:
        super().__init__(name, values)
        self._floors = self._floor_bits(floors)
        self._planes = self._bits.reshape(len(floors), -1, floors.shape[1])
        self._found: dict[int, IndexArray] = {}

    def tasks(self) -> list[Task]:
        """See `Scan.tasks`; a chunk is a number of classes' planes."""
        kinds, num_classes, num_cells = self._planes.shape
        step = max(CHUNK // num_cells, 1)
        return [
            functools.partial(self.read_planes, kind, first, first + step)
            for kind in range(kinds)
            for first in range(0, num_classes, step)
        ]

    def read_planes(self, kind: int, first: int, last: int) -> None:
        """Note the highest pattern in some classes' planes and what exceeds its anchor's floor."""
        chunk = self._planes[kind, first:last]
        self._negative_highs.append(chunk.max())
        start = (kind * self._planes.shape[1] + first) * self._planes.shape[2]
        self._found[start] = start + np.flatnonzero(chunk < self._floors[kind])

    def found(self) -> tuple[IndexArray, FloatArray]:
        """After all tasks: indices `[K]`, ascending, and float32 logits `[K]`.

        Raises:
            NotFinite: +Inf or NaN among them.
        """
        return self._taken(np.concatenate([self._found[start] for start in sorted(self._found)]))


def share(tasks: Sequence[Task]) -> None:
    """Do all tasks, on this thread and on those of the helpers that are free."""
    waiting = iter(tasks)

    def work() -> None:
        for task in waiting:
            task()

    helpers = [_pool().submit(work) for _ in range(min(_helpers(), len(tasks) // TASKS_PER_HELPER))]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _helpers() -> int:
    """Helper threads worth having: one for each core that this process may use beside the caller's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, MAX_HELPERS)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(_helpers(), 1), thread_name_prefix="decode")
