"""Takes all candidates and those that suppression kept; gives the kept boxes averaged with their neighbours."""

import numpy as np

from harness.detect.decode.entries import FloatArray, IndexArray

MIN_IOU = np.float32(0.01)
SIGMA = np.float32(0.025)
EPSILON = np.float32(1e-6)
# Pairs of a kept box and a voter that are worked on at once, so that thousands of kept boxes need no more memory.
PAIRS = 1 << 18


def vote(kept: IndexArray, corners: FloatArray, scores: FloatArray, labels: IndexArray) -> FloatArray:
    """Each kept box as the mean of its class's overlapping candidates, weighted by IoU and score.

    Args:
        kept: `[K]` indices into the candidates.
        corners, scores, labels: `[4, N]` xyxy, `[N]`, `[N]`: all candidates of the image.

    Returns:
        `[4, K]` xyxy. A box without area overlaps nothing, itself included, and stays as it is; mmdet makes it NaN
        (0 / 0), which COCO's evaluation would count as a match.

    Source: mmdet 3.3.0 `PAAHead.score_voting`. Sums are taken in float64: torch's order of summation is not defined.
    """
    by_label = np.argsort(labels, kind="stable")
    grouped = labels[by_label]
    voters = np.concatenate([corners.take(by_label, axis=1), scores[None, by_label]])
    firsts, lasts = (np.searchsorted(grouped, labels[kept], side=side) for side in ("left", "right"))
    step = max(PAIRS // max((lasts - firsts).max(initial=0), 1), 1)
    voted = corners.take(kept, axis=1)
    for part in [slice(i, i + step) for i in range(0, len(kept), step)]:
        _average(voted[:, part], voters, firsts[part], lasts[part])
    return voted


def _average(kept: FloatArray, voters: FloatArray, firsts: IndexArray, lasts: IndexArray) -> None:
    """Replace each of the corners `[4, K]` by the mean over its own slice of the voters `[5, N]`, corners and score."""
    pairs = np.concatenate([voters[:, first:last] for first, last in zip(firsts, lasts, strict=True)], axis=1)
    iou = _overlaps(np.repeat(kept, lasts - firsts, axis=1), pairs[:4])
    near = np.flatnonzero(iou > MIN_IOU)
    owners = np.repeat(np.arange(len(firsts)), lasts - firsts)[near]
    *boxes, scores = pairs.take(near, axis=1)
    weights = (np.exp(-((np.float32(1) - iou[near]) ** 2) / SIGMA) * scores).astype(np.float64)
    counts = np.bincount(owners, minlength=len(firsts))
    with_area = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[with_area]
    totals = np.add.reduceat(weights, starts)
    for corner, of_voters in zip(kept, boxes, strict=True):
        corner[with_area] = np.add.reduceat(weights * of_voters, starts) / totals


def _overlaps(first: FloatArray, second: FloatArray) -> FloatArray:
    """`[P]`: IoU of pairs of boxes with corners `[4, P]`, as mmdet 3.3.0 `bbox_overlaps` computes it."""
    x1, y1, x2, y2 = first
    left, top, right, bottom = second
    width = np.maximum(np.minimum(x2, right) - np.maximum(x1, left), np.float32(0))
    height = np.maximum(np.minimum(y2, bottom) - np.maximum(y1, top), np.float32(0))
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - intersection
    overlaps: FloatArray = intersection / np.maximum(union, EPSILON)
    return overlaps
