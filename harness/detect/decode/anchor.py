"""Takes the candidates of a RetinaNet-type head (RetinaHead, PISARetinaHead); gives `Boxes`."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.boxes import Boxes
from harness.detect.decode.dense import DenseDecoder
from harness.detect.decode.entries import Candidates

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry


class AnchorDecoder(DenseDecoder):
    """Scores from the class map; the best `nms_pre` of each level; suppression per class.

    Source: mmdet 3.3.0 `BaseDenseHead._predict_by_feat_single` and `_bbox_post_process`, `rescale=True`.
    """

    def _finish(self, candidates: Candidates, geometry: "Geometry") -> Boxes:
        head = self._head
        if head.nms_pre > 0:
            candidates = candidates.at(kernels.best_of_levels(candidates.levels, len(head.strides), head.nms_pre))
        # This family multiplies by the inverse scale (mmdet `scale_boxes`), PAA divides: not the same in float32.
        factors = np.array([1 / geometry.scale_x, 1 / geometry.scale_y], np.float32)
        boxes, scores, labels = (
            self._boxes(candidates, geometry, factors, np.ones(2, np.float32)),
            candidates.scores,
            candidates.labels,
        )
        if head.min_bbox_size >= 0:
            large = ((boxes[:, 2:] - boxes[:, :2]) > np.float32(head.min_bbox_size)).all(axis=1)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        kept = kernels.batched_nms(boxes, labels, self._iou_threshold, head.max_per_img)
        return Boxes(boxes[kept], scores[kept], labels[kept])
