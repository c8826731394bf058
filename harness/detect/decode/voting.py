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
    if not len(kept):
        return np.empty((0, 4), np.float32)
    voters, starts, lengths = _voters(labels[kept], labels)
    iou = _overlaps(np.repeat(boxes[kept], lengths, axis=0), boxes[voters])
    weights = np.where(iou > MIN_IOU, np.exp(-((np.float32(1) - iou) ** 2) / SIGMA) * scores[voters], np.float32(0))
    total = np.add.reduceat(weights.astype(np.float64), starts)
    weighted = weights.astype(np.float64)[:, None] * boxes[voters]
    with np.errstate(invalid="ignore"):
        voted = np.add.reduceat(weighted, starts, axis=0) / total[:, None]
    return np.where(total[:, None] > 0, voted, boxes[kept]).astype(np.float32)


def _voters(kept_labels: IndexArray, labels: IndexArray) -> tuple[IndexArray, IndexArray, IndexArray]:
    """For each kept box the candidates of its class, end to end; where each run starts; how long it is."""
    by_label = np.argsort(labels, kind="stable")
    grouped = labels[by_label]
    firsts = np.searchsorted(grouped, kept_labels, side="left")
    lengths = np.searchsorted(grouped, kept_labels, side="right") - firsts
    starts = np.cumsum(lengths) - lengths
    voters = by_label[np.arange(lengths.sum()) + np.repeat(firsts - starts, lengths)]
    return voters, starts, lengths


def _overlaps(first: FloatArray, second: FloatArray) -> FloatArray:
    """IoU `[P]` of aligned boxes `[P, 4]`, as mmdet 3.3.0 `bbox_overlaps` computes it."""
    first_sizes, second_sizes = first[:, 2:] - first[:, :2], second[:, 2:] - second[:, :2]
    top_left = np.maximum(first[:, :2], second[:, :2])
    bottom_right = np.minimum(first[:, 2:], second[:, 2:])
    width, height = np.maximum(bottom_right - top_left, np.float32(0)).T
    intersection = width * height
    union = first_sizes[:, 0] * first_sizes[:, 1] + second_sizes[:, 0] * second_sizes[:, 1] - intersection
    overlaps: FloatArray = intersection / np.maximum(union, EPSILON)
    return overlaps
