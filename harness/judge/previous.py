"""Takes two recorded runs and their data set; gives one verdict per check: did the second lose anything?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np

from harness.detect.dataset import Dataset
from harness.errors import RecordError
from harness.judge.accuracy import METRICS, Metric
from harness.judge.record import Record, Recorded
from harness.judge.verdict import GREEN, Status, Verdict
from harness.measure.compare import CONFIDENT, Comparison

Relation = Literal["same file", "rebuilt", "other precision", "other weights"]
ALPHA = 0.01
"""One-sided chance of a false alarm, of all cells of a comparison together: 2.33 standard errors for one."""


@dataclass(frozen=True)
class Margins:
    """What a pair of runs may differ by without being worse.

    map_50_95, map_50, worst_class: absolute AP. agreement: least AP against the boxes before. bias: of the side, and
    in pixels. count: fraction of the boxes in a band of scores.
    """

    map_50_95: float
    map_50: float
    worst_class: float
    agreement: float
    bias: float
    bias_px: float
    count: float


# Seen on both embedded models, 256 images, on a CPU; 190 pairs of runs by onnxruntime, openvino, torch and aotinductor,
# each in both directions: largest fall of AP, of AP50 and of a class; least agreement; largest bias of the side and in
# pixels; largest change of a band of scores. The 40 pairs of one engine and precision, built again for another batch or
# number of threads, have the same bits. What a rebuild may do elsewhere is bounded by the pairs that differ:
#   fp32, another engine: 0.0000 0.0000 0.0000; 0.9993; 0.0000 0.000; 0.000
#   fp16 and fp32:        0.0000 0.0001 0.0025; 0.9968; 0.0000 0.002; 0.000
#   int8, another engine: 0.0005 0.0017 0.0060; 0.9091; 0.0006 0.027; 0.009
#   int8 and fp32, fp16:  0.0028 0.0046 0.0148; 0.9009; 0.0078 0.331; 0.075
_SAME = Margins(0.0005, 0.001, 0.005, 0.995, 0.002, 0.1, 0.005)
_FP16 = Margins(0.002, 0.004, 0.01, 0.98, 0.002, 0.1, 0.01)
_INT8 = Margins(0.002, 0.004, 0.02, 0.88, 0.002, 0.1, 0.03)
_TO_INT8 = Margins(0.005, 0.01, 0.03, 0.85, 0.015, 0.6, 0.15)
# By relation and the coarser of the two precisions. Other weights are judged on AP alone.
MARGINS: dict[tuple[Relation, str], Margins] = {
    ("same file", "fp32"): _SAME,
    ("same file", "fp16"): _SAME,
    ("same file", "int8"): _SAME,
    ("rebuilt", "fp32"): _SAME,
    ("rebuilt", "fp16"): _FP16,
    ("rebuilt", "int8"): _INT8,
    ("other precision", "fp16"): _FP16,
    ("other precision", "int8"): _TO_INT8,
    ("other weights", "fp32"): _FP16,
    ("other weights", "fp16"): _FP16,
    ("other weights", "int8"): _TO_INT8,
}
_COARSENESS = ("fp32", "fp16", "int8")
# Boxes that may change their band beside the margin's fraction: a few near a border, on small data sets.
COUNT_SLACK = 3


def relation(before: Record, after: Record) -> Relation:
    """What the second run changed, as far as margins depend on it.

    "same file": the same engine file on the same runtime, device and options. "rebuilt": another file, runtime, device
    or engine, in the same precision. Weights that a run did not see count as the same where the model is.
    """
    weights = {before.artifacts.weights, after.artifacts.weights} - {None}
    if before.model != after.model or len(weights) > 1:
        return "other weights"
    if before.precision != after.precision:
        return "other precision"
    return "same file" if _ran(before) == _ran(after) and before.artifacts.engine is not None else "rebuilt"


def _ran(record: Record) -> tuple[object, ...]:
    return (record.engine, record.artifacts.engine, record.engine_version, record.options, record.device)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs on `dataset`, the first the one that was good; `inspect` is the command that shows more of them.

    Raises:
        RecordError: one of the runs was on other data.
    """

    dataset: Dataset
    before: Recorded
    after: Recorded
    inspect: str

    def __post_init__(self) -> None:
        before, after = self.before.record, self.after.record
        if before.dataset.sha256 != after.dataset.sha256:
            raise RecordError(
                f"the first run, {before.id}, was on {_data(before)}; the second, {after.id}, on {_data(after)}: "
                "wanted the same data",
                "run one of them again on the other's data: --dataset, --data-dir, --limit",
            )
        if before.dataset.sha256 != self.dataset.sha256:
            raise RecordError(
                f"{before.id} was run on {_data(before)}; found {self.dataset.name}, "
                f"{len(self.dataset.images)} images, {self.dataset.sha256[:12]}…",
                "give the folder of the data set that it was run on: --data-dir DIR",
            )

    @property
    def cell(self) -> str:
        """What verdicts are called by: the second run's cell."""
        return self.after.record.id

    @cached_property
    def relation(self) -> Relation:
        """What the second run changed."""
        return relation(self.before.record, self.after.record)

    @cached_property
    def margins(self) -> Margins:
        """By relation and precision."""
        coarser = max(self.before.record.precision, self.after.record.precision, key=_COARSENESS.index)
        return MARGINS[self.relation, coarser]

    @cached_property
    def comparison(self) -> Comparison:
        """The figures."""
        return Comparison(self.dataset, self.before.detections, self.after.detections)

    def verdict(
        self, check: str, status: Status, reason: str, figure: float, expected: float, tolerance: float
    ) -> Verdict:
        """A verdict of this pair; one that fails names `inspect`."""
        remedy = "" if status in GREEN else self.inspect
        return Verdict(self.cell, "against", check, status, reason, figure, expected, tolerance, remedy)


