"""Takes nothing; gives the protocol for what is read off one image's raw maps: the few entries that may count."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]


class Entries(Protocol):
    """The entries of one image's class maps that exceed a floor: level after level, each level's in its map's order."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Entries of each level; K is their sum."""
        ...

    @property
    def indices(self) -> IndexArray:
        """`[K]` into the level's flattened class map."""
        ...

    @property
    def logits(self) -> FloatArray:
        """`[K]` class logits, widened to float32."""
        ...

    @property
    def iou_logits(self) -> FloatArray:
        """`[K]` of the same anchors, widened to float32; empty where the head has no IoU maps."""
        ...

    def deltas(self, positions: IndexArray) -> FloatArray:
        """`[4, k]` of the anchors of the entries at `positions` `[k]`, ascending in 0..K-1; widened to float32."""
        ...
