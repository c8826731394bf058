"""Takes one image's entries as arrays; gives its boxes: scores, ranks, corners, suppression and voting, in one loop."""

import math
from typing import NamedTuple

import numpy as np
from numba import types

from harness.detect.decode.compiled import compiled, results
from harness.detect.decode.entries import FloatArray, IndexArray, KeyArray

Found = tuple[FloatArray, FloatArray, IndexArray]


class Anchors(NamedTuple):
    """A head's anchors, L levels of A to a cell, and how its deltas move them.

    first: `[L + 1]`, anchors of all levels before each.
    base: `[L * A, 4]` xyxy, the anchors of each level's cell at the origin, pixels of the input.
    columns, strides: `[L]`, cells in a row, and pixels of the input from cell to cell.
    stds, means: `[4]`, by which dx, dy, dw, dh are normalised.
    """

    first: IndexArray
    base: FloatArray
    columns: IndexArray
    strides: IndexArray
    stds: FloatArray
    means: FloatArray


class Candidates(NamedTuple):
    """Entries whose score is greater than `score_thr`, best first; equal scores come by level, anchor and label.

    scores, levels, anchors, labels: `[K]`, anchors counted in their level.
    deltas: `[K, 4]` dx, dy, dw, dh.
    """

    scores: FloatArray
    levels: IndexArray
    anchors: IndexArray
    labels: IndexArray
    deltas: FloatArray


class Frame(NamedTuple):
    """Where boxes end and what becomes of them, `[2]` each, for x and y.

    limits: of the photograph in the input, pixels; boxes are clipped to it, then multiplied by `factors / divisors`.
    """

    limits: FloatArray
    factors: FloatArray
    divisors: FloatArray


class Settings(NamedTuple):
    """A head's test settings: see `HeadSpec`."""

    num_classes: int
    score_thr: np.float32
    nms_pre: int
    iou_threshold: np.float32
    max_per_img: int
    min_bbox_size: np.float32
    score_voting: bool


ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
# mmdet's `wh_ratio_clip`: no box is more than 62.5 times wider or narrower than its anchor.
MAX_LOG_RATIO = np.float32(abs(np.log(16 / 1000)))
# mmdet's score voting.
MIN_IOU, EPSILON, SIGMA = np.float32(0.01), np.float32(1e-6), np.float32(0.025)

# exp's: powers whose float32 is 0 or infinite lie beyond; 1 / ln 2; ln 2 in two parts; Taylor's series.
LOWEST, HIGHEST, PER_LN_2 = -104.0, 90.0, 1 / math.log(2)
LN_2 = (0.693147180369123816490, 1.90821492927058770002e-10)
SERIES = tuple(1 / math.factorial(power) for power in range(12))

# Bits by which keys are sorted at once.
DIGIT = 9

_float, _index = types.float32, types.int64
_floats, _indices, _keys = _float[::1], _index[::1], types.uint64[::1]
_rows = _float[:, ::1]
_anchors = types.NamedTuple((_indices, _rows, _indices, _indices, _floats, _floats), Anchors)  # type: ignore[no-untyped-call]
_frame = types.NamedUniTuple(_floats, 3, Frame)  # type: ignore[no-untyped-call]
_settings = types.NamedTuple(  # type: ignore[no-untyped-call]
    (_index, _float, _index, _float, _index, _float, types.boolean), Settings
)
_decode = results(_rows, _floats, _indices)(_indices, _floats, _floats, _rows, _anchors, _frame, _settings)


@compiled()
def _exp(x: np.float32) -> np.float32:
    """The float32 next to e^x, the same on every machine; x is no NaN.

    The processor's own differ, and do not come eight at a time.
    """
    power = min(max(np.float64(x), LOWEST), HIGHEST)
    twos = np.floor(power * PER_LN_2 + 0.5)
    x1 = (power - twos * LN_2[0]) - twos * LN_2[1]
    # Added up in pairs, so that no term waits for all others.
    x2 = x1 * x1
    x4 = x2 * x2
    value = (SERIES[0] + SERIES[1] * x1) + (SERIES[2] + SERIES[3] * x1) * x2
    value += ((SERIES[4] + SERIES[5] * x1) + (SERIES[6] + SERIES[7] * x1) * x2) * x4
    value += ((SERIES[8] + SERIES[9] * x1) + (SERIES[10] + SERIES[11] * x1) * x2) * (x4 * x4)
    # The bits of 2^twos.
    exponent = (np.int64(np.int32(twos)) + 1023) << 52
    return np.float32(value * np.int64(exponent).view(np.float64))


