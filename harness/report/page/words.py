"""Takes a cell's results and its change since an earlier run; gives sentences: what was lost, where, to be believed?"""

import re
from collections import Counter
from collections.abc import Sequence

from harness.judge.verdict import GRAVITY, Status, gravest
from harness.report.compare import ClassChange
from harness.report.page.changes import Since
from harness.report.page.sources import Source, fails, part_fails, parts_of
from harness.report.results import CellResult

LEGEND: dict[Status, str] = {
    Status.REGRESSED: "worse than expected by more than the tolerance",
    Status.INVALID: "the figures mean nothing: do not believe them, good or bad",
    Status.INCONCLUSIVE: "the statistics did not decide within their budget",
    Status.MISSING: "not judged: engine, weights, data or an accepted baseline is missing",
    Status.RECORDED: "measured, with nothing accepted here to be judged against",
    Status.IMPROVED: "better than expected by more than the tolerance",
    Status.PASS: "within the tolerance of what is expected",
}
SYMBOLS: dict[Status, str] = {
    Status.REGRESSED: "▼",
    Status.INVALID: "!",
    Status.INCONCLUSIVE: "?",
    Status.MISSING: "○",
    Status.RECORDED: "●",
    Status.IMPROVED: "▲",
    Status.PASS: "✓",
}
PARTS = {
    "accuracy": "accuracy",
    "against": "detections since the earlier run",
    "performance": "speed",
    "conformance": "conformance",
}
LONGEST_REASON = 240
_LONG_PARENTHESES = re.compile(r" \([^()]{60,}\)")
SIZES = ("map_small", "map_medium", "map_large")
_RED = {
    Status.REGRESSED: ("got worse", "got worse"),
    Status.INVALID: ("cannot be trusted", "cannot be trusted"),
    Status.INCONCLUSIVE: ("is undecided", "are undecided"),
    Status.MISSING: ("lacks what is required", "lack what is required"),
    Status.RECORDED: ("is required and has nothing to be judged against",) * 2,
}
_TOLD_FIRST = (Status.IMPROVED, Status.PASS, Status.RECORDED, Status.MISSING)
_GREEN = {Status.PASS: "held", Status.IMPROVED: "improved", Status.RECORDED: "recorded", Status.MISSING: "missing"}


def status_of(cell: CellResult) -> tuple[Status, bool]:
    """What the cell shows, and whether that is a failure that is known.

    The gravest of what the run is red for; else what is known to fail; else the most that is to be told of what is
    green: that it improved, that it held, that it was recorded.
    """
    parts = [(getattr(cell, name), part_fails(cell, name)) for name in parts_of(cell)]
    for known, chosen in (
        (False, [part.status for part, failing in parts if failing]),
        (True, [part.status for part, failing in parts if part.known and not failing]),
    ):
        if chosen:
            return gravest(chosen), known
    green = {part.status for part, _ in parts}
    return next((status for status in _TOLD_FIRST if status in green), Status.MISSING), False


def verdict(cells: Sequence[CellResult]) -> tuple[str, str, Status]:
    """The first sentence of the page, what stands beside it, and the status whose colour it has."""
    shown = [(*status_of(cell), fails(cell)) for cell in cells]
    red = Counter(status for status, _, failing in shown if failing)
    green = Counter(status for status, known, failing in shown if not failing and not known)
    known = sum(known for _, known, _ in shown)
    beside = [f"{green[status]} {word}" for status, word in _GREEN.items() if green[status]]
    beside += [f"{known} known to fail" for _ in range(bool(known))]
    if red:
        return _red_sentence(red), ", ".join(beside), max(red, key=GRAVITY.index)
    if set(green) <= {Status.MISSING} and not known:
        return "Nothing was judged", f"{_cells(green[Status.MISSING])} missing", Status.MISSING
    return "Nothing got worse", ", ".join(beside), Status.PASS


def _red_sentence(red: Counter[Status]) -> str:
    found = sorted(red, key=GRAVITY.index, reverse=True)
    phrases = [f"{red[status]} {_RED[status][red[status] > 1]}" for status in found]
    first = f"{_cells(red[found[0]])} {_RED[found[0]][red[found[0]] > 1]}"
    return ", ".join([first, *phrases[1:]])


def _cells(count: int) -> str:
    return f"{count} cell{'s' if count > 1 else ''}"


# --- what was lost


