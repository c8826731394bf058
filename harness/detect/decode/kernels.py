"""Takes arrays of one image; gives what decoding computes of them, in loops that numba compiles on import.

Floating-point arithmetic is done as it is written: float32 stays float32, no sum is reordered, nothing is fused.
All loops run without Python's lock. Callers give C-contiguous arrays of the types that the signatures name.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from harness.detect.decode.entries import FloatArray, IndexArray, KeyArray

P = ParamSpec("P")
R = TypeVar("R")
Halves = npt.NDArray[np.uint16]
DoubleArray = npt.NDArray[np.float64]
Values = npt.NDArray[Any]
Found = tuple[bool, KeyArray, FloatArray]

# Logits that are compared before it is asked whether one exceeds its floor: first many, then, where one does, few.
STRETCH, BLOCK = 512, 32
# Entries that a scan makes room for at first.
ROOM = 1024

# What float16's Inf becomes when it is widened as if it were a number.
WIDENED_INF = np.float32(65536)
# From float16's exponents, which count from 15, to float32's, which count from 127.
REBIAS = np.float32(2.0**112)

# Slopes and heights of tangents to -log(sigmoid(x)), which lies above them all.
_TOUCHING = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
_SLOPES = 1 / (1 + np.exp(_TOUCHING))
TANGENTS = np.stack([_SLOPES, np.log1p(np.exp(-_TOUCHING)) + _SLOPES * _TOUCHING], axis=1).astype(np.float32)

ZERO, HALF, ONE, INFINITY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(np.inf)
# mmdet's `wh_ratio_clip`: no box is more than 62.5 times wider or narrower than its anchor.
MAX_LOG_RATIO = np.float32(abs(np.log(16 / 1000)))
# mmdet's score voting.
MIN_IOU, EPSILON, SIGMA = np.float32(0.01), np.float32(1e-6), np.float32(0.025)

_float, _half, _index = types.float32, types.uint16, types.int64
_floats, _doubles, _indices = _float[::1], types.float64[::1], _index[::1]
_rows = _float[:, ::1]
_found: Any = types.Tuple((types.boolean, types.uint64[::1], _floats))  # type: ignore[no-untyped-call]
_columns: Any = types.Tuple((_floats, _indices, _indices, _indices))  # type: ignore[no-untyped-call]
_voters: Any = types.Tuple((_indices, _indices, _doubles))  # type: ignore[no-untyped-call]


def _given(dtype: Any, dimensions: int) -> Any:
    """An array that is only read: it may be locked for writing, and lie at any address."""
    return types.Array(dtype, dimensions, "C", readonly=True, aligned=False)


def compiled(*signatures: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile for these signatures at once; without one, for whatever the compiled callers hand in.

    The code is kept beside this file or, where that folder may not be written, in the user's cache folder
    (`NUMBA_CACHE_DIR` names another); where that may not be written either, each process compiles for itself.
    """

    def compile_it(function: Callable[P, R]) -> Callable[P, R]:
        njit: Any = functools.partial(numba.njit, list(signatures) or None, nogil=True, error_model="numpy")
        try:
            done: Callable[P, R] = njit(cache=True)(function)
        except RuntimeError:
            done = njit()(function)
        return done

    return compile_it


@compiled()
def _finite(values: FloatArray) -> bool:
    """Whether no value is NaN or infinite."""
    finite = True
    for i in range(len(values)):
        finite &= abs(values[i]) < INFINITY
    return finite


@compiled()
def _any_above_or_not_finite(logits: FloatArray, floors: FloatArray) -> bool:
    """Whether any logit exceeds its floor or is not finite, in one read of memory."""
    found = False
    for i in range(len(logits)):
        found |= (logits[i] > floors[i]) | (not abs(logits[i]) < INFINITY)
    return found


@compiled()
def _any_above(logits: FloatArray, floors: FloatArray) -> bool:
    """Whether any logit exceeds its floor."""
    above = False
    for i in range(len(logits)):
        above |= logits[i] > floors[i]
    return above


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


