"""Takes a `Dataset` and the `Detections` of two runs on it; gives how they differ: in AP, in boxes, in counts."""

import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.measure.curves import ABSENT
from harness.measure.evaluate import CocoMetrics, evaluate, evaluate_against, evaluator

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BOOTSTRAPS, SEED = 1000, 0
# hotcoco takes each image of a resample once: sqrt(0.368 / 0.632) of the spread that repeats would give.
RESAMPLED_ONCE = (0.632 / 0.368) ** 0.5
CONFIDENT = 0.3
"""Scores above it are boxes that a user of the detector would look at."""
SAME_BOX_IOU = 0.5
BANDS = (0.0, 0.1, CONFIDENT, 1.0)
_KEYS = {"map_50_95": "AP", "map_50": "AP50"}  # hotcoco's names
_NORMAL = statistics.NormalDist()


@dataclass(frozen=True)
class Difference:
    """A figure before and after, absolute AP, with the standard error of their paired difference over images."""

    before: float
    after: float
    standard_error: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def p_worse(self) -> float:
        """One-sided p of a change this low or lower where there is none."""
        if self.standard_error == 0:
            return 0.5 if self.change == 0 else float(self.change > 0)
        return _NORMAL.cdf(self.change / self.standard_error)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the change, by the normal distribution."""
        half = _NORMAL.inv_cdf(0.5 + confidence / 2) * self.standard_error
        return self.change - half, self.change + half


@dataclass(frozen=True, eq=False)
class Matches:
    """Boxes of both runs that are the same: indices `[N]` into the detections before and after."""

    before: Integers
    after: Integers


@dataclass(frozen=True)
class Band:
    """How many boxes have a score from `low` up to `high`."""

    low: float
    high: float
    before: int
    after: int


@dataclass(frozen=True)
class ImageChange:
    """What became of the confident boxes of one image; `iou` is the lowest of a matched pair, 1 where there is none."""

    image_id: int
    boxes: int
    lost: int
    won: int
    iou: float

    @property
    def differs(self) -> bool:
        """A box was lost or won, or moved by more than rounding does."""
        return bool(self.lost or self.won) or self.iou < 1 - 1e-3


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two runs on one data set; every figure is computed when it is first asked for.

    The AP of `before` and `after` are those of `evaluate`. Intervals take minutes on 5,000 images, the rest seconds.

    Raises:
        EvaluationError: on first use, what `evaluate` refuses.
    """

    dataset: Dataset
    before: Detections
    after: Detections

    @cached_property
    def identical(self) -> bool:
        """The detections have the same bits."""
        return self.before.identical(self.after)

    @cached_property
    def metrics(self) -> tuple[CocoMetrics, CocoMetrics]:
        """COCO's numbers before and after."""
        return evaluate(self.dataset, self.before), evaluate(self.dataset, self.after)

    def change(self, metric: str) -> float:
        """After less before of `map_50_95` or `map_50`."""
        before, after = self.metrics
        # 0.331 - 0.333 is a little under -0.002 in binary
        return round(float(getattr(after, metric) - getattr(before, metric)), 9)

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """`map_50_95` and `map_50`, by a paired bootstrap over the images."""
        return self._bootstrapped(list(self.dataset.category_ids))

    @cached_property
    def classes(self) -> dict[str, tuple[float, float]]:
        """AP before and after of every class that has ground truth."""
        before, after = (metrics.per_class for metrics in self.metrics)
        return {name: (before[name], after[name]) for name in before if before[name] != ABSENT}

    def class_difference(self, name: str) -> Difference:
        """AP of one class, by the same bootstrap."""
        category = self.dataset.category_ids[self.dataset.category_names.index(name)]
        return self._bootstrapped([category])["map_50_95"]

    def _bootstrapped(self, categories: list[int]) -> dict[str, Difference]:
        import hotcoco

        before, after = (evaluator(self.dataset, one, categories) for one in (self.before, self.after))
        before.evaluate()
        after.evaluate()
        found = hotcoco.compare(before, after, n_bootstrap=BOOTSTRAPS, seed=SEED)
        return {
            metric: Difference(
                found["metrics_a"][key], found["metrics_b"][key], RESAMPLED_ONCE * found["ci"][key]["std_err"]
            )
            for metric, key in _KEYS.items()
        }

    @cached_property
    def agreement(self) -> float | None:
        """AP of the boxes after with the confident ones before as ground truth; None where there are none."""
        truth = self.before.above(CONFIDENT)
        return evaluate_against(self.dataset, truth, self.after) if len(truth) else None

    @cached_property
    def matches(self) -> Matches:
        """The boxes of both runs that are the same: see `match`."""
        return match(self.before, self.after)

    @cached_property
    def bias(self) -> tuple[Floats, Floats] | None:
        """Median signed change of x, y, w, h of matched boxes: `[4]` as fractions of the side, `[4]` in pixels.

        None where no box has a partner.
        """
        before, after = self.before.xywh[self.matches.before], self.after.xywh[self.matches.after]
        if not len(before):
            return None
        pixels = after.astype(np.float64) - before
        sides = np.maximum(before[:, [2, 3, 2, 3]].astype(np.float64), 1e-6)
        return np.median(pixels / sides, axis=0), np.median(pixels, axis=0)

    @cached_property
    def bands(self) -> tuple[Band, ...]:
        """Number of boxes by score."""
        before, after = (np.histogram(one.score, BANDS)[0].tolist() for one in (self.before, self.after))
        return tuple(Band(*row) for row in zip(BANDS[:-1], BANDS[1:], before, after, strict=True))

    @cached_property
    def emptied(self) -> Integers:
        """Images that had a confident box before and have none of any score after."""
        seen = np.unique(self.before.image_id[self.before.score > CONFIDENT])
        return np.setdiff1d(seen, self.after.image_id)

    @cached_property
    def images(self) -> tuple[ImageChange, ...]:
        """Images whose confident boxes changed, most lost and won first, then by the worst matched pair."""
        sure_before, sure_after = self.before.score > CONFIDENT, self.after.score > CONFIDENT
        lost, won = sure_before.copy(), sure_after.copy()
        lost[self.matches.before], won[self.matches.after] = False, False
        iou = np.ones(len(self.before))
        iou[self.matches.before] = pairwise_iou(
            self.before.xywh[self.matches.before], self.after.xywh[self.matches.after]
        )
        ids = np.sort(self.before.images)
        boxes, gone, new = (
            np.bincount(np.searchsorted(ids, image_id), minlength=len(ids)).tolist()
            for image_id in (
                self.before.image_id[sure_before],
                self.before.image_id[lost],
                self.after.image_id[won],
            )
        )
        lowest = np.ones(len(ids))
        np.minimum.at(lowest, np.searchsorted(ids, self.before.image_id), iou)
        rows = zip(ids.tolist(), boxes, gone, new, lowest.tolist(), strict=True)
        changed = [change for change in (ImageChange(*row) for row in rows) if change.differs]
        return tuple(sorted(changed, key=lambda change: (-change.lost - change.won, change.iou, change.image_id)))


