"""Takes nothing; gives the result type of decoding and the protocol that every decoder follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from harness.detect.preprocess import Geometry

# Raw maps by output name: all numpy arrays, or all torch tensors of whatever device.
Maps = Mapping[str, Any]


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
    """Turns raw head maps into detections; any number of threads may share one."""

    def check(self, outputs: Maps, images: int) -> None:
        """Accept the raw maps of a batch of at least `images` rows.

        Args:
            outputs: the maps that `HeadSpec.output_names` names, each `[N, C, ceil(H / stride), ceil(W / stride)]`
                float32 or float16 (widened to float32 first): numpy arrays, or torch tensors of any device.

        Raises:
            DecodeError: wrong names, shapes or types.
        """
        ...

    def decode(self, outputs: Maps, geometries: Sequence["Geometry"]) -> list[Boxes]:
        """One `Boxes` per geometry, after `check`.

        Args:
            geometries: of the images in the first rows of the maps; rows beyond are not read.

        Raises:
            DecodeError: wrong names, shapes or types.
            NotFinite: NaN or Inf anywhere in the rows that are read.
        """
        ...

    def decode_image(self, outputs: Maps, row: int, geometry: "Geometry") -> Boxes:
        """The `Boxes` of one row of maps that `check` has accepted.

        Raises:
            NotFinite: NaN or Inf anywhere in this row.
        """
        ...