@compiled(_floats(_floats))
def sigmoid(logits: FloatArray) -> FloatArray:
    """Scores `[K]` of finite logits `[K]`: `1 / (1 + exp(-x))` in float32, in torch's order of operations.

    torch's own differs from this by up to 2 units in the last place, as its scalar and its vectorised kernels differ
    from each other.
    """
    scores = np.empty_like(logits)
    for i in range(len(logits)):
        scores[i] = ONE / (ONE + _exp(-logits[i]))
    return scores


@compiled()
def _scores(logits: FloatArray, iou_logits: FloatArray) -> FloatArray:
    """The class's probability `[K]`, or, where there is an IoU, the root of both probabilities' product."""
    scores = sigmoid(logits)
    return np.sqrt(scores * sigmoid(iou_logits)) if len(iou_logits) else scores


@compiled()
def _rank_key(score: np.float32, place: int) -> np.uint64:
    """An integer that ascends from the best score to the worst, then by place, and holds both.

    mmdet's `sort` and `topk` leave the order of equal scores to torch, which does not define it.

    Args:
        score: not negative; the bit patterns of such numbers ascend as the numbers do.
        place: below 2^32.
    """
    pattern = np.uint64(0xFFFFFFFF) - np.uint64(np.float32(score).view(np.uint32))
    return (pattern << np.uint64(32)) | np.uint64(place)


@compiled()
def _sort_by_insertion(keys: KeyArray, positions: IndexArray) -> bool:
    """Sort both by the keys, in place; gives up, and says so, after more moves than there are keys."""
    moves = 0
    for i in range(1, len(keys)):
        key, position, j = keys[i], positions[i], i
        while j > 0 and keys[j - 1] > key:
            keys[j], positions[j] = keys[j - 1], positions[j - 1]
            j -= 1
        keys[j], positions[j] = key, position
        moves += i - j
        if moves > len(keys):
            return False
    return True


@compiled()
def _sort_by_digits(keys: KeyArray, positions: IndexArray, first_bit: int) -> tuple[KeyArray, IndexArray]:
    """Both sorted by the keys' bits from `first_bit`; what is equal there keeps its order. Overwrites what is given."""
    other_keys, other_positions, ends = np.empty_like(keys), np.empty_like(positions), np.empty(1 << DIGIT, np.int64)
    for bit in range(first_bit, 64, DIGIT):
        shift, mask = np.uint64(bit), np.uint64((1 << DIGIT) - 1)
        ends[:] = 0
        for key in keys:
            ends[(key >> shift) & mask] += 1
        if ends[(keys[0] >> shift) & mask] == len(keys):
            continue
        begin = 0
        for digit in range(len(ends)):
            ends[digit], begin = begin, begin + ends[digit]
        for i in range(len(keys)):
            digit_of = (keys[i] >> shift) & mask
            place = ends[digit_of]
            ends[digit_of] = place + 1
            other_keys[place], other_positions[place] = keys[i], positions[i]
        keys, other_keys = other_keys, keys
        positions, other_positions = other_positions, positions
    return keys, positions


@compiled(results(_keys, _indices)(_keys))
def ascending(keys: KeyArray) -> tuple[KeyArray, IndexArray]:
    """Keys `[K]` in ascending order, and their positions."""
    keys, positions = keys.copy(), np.arange(len(keys))
    # By their upper halves, after which few are out of order, or else wholly.
    for first_bit in (32, 0):
        if _sort_by_insertion(keys, positions):
            break
        keys, positions = _sort_by_digits(keys, positions, first_bit)
    return keys, positions


@compiled()
def ranked(
    places: IndexArray,
    logits: FloatArray,
    iou_logits: FloatArray,
    deltas: FloatArray,
    first_anchors: IndexArray,
    settings: Settings,
) -> Candidates:
    """The candidates among the entries."""
    scores = _scores(logits, iou_logits)
    keys, positions, count = np.empty(len(places), np.uint64), np.empty(len(places), np.int64), 0
    for i in range(len(places)):
        keys[count], positions[count] = _rank_key(scores[i], places[i]), i
        count += int(scores[i] > settings.score_thr)
    _, order = ascending(keys[:count])
    best, levels = np.empty(count, np.float32), np.empty(count, np.int64)
    anchors, labels, moves = np.empty(count, np.int64), np.empty(count, np.int64), np.empty((count, 4), np.float32)
    for i in range(count):
        position = positions[order[i]]
        best[i] = scores[position]
        # Exact, and several times as fast as the division of integers.
        anchor, level = np.int64(places[position] / settings.num_classes), 0
        for j in range(1, len(first_anchors) - 1):
            level += int(anchor >= first_anchors[j])
        levels[i], anchors[i] = level, anchor - first_anchors[level]
        labels[i] = places[position] - anchor * settings.num_classes
        for k in range(4):
            moves[i, k] = deltas[position, k]
    return Candidates(best, levels, anchors, labels, moves)


