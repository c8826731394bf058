"""Takes one image's raw maps as arrays; gives the entries that may count, in one read of memory."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from harness.detect.decode.compiled import compiled, given, results
from harness.detect.decode.entries import FloatArray, IndexArray

Halves = npt.NDArray[np.uint16]
Marks = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]
Found = tuple[bool, IndexArray, FloatArray, FloatArray, FloatArray]

# Logits that are widened at once, and those of which it is asked at once whether one exceeds its floor.
STRETCH, BLOCK = 2048, 64
# Entries that a scan makes room for at first.
ROOM = 2 * STRETCH

LARGEST, INFINITY = np.finfo(np.float32).max, np.float32(np.inf)
# What float16's Inf becomes when it is widened as if it were a number.
WIDENED_INF = np.float32(65536)
# From float16's exponents, which count from 15, to float32's, which count from 127.
REBIAS = np.float32(2.0**112)

# Slopes and heights of tangents to -log(sigmoid(x)), which lies above them all.
_TOUCHING = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
_SLOPES = 1 / (1 + np.exp(_TOUCHING))
TANGENTS = np.stack([_SLOPES, np.log1p(np.exp(-_TOUCHING)) + _SLOPES * _TOUCHING], axis=1).astype(np.float32)
NUM_TANGENTS = len(TANGENTS)

_float, _half, _index = types.float32, types.uint16, types.int64
_floats, _inputs = _float[::1], (_float, _half)
_found = results(types.boolean, _index[::1], _floats, _floats, _floats)


@compiled()
def _finite(values: FloatArray) -> bool:
    """Whether no value is NaN or infinite."""
    finite = True
    for i in range(len(values)):
        finite &= abs(values[i]) < INFINITY
    return finite


@compiled()
def _widened(bits: Halves, room: FloatArray) -> FloatArray:
    """float16 to float32, in `room`; what is not finite becomes Inf."""
    values = room[: len(bits)]
    patterns = values.view(np.uint32)
    for i in range(len(bits)):
        half = np.uint32(bits[i])
        patterns[i] = ((half & np.uint32(0x8000)) << np.uint32(16)) | ((half & np.uint32(0x7FFF)) << np.uint32(13))
    for i in range(len(bits)):
        value = values[i] * REBIAS
        values[i] = value if abs(value) < WIDENED_INF else INFINITY
    return values


def _as_float32(values: Values, room: FloatArray) -> FloatArray:
    """float32 values as they are, float16's bit patterns widened in `room`."""
    return values if values.dtype == np.float32 else _widened(values, room)


@overload(_as_float32, strict=False)
def _compiled_as_float32(values: Any, room: Any) -> Callable[[Values, FloatArray], FloatArray]:
    """numba's choice between the two, by the type of `values`."""
    if values.dtype == _float:
        return lambda values, room: values
    return lambda values, room: _widened(values, room)


@compiled()
def _finite_deltas(deltas: Values, room: FloatArray) -> bool:
    """Whether no delta of one kind of anchor, `[4, N]`, is NaN or infinite."""
    finite = True
    for k in range(4):
        for start in range(0, deltas.shape[1], STRETCH):
            finite &= _finite(_as_float32(deltas[k, start : start + STRETCH], room))
    return finite


@compiled(types.void(given(_float, 1), _float, _floats))
def note_floors(iou_logits: FloatArray, floor: np.float32, floors: FloatArray) -> None:
    """Write to `floors` `[N]` class logits up to which sigmoid(class) * sigmoid(IoU) is less than exp(floor)."""
    for i in range(len(iou_logits)):
        highest = floor
        for k in range(NUM_TANGENTS):
            highest = max(highest, floor + TANGENTS[k, 1] - TANGENTS[k, 0] * iou_logits[i])
        floors[i] = highest


@compiled()
def _counts(logit: np.float32, floor: np.float32) -> bool:
    """Whether a logit is above its floor, which is no greater than the largest number, or not finite."""
    return bool(not logit <= floor) | bool(logit < -LARGEST)


@compiled()
def _note_blocks(logits: FloatArray, floors: FloatArray, starts: IndexArray) -> int:
    """Write to `starts` where the blocks begin in which a logit counts; gives their number.

    A last block that is not full is always among them.
    """
    count, full = 0, len(logits) // BLOCK
    for block in range(full):
        found, start = False, block * BLOCK
        for i in range(start, start + BLOCK):
            found |= _counts(logits[i], floors[i])
        starts[count] = start
        count += found
    starts[count] = full * BLOCK
    return count + (full * BLOCK < len(logits))


