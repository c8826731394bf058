"""Takes one image's raw maps as numpy arrays; gives their `Entries` after one read of memory, shared by the cores."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.detect.decode import kernels
from harness.detect.decode.boxes import Maps
from harness.detect.decode.entries import FloatArray, IndexArray
from harness.detect.decode.scores import log_floor, logit_floor
from harness.environment import usable_cores
from harness.errors import NotFinite

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec

Values = npt.NDArray[Any]
Task = Callable[[], None]

# With fewer, waking a helper takes longer than the tasks.
TASKS_PER_HELPER = 20
# More helpers would wait for the memory, not for a core.
MAX_HELPERS = 3


class HostEntries:
    """`Entries` of one row of numpy maps that `check_outputs` has accepted."""

    def __init__(self, outputs: Maps, row: int, head: "HeadSpec") -> None:
        """Find them.

        Raises:
            NotFinite: NaN or Inf anywhere in the row.
        """
        maps = {name: np.ascontiguousarray(outputs[name][row]) for name in head.output_names}
        if len({values.dtype for values in maps.values()}) > 1:
            maps = {name: values.astype(np.float32) for name, values in maps.items()}
        self._num_anchors = head.num_anchors
        self._boxes = [_as_patterns(maps[f"box_{stride}"]) for stride in head.strides]
        self._dtype = maps[head.output_names[0]].dtype
        scans = [_LevelScan(maps, stride, head) for stride in head.strides]
        share([task for scan in scans for task in scan.tasks()])
        for name, values in maps.items():
            if not name.startswith("cls"):
                _require_finite(name, values)
        found = [scan.found() for scan in scans]
        self.levels: IndexArray = np.repeat(np.arange(len(found)), [len(labels) for _, labels, _, _ in found])
        self.anchors: IndexArray
        self.labels: IndexArray
        self.logits: FloatArray
        self.iou_logits: FloatArray
        self.anchors, self.labels, self.logits, self.iou_logits = map(np.concatenate, zip(*found, strict=True))

    def deltas(self, positions: IndexArray) -> FloatArray:
        """See `Entries.deltas`."""
        levels, anchors = self.levels[positions], self.anchors[positions]
        deltas = np.empty((len(positions), 4), self._boxes[0].dtype)
        for level, values in enumerate(self._boxes):
            kernels.gather(deltas, values, levels, anchors, level, self._num_anchors)
        return deltas.view(self._dtype).astype(np.float32, copy=False)


def _as_patterns(values: Values) -> Values:
    """The map, flat; float16, which the kernels do not know, as bit patterns."""
    return values.reshape(-1).view(np.uint16 if values.dtype == np.float16 else np.float32)


def _require_finite(name: str, values: Values) -> None:
    finite = kernels.finite_float16 if values.dtype == np.float16 else kernels.finite_float32
    if not finite(_as_patterns(values)):
        raise NotFinite(name)


class _LevelScan:
    """The class logits of one level that exceed their floors."""

    def __init__(self, maps: Maps, stride: int, head: "HeadSpec") -> None:
        self._name = f"cls_{stride}"
        values = maps[self._name]
        num_cells = values[0].size
        self._scan = kernels.scan_float16 if values.dtype == np.float16 else kernels.scan_float32
        self._logits = _as_patterns(values).reshape(head.num_anchors, head.num_classes, num_cells)
        self._iou_logits = np.full((1, num_cells), np.inf, np.float32)
        self._floor = np.float32(logit_floor(head.score_thr))
        if head.family == "paa":
            self._iou_logits = maps[f"iou_{stride}"].reshape(-1, num_cells).astype(np.float32)
            self._floor = np.float32(log_floor(head.score_thr))
        self._found: dict[int, kernels.Found] = {}

    def tasks(self) -> list[Task]:
        """Read the map: a task for each kind of anchor, for any thread, in any order."""
        return [functools.partial(self._read, kind) for kind in range(len(self._logits))]

    def _read(self, kind: int) -> None:
        self._found[kind] = self._scan(self._logits, self._iou_logits, self._floor, kind)

    def found(self) -> tuple[IndexArray, IndexArray, FloatArray, FloatArray]:
        """After all tasks: anchors, labels, class logits and IoU logits `[K]`.

        Raises:
            NotFinite: NaN or Inf in the map.
        """
        finite, *columns = zip(*self._found.values(), strict=True)
        if not all(finite):
            raise NotFinite(self._name)
        anchors, labels, logits, iou_logits = map(np.concatenate, columns)
        return anchors, labels, logits, iou_logits


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
    return min(usable_cores() - 1, MAX_HELPERS)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(_helpers(), 1), thread_name_prefix="decode")
