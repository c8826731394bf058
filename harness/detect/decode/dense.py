"""Takes a head, an input size and raw maps; gives what all decoders share: entries in, places and boxes out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode import kernels
from harness.detect.decode.anchors import base_anchors
from harness.detect.decode.boxes import Boxes, Maps
from harness.detect.decode.entries import Candidates, Entries, FloatArray
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
        self._iou_threshold = np.float32(head.iou_threshold)
        self._strides = np.array(head.strides)
        self._columns = -(-input_spec.width // self._strides)
        num_cells = -(-input_spec.height // self._strides) * self._columns
        self._first_anchors = np.cumsum([0, *(num_cells * head.num_anchors)])
        self._base_anchors = np.concatenate([base_anchors(head, stride) for stride in head.strides])
        self._stds, self._means = np.array(head.target_stds, np.float32), np.array(head.target_means, np.float32)

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
        found: Iterable[Entries] = (host_entries(outputs, row, self._head, self._first_anchors) for row in rows)
        if not are_arrays(outputs):
            found = device_entries(outputs, rows, self._head, self._first_anchors)
        return [self._finish(self._ranked(one), geometry) for one, geometry in zip(found, geometries, strict=True)]

    def _ranked(self, entries: Entries) -> Candidates:
        order = np.argsort(entries.keys)
        columns = kernels.columns_of(entries.keys.take(order), self._first_anchors, self._head.num_classes)
        return Candidates(*columns, entries.deltas.take(order, axis=0))

    @abstractmethod
    def _finish(self, candidates: Candidates, geometry: "Geometry") -> Boxes:
        """The boxes of one image."""

    def _boxes(
        self, candidates: Candidates, geometry: "Geometry", factors: FloatArray, divisors: FloatArray
    ) -> FloatArray:
        """Boxes `[K, 4]` xyxy of the candidates: those in the input times `factors / divisors`, x and y."""
        return kernels.boxes_of(
            candidates.deltas,
            candidates.levels,
            candidates.anchors,
            self._base_anchors,
            self._columns,
            self._strides,
            self._stds,
            self._means,
            np.array([geometry.content_width, geometry.content_height], np.float32),
            factors,
            divisors,
        )
