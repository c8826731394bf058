"""Takes the entries of a RetinaNet-type head (RetinaHead, PISARetinaHead); gives `Boxes`."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.boxes import Boxes
from harness.detect.decode.dense import DenseDecoder
from harness.detect.decode.entries import Entries

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry


class AnchorDecoder(DenseDecoder):
    """Scores from the class map; the best `nms_pre` of each level; suppression per class.

    Source: mmdet 3.3.0 `BaseDenseHead._predict_by_feat_single` and `_bbox_post_process`, `rescale=True`.
    """

    def _finish(self, entries: Entries, geometry: "Geometry") -> Boxes:
        # This family multiplies by the inverse scale (mmdet `scale_boxes`), PAA divides: not the same in float32.
        factors = np.array([1 / geometry.scale_x, 1 / geometry.scale_y], np.float32)
        return Boxes(*kernels.decode_anchor(*self._arguments(entries, geometry, factors, np.ones(2, np.float32))))