def _data(record: Record) -> str:
    data = record.dataset
    return f"{data.name}, {data.images} images, {data.sha256[:12]}…"


@dataclass(frozen=True, eq=False)
class Family:
    """The pairs that are judged together, and the number of tests that their p is corrected for, at least as many."""

    pairs: Sequence[Pair]
    tests: int

    def chances(self, pair: Pair, metric: Metric) -> tuple[float, float]:
        """Corrected one-sided p of being worse and of being better; 1 where the change is within its margin."""
        at = next(place for place, one in enumerate(self.pairs) if one is pair)
        worse, better = zip(*(_chances(one, metric) for one in self.pairs), strict=True)
        return holm(worse, self.tests)[at], holm(better, self.tests)[at]


Check = Callable[[Pair, Family], Verdict]


def _chances(pair: Pair, metric: Metric) -> tuple[float, float]:
    change, margin = pair.comparison.change(metric), getattr(pair.margins, metric)
    if abs(change) < margin:  # no verdict depends on it, and the bootstrap takes long
        return 1.0, 1.0
    worse = pair.comparison.differences[metric].p_worse
    return worse, 1 - worse


def holm(chances: Sequence[float], tests: int) -> list[float]:
    """p corrected for `tests` tests, of which these are the smallest or all.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979); with one p, Bonferroni's.
    """
    p = np.asarray(chances, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (tests - np.arange(len(p))))
    found = np.empty_like(p)
    found[order] = np.minimum(steps, 1.0)
    return [float(value) for value in found]


def judge(pair: Pair, check: str, tests: int = 1) -> Verdict:
    """One of CHECKS; runs that are not comparable fail all of them, the same bits pass all of them at once.

    Args:
        tests: cells that are judged one by one, this one among them; p is multiplied by it, which is Holm's first step.
    """
    return _early(pair) or CHECKS[check](pair, Family([pair], tests))


