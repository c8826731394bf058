"""Takes one image's raw maps as numpy arrays; gives their `Entries` after one read of memory, shared by the cores."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.boxes import Maps
from harness.detect.decode.entries import Entries, IndexArray
from harness.detect.decode.scores import log_floor, logit_floor
from harness.environment import usable_cores
from harness.errors import NotFinite

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec

Task = Callable[[], None]

# With fewer, waking a helper takes longer than the tasks.
TASKS_PER_HELPER = 20
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
    found: list[kernels.Found] = []
    tasks: list[Task] = []
    for stride, first_anchor in zip(head.strides, first_anchors[:-1], strict=True):
        scan = _level_scan(maps, stride, head, first_anchor)
        tasks += [functools.partial(scan, kind, found) for kind in range(head.num_anchors)]
    share(tasks)
    finite, keys, deltas = zip(*found, strict=True)
    if not all(finite):
        raise NotFinite(next(name for name, values in maps.items() if not np.isfinite(values).all()))
    return Entries(np.concatenate(keys), np.concatenate(deltas).reshape(-1, 4))


def _level_scan(
    maps: Maps, stride: int, head: "HeadSpec", first_anchor: int
) -> Callable[[int, list[kernels.Found]], None]:
    """What reads one kind of anchor in a level and adds what it finds to a list, on any thread."""
    shape = (head.num_anchors, -1, maps[f"cls_{stride}"][0].size)
    logits, deltas = maps[f"cls_{stride}"], maps[f"box_{stride}"]
    if logits.dtype == np.float16:
        logits, deltas = logits.view(np.uint16), deltas.view(np.uint16)
    iou_logits, floor = np.empty((head.num_anchors, 0), np.float32), logit_floor(head.score_thr)
    if head.family == "paa":
        iou_logits = maps[f"iou_{stride}"].reshape(head.num_anchors, -1).astype(np.float32, copy=False)
        floor = log_floor(head.score_thr)
    arrays = logits.reshape(shape), deltas.reshape(shape), iou_logits

    def read(kind: int, found: list[kernels.Found]) -> None:
        found.append(kernels.scan(*arrays, kind, first_anchor, np.float32(floor), np.float32(head.score_thr)))

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
