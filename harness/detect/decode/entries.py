"""Takes nothing; gives the types of what is read off one image's raw maps: the few entries whose scores count."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Entries:
    """The entries of one image's class maps whose score is greater than `score_thr`, in any order.

    keys: `[K]`, `kernels.rank_keys` of the score, the anchor (all levels counted through, each as mmdet does it:
        cell * anchors per cell + kind) and the label.
    deltas: `[K, 4]` of the entries' anchors.
    """

    keys: KeyArray
    deltas: FloatArray


@dataclass(frozen=True)
class Candidates:
    """Columns of entries, best first; equal scores come by level, then by anchor, then by label.

    scores: `[K]` float32.
    levels: `[K]` int64.
    anchors: `[K]` int64, counted in the level.
    labels: `[K]` int64, 0..num_classes-1.
    deltas: `[K, 4]` float32.
    """

    scores: FloatArray
    levels: IndexArray
    anchors: IndexArray
    labels: IndexArray
    deltas: FloatArray

    def at(self, positions: IndexArray) -> "Candidates":
        """Those at `positions` `[k]` in 0..K-1, in that order."""
        return Candidates(
            self.scores.take(positions),
            self.levels.take(positions),
            self.anchors.take(positions),
            self.labels.take(positions),
            self.deltas.take(positions, axis=0),
        )
