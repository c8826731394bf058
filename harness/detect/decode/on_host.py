"""Takes one image's raw maps as numpy arrays; gives their `Entries` after one read of memory, shared by the cores."""

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.detect.decode import scan
from harness.detect.decode.boxes import Maps
from harness.detect.decode.entries import Entries, IndexArray
from harness.detect.decode.scores import log_floor, logit_floor
from harness.environment import usable_cores
from harness.errors import NotFinite

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec

Task = Callable[[], None]
Scalar = TypeVar("Scalar", bound=np.generic)

# What is read at once: more than an image of a small head has.
LOGITS_PER_TASK = 2**20
# With fewer, waking a helper takes longer than the tasks.
TASKS_PER_HELPER = 5
# More helpers would wait for the memory, not for a core.
MAX_HELPERS = 3


def host_entries(outputs: Maps, row: int, head: "HeadSpec", first_anchors: IndexArray) -> Entries:
    """The entries of one row of numpy maps that `check_outputs` has accepted.

    Args:
        first_anchors: `[L + 1]`, anchors of all levels before each.

    Raises:
        NotFinite: NaN or Inf anywhere in the row.
    """
    maps = {name: np.ascontiguousarray(outputs[name][row]) for name in head.output_names}
    if len({values.dtype for values in maps.values()}) > 1:
        maps = {name: values.astype(np.float32) for name, values in maps.items()}
    found: list[scan.Found] = []
    read = _reader(maps, head, first_anchors)
    num_cells = tuple(maps[f"cls_{stride}"][0].size for stride in head.strides)
    share(
        [functools.partial(read, *planes, found) for planes in _pieces(num_cells, head.num_anchors * head.num_classes)]
    )
    finite, places, logits, iou_logits, deltas = zip(*found, strict=True)
    if not all(finite):
        raise NotFinite(next(name for name, values in maps.items() if not np.isfinite(values).all()))
    return Entries(_joined(places), _joined(logits), _joined(iou_logits), _joined(deltas).reshape(-1, 4))


def _joined(arrays: Sequence[npt.NDArray[Scalar]]) -> npt.NDArray[Scalar]:
    """All in one, which a single one already is."""
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


@functools.cache
def _pieces(num_cells: tuple[int, ...], num_planes: int) -> list[tuple[int, int]]:
    """Ranges of an image's planes, of which each level has `num_planes`, that take about equally long to read."""
    ends = np.cumsum(np.repeat(num_cells, num_planes))
    count = max(1, int(ends[-1]) // LOGITS_PER_TASK)
    cuts = [0, *np.searchsorted(ends, ends[-1] * np.arange(1, count) / count).tolist(), len(ends)]
    return [(first, last) for first, last in itertools.pairwise(cuts) if first < last]


def _reader(maps: Maps, head: "HeadSpec", first_anchors: IndexArray) -> Callable[[int, int, list[scan.Found]], None]:
    """What reads some planes of an image and adds what it finds to a list, on any thread."""
    arrays: dict[str, list[Any]] = {"cls": [], "box": [], "iou": []}
    for stride in head.strides:
        for kind in ("cls", "box"):
            values = maps[f"{kind}_{stride}"]
            bits = values.view(np.uint16) if values.dtype == np.float16 else values
            arrays[kind].append(bits.reshape(head.num_anchors, -1, values[0].size))
        if head.family == "paa":
            values = maps[f"iou_{stride}"].reshape(head.num_anchors, -1)
            arrays["iou"].append(values.astype(np.float32, copy=False))
        else:
            arrays["iou"].append(np.empty((head.num_anchors, 0), np.float32))
    floor = log_floor(head.score_thr) if head.family == "paa" else logit_floor(head.score_thr)
    levels = tuple(arrays["cls"]), tuple(arrays["box"]), tuple(arrays["iou"])
    reader = scan.reader_of(len(head.strides))

    def read(first: int, last: int, found: list[scan.Found]) -> None:
        found.append(reader(*levels, first_anchors, np.float32(floor), first, last))

    return read


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
