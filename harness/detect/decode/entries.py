"""Takes nothing; gives the types of what is read off one image's raw maps: the few entries whose scores may count."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Entries:
    """The entries of one image's class maps whose score may be greater than `score_thr`, in any order.

    places: `[K]`, anchor * number of classes + label; anchors are counted through all levels, each as mmdet does it:
        cell * anchors per cell + kind.
    logits: `[K]` of the class.
    iou_logits: `[K]` of the entries' anchors, `[0]` where the head has none.
    deltas: `[K, 4]` of the entries' anchors.
    """

    places: IndexArray
    logits: FloatArray
    iou_logits: FloatArray
    deltas: FloatArray
