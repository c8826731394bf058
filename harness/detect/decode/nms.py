"""Takes scored, labelled boxes of one image; gives the indices that non-maximum suppression per class keeps."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]


def batched_nms(
    boxes: FloatArray, scores: FloatArray, labels: IndexArray, iou_threshold: float, max_num: int
) -> IndexArray:
    """Greedy suppression within each class, until `max_num` boxes are kept (all when it is not positive).

    Args:
        boxes: `[N, 4]` xyxy, pixels, none negative.
        scores: `[N]`; equal ones keep their order.
        labels: `[N]`.
        iou_threshold: a box goes when its IoU with a kept one of its class is greater than this.

    Returns:
        `[K]` indices of the kept boxes, highest score first.

    Source: mmcv 2.1.0 `batched_nms` and `nms_cpu`. Classes are moved apart by label * (largest coordinate + 1), as
    there: the shift rounds coordinates in float32, which decides IoUs near the threshold. mmcv's `split_thr` changes
    only memory use, since shifted classes never meet. Stopping early is exact: boxes are kept in order of score.
    """
    if not len(boxes):
        return np.empty(0, np.int64)
    by_score = np.argsort(-scores, kind="stable")
    grouping = np.argsort(labels[by_score], kind="stable")
    members = by_score[grouping]
    group_labels = labels[members]
    group_ends = np.searchsorted(group_labels, group_labels, side="right")
    shifted = boxes[members] + (group_labels.astype(np.float32) * (boxes.max() + np.float32(1)))[:, None]
    visits = np.empty_like(grouping)
    visits[grouping] = np.arange(len(grouping))
    kept = _keep(np.ascontiguousarray(shifted.T), visits, group_ends, np.float32(iou_threshold), max_num)
    return members[kept]


def _keep(
    corners: FloatArray, visits: IndexArray, group_ends: IndexArray, iou_threshold: np.float32, max_num: int
) -> IndexArray:
    """Positions kept, in the order of `visits`; `corners` `[4, N]` lie by class, each class by score."""
    x1, y1, x2, y2 = corners
    areas = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(areas), dtype=bool)
    kept: list[int] = []
    for i in visits.tolist():
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == max_num:
            break
        rest = slice(i + 1, group_ends[i])
        width = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest])
        height = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest])
        intersection = np.maximum(width, np.float32(0)) * np.maximum(height, np.float32(0))
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = intersection / (areas[i] + areas[rest] - intersection)
        alive[rest] &= ~(iou > iou_threshold)
    return np.array(kept, dtype=np.int64)
