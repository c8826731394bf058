"""Takes a head, an input size and raw maps; gives what all decoders share: entries in, places and boxes out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode.anchors import anchors_at, base_anchors
from harness.detect.decode.box_coder import decode_deltas
from harness.detect.decode.boxes import Boxes, Maps
from harness.detect.decode.entries import Entries, FloatArray, IndexArray
from harness.detect.decode.on_device import device_entries
from harness.detect.decode.on_host import HostEntries
from harness.detect.decode.outputs import are_arrays, check_outputs
from harness.detect.decode.scores import best_first

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry
    from harness.model.mmdet import HeadSpec, InputSpec


@dataclass(frozen=True)
class Candidates:
    """Entries whose score counts, level after level.

    positions: `[K]` in the `Entries`, ascending.
    levels, anchors, labels: `[K]`; an anchor's number is cell * anchors per cell + kind, as mmdet counts.
    scores: `[K]`.
    """

    positions: IndexArray
    levels: IndexArray
    anchors: IndexArray
    labels: IndexArray
    scores: FloatArray

    def take(self, kept: IndexArray) -> "Candidates":
        """Those at `kept`, ascending."""
        return Candidates(
            self.positions[kept], self.levels[kept], self.anchors[kept], self.labels[kept], self.scores[kept]
        )

    def slices(self, num_levels: int) -> list[slice]:
        """Where each level lies among them."""
        counts = np.bincount(self.levels, minlength=num_levels)
        return [slice(end - count, end) for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True)]


class DenseDecoder(ABC):
    """A head that predicts from anchors at every cell. Immutable, so any number of threads may share one."""

    def __init__(self, head: "HeadSpec", input_spec: "InputSpec") -> None:
        self._head = head
        self._input_spec = input_spec
        self._strides = np.array(head.strides)
        self._base_anchors = np.concatenate([base_anchors(head, stride) for stride in head.strides]).T.copy()
        self._columns = -(-input_spec.width // self._strides)
        self._num_cells = -(-input_spec.height // self._strides) * self._columns
        starts = np.cumsum([0, *self._num_cells[:-1]])
        self._first_anchors = starts * head.num_anchors

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
        found: Iterable[Entries] = (HostEntries(outputs, row, self._head) for row in rows)
        if not are_arrays(outputs):
            found = device_entries(outputs, rows, self._head)
        return [self._finish(entries, geometry) for entries, geometry in zip(found, geometries, strict=True)]

    @abstractmethod
    def _finish(self, entries: Entries, geometry: "Geometry") -> Boxes:
        """The boxes of one image."""

    def _above_threshold(self, entries: Entries, scores: FloatArray) -> Candidates:
        """The entries whose score `[K]` is greater than `score_thr`."""
        positions = np.flatnonzero(scores > np.float32(self._head.score_thr))
        ends = np.searchsorted(positions, np.cumsum(entries.counts))
        levels = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        indices, num_cells = entries.indices[positions], self._num_cells[levels]
        channels = indices // num_cells
        kinds = channels // self._head.num_classes
        cells = indices - channels * num_cells
        labels = channels - kinds * self._head.num_classes
        return Candidates(positions, levels, cells * self._head.num_anchors + kinds, labels, scores[positions])

    def _tie_keys(self, found: Candidates, anchors: IndexArray) -> IndexArray:
        """Equal scores come by level, then by `anchors` `[K]`, then by label."""
        return (self._first_anchors[found.levels] + anchors) * self._head.num_classes + found.labels

    def _in_input(self, entries: Entries, found: Candidates, geometry: "Geometry") -> FloatArray:
        """Boxes `[4, K]` xyxy in pixels of the input, clipped to the photograph in it."""
        head = self._head
        cells = found.anchors // head.num_anchors
        rows = cells // self._columns[found.levels]
        anchors = anchors_at(
            self._base_anchors.take((found.levels - cells) * head.num_anchors + found.anchors, axis=1),
            rows,
            cells - rows * self._columns[found.levels],
            self._strides[found.levels],
        )
        deltas = entries.deltas(found.positions)
        return decode_deltas(
            anchors, deltas, head.target_means, head.target_stds, geometry.content_height, geometry.content_width
        )


def best_of_levels(found: Candidates, tie_keys: IndexArray, limit: int) -> Candidates:
    """The `limit` best candidates of each level (all when it is not positive), still in ascending order."""
    counts = np.bincount(found.levels)
    if limit <= 0 or counts.max(initial=0) <= limit:
        return found
    levels = found.slices(len(counts))
    best = [level.start + np.sort(best_first(found.scores[level], tie_keys[level], limit)) for level in levels]
    return found.take(np.concatenate(best))
