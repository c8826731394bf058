"""Takes nothing; gives the result type of decoding and the protocol that every decoder follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry


@dataclass(frozen=True)
class Boxes:
    """The detections of one image, in the order in which mmdet gives them.

    boxes: `[K, 4]` float32, xyxy, pixels of the original image.
    scores: `[K]` float32.
    labels: `[K]` int64, 0..num_classes-1.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


class Decoder(Protocol):
    """Turns raw head maps into detections."""

    def decode(self, outputs: Mapping[str, npt.NDArray[Any]], geometries: Sequence["Geometry"]) -> list[Boxes]:
        """One `Boxes` per geometry.

        Args:
            outputs: the maps that `HeadSpec.output_names` names, each `[N, C, ceil(H / stride), ceil(W / stride)]`
                float32 or float16 (widened to float32 first), N >= len(geometries); rows beyond are not read.
            geometries: of the images in the first rows.

        Raises:
            DecodeError: wrong names, shapes or types.
        """
        ...
