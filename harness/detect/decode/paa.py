"""Takes the entries of a PAA head; gives `Boxes`, their corners averaged by score voting."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.boxes import Boxes
from harness.detect.decode.dense import DenseDecoder
from harness.detect.decode.entries import Entries, FloatArray, IndexArray

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry

# mmdet's score voting.
SIGMA = np.float32(0.025)


class PAADecoder(DenseDecoder):
    """Score = sqrt(class x IoU); the best `nms_pre` anchors of each level; suppression per class; score voting.

    Source: mmdet 3.3.0 `PAAHead._predict_by_feat_single`, `_bbox_post_process` (`rescale=True`) and `multiclass_nms`.
    """

    def _finish(self, entries: Entries, geometry: "Geometry") -> Boxes:
        head = self._head
        all_scores = np.sqrt(kernels.sigmoid(entries.logits) * kernels.sigmoid(entries.iou_logits))
        order = self._of_best_anchors(entries, all_scores)
        scales = np.array([geometry.scale_x, geometry.scale_y], np.float32)
        boxes = self._boxes(entries, order, geometry, np.ones(2, np.float32), scales)
        scores, labels = all_scores[order], entries.labels[order]
        kept = kernels.batched_nms(boxes, labels, self._iou_threshold, head.max_per_img)
        if not head.score_voting:
            return Boxes(boxes[kept], scores[kept], labels[kept])
        # Voting goes class by class, so mmdet's result is no longer in order of score.
        kept = kept[np.argsort(labels[kept], kind="stable")]
        return Boxes(voted(kept, boxes, scores, labels), scores[kept], labels[kept])

    def _of_best_anchors(self, entries: Entries, scores: FloatArray) -> IndexArray:
        """Positions of the candidates of each level's best `nms_pre` anchors, in mmdet's order."""
        found = self._best_first(entries, scores)
        ranks = kernels.anchor_ranks(
            entries.levels[found], entries.anchors[found], self._first_anchors, self._head.nms_pre
        )
        chosen = np.flatnonzero(ranks >= 0)
        found = found[chosen]
        return found[self._order(scores[found], ranks[chosen], entries.labels[found])]


def voted(kept: IndexArray, boxes: FloatArray, scores: FloatArray, labels: IndexArray) -> FloatArray:
    """Each kept box as the mean of its class's overlapping candidates, weighted by IoU and score.

    Args:
        kept: `[K]` indices into the candidates.
        boxes, scores, labels: `[N, 4]` xyxy, `[N]`, `[N]`: all candidates of the image.

    Returns:
        `[K, 4]` xyxy. A box without area stays as it is; mmdet makes it NaN (0 / 0), which COCO's evaluation would
        count as a match.

    Source: mmdet 3.3.0 `PAAHead.score_voting`.
    """
    places, candidates, ious = kernels.voters(kept, boxes, labels)
    distances = 1 - ious
    # Rounded from float64, for the same boxes on every machine.
    weights = np.exp(np.float64(-(distances * distances) / SIGMA)).astype(np.float32) * scores[candidates]
    means = boxes[kept]
    kernels.vote(means, boxes, places, candidates, weights)
    return means
