"""Takes a head, an input size and raw maps; gives what all decoders share: entries in, places and boxes out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.anchors import base_anchors
from harness.detect.decode.boxes import Boxes, Maps
from harness.detect.decode.entries import Entries, FloatArray
from harness.detect.decode.on_device import device_entries
from harness.detect.decode.on_host import host_entries
from harness.detect.decode.outputs import are_arrays, check_outputs

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry
    from harness.model.mmdet import HeadSpec, InputSpec


class DenseDecoder(ABC):
    """A head that predicts from anchors at every cell. Immutable, so any number of threads may share one."""

    def __init__(self, head: "HeadSpec", input_spec: "InputSpec") -> None:
        self._head = head
        self._input_spec = input_spec
        strides = np.array(head.strides)
        columns = -(-input_spec.width // strides)
        num_cells = -(-input_spec.height // strides) * columns
        self._anchors = kernels.Anchors(
            np.cumsum([0, *(num_cells * head.num_anchors)]),
            np.concatenate([base_anchors(head, stride) for stride in head.strides]),
            columns,
            strides,
            np.array(head.target_stds, np.float32),
            np.array(head.target_means, np.float32),
        )
        self._settings = kernels.Settings(
            head.num_classes,
            np.float32(head.score_thr),
            head.nms_pre,
            np.float32(head.iou_threshold),
            head.max_per_img,
            np.float32(head.min_bbox_size),
            head.score_voting,
        )

    def check(self, outputs: Maps, images: int) -> None:
        """See `Decoder.check`."""
        check_outputs(outputs, self._head, self._input_spec, images)

    def decode(self, outputs: Maps, geometries: Sequence["Geometry"]) -> list[Boxes]:
        """See `Decoder.decode`."""
        self.check(outputs, len(geometries))
        return self._decode_rows(outputs, range(len(geometries)), geometries)

    def decode_image(self, outputs: Maps, row: int, geometry: "Geometry") -> Boxes:
        """See `Decoder.decode_image`."""
        (boxes,) = self._decode_rows(outputs, range(row, row + 1), [geometry])
        return boxes

    def _decode_rows(self, outputs: Maps, rows: range, geometries: Sequence["Geometry"]) -> list[Boxes]:
        # One image at a time where that needs no copy, so that only one image's entries are alive.
        found: Iterable[Entries] = (host_entries(outputs, row, self._head, self._anchors.first) for row in rows)
        if not are_arrays(outputs):
            found = device_entries(outputs, rows, self._head, self._anchors.first)
        return [self._finish(one, geometry) for one, geometry in zip(found, geometries, strict=True)]

    @abstractmethod
    def _finish(self, entries: Entries, geometry: "Geometry") -> Boxes:
        """The boxes of one image."""

    def _arguments(
        self, entries: Entries, geometry: "Geometry", factors: FloatArray, divisors: FloatArray
    ) -> tuple[Any, ...]:
        """What `kernels.decode_anchor` and `kernels.decode_paa` take; boxes go out times `factors / divisors`."""
        limits = np.array([geometry.content_width, geometry.content_height], np.float32)
        return (
            entries.places,
            entries.logits,
            entries.iou_logits,
            entries.deltas,
            self._anchors,
            kernels.Frame(limits, factors, divisors),
            self._settings,
        )
