"""Takes the entries of a PAA head; gives `Boxes`, their corners averaged by score voting."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode.boxes import Boxes
from harness.detect.decode.dense import Candidates, DenseDecoder
from harness.detect.decode.entries import Entries, IndexArray
from harness.detect.decode.nms import batched_nms
from harness.detect.decode.scores import best_first, sigmoid
from harness.detect.decode.voting import vote

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry


class PAADecoder(DenseDecoder):
    """Score = sqrt(class x IoU); the best `nms_pre` anchors of each level; suppression per class; score voting.

    Source: mmdet 3.3.0 `PAAHead._predict_by_feat_single`, `_bbox_post_process` (`rescale=True`) and `multiclass_nms`.
    """

    def _finish(self, entries: Entries, geometry: "Geometry") -> Boxes:
        head = self._head
        scores = np.sqrt(sigmoid(entries.logits) * sigmoid(entries.iou_logits))
        found, ranks = self._of_best_anchors(self._above_threshold(entries, scores))
        order = best_first(found.scores, self._tie_keys(found, ranks))
        scales = np.array([[geometry.scale_x], [geometry.scale_y]] * 2, np.float32)
        corners = (self._in_input(entries, found, geometry) / scales).take(order, axis=1)
        scores, labels = found.scores[order], found.labels[order]
        kept = batched_nms(corners, labels, head.iou_threshold, head.max_per_img)
        if not head.score_voting:
            return Boxes.from_corners(corners.take(kept, axis=1), scores[kept], labels[kept])
        # Voting goes class by class, so mmdet's result is no longer in order of score.
        kept = kept[np.argsort(labels[kept], kind="stable")]
        return Boxes.from_corners(vote(kept, corners, scores, labels), scores[kept], labels[kept])

    def _of_best_anchors(self, found: Candidates) -> tuple[Candidates, IndexArray]:
        """The candidates of each level's best `nms_pre` anchors, and their anchors' ranks `[K]` in mmdet's order."""
        ranks = found.anchors.copy()
        limit = self._head.nms_pre
        for level, num_cells in zip(found.slices(len(self._num_cells)), self._num_cells.tolist(), strict=True):
            if 0 < limit < num_cells * self._head.num_anchors:
                ranks[level] = _anchor_ranks(found.anchors[level], found.scores[level], limit)
        chosen = np.flatnonzero(ranks >= 0)
        return found.take(chosen), ranks[chosen]


def _anchor_ranks(anchors: IndexArray, scores: np.ndarray, limit: int) -> IndexArray:
    """`[K]`: the rank of each candidate's anchor by its best class, -1 behind the `limit` best."""
    best_class = np.zeros(anchors.max(initial=0) + 1, np.float32)
    np.maximum.at(best_class, anchors, scores)
    # Anchors without a candidate rank below all others and give no box in any case.
    in_question = np.flatnonzero(best_class)
    best = in_question[best_first(best_class[in_question], in_question, limit)]
    ranks = np.full(len(best_class), -1)
    ranks[best] = np.arange(len(best))
    return ranks[anchors]
