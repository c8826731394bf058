"""Takes the entries of a RetinaNet-type head (RetinaHead, PISARetinaHead); gives `Boxes`."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode.boxes import Boxes
from harness.detect.decode.dense import DenseDecoder, best_of_levels
from harness.detect.decode.entries import Entries
from harness.detect.decode.nms import batched_nms
from harness.detect.decode.scores import best_first, sigmoid

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry


class AnchorDecoder(DenseDecoder):
    """Scores from the class map; the best `nms_pre` of each level; suppression per class.

    Source: mmdet 3.3.0 `BaseDenseHead._predict_by_feat_single` and `_bbox_post_process`, `rescale=True`.
    """

    def _finish(self, entries: Entries, geometry: "Geometry") -> Boxes:
        head = self._head
        found = self._above_threshold(entries, sigmoid(entries.logits))
        found = best_of_levels(found, self._tie_keys(found, found.anchors), head.nms_pre)
        order = best_first(found.scores, self._tie_keys(found, found.anchors))
        # This family multiplies by the inverse scale (mmdet `scale_boxes`), PAA divides: not the same in float32.
        factors = np.array([[1 / geometry.scale_x], [1 / geometry.scale_y]] * 2, np.float32)
        corners = (self._in_input(entries, found, geometry) * factors).take(order, axis=1)
        scores, labels = found.scores[order], found.labels[order]
        if head.min_bbox_size >= 0:
            large = ((corners[2:] - corners[:2]) > np.float32(head.min_bbox_size)).all(axis=0)
            corners, scores, labels = corners[:, large], scores[large], labels[large]
        kept = batched_nms(corners, labels, head.iou_threshold, head.max_per_img)
        return Boxes.from_corners(corners.take(kept, axis=1), scores[kept], labels[kept])
