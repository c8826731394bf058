"""Takes a red cell and its change since an earlier run; gives whether its verdict can be relied on, and by what."""

from harness.judge.verdict import Status
from harness.report.page.changes import Since
from harness.report.page.sources import Source, part_fails, parts_of
from harness.report.page.words import signed, status_of
from harness.report.results import CellResult


def believe(source: Source, since: Since | None) -> str:
    """Whether the verdict of a red cell can be relied on, and by what."""
    cell = source.cell
    status, _ = status_of(cell)
    if status is Status.INVALID:
        return "Do not believe its figures, better or worse: the run itself is at fault. Mend that, and run it again."
    if status is Status.INCONCLUSIVE:
        return "Neither way: the budget ran out before the statistics decided."
    if status is Status.MISSING:
        return "There is nothing to believe or doubt: it was not judged."
    of_boxes = any(name in ("accuracy", "against") and part_fails(cell, name) for name in parts_of(cell))
    by_boxes = (_by_previous(since) or _by_accuracy(cell)) if of_boxes else ""
    return " ".join(filter(None, (by_boxes, _by_noise(cell), _by_options(cell))))


def _by_previous(since: Since | None) -> str:
    if since is None:
        return ""
    if since.identical:
        return "Its detections are those of the earlier run to the bit: what is expected has changed, not the detector."
    change = since.changes.get("map_50_95")
    if change is None or change.interval is None:
        return ""
    low, high = change.interval
    shown = f"since the earlier run {signed(change.change)} AP, 95 % interval {signed(low)} to {signed(high)}"
    if low > 0:
        return f"With care: {shown}. It is what is expected that it falls short of, not what it was."
    if high < 0:
        return f"Yes: {shown}, which the choice of images does not explain."
    return f"With care: {shown}, which may be chance."


def _by_accuracy(cell: CellResult) -> str:
    part, data = cell.accuracy, cell.dataset
    if part is None or data is None or not part_fails(cell, "accuracy"):
        return ""
    measured = f"on all {data.images} images of {data.name} that the expected figure is of"
    return f"Yes: {measured}, and {cell.precision_ran} ran."


def _by_options(cell: CellResult) -> str:
    found = given(cell)
    return f"Judged with {', '.join(found)}." if found else ""


def given(cell: CellResult) -> list[str]:
    """Options that change what is judged, of accuracy and speed."""
    parts = [part for part in (cell.accuracy, cell.performance) if part is not None]
    return sorted({f"{option} {value}".strip() for part in parts for option, value in part.given.items()})


def _by_noise(cell: CellResult) -> str:
    part = cell.performance
    if part is None or part.uncertainty is None or not part_fails(cell, "performance"):
        return ""
    return f"Yes: the median of {part.rounds} calls is known to ±{part.uncertainty:.1%}, less than half the tolerance."