@compiled(types.void(_given(_float, 1), _float, _floats))
def note_floors(iou_logits: FloatArray, floor: np.float32, floors: FloatArray) -> None:
    """Raise `floors` `[N]` to class logits up to which sigmoid(class) * sigmoid(IoU) is less than exp(floor)."""
    for slope, height in TANGENTS:
        for i in range(len(iou_logits)):
            floors[i] = max(floors[i], floor + height - slope * iou_logits[i])


@compiled()
def _with_room(values: Values, room: int) -> Values:
    """A copy with room for more values behind."""
    longer = np.empty(room, values.dtype)
    longer[: len(values)] = values
    return longer


@compiled()
def _sigmoid(logit: np.float32) -> np.float32:
    """`1 / (1 + exp(-x))` in float32, in torch's order of operations; -inf gives 0, NaN stays.

    The exponential is rounded from float64, so every machine gets the same scores. torch's own differs from this by
    up to 2 units in the last place, as its scalar and its vectorised kernels differ from each other.
    """
    return ONE / (ONE + np.float32(np.exp(-np.float64(logit))))


@compiled(_floats(_floats))
def sigmoid(logits: FloatArray) -> FloatArray:
    """Scores `[K]` of logits `[K]`: see `_sigmoid`."""
    scores = np.empty_like(logits)
    for i in range(len(logits)):
        scores[i] = _sigmoid(logits[i])
    return scores


@compiled()
def _rank_key(score: np.float32, anchor: int, label: int, num_classes: int) -> np.uint64:
    """See `rank_keys`. The bit patterns of numbers that are not negative ascend as the numbers do."""
    pattern = np.uint64(0xFFFFFFFF) - np.uint64(np.float32(score).view(np.uint32))
    return (pattern << np.uint64(32)) | np.uint64(anchor * num_classes + label)


@compiled(types.uint64[::1](_floats, _indices, _indices, _index))
def rank_keys(scores: FloatArray, anchors: IndexArray, labels: IndexArray, num_classes: int) -> KeyArray:
    """Integers `[K]` that ascend from the best score to the worst, then by anchor and by label, and hold all three.

    mmdet's `sort` and `topk` leave the order of equal scores to torch, which does not define it.

    Args:
        scores: `[K]`, none negative.
        anchors: `[K]`, no two candidates having both anchor and label in common; times `num_classes` below 2^32.
        labels: `[K]`.
    """
    keys = np.empty(len(scores), np.uint64)
    for i in range(len(scores)):
        keys[i] = _rank_key(scores[i], anchors[i], labels[i], num_classes)
    return keys


@compiled(_columns(types.uint64[::1], _indices, _index))
def columns_of(
    keys: KeyArray, first_anchors: IndexArray, num_classes: int
) -> tuple[FloatArray, IndexArray, IndexArray, IndexArray]:
    """What `rank_keys` put into keys `[K]`: scores, levels, anchors in their levels, labels, `[K]` each.

    Args:
        first_anchors: `[L + 1]`, anchors of all levels before each.
    """
    patterns, levels = np.empty(len(keys), np.uint32), np.empty(len(keys), np.int64)
    anchors, labels = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        patterns[i] = np.uint64(0xFFFFFFFF) - (keys[i] >> np.uint64(32))
        place = np.int64(keys[i] & np.uint64(0xFFFFFFFF))
        # Exact, and several times as fast as the division of integers.
        anchor, level = np.int64(place / num_classes), 0
        for j in range(1, len(first_anchors) - 1):
            level += anchor >= first_anchors[j]
        levels[i], anchors[i], labels[i] = level, anchor - first_anchors[level], place - anchor * num_classes
    return patterns.view(np.float32), levels, anchors, labels


