"""Takes a cell's results and what it was before; gives its tables: figures beside what they are held to, and bars."""

from collections.abc import Mapping, Sequence

from harness.judge.verdict import Status
from harness.measure.curves import ABSENT, Curves
from harness.report.page.changes import Since
from harness.report.page.shown import Bar, Bars, Check, FigureRow
from harness.report.page.sources import Source
from harness.report.page.words import signed
from harness.report.results import AccuracyResult, ChecksResult, PerformanceResult

NONE = "–"
CLASSES_SHOWN = 10
METRICS = {"map_50_95": "mAP@0.5:0.95", "map_50": "mAP@0.5"}
SIZES = {
    "map_50_95": "all sizes",
    "map_small": "small (under 32² px)",
    "map_medium": "medium",
    "map_large": "large (over 96² px)",
}


def figures(source: Source, since: Since | None) -> tuple[FigureRow, ...]:
    """mAP and FPS, where they were measured."""
    cell = source.cell
    rows = [_accuracy(cell.accuracy, metric, since) for metric in METRICS] if cell.accuracy else []
    speed = [_speed(cell.performance, source)] if cell.performance and cell.performance.fps is not None else []
    return (*(row for row in rows if row.found != NONE), *speed)


def _accuracy(part: AccuracyResult, metric: str, since: Since | None) -> FigureRow:
    found: float | None = getattr(part, metric)
    expected = (part.expected or {}).get(metric)
    change = since.changes[metric] if since else None
    interval = change.interval if change else None
    return FigureRow(
        name=METRICS[metric],
        found=_fixed(found),
        expected=_fixed(expected),
        tolerance=NONE if part.tolerance is None or expected is None else f"−{part.tolerance:g}",
        margin=NONE if found is None or expected is None else signed(found - expected),
        before=_fixed(change.before if change else None),
        change="same bits" if since and since.identical else signed(change.change) if change else NONE,
        interval=f"{signed(interval[0])} to {signed(interval[1])}" if interval else "",
        status=_status(part, found, expected),
    )


def _status(part: AccuracyResult, found: float | None, expected: float | None) -> Status | None:
    """Of this metric alone: the part has the gravest."""
    if found is None or expected is None or part.tolerance is None or part.status is Status.INVALID:
        return part.status
    gap = round(found - expected, 9)
    if abs(gap) <= part.tolerance:
        return Status.PASS
    return Status.REGRESSED if gap < 0 else Status.IMPROVED


def _speed(part: PerformanceResult, source: Source) -> FigureRow:
    assert part.fps is not None
    before = _last_speed(source)
    return FigureRow(
        name="FPS",
        found=f"{part.fps:.2f}" + (f" ±{part.uncertainty:.1%}" if part.uncertainty is not None else ""),
        expected=NONE if part.expected is None else f"{part.expected:.2f}",
        tolerance=NONE if part.tolerance is None else f"−{part.tolerance:.0%}",
        margin=NONE if not part.expected else f"{part.fps / part.expected - 1:+.1%}".replace("-", "−"),
        before=NONE if before is None else f"{before:.2f}",
        change=NONE if not before else f"{part.fps / before - 1:+.1%}".replace("-", "−"),
        interval="",
        status=part.status,
    )


def _last_speed(source: Source) -> float | None:
    """The speed of the run before in the history, on this device alone and set up as now."""
    here = [
        course
        for course in source.history
        if course.figure == "FPS" and course.fingerprint == source.environment.fingerprint
    ]
    if len(here) != 1:
        return None
    values = [point.value for point in here[0].points]
    part = source.cell.performance
    if part is not None and values and values[-1] == part.fps:  # the history has this run already
        values = values[:-1]
    return values[-1] if values else None


def _fixed(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


# --- bars


def bars(source: Source, since: Since | None) -> tuple[Bars, ...]:
    """AP by class and by size, with the earlier run's where there is one."""
    part = source.cell.accuracy
    if part is None:
        return ()
    return tuple(table for table in (_sizes(part, source), _classes(part, since)) if table.shown)


def _sizes(part: AccuracyResult, source: Source) -> Bars:
    old: Mapping[str, float] = source.before.recorded.record.metrics if source.before else {}
    named = {label: part.metrics.get(name, ABSENT) for name, label in SIZES.items()}
    before = {label: old[name] for name, label in SIZES.items() if name in old}
    return Bars(
        "By size of object", "AP", tuple(_bar(name, value, before) for name, value in named.items() if value >= 0)
    )


def _classes(part: AccuracyResult, since: Since | None) -> Bars:
    """What changed most first; without an earlier run, what is found worst."""
    before = {one.name: one.before for one in since.classes} if since else {}
    present = {name: value for name, value in part.per_class.items() if value != ABSENT}
    order = sorted(present, key=lambda name: (-abs(present[name] - before.get(name, present[name])), present[name]))
    rows = [_bar(name, present[name], before) for name in order]
    title = "By class, most changed first" if before else "By class, lowest first"
    return Bars(title, "AP", tuple(rows[:CLASSES_SHOWN]), tuple(rows[CLASSES_SHOWN:]))


def _bar(name: str, value: float, before: Mapping[str, float]) -> Bar:
    old = before.get(name)
    if old is None or old < 0:
        return Bar(name, f"{value:.3f}", round(value, 4))
    change = f"{value - old:+.3f}".replace("-", "−")
    return Bar(name, f"{value:.3f}", round(value, 4), f"{old:.3f}", round(old, 4), change)


# --- lists of checks


def checks(part: ChecksResult | None) -> tuple[Check, ...]:
    """Those of a part, the gravest first."""
    found = [Check(name, check.status, check.reason) for name, check in part.checks.items()] if part else []
    return tuple(sorted(found, key=lambda check: -list(Status).index(check.status)))


def precision_at(curves: Curves, iou: float | None) -> Sequence[float]:
    """Precision by recall, the mean over classes with ground truth; of one IoU, or the mean over all of them."""
    import numpy as np

    values = curves.precision[..., 0]
    if iou is not None:
        nearest = int(np.abs(curves.iou_thresholds - iou).argmin())
        values = values[nearest : nearest + 1]
    present = (values > ABSENT).all(axis=(0, 1))
    return [float(value) for value in values[:, :, present].mean(axis=(0, 2))] if present.any() else []
