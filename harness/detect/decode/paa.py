"""Takes the entries of a PAA head; gives `Boxes`, their corners averaged by score voting."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.boxes import Boxes
from harness.detect.decode.dense import DenseDecoder
from harness.detect.decode.entries import Entries

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry


class PAADecoder(DenseDecoder):
    """Score = sqrt(class x IoU); the best `nms_pre` anchors of each level; suppression per class; score voting.

    Source: mmdet 3.3.0 `PAAHead._predict_by_feat_single`, `_bbox_post_process` (`rescale=True`) and `multiclass_nms`.
    """

    def _finish(self, entries: Entries, geometry: "Geometry") -> Boxes:
        scales = np.array([geometry.scale_x, geometry.scale_y], np.float32)
        return Boxes(*kernels.decode_paa(*self._arguments(entries, geometry, np.ones(2, np.float32), scales)))