@compiled(
    *(_found(_given(t, 3), _given(t, 3), _given(_float, 2), _index, _index, _float, _float) for t in (_float, _half))
)
def scan(
    logits: Values,
    deltas: Values,
    iou_logits: FloatArray,
    kind: int,
    first_anchor: int,
    floor: np.float32,
    score_thr: np.float32,
) -> Found:
    """Read one kind of anchor in one level.

    Args:
        logits: `[A, C, N]`, the level's class map of N cells: float32, or float16's bit patterns.
        deltas: `[A, 4, N]`, its box map, of the same type.
        iou_logits: `[A, N]`, its IoU map; `[A, 0]` where the head has none.
        first_anchor: the anchors of all levels before.
        floor: the logarithm that class probability x IoU must exceed, or the logit that the class alone must, for
            a score that may be greater than `score_thr`.

    Returns:
        Whether all values that were read are finite; the `rank_keys` `[K]` of all scores greater than `score_thr`, in
        any order; their anchors' deltas `[4 * K]`.
    """
    num_kinds, num_classes, num_cells = logits.shape
    ious, room = iou_logits[kind], np.empty(STRETCH, np.float32)
    finite = _finite(ious)
    for k in range(4):
        for start in range(0, num_cells, STRETCH):
            finite &= _finite(_as_float32(deltas[kind, k, start : start + STRETCH], room))
    floors = np.full(num_cells, floor)
    note_floors(ious, floor, floors)
    keys, rows, total = np.empty(ROOM, np.uint64), np.empty(4 * ROOM, deltas.dtype), 0
    for label in range(num_classes):
        for start in range(0, num_cells, STRETCH):
            stretch, its_floors = _as_float32(logits[kind, label, start : start + STRETCH], room), floors[start:]
            if not _any_above_or_not_finite(stretch, its_floors):
                continue
            finite &= _finite(stretch)
            if total + STRETCH > len(keys):
                keys, rows = _with_room(keys, 2 * len(keys)), _with_room(rows, 2 * len(rows))
            for first in range(0, len(stretch), BLOCK):
                block, block_floors = stretch[first : first + BLOCK], its_floors[first:]
                if not _any_above(block, block_floors):
                    continue
                for i in range(len(block)):
                    if block[i] > block_floors[i]:
                        cell, score = start + first + i, _sigmoid(block[i])
                        if len(ious):
                            score = np.sqrt(score * _sigmoid(ious[cell]))
                        if score > score_thr:
                            keys[total] = _rank_key(score, first_anchor + cell * num_kinds + kind, label, num_classes)
                            for k in range(4):
                                rows[4 * total + k] = deltas[kind, k, cell]
                            total += 1
    return finite, keys[:total], _as_float32(rows[: 4 * total], np.empty(4 * total, np.float32))


@compiled(_indices(_indices, _index, _index))
def best_of_levels(levels: IndexArray, num_levels: int, limit: int) -> IndexArray:
    """Positions of the first `limit` candidates of each level, ascending; `levels` `[K]` are best first."""
    kept, count = np.empty(len(levels), np.int64), 0
    counts = np.zeros(num_levels, np.int64)
    for i in range(len(levels)):
        counts[levels[i]] += 1
        if counts[levels[i]] <= limit:
            kept[count] = i
            count += 1
    return kept[:count].copy()


@compiled(_indices(_indices, _indices, _indices, _index))
def anchor_ranks(levels: IndexArray, anchors: IndexArray, first_anchors: IndexArray, limit: int) -> IndexArray:
    """The rank `[K]` of each candidate's anchor in its level by its best class, -1 behind the `limit` best.

    Args:
        levels, anchors: `[K]`, best candidate first, equal ones by anchor.
        first_anchors: `[L + 1]`, anchors of all levels before each.

    Returns:
        Ranks, those of each level following those before; where a level has no more anchors than `limit`, mmdet does
        not sort them, and their ranks are their own numbers.
    """
    of_anchors = np.full(first_anchors[-1], -1)
    counts = np.zeros(len(first_anchors) - 1, np.int64)
    ranks = np.empty(len(anchors), np.int64)
    for i in range(len(anchors)):
        level, first = levels[i], first_anchors[levels[i]]
        ranks[i] = first + anchors[i]
        if 0 < limit < first_anchors[level + 1] - first:
            if of_anchors[first + anchors[i]] < 0 and counts[level] < limit:
                of_anchors[first + anchors[i]] = first + counts[level]
                counts[level] += 1
            ranks[i] = of_anchors[first + anchors[i]]
    return ranks


