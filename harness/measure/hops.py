"""Takes what two neighbouring stages made of the same images; gives what the hop between them cost, by output."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.measure.compare import CONFIDENT, Comparison, pairwise_iou
from harness.model.parity import Deviation, deviations, incomparable
from harness.tolerances import Step

IN_PLACE_IOU = 0.9
"""A box that a hop moved further than this from where it was is not the same for who looks at it."""


@dataclass(frozen=True, eq=False)
class Stage:
    """What one stage made of some images.

    step: what made it of the stage before. maps: raw maps by name, `[N, C, h, w]`. detections: decoded from them; None
    where a map holds NaN or Inf.
    """

    name: str
    step: Step
    maps: Mapping[str, npt.NDArray[np.float32]]
    detections: Detections | None


@dataclass(frozen=True)
class Hop:
    """From one stage to the next.

    step: what was done. outputs: the largest relative error first; empty where names or shapes differ.
    broken: names or shapes that differ, or NaN or Inf; empty where there is none.
    map_50_95: AP on these images before and after; None where boxes cannot be decoded.
    matched: share of the confident boxes before (score > 0.3) that have a partner after with IoU of at least 0.9;
        None where there are none, or boxes cannot be decoded.
    image: of which image, counted from 0, the worst output is furthest off.
    """

    before: str
    after: str
    step: Step
    outputs: tuple[Deviation, ...]
    broken: str = ""
    map_50_95: tuple[float, float] | None = None
    matched: float | None = None
    image: int = 0

    @property
    def name(self) -> str:
        """`int8 graph -> tensorrt`."""
        return f"{self.before} -> {self.after}"

    @property
    def worst(self) -> Deviation | None:
        """The output with the largest relative error."""
        return self.outputs[0] if self.outputs else None

    @property
    def change(self) -> float | None:
        """AP after less before."""
        return None if self.map_50_95 is None else round(self.map_50_95[1] - self.map_50_95[0], 9)


def hop(dataset: Dataset, before: Stage, after: Stage) -> Hop:
    """What the hop cost on the images of `dataset`."""
    shift = incomparable(before.maps, after.maps)
    broken = "" if shift is None else f"output '{shift.output}': wanted {shift.wanted}, found {shift.found}"
    outputs = tuple(deviations(before.maps, after.maps)) if _shapes(before) == _shapes(after) else ()
    found = Hop(before.name, after.name, after.step, outputs, broken)
    if found.worst is not None:
        found = replace(found, image=_furthest(before.maps[found.worst.output], after.maps[found.worst.output]))
    if before.detections is None or after.detections is None:
        return found
    compared = Comparison(dataset, before.detections, after.detections)
    one, other = compared.metrics
    return replace(found, map_50_95=(one.map_50_95, other.map_50_95), matched=_in_place(compared))


def _shapes(stage: Stage) -> dict[str, tuple[int, ...]]:
    return {name: maps.shape for name, maps in stage.maps.items()}


def _furthest(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> int:
    """The row with the largest L2 distance; the first that holds NaN or Inf, where one does."""
    with np.errstate(invalid="ignore"):  # Inf less Inf
        distances = [float(np.linalg.norm(other - one)) for one, other in zip(before, after, strict=True)]
    return int(np.argmax(np.nan_to_num(distances, nan=np.inf, posinf=np.inf)))


def _in_place(compared: Comparison) -> float | None:
    confident = int((compared.before.score > CONFIDENT).sum())
    if not confident:
        return None
    before, after = compared.matches.before, compared.matches.after
    iou = pairwise_iou(compared.before.xywh[before], compared.after.xywh[after])
    return float((iou >= IN_PLACE_IOU).sum()) / confident
