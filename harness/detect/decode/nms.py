"""Takes labelled boxes of one image, best first; gives the indices that non-maximum suppression per class keeps."""

import numpy as np
import numpy.typing as npt

from harness.detect.decode.entries import FloatArray, IndexArray

# Boxes that are compared with each other at once: few enough for the cache.
BLOCK = 128


def batched_nms(corners: FloatArray, labels: IndexArray, iou_threshold: float, max_num: int) -> IndexArray:
    """Greedy suppression within each class, until `max_num` boxes are kept (all when it is not positive).

    Args:
        corners: `[4, N]` xyxy, pixels, none negative; in descending order of score.
        labels: `[N]`.
        iou_threshold: a box goes when its IoU with a kept one of its class is greater than this.

    Returns:
        `[K]` indices of the kept boxes, ascending.

    Source: mmcv 2.1.0 `batched_nms` and `nms_cpu`. Classes are moved apart by label * (largest coordinate + 1), as
    there: the shift rounds coordinates in float32, which decides IoUs near the threshold. mmcv's `split_thr` changes
    only memory use, since shifted classes never meet. Stopping early is exact: boxes are kept in order of score.
    """
    count = len(labels)
    if not count:
        return np.empty(0, np.int64)
    limit, threshold = max_num if max_num > 0 else count, np.float32(iou_threshold)
    apart = corners + labels.astype(np.float32) * (corners.max() + np.float32(1))
    kept = np.empty(0, np.int64)
    for start in range(0, count, BLOCK):
        block = np.arange(start, min(start + BLOCK, count))
        block = block[~_overlaps(apart.take(kept, axis=1), apart.take(block, axis=1), threshold).any(axis=0)]
        within = apart.take(block, axis=1)
        kept = np.concatenate([kept, block[_greedy(_overlaps(within, within, threshold), limit - len(kept))]])
        if len(kept) == limit:
            break
    return kept


def _greedy(overlaps: npt.NDArray[np.bool_], limit: int) -> list[int]:
    """The first `limit` of N boxes that no kept one before them overlaps; `overlaps` `[N, N]`.

    Sets of boxes are the bits of Python's integers, so that each step is one operation on all of them.
    """
    packed = np.packbits(overlaps, axis=1, bitorder="little")
    rows, size = packed.tobytes(), packed.shape[1]
    alive = (1 << len(overlaps)) - 1
    kept: list[int] = []
    while alive and len(kept) < limit:
        first = alive & -alive
        kept.append(first.bit_length() - 1)
        suppressed = int.from_bytes(rows[kept[-1] * size : (kept[-1] + 1) * size], "little")
        alive &= ~(suppressed | first)
    return kept


def _overlaps(first: FloatArray, second: FloatArray, threshold: np.float32) -> npt.NDArray[np.bool_]:
    """`[K, N]`: whether the IoU of boxes with corners `[4, K]` and `[4, N]` is greater than `threshold`."""
    x1, y1, x2, y2 = first[:, :, None]
    left, top, right, bottom = second
    intersections = np.minimum(x2, right)
    intersections -= np.maximum(x1, left)
    heights = np.minimum(y2, bottom)
    heights -= np.maximum(y1, top)
    zero = np.float32(0)
    np.maximum(intersections, zero, out=intersections)
    intersections *= np.maximum(heights, zero, out=heights)
    unions = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    unions -= intersections
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(intersections, unions, out=intersections)
    above: npt.NDArray[np.bool_] = intersections > threshold
    return above