def lost(cell: CellResult) -> str:
    """What a red cell lost, in figures where it has them; the same reason of several parts once."""
    red = [name for name in parts_of(cell) if part_fails(cell, name)]
    if "accuracy" in red and cell.accuracy is not None and cell.accuracy.status is Status.REGRESSED:
        red = [name for name in red if name != "against"]  # it says the same once more
    by_reason: dict[str, list[str]] = {}
    for name in red:
        by_reason.setdefault(_lost(cell, name), []).append(PARTS[name])
    plain = len(red) == 1 or status_of(cell)[0] is Status.REGRESSED
    return "; ".join(text if plain else f"{', '.join(names)}: {text}" for text, names in by_reason.items())


def _lost(cell: CellResult, name: str) -> str:
    part = getattr(cell, name)
    if part.status is not Status.REGRESSED:
        return _short(part.reason.removeprefix("integrity: ").removeprefix(f"{cell.id}: "))
    return {"accuracy": _lost_accuracy, "performance": _lost_speed}.get(name, _lost_checks)(cell)


def _short(reason: str) -> str:
    """Without what stands in long parentheses, and cut where it is long all the same."""
    text = _LONG_PARENTHESES.sub("", reason)
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON].rsplit(' ', 1)[0]} …"


def _lost_accuracy(cell: CellResult) -> str:
    part = cell.accuracy
    assert part is not None
    names = {"map_50_95": "mAP@0.5:0.95", "map_50": "mAP@0.5"}
    expected = part.expected or {}
    falls = [
        f"{label} is {found:.4f}, {expected[metric] - found:.4f} below the expected {expected[metric]:.4f}"
        for metric, label in names.items()
        if (found := getattr(part, metric)) is not None and found - expected.get(metric, 0.0) < -(part.tolerance or 0)
    ]
    return "; ".join(falls) or part.reason


def _lost_speed(cell: CellResult) -> str:
    part = cell.performance
    assert part is not None
    if part.fps is None or not part.expected:
        return part.reason
    return f"{part.fps:.2f} FPS, {1 - part.fps / part.expected:.1%} below the expected {part.expected:.2f}"


def _lost_checks(cell: CellResult) -> str:
    part = cell.against if cell.against and part_fails(cell, "against") else cell.conformance
    assert part is not None
    failed = [name for name, check in part.checks.items() if check.status is part.status]
    what = "since the earlier run" if part is cell.against else "of what the engine must keep"
    return f"{what}, {', '.join(failed)} failed"


# --- where


def where(source: Source, since: Since | None, others: Sequence[CellResult]) -> str:
    """In which classes and sizes, and whether other engines of the same model and precision lost it too."""
    return " ".join(filter(None, (_peers(source.cell, others), _classes(since), _sizes(source))))


def _peers(cell: CellResult, others: Sequence[CellResult]) -> str:
    alike = [
        one
        for one in others
        if (one.model, one.precision) == (cell.model, cell.precision) and one.engine != cell.engine
    ]
    judged = {one.engine: fails(one) for one in alike if status_of(one)[0] is not Status.MISSING}
    if not judged:
        return ""
    red = sorted(engine for engine, failing in judged.items() if failing)
    held = sorted(engine for engine, failing in judged.items() if not failing)
    same = f"{cell.model} {cell.precision}"
    if not red:
        return f"Only on {cell.engine}: {same} holds on {', '.join(held)}."
    also = f"On {', '.join(red)} {same} is red too"
    return f"{also}, on {', '.join(held)} it holds." if held else f"{also}: on every engine that was judged."


def _classes(since: Since | None) -> str:
    falls = [one for one in since.classes if one.after < one.before] if since else []
    if not since or not falls:
        return ""
    worst = min(falls, key=lambda one: one.after - one.before)
    return f"{len(falls)} of {len(since.classes)} classes fell, {worst.name} the most ({_moved(worst)})."


def signed(value: float) -> str:
    """With a sign, a true minus where it is negative."""
    return f"{value:+.4f}".replace("-", "−")


def _moved(one: ClassChange) -> str:
    return f"{one.before:.4f} → {one.after:.4f}"


def _sizes(source: Source) -> str:
    if source.before is None or source.now is None:
        return ""
    old, new = source.before.recorded.record.metrics, source.now.recorded.record.metrics
    moves = {name: new[name] - old[name] for name in SIZES if old.get(name, -1.0) >= 0 and new.get(name, -1.0) >= 0}
    worst = min(moves, key=lambda name: moves[name], default=None)
    if worst is None or moves[worst] >= 0:
        return ""
    return f"By size, {worst.removeprefix('map_')} objects lost the most ({signed(moves[worst])})."