def judge_all(pairs: Sequence[Pair]) -> list[list[Verdict]]:
    """Every check of every pair, p corrected over the pairs (Holm); one verdict where `judge` needs no more."""
    early = [_early(pair) for pair in pairs]
    left = [pair for pair, verdict in zip(pairs, early, strict=True) if verdict is None]
    family = Family(left, len(left))
    return [
        [verdict] if verdict is not None else [check(pair, family) for check in CHECKS.values()]
        for pair, verdict in zip(pairs, early, strict=True)
    ]


def _early(pair: Pair) -> Verdict | None:
    found = integrity(pair)
    if found.status is not Status.PASS:
        return found
    return identical(pair) if pair.comparison.identical else None


# --- the checks


def integrity(pair: Pair, _family: Family | None = None) -> Verdict:
    """Both runs saw every image of the data set and found something, in categories that it has."""
    wanted = {record.id for record in pair.dataset.images}
    faults = []
    for run in (pair.before, pair.after):
        found = run.detections
        lost, extra = wanted - set(found.images.tolist()), set(found.images.tolist()) - wanted
        if lost or extra:
            faults.append(f"{run.record.id} lost {len(lost)} of {len(wanted)} images and has {len(extra)} unknown ones")
        if not len(found):
            faults.append(f"{run.record.id} has no detection at all")
        strange = np.setdiff1d(found.category_id, pair.dataset.category_ids)
        if strange.size:
            faults.append(f"{run.record.id} has {strange.size} unknown categories, first {strange[0]}")
    before, after = len(pair.before.detections), len(pair.after.detections)
    if faults:
        return pair.verdict("integrity", Status.INVALID, "; ".join(faults), after, before, 0)
    reason = f"every one of {len(wanted)} images in both runs, {before} and {after} boxes"
    return pair.verdict("integrity", Status.PASS, reason, after, before, 0)


def identical(pair: Pair) -> Verdict:
    """What the same bits end in."""
    boxes = len(pair.after.detections)
    ap = pair.after.record.metrics["map_50_95"]
    reason = f"all {boxes} detections have the same bits (AP {ap:.4f})"
    return pair.verdict("identical", Status.PASS, reason, boxes, boxes, 0)


def average_precision(pair: Pair, family: Family, metric: Metric) -> Verdict:
    """REGRESSED where AP fell by its margin or more, and by more than the choice of images explains; or IMPROVED."""
    before, after = (float(getattr(one, metric)) for one in pair.comparison.metrics)
    change, margin = pair.comparison.change(metric), float(getattr(pair.margins, metric))
    worse, better = family.chances(pair, metric)
    reason = f"{before:.4f} -> {after:.4f} ({change:+.4f}), margin {margin:g}"
    status, interval = Status.PASS, None
    if abs(change) >= margin:
        low, high = interval = pair.comparison.differences[metric].interval()
        reason += f", 95 % interval {low:+.4f} to {high:+.4f}, p {_p(min(worse, better))}"
        reason += f" of {family.tests} cells" if family.tests > 1 else ""
        if min(worse, better) < ALPHA:
            status = Status.REGRESSED if worse < better else Status.IMPROVED
        else:
            reason += f": may be chance, p < {ALPHA:g} fails"
    return replace(pair.verdict(metric, status, reason, after, before, margin), interval=interval)


def detections(pair: Pair, _family: Family) -> Verdict:
    """AP of the second run's boxes, with the first one's as ground truth."""
    least, found = pair.margins.agreement, pair.comparison.agreement
    if found is None:
        return _nothing(pair, "detections", f"the first run has no box with a score above {CONFIDENT:g}")
    reason = f"AP {found:.4f} against the boxes of the first run (score > {CONFIDENT:g}), wanted {least:g} or more"
    status = Status.PASS if found >= least else Status.REGRESSED
    return pair.verdict("detections", status, reason, found, 1.0, 1 - least)


