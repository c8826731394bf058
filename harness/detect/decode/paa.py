"""Takes class, box and IoU maps of a PAA head; gives `Boxes`, their corners averaged by score voting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.detect.decode.anchors import anchors_at, base_anchors
from harness.detect.decode.box_coder import decode_deltas
from harness.detect.decode.boxes import Boxes
from harness.detect.decode.nms import batched_nms
from harness.detect.decode.outputs import check_outputs
from harness.detect.decode.scores import MARGIN, FloatArray, IndexArray, best_first, sigmoid
from harness.detect.decode.voting import vote

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry
    from harness.model.mmdet import HeadSpec, InputSpec


@dataclass(frozen=True)
class _Candidates:
    """Entries of one class map: cell, anchor kind and label `[K]` int64, score `[K]` float32."""

    cells: IndexArray
    kinds: IndexArray
    labels: IndexArray
    scores: FloatArray

    def take(self, order: IndexArray) -> "_Candidates":
        return _Candidates(self.cells[order], self.kinds[order], self.labels[order], self.scores[order])


class PAADecoder:
    """Score = sqrt(class x IoU); the best `nms_pre` anchors of each level; suppression per class; score voting.

    Source: mmdet 3.3.0 `PAAHead._predict_by_feat_single`, `_bbox_post_process` (`rescale=True`) and `multiclass_nms`.
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
        levels = [self._level(maps, stride, geometry) for stride in head.strides]
        boxes, scores, labels = (np.concatenate(parts) for parts in zip(*levels, strict=True))
        kept = batched_nms(boxes, scores, labels, head.iou_threshold, head.max_per_img)
        if not head.score_voting:
            return Boxes(boxes[kept], scores[kept], labels[kept])
        # Voting goes class by class, so mmdet's result is no longer in order of score.
        kept = kept[np.argsort(labels[kept], kind="stable")]
        return Boxes(vote(kept, boxes, scores, labels), scores[kept], labels[kept])

    def _level(
        self, maps: Mapping[str, npt.NDArray[Any]], stride: int, geometry: "Geometry"
    ) -> tuple[FloatArray, FloatArray, IndexArray]:
        """Boxes `[K, 4]` in pixels of the original image, scores `[K]` and labels `[K]` of one level's candidates."""
        head = self._head
        cls_map, box_map, iou_map = (maps[f"{kind}_{stride}"] for kind in ("cls", "box", "iou"))
        rows, columns = cls_map.shape[1:]
        found = self._best_anchors(self._candidates(cls_map, iou_map), num_cells=rows * columns)
        deltas = box_map.reshape(head.num_anchors, 4, -1)[found.kinds, :, found.cells].astype(np.float32)
        anchors = anchors_at(self._base_anchors[stride], stride, columns, found.cells, found.kinds)
        boxes = decode_deltas(
            anchors, deltas, head.target_means, head.target_stds, geometry.content_height, geometry.content_width
        )
        scales = np.array([geometry.scale_x, geometry.scale_y] * 2, np.float32)
        return boxes / scales, found.scores, found.labels

    def _candidates(self, cls_map: npt.NDArray[Any], iou_map: npt.NDArray[Any]) -> _Candidates:
        """All entries whose score is greater than `score_thr`, after one read of the class map."""
        head = self._head
        num_cells = cls_map.shape[1] * cls_map.shape[2]
        logits = cls_map.reshape(head.num_anchors, head.num_classes, num_cells).astype(np.float32, copy=False)
        ious = sigmoid(iou_map.reshape(head.num_anchors, num_cells).astype(np.float32, copy=False))
        indices = np.flatnonzero(logits > _class_logit_floors(ious, head.score_thr)[:, None])
        channels, cells = np.divmod(indices, num_cells)
        kinds, labels = np.divmod(channels, head.num_classes)
        scores = np.sqrt(sigmoid(logits.reshape(-1)[indices]) * ious[kinds, cells])
        passed = np.flatnonzero(scores > np.float32(head.score_thr))
        return _Candidates(cells, kinds, labels, scores).take(passed)

    def _best_anchors(self, found: _Candidates, num_cells: int) -> _Candidates:
        """The candidates of the `nms_pre` anchors with the highest best class, in mmdet's order."""
        head = self._head
        num_anchors = num_cells * head.num_anchors
        anchors = found.cells * head.num_anchors + found.kinds
        ranks = np.arange(num_anchors)
        if 0 < head.nms_pre < num_anchors:
            best_class = np.zeros(num_anchors, np.float32)
            np.maximum.at(best_class, anchors, found.scores)
            # Anchors without a candidate rank below all others and give no box in any case.
            in_question = np.flatnonzero(best_class)
            best = in_question[best_first(best_class[in_question], in_question, head.nms_pre)]
            ranks = np.full(num_anchors, -1)
            ranks[best] = np.arange(len(best))
        chosen = np.flatnonzero(ranks[anchors] >= 0)
        return found.take(chosen[np.lexsort((found.labels[chosen], ranks[anchors[chosen]]))])


def _class_logit_floors(ious: FloatArray, score_thr: float) -> FloatArray:
    """For each anchor the class logit under which sqrt(class x IoU) cannot be greater than `score_thr`.

    From class > score_thr^2 / IoU, lowered by `MARGIN`; infinite where no class can pass.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        probabilities = np.float32(max(score_thr, 0.0) ** 2 * (1 - MARGIN)) / ious
        floors = np.log(probabilities) - np.log1p(-probabilities)
    return np.where(probabilities < 1, floors, np.float32(np.inf))
