"""Takes all candidates and those that suppression kept; gives the kept boxes averaged with their neighbours."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

MIN_IOU = np.float32(0.01)
SIGMA = np.float32(0.025)
EPSILON = np.float32(1e-6)


def vote(kept: IndexArray, boxes: FloatArray, scores: FloatArray, labels: IndexArray) -> FloatArray:
    """Each kept box as the mean of its class's overlapping candidates, weighted by IoU and score.

    Args:
        kept: `[K]` indices into the candidates.
        boxes, scores, labels: `[N, 4]` xyxy, `[N]`, `[N]`: all candidates of the image.

    Returns:
        `[K, 4]` xyxy. A box without area overlaps nothing, itself included, and stays as it is; mmdet makes it NaN
        (0 / 0), which COCO's evaluation would count as a match.

    Source: mmdet 3.3.0 `PAAHead.score_voting`. Sums are taken in float64: torch's order of summation is not defined.
    """
    corners = np.ascontiguousarray(boxes.T)
    by_label = np.argsort(labels, kind="stable")
    grouped = labels[by_label]
    voted = boxes[kept].copy()
    for label in np.unique(labels[kept]):
        first, last = np.searchsorted(grouped, label, side="left"), np.searchsorted(grouped, label, side="right")
        voters, mine = by_label[first:last], np.flatnonzero(labels[kept] == label)
        weights = _weights(corners[:, kept[mine]], corners[:, voters], scores[voters])
        total = weights.sum(axis=1)
        has_area = total > 0
        voted[mine[has_area]] = (weights[has_area] @ boxes[voters].astype(np.float64)) / total[has_area, None]
    return voted


def _weights(kept: FloatArray, voters: FloatArray, scores: FloatArray) -> npt.NDArray[np.float64]:
    """`[K, N]`: what each voter (corners `[4, N]`, scores `[N]`) counts for each kept box (corners `[4, K]`)."""
    iou = _overlaps(kept[:, :, None], voters[:, None, :])
    rows, columns = np.nonzero(iou > MIN_IOU)
    weights = np.zeros(iou.shape)
    weights[rows, columns] = np.exp(-((np.float32(1) - iou[rows, columns]) ** 2) / SIGMA) * scores[columns]
    return weights


def _overlaps(first: FloatArray, second: FloatArray) -> FloatArray:
    """IoU of boxes whose corners `[4, ...]` broadcast, as mmdet 3.3.0 `bbox_overlaps` computes it."""
    x1, y1, x2, y2 = first
    left, top, right, bottom = second
    width = np.maximum(np.minimum(x2, right) - np.maximum(x1, left), np.float32(0))
    height = np.maximum(np.minimum(y2, bottom) - np.maximum(y1, top), np.float32(0))
    intersection = width * height
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - intersection
    overlaps: FloatArray = intersection / np.maximum(union, EPSILON)
    return overlaps