def box_bias(pair: Pair, _family: Family) -> Verdict:
    """Boxes are not shifted or scaled: the median change of matched ones."""
    if pair.comparison.bias is None:
        return _nothing(pair, "box_bias", f"no box of the first run (score > {CONFIDENT:g}) has a partner")
    of_side, pixels = pair.comparison.bias
    limit, limit_px = pair.margins.bias, pair.margins.bias_px
    within = bool((abs(of_side) < limit).all() and (abs(pixels) < limit_px).all())
    worst, worst_px = int(abs(of_side).argmax()), int(abs(pixels).argmax())
    reason = (
        f"median of {len(pair.comparison.matches.before)} boxes: {of_side[worst]:+.2%} of the side in {'xywh'[worst]}, "
        f"{pixels[worst_px]:+.3f} px in {'xywh'[worst_px]}, wanted under {limit:.1%} and {limit_px:g} px"
    )
    status = Status.PASS if within else Status.REGRESSED
    return pair.verdict("box_bias", status, reason, float(of_side[worst]), 0.0, limit)


def count(pair: Pair, _family: Family) -> Verdict:
    """As many boxes as before in every band of scores, and no image that lost all of them."""
    limit, emptied = pair.margins.count, pair.comparison.emptied
    bands = [f"{band.before} -> {band.after} from {band.low:g} to {band.high:g}" for band in pair.comparison.bands]
    outside = [abs(band.after - band.before) > max(COUNT_SLACK, limit * band.before) for band in pair.comparison.bands]
    reason = f"boxes by score: {', '.join(bands)}; wanted within {limit:.1%}"
    if emptied.size:
        first = ", ".join(map(str, emptied[:3]))
        reason += f"; {emptied.size} images lost all boxes (first {first})"
    status = Status.REGRESSED if any(outside) or emptied.size else Status.PASS
    return pair.verdict("count", status, reason, len(pair.after.detections), len(pair.before.detections), limit)


def worst_class(pair: Pair, family: Family) -> Verdict:
    """No class fell by its margin or more, and by more than the choice of images explains."""
    margin, classes = pair.margins.worst_class, pair.comparison.classes
    falls = sorted(classes, key=lambda name: classes[name][1] - classes[name][0])
    suspects = [name for name in falls if classes[name][0] - classes[name][1] >= margin]
    chances = [pair.comparison.class_difference(name).p_worse for name in suspects]
    corrected = holm(chances, family.tests * len(classes))
    guilty = [name for name, chance in zip(suspects, corrected, strict=True) if chance < ALPHA]
    worst = (guilty or falls)[0]
    before, after = classes[worst]
    reason = f"{worst} {before:.4f} -> {after:.4f} ({after - before:+.4f}), margin {margin:g}"
    if guilty:
        reason += f", p {_p(corrected[suspects.index(worst)])} of {len(classes)} classes"
    elif suspects:
        reason += ", which may be chance"
    status = Status.REGRESSED if guilty else Status.PASS
    return pair.verdict("worst_class", status, reason, after, before, margin)


def _p(chance: float) -> str:
    return "under 1e-6" if chance < 1e-6 else f"{chance:.2g}"


def _nothing(pair: Pair, check: str, reason: str) -> Verdict:
    """Nothing to judge by: that must not pass."""
    return Verdict(pair.cell, "against", check, Status.INVALID, reason, remedy=pair.inspect)


def _of_boxes(check: Check) -> Check:
    """Other weights find other boxes: nothing to judge."""

    def judged(pair: Pair, family: Family) -> Verdict:
        if pair.relation == "other weights":
            reason = "other weights than the first run's: their boxes are not compared"
            return Verdict(pair.cell, "against", check.__name__, Status.RECORDED, reason, remedy=pair.inspect)
        return check(pair, family)

    return judged


CHECKS: dict[str, Check] = {
    "integrity": integrity,
    **{metric: partial(average_precision, metric=metric) for metric in METRICS},
    "detections": _of_boxes(detections),
    "box_bias": _of_boxes(box_bias),
    "count": _of_boxes(count),
    "worst_class": worst_class,
}
"""By name, in the order in which they are shown."""
