"""Takes the candidates of a PAA head; gives `Boxes`, their corners averaged by score voting."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.boxes import Boxes
from harness.detect.decode.dense import DenseDecoder
from harness.detect.decode.entries import Candidates, FloatArray, IndexArray

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry


class PAADecoder(DenseDecoder):
    """Score = sqrt(class x IoU); the best `nms_pre` anchors of each level; suppression per class; score voting.

    Source: mmdet 3.3.0 `PAAHead._predict_by_feat_single`, `_bbox_post_process` (`rescale=True`) and `multiclass_nms`.
    """

    def _finish(self, candidates: Candidates, geometry: "Geometry") -> Boxes:
        head, candidates = self._head, self._of_best_anchors(candidates)
        scales = np.array([geometry.scale_x, geometry.scale_y], np.float32)
        boxes, scores, labels = (
            self._boxes(candidates, geometry, np.ones(2, np.float32), scales),
            candidates.scores,
            candidates.labels,
        )
        kept = kernels.batched_nms(boxes, labels, self._iou_threshold, head.max_per_img)
        if not head.score_voting:
            return Boxes(boxes[kept], scores[kept], labels[kept])
        # Voting goes class by class, so mmdet's result is no longer in order of score.
        kept = kept[np.argsort(labels[kept], kind="stable")]
        return Boxes(voted(kept, boxes, scores, labels), scores[kept], labels[kept])

    def _of_best_anchors(self, candidates: Candidates) -> Candidates:
        """Those of each level's best `nms_pre` anchors, in mmdet's order: equal scores by their anchors' ranks."""
        head = self._head
        ranks = kernels.anchor_ranks(candidates.levels, candidates.anchors, self._first_anchors, head.nms_pre)
        chosen = np.flatnonzero(ranks >= 0)
        keys = kernels.rank_keys(candidates.scores[chosen], ranks[chosen], candidates.labels[chosen], head.num_classes)
        # This kind is the fastest on keys that come nearly sorted.
        return candidates.at(chosen[np.argsort(keys, kind="stable")])


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
    places, candidates, logarithms = kernels.voters(kept, boxes, labels)
    means = boxes[kept]
    kernels.vote(means, boxes, scores, places, candidates, np.exp(logarithms))
    return means