@compiled(_rows(_rows, _indices, _indices, _rows, _indices, _indices, *[_floats] * 5))
def boxes_of(
    deltas: FloatArray,
    levels: IndexArray,
    anchors: IndexArray,
    base_anchors: FloatArray,
    columns: IndexArray,
    strides: IndexArray,
    stds: FloatArray,
    means: FloatArray,
    limits: FloatArray,
    factors: FloatArray,
    divisors: FloatArray,
) -> FloatArray:
    """Boxes `[K, 4]` xyxy, clipped to the photograph in the input, then multiplied by `factors / divisors`.

    Args:
        deltas: `[K, 4]` dx, dy, dw, dh, normalised by `means` `[4]` and `stds` `[4]`.
        levels, anchors: `[K]`.
        base_anchors: `[L * A, 4]` xyxy, the anchors of each level's cell at the origin, pixels of the input.
        columns, strides: `[L]`, cells in a row, and pixels of the input from cell to cell.
        limits, factors, divisors: `[2]`, for x and y.

    Source: mmdet 3.3.0 `AnchorGenerator.single_level_grid_priors` and `DeltaXYWHBBoxCoder.decode`, its defaults;
    float32 in the same order of operations.
    """
    num_kinds = len(base_anchors) // len(strides)
    boxes = np.empty_like(deltas)
    for i in range(len(deltas)):
        level, cell = levels[i], anchors[i] // num_kinds
        base = base_anchors[level * num_kinds + anchors[i] - cell * num_kinds]
        row = cell // columns[level]
        place = row, cell - row * columns[level]
        for k in range(2):
            shift = np.float32(place[1 - k] * strides[level])
            first, last = base[k] + shift, base[k + 2] + shift
            centre, size = (first + last) * HALF, last - first
            log_ratio = deltas[i, k + 2] * stds[k + 2] + means[k + 2]
            log_ratio = min(max(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)
            new_centre = centre + size * (deltas[i, k] * stds[k] + means[k])
            # Rounded from float64, for the same boxes on every machine.
            new_half = size * np.float32(np.exp(np.float64(log_ratio))) * HALF
            boxes[i, k] = min(max(new_centre - new_half, ZERO), limits[k]) * factors[k] / divisors[k]
            boxes[i, k + 2] = min(max(new_centre + new_half, ZERO), limits[k]) * factors[k] / divisors[k]
    return boxes


@compiled()
def _intersection(box: FloatArray, other: FloatArray) -> np.float32:
    """Area that two boxes `[4]` xyxy have in common."""
    width: np.float32 = max(min(box[2], other[2]) - max(box[0], other[0]), ZERO)
    height: np.float32 = max(min(box[3], other[3]) - max(box[1], other[1]), ZERO)
    return width * height


@compiled()
def _area(box: FloatArray) -> np.float32:
    area: np.float32 = (box[2] - box[0]) * (box[3] - box[1])
    return area


@compiled(_indices(_rows, _indices, _float, _index))
def batched_nms(boxes: FloatArray, labels: IndexArray, iou_threshold: np.float32, max_num: int) -> IndexArray:
    """Greedy suppression within each class, until `max_num` boxes are kept (all when it is not positive).

    Args:
        boxes: `[N, 4]` xyxy, pixels, none negative; in descending order of score.
        labels: `[N]`.
        iou_threshold: a box goes when its IoU with a kept one of its class is greater than this.

    Returns:
        `[K]` indices of the kept boxes, ascending.

    Source: mmcv 2.1.0 `batched_nms` and `nms_cpu`. Classes are moved apart by label * (largest coordinate + 1), as
    there: the shift rounds coordinates in float32, which decides IoUs near the threshold. mmcv's `split_thr` changes
    only memory use, since shifted classes never meet. Stopping early is exact: boxes are kept in order of score.
    """
    kept = np.empty(len(boxes), np.int64)
    if not len(boxes):
        return kept
    limit = max_num if max_num > 0 else len(boxes)
    step = boxes.max() + ONE
    apart, count = np.empty_like(boxes), 0
    # Each class's kept boxes as a chain: the latest, and before each the one that was kept before it.
    latest, before = np.full(labels.max() + 1, -1), np.empty(len(boxes), np.int64)
    for i in range(len(boxes)):
        box = apart[i]
        for k in range(4):
            box[k] = boxes[i, k] + np.float32(labels[i]) * step
        other = latest[labels[i]]
        while other >= 0:
            common = _intersection(box, apart[other])
            if common > ZERO and common / (_area(apart[other]) + _area(box) - common) > iou_threshold:
                break
            other = before[other]
        if other < 0:
            before[i], latest[labels[i]] = latest[labels[i]], i
            kept[count] = i
            count += 1
            if count == limit:
                break
    return kept[:count].copy()


@compiled(_voters(_indices, _rows, _indices))
def voters(kept: IndexArray, boxes: FloatArray, labels: IndexArray) -> tuple[IndexArray, IndexArray, DoubleArray]:
    """The candidates of its class that overlap each kept box, and how much they count there.

    Args:
        kept: `[K]` indices into the candidates.
        boxes, labels: `[N, 4]` xyxy, `[N]`: all candidates of the image.

    Returns:
        Pairs of a place in `kept` and a candidate `[P]`, in order of the places, and the logarithms `[P]` of their
        weights by IoU. A box without area overlaps nothing, itself included.
    """
    counts = np.zeros(labels.max() + 1 if len(labels) else 0, np.int64)
    # Each class's candidates as a chain, so that the others are not looked at.
    latest, before = np.full(len(counts), -1), np.empty(len(boxes), np.int64)
    for i in range(len(boxes)):
        before[i], latest[labels[i]] = latest[labels[i]], i
        counts[labels[i]] += 1
    room = counts[labels[kept]].sum()
    places, candidates, logs = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float64)
    count = 0
    for place in range(len(kept)):
        box, i = boxes[kept[place]], latest[labels[kept[place]]]
        while i >= 0:
            common = _intersection(box, boxes[i])
            if common > ZERO:
                iou = common / max(_area(box) + _area(boxes[i]) - common, EPSILON)
                if iou > MIN_IOU:
                    places[count], candidates[count] = place, i
                    logs[count] = -((ONE - iou) * (ONE - iou)) / SIGMA
                    count += 1
            i = before[i]
    return places[:count], candidates[:count], logs[:count]


@compiled(types.void(_rows, _rows, _floats, _indices, _indices, _doubles))
def vote(
    means: FloatArray,
    boxes: FloatArray,
    scores: FloatArray,
    places: IndexArray,
    candidates: IndexArray,
    weights: DoubleArray,
) -> None:
    """Replace each of `means` `[K, 4]` by the weighted mean of its candidates' `boxes`; without any it stays.

    Args:
        places: `[P]` ascending, with candidates `[P]` and their weights `[P]`, which count times their `scores` do.

    Sums are taken in float64: torch's order of summation is not defined.
    """
    sums, total = np.zeros(4), 0.0
    for j in range(len(places)):
        # Rounded from float64, for the same boxes on every machine.
        weight = np.float64(np.float32(weights[j]) * scores[candidates[j]])
        total += weight
        for k in range(4):
            sums[k] += weight * np.float64(boxes[candidates[j], k])
        if j + 1 == len(places) or places[j + 1] != places[j]:
            if total > 0:
                for k in range(4):
                    means[places[j], k] = np.float32(sums[k] / total)
            sums[:], total = 0.0, 0.0