def match(before: Detections, after: Detections) -> Matches:
    """Confident boxes before and their partners after, of any score: the highest IoU first, each box once."""
    chosen = np.flatnonzero(before.score > CONFIDENT)
    pairs = [np.zeros((0, 2), np.int64)]
    others = _by_group(after, np.arange(len(after)))
    for group, rows in _by_group(before, chosen).items():
        if group in others:
            pairs.append(_matched(before.xywh, rows, after.xywh, others[group]))
    found = np.concatenate(pairs)
    return Matches(found[:, 0], found[:, 1])


def _by_group(detections: Detections, rows: Integers) -> dict[tuple[int, int], Integers]:
    """`rows` by image and category."""
    groups: dict[tuple[int, int], list[int]] = {}
    keys = zip(detections.image_id[rows].tolist(), detections.category_id[rows].tolist(), strict=True)
    for row, key in zip(rows.tolist(), keys, strict=True):
        groups.setdefault(key, []).append(row)
    return {key: np.array(group, np.int64) for key, group in groups.items()}


def _matched(
    before: npt.NDArray[np.float32], rows: Integers, after: npt.NDArray[np.float32], others: Integers
) -> Integers:
    """`[N, 2]` pairs of rows with IoU of at least SAME_BOX_IOU, the highest first, each row once."""
    iou = pairwise_iou(before[rows][:, None], after[others][None])
    pairs = []
    while iou.max() >= SAME_BOX_IOU:
        i, j = divmod(int(iou.argmax()), len(others))
        pairs.append((rows[i], others[j]))
        iou[i], iou[:, j] = -1, -1
    return np.array(pairs, np.int64).reshape(-1, 2)


def pairwise_iou(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Floats:
    """IoU of boxes `[..., 4]` xywh, with numpy's broadcasting; 0 of two empty ones."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = np.maximum(high - low, 0).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared
    iou: Floats = shared / np.maximum(union, 1e-12)
    return iou
