"""Takes nothing; gives the protocol for what is read off one image's raw maps: the few entries that may count."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]


class Entries(Protocol):
    """The entries of one image's class maps that exceed a floor, level after level, each level's in any order."""

    @property
    def levels(self) -> IndexArray:
        """`[K]`, ascending."""
        ...

    @property
    def anchors(self) -> IndexArray:
        """`[K]`: cell * anchors per cell + kind, as mmdet counts them in a level."""
        ...

    @property
    def labels(self) -> IndexArray:
        """`[K]`, 0..num_classes-1."""
        ...

    @property
    def logits(self) -> FloatArray:
        """`[K]` class logits, widened to float32."""
        ...

    @property
    def iou_logits(self) -> FloatArray:
        """`[K]` of the same anchors, widened to float32; without meaning where the head has no IoU maps."""
        ...

    def deltas(self, positions: IndexArray) -> FloatArray:
        """`[k, 4]` of the anchors of the entries at `positions` `[k]` in 0..K-1; widened to float32."""
        ...