@compiled()
def _note_places(
    logits: FloatArray, floors: FloatArray, starts: IndexArray, marks: Marks, places: IndexArray, total: int
) -> int:
    """Write to `places`, behind the `total` that are there, where logits count; gives the new total.

    `starts` `[number of blocks + 1]` and `marks` `[BLOCK]` are room for its work.
    """
    eights = marks.view(np.uint64)
    for block in starts[: _note_blocks(logits, floors, starts)]:
        its_logits, its_floors = logits[block : block + BLOCK], floors[block : block + BLOCK]
        marks[len(its_logits) :] = 0
        for i in range(len(its_logits)):
            marks[i] = _counts(its_logits[i], its_floors[i])
        for eight in range(len(eights)):
            if eights[eight]:
                for i in range(8 * eight, 8 * eight + 8):
                    places[total] = block + i
                    total += int(marks[i])
    return total


@compiled()
def _with_room(values: Values, room: int) -> Values:
    """A copy with room for more values behind."""
    longer = np.empty(room, values.dtype)
    longer[: len(values)] = values
    return longer


def _read_levels(
    logits_of: tuple[Values, ...],
    deltas_of: tuple[Values, ...],
    iou_logits_of: tuple[FloatArray, ...],
    first_anchors: IndexArray,
    floor: np.float32,
    first: int,
    last: int,
) -> Found:
    """See `Reader`."""
    num_kinds, num_classes = logits_of[0].shape[0], logits_of[0].shape[1]
    num_planes, most_cells = num_kinds * num_classes, 0
    for logits in logits_of:
        most_cells = max(most_cells, logits.shape[2])
    finite, room, starts = True, np.empty(STRETCH, np.float32), np.empty(STRETCH // BLOCK + 1, np.int64)
    marks, floors = np.empty(BLOCK, np.uint8), np.full(most_cells, min(floor, LARGEST))
    places, total = np.empty(ROOM, np.int64), 0
    passed, ious, rows = np.empty(ROOM, np.float32), np.empty(ROOM, np.float32), np.empty(4 * ROOM, deltas_of[0].dtype)
    for plane in range(first, last):
        level, kind, label = plane // num_planes, plane % num_planes // num_classes, plane % num_classes
        logits, deltas, iou_logits = logits_of[level], deltas_of[level], iou_logits_of[level]
        num_cells, first_anchor = logits.shape[2], first_anchors[level]
        if label == 0:
            finite &= _finite(iou_logits[kind]) & _finite_deltas(deltas[kind], room)
        if label == 0 or plane == first:
            note_floors(iou_logits[kind], floor, floors)
        for start in range(0, num_cells, STRETCH):
            stretch, its_floors = _as_float32(logits[kind, label, start : start + STRETCH], room), floors[start:]
            if total + STRETCH > len(places):
                places, rows = _with_room(places, 2 * len(places)), _with_room(rows, 2 * len(rows))
                passed, ious = _with_room(passed, 2 * len(passed)), _with_room(ious, 2 * len(ious))
            before = total
            total = _note_places(stretch, its_floors, starts, marks, places, before)
            for i in range(before, total):
                cell, passed[i] = start + places[i], stretch[places[i]]
                finite &= abs(passed[i]) < INFINITY
                places[i] = (first_anchor + cell * num_kinds + kind) * num_classes + label
                if iou_logits.size:
                    ious[i] = iou_logits[kind, cell]
                for k in range(4):
                    rows[4 * i + k] = deltas[kind, k, cell]
    ious = ious[: total if iou_logits_of[0].size else 0]
    return finite, places[:total], passed[:total], ious, _as_float32(rows[: 4 * total], np.empty(4 * total, np.float32))


class Reader(Protocol):
    """Reads some planes of an image's maps, a plane being one class of one kind of anchor in one of L levels."""

    def __call__(
        self,
        logits: tuple[Values, ...],
        deltas: tuple[Values, ...],
        iou_logits: tuple[FloatArray, ...],
        first_anchors: IndexArray,
        floor: np.float32,
        first: int,
        last: int,
        /,
    ) -> Found:
        """Read the planes from `first` to before `last`, of L * A * C.

        Args:
            logits: `[A, C, N]` each, class maps of N cells: float32, or float16's bit patterns.
            deltas: `[A, 4, N]` each, box maps, of the same type; checked with the planes of the first class.
            iou_logits: `[A, N]` each, IoU maps; `[A, 0]` where the head has none.
            first_anchors: `[L + 1]`, anchors of all levels before each.
            floor: the logarithm that class probability x IoU must exceed, or the logit that the class alone must.

        Returns:
            Whether all values that were read are finite, and what `Entries` hold, the deltas as `[4 * K]`.
        """
        ...


@functools.cache
def reader_of(num_levels: int) -> Reader:
    """The loop, compiled for heads of so many levels."""

    def levels(dtype: Any, dimensions: int) -> Any:
        return types.UniTuple(given(dtype, dimensions), num_levels)  # type: ignore[no-untyped-call]

    arguments = ((levels(t, 3), levels(t, 3), levels(_float, 2), _index[::1], _float, _index, _index) for t in _inputs)
    reader: Reader = compiled(*(_found(*of_one) for of_one in arguments))(_read_levels)
    return reader