@compiled()
def _at(candidates: Candidates, positions: IndexArray) -> Candidates:
    """Those at `positions` `[k]` in 0..K-1, in that order."""
    return Candidates(
        candidates.scores[positions],
        candidates.levels[positions],
        candidates.anchors[positions],
        candidates.labels[positions],
        candidates.deltas[positions],
    )


@compiled()
def _best_of_levels(levels: IndexArray, num_levels: int, limit: int) -> IndexArray:
    """Positions of the first `limit` candidates of each level, ascending; `levels` `[K]` are best first."""
    kept, count = np.empty(len(levels), np.int64), 0
    counts = np.zeros(num_levels, np.int64)
    for i in range(len(levels)):
        counts[levels[i]] += 1
        if counts[levels[i]] <= limit:
            kept[count] = i
            count += 1
    return kept[:count]


@compiled()
def _of_best_anchors(candidates: Candidates, first_anchors: IndexArray, settings: Settings) -> Candidates:
    """Those of each level's best `nms_pre` anchors by their best class, equal scores by their anchors' ranks.

    Where a level has no more anchors than `nms_pre`, mmdet does not sort them, and their ranks are their own numbers.
    """
    of_anchors = np.full(first_anchors[-1], -1)
    counts = np.zeros(len(first_anchors) - 1, np.int64)
    keys, chosen, count = np.empty(len(candidates.scores), np.uint64), np.empty(len(candidates.scores), np.int64), 0
    for i in range(len(keys)):
        level, anchor = candidates.levels[i], first_anchors[candidates.levels[i]] + candidates.anchors[i]
        rank = anchor
        if 0 < settings.nms_pre < first_anchors[level + 1] - first_anchors[level]:
            if of_anchors[anchor] < 0 and counts[level] < settings.nms_pre:
                of_anchors[anchor] = first_anchors[level] + counts[level]
                counts[level] += 1
            rank = of_anchors[anchor]
        if rank >= 0:
            keys[count] = _rank_key(candidates.scores[i], rank * settings.num_classes + candidates.labels[i])
            chosen[count] = i
            count += 1
    _, order = ascending(keys[:count])
    return _at(candidates, chosen[order])


