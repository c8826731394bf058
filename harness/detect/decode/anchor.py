"""Takes class and box maps of a RetinaNet-type head (RetinaHead, PISARetinaHead); gives `Boxes`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.detect.decode.anchors import anchors_at, base_anchors
from harness.detect.decode.box_coder import decode_deltas
from harness.detect.decode.boxes import Boxes
from harness.detect.decode.nms import batched_nms
from harness.detect.decode.outputs import check_outputs
from harness.detect.decode.scores import FloatArray, IndexArray, best_first, candidates

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry
    from harness.model.mmdet import HeadSpec, InputSpec


class AnchorDecoder:
    """Scores from the class map; the best `nms_pre` of each level; suppression per class.

    Source: mmdet 3.3.0 `BaseDenseHead._predict_by_feat_single` and `_bbox_post_process`, `rescale=True`.
    """

    def __init__(self, head: "HeadSpec", input_spec: "InputSpec") -> None:
        self._head = head
        self._input_spec = input_spec
        self._base_anchors = {stride: base_anchors(head, stride) for stride in head.strides}

    def decode(self, outputs: Mapping[str, npt.NDArray[Any]], geometries: Sequence["Geometry"]) -> list[Boxes]:
        """See `Decoder.decode`."""
        check_outputs(outputs, self._head, self._input_spec, len(geometries))
        return [
            self._decode_image({name: maps[row] for name, maps in outputs.items()}, geometry)
            for row, geometry in enumerate(geometries)
        ]

    def _decode_image(self, maps: Mapping[str, npt.NDArray[Any]], geometry: "Geometry") -> Boxes:
        head = self._head
        levels = [self._level(maps[f"cls_{stride}"], maps[f"box_{stride}"], stride) for stride in head.strides]
        scores, labels, anchors, deltas = (np.concatenate(parts) for parts in zip(*levels, strict=True))
        in_input = decode_deltas(
            anchors, deltas, head.target_means, head.target_stds, geometry.content_height, geometry.content_width
        )
        # This family multiplies by the inverse scale (mmdet `scale_boxes`), PAA divides: not the same in float32.
        boxes = in_input * np.array([1 / geometry.scale_x, 1 / geometry.scale_y] * 2, np.float32)
        if head.min_bbox_size >= 0:
            large = ((boxes[:, 2:] - boxes[:, :2]) > np.float32(head.min_bbox_size)).all(axis=1)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        kept = batched_nms(boxes, scores, labels, head.iou_threshold, head.max_per_img)
        return Boxes(boxes[kept], scores[kept], labels[kept])

    def _level(
        self, cls_map: npt.NDArray[Any], box_map: npt.NDArray[Any], stride: int
    ) -> tuple[FloatArray, IndexArray, FloatArray, FloatArray]:
        """Scores `[K]`, labels `[K]`, anchors `[K, 4]` and deltas `[K, 4]` of the level's best candidates."""
        num_anchors, num_classes = self._head.num_anchors, self._head.num_classes
        columns, num_cells = cls_map.shape[2], cls_map.shape[1] * cls_map.shape[2]
        indices, scores = candidates(cls_map, self._head.score_thr)
        channels, cells = np.divmod(indices, num_cells)
        # mmdet counts candidates cell by cell, then by anchor and class.
        order = best_first(scores, cells * len(cls_map) + channels, self._head.nms_pre)
        cells = cells[order]
        kinds, labels = np.divmod(channels[order], num_classes)
        deltas = box_map.reshape(num_anchors, 4, num_cells)[kinds, :, cells].astype(np.float32)
        anchors = anchors_at(self._base_anchors[stride], stride, columns, cells, kinds)
        return scores[order], labels, anchors, deltas
