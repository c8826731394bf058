"""Takes one image's raw maps as numpy arrays; gives their `Entries` after one read of memory, shared by the cores."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import scan
from harness.detect.decode.boxes import Maps
from harness.detect.decode.entries import Entries, IndexArray
from harness.detect.decode.scores import log_floor, logit_floor
from harness.environment import usable_cores
from harness.errors import NotFinite

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec

Task = Callable[[], None]

LOGITS_PER_TASK = 2**19
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
    found: list[scan.Found] = []
    tasks: list[Task] = []
    for stride, first_anchor in zip(head.strides, first_anchors[:-1], strict=True):
        tasks += _level_tasks(maps, stride, head, first_anchor, found)
    share(tasks)
    finite, places, logits, iou_logits, deltas = zip(*found, strict=True)
    if not all(finite):
        raise NotFinite(next(name for name, values in maps.items() if not np.isfinite(values).all()))
    return Entries(
        np.concatenate(places),
        np.concatenate(logits),
        np.concatenate(iou_logits),
        np.concatenate(deltas).reshape(-1, 4),
    )


def _level_tasks(
    maps: Maps, stride: int, head: "HeadSpec", first_anchor: int, found: list[scan.Found]
) -> Iterator[Task]:
    """What reads a level's planes, some each, and adds what it finds to the list, on any thread."""
    logits, deltas = maps[f"cls_{stride}"], maps[f"box_{stride}"]
    if logits.dtype == np.float16:
        logits, deltas = logits.view(np.uint16), deltas.view(np.uint16)
    num_cells = logits[0].size
    iou_logits, floor = np.empty((head.num_anchors, 0), np.float32), logit_floor(head.score_thr)
    if head.family == "paa":
        iou_logits = maps[f"iou_{stride}"].reshape(head.num_anchors, -1).astype(np.float32, copy=False)
        floor = log_floor(head.score_thr)
    shape = (head.num_anchors, -1, num_cells)
    arrays = logits.reshape(shape), deltas.reshape(shape), iou_logits

    def read(first: int, last: int) -> None:
        found.append(scan.read_planes(*arrays, first, last, first_anchor, np.float32(floor)))

    planes, step = head.num_anchors * head.num_classes, max(1, LOGITS_PER_TASK // num_cells)
    for first in range(0, planes, step):
        yield functools.partial(read, first, min(first + step, planes))


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