@compiled()
def _boxes_of(candidates: Candidates, anchors: Anchors, frame: Frame) -> FloatArray:
    """Boxes `[K, 4]` xyxy of the candidates, in the pixels that `frame` leads to.

    Source: mmdet 3.3.0 `AnchorGenerator.single_level_grid_priors` and `DeltaXYWHBBoxCoder.decode`, its defaults;
    float32 in the same order of operations.
    """
    num_kinds, deltas = len(anchors.base) // len(anchors.strides), candidates.deltas
    ratios = np.empty((len(deltas), 2), np.float32)
    for i in range(len(deltas)):
        for k in range(2):
            log_ratio = deltas[i, k + 2] * anchors.stds[k + 2] + anchors.means[k + 2]
            ratios[i, k] = _exp(min(max(log_ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO))
    boxes = np.empty_like(deltas)
    for i in range(len(deltas)):
        level, anchor = candidates.levels[i], candidates.anchors[i]
        cell = np.int64(anchor / num_kinds)
        base = anchors.base[level * num_kinds + anchor - cell * num_kinds]
        row = np.int64(cell / anchors.columns[level])
        place = row, cell - row * anchors.columns[level]
        for k in range(2):
            shift = np.float32(place[1 - k] * anchors.strides[level])
            first, last = base[k] + shift, base[k + 2] + shift
            centre, size = (first + last) * HALF, last - first
            new_centre = centre + size * (deltas[i, k] * anchors.stds[k] + anchors.means[k])
            new_half = size * ratios[i, k] * HALF
            limit, factor, divisor = frame.limits[k], frame.factors[k], frame.divisors[k]
            boxes[i, k] = min(max(new_centre - new_half, ZERO), limit) * factor / divisor
            boxes[i, k + 2] = min(max(new_centre + new_half, ZERO), limit) * factor / divisor
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


@compiled()
def _by_label(labels: IndexArray) -> tuple[IndexArray, IndexArray]:
    """Positions `[N]` in order of label, those of a label descending, and where each label's begin `[labels + 1]`."""
    starts = np.zeros(labels.max() + 2, np.int64)
    for label in labels:
        starts[label + 1] += 1
    for label in range(1, len(starts)):
        starts[label] += starts[label - 1]
    positions, ends = np.empty(len(labels), np.int64), starts[1:].copy()
    for i in range(len(labels)):
        ends[labels[i]] -= 1
        positions[ends[labels[i]]] = i
    return positions, starts


@compiled()
def _voted(kept: IndexArray, boxes: FloatArray, scores: FloatArray, labels: IndexArray) -> FloatArray:
    """Each kept box as the mean of its class's overlapping candidates, weighted by IoU and score.

    Args:
        kept: `[K]` indices into the candidates.
        boxes, scores, labels: `[N, 4]` xyxy, `[N]`, `[N]`: all candidates of the image.

    Returns:
        `[K, 4]` xyxy, from sums in float64: torch's order of summation is not defined. A box without area overlaps
        nothing and stays as it is; mmdet makes it NaN (0 / 0), which COCO's evaluation would count as a match.

    Source: mmdet 3.3.0 `PAAHead.score_voting`.
    """
    means = boxes[kept]
    if not len(kept):
        return means
    positions, starts = _by_label(labels)
    weights, its_scores = np.empty(len(boxes), np.float32), scores[positions]
    corners = np.empty((4, len(boxes)), np.float32)
    for j in range(len(boxes)):
        for k in range(4):
            corners[k, j] = boxes[positions[j], k]
    for place in range(len(kept)):
        box, label = boxes[kept[place]], labels[kept[place]]
        first, last = starts[label], starts[label + 1]
        left, top, right, bottom = corners[:, first:last]
        for j in range(last - first):
            width = max(min(box[2], right[j]) - max(box[0], left[j]), ZERO)
            height = max(min(box[3], bottom[j]) - max(box[1], top[j]), ZERO)
            common, area = width * height, (right[j] - left[j]) * (bottom[j] - top[j])
            iou = common / max(_area(box) + area - common, EPSILON)
            weight = _exp(-((ONE - iou) * (ONE - iou)) / SIGMA)
            weights[j] = weight if common > ZERO and iou > MIN_IOU else ZERO
        sums, total = np.zeros(4), 0.0
        for j in range(last - first):
            weight_by_score = np.float64(weights[j] * its_scores[first + j])
            total += weight_by_score
            for k in range(4):
                sums[k] += weight_by_score * np.float64(corners[k, first + j])
        if total > 0:
            for k in range(4):
                means[place, k] = np.float32(sums[k] / total)
    return means


@compiled(_decode)
def decode_anchor(
    places: IndexArray,
    logits: FloatArray,
    iou_logits: FloatArray,
    deltas: FloatArray,
    anchors: Anchors,
    frame: Frame,
    settings: Settings,
) -> Found:
    """Boxes `[K, 4]`, scores `[K]` and labels `[K]` of a RetinaNet-type head's entries: see `AnchorDecoder`."""
    found = ranked(places, logits, iou_logits, deltas, anchors.first, settings)
    if settings.nms_pre > 0:
        found = _at(found, _best_of_levels(found.levels, len(anchors.strides), settings.nms_pre))
    boxes = _boxes_of(found, anchors, frame)
    if settings.min_bbox_size >= 0:
        sides = boxes[:, 2:] - boxes[:, :2]
        large = np.flatnonzero((sides[:, 0] > settings.min_bbox_size) & (sides[:, 1] > settings.min_bbox_size))
        found, boxes = _at(found, large), boxes[large]
    kept = batched_nms(boxes, found.labels, settings.iou_threshold, settings.max_per_img)
    return boxes[kept], found.scores[kept], found.labels[kept]


@compiled(_decode)
def decode_paa(
    places: IndexArray,
    logits: FloatArray,
    iou_logits: FloatArray,
    deltas: FloatArray,
    anchors: Anchors,
    frame: Frame,
    settings: Settings,
) -> Found:
    """Boxes `[K, 4]`, scores `[K]` and labels `[K]` of a PAA head's entries: see `PAADecoder`."""
    found = ranked(places, logits, iou_logits, deltas, anchors.first, settings)
    found = _of_best_anchors(found, anchors.first, settings)
    boxes = _boxes_of(found, anchors, frame)
    kept = batched_nms(boxes, found.labels, settings.iou_threshold, settings.max_per_img)
    if not settings.score_voting:
        return boxes[kept], found.scores[kept], found.labels[kept]
    # Voting goes class by class, so mmdet's result is no longer in order of score.
    by_label = np.empty(len(kept), np.uint64)
    for i in range(len(kept)):
        by_label[i] = (np.uint64(found.labels[kept[i]]) << np.uint64(32)) | np.uint64(i)
    kept = kept[ascending(by_label)[1]]
    return _voted(kept, boxes, found.scores, found.labels), found.scores[kept], found.labels[kept]
