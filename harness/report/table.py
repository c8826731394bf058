"""Takes the results of a run's cells; gives the table at the end of the run, plain or coloured."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from harness.judge.accuracy import METRICS
from harness.judge.verdict import GREEN, Status
from harness.report.results import CellResult

COLOURS = {
    Status.PASS: "green",
    Status.IMPROVED: "cyan",
    Status.RECORDED: "green",
    Status.MISSING: "yellow",
    Status.INCONCLUSIVE: "magenta",
    Status.INVALID: "bold red",
    Status.REGRESSED: "bold red",
}
MINIMUM_WIDTH = 140
HEADINGS = ("cell", "check", "figure", "expected", "verdict", "measured on (batch, what computed)")


def render(cells: Sequence[CellResult], width: int, colour: bool, absent: Mapping[str, int] | None = None) -> str:
    """One row per cell and kind of check: figure, expectation, verdict and what it was measured on.

    Args:
        absent: engines that are not here, and how many cells are MISSING for it: one row tells of them all.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(HEADINGS[-1], overflow="fold")
    for row in rows(cells, absent):
        table.add_row(*row[:4], f"[{COLOURS[row.status]}]{row.status}[/]{row.known}", row.measured_on)
    out = io.StringIO()
    Console(file=out, width=max(width, MINIMUM_WIDTH), force_terminal=colour, no_color=not colour).print(table)
    return out.getvalue() + "".join(f"{line}\n" for line in given(cells))


class Row(NamedTuple):
    """One row of the table; `known` is ` (known)` where the verdict is an expected failure's."""

    cell: str
    check: str
    figure: str
    expected: str
    status: Status
    known: str
    measured_on: str


def rows(cells: Sequence[CellResult], absent: Mapping[str, int] | None = None) -> list[Row]:
    """The rows of the table: accuracy and conformance of all cells, then speeds, then engines that are not here."""
    makers = (_accuracy_rows, _against_rows, _conformance_rows)
    judged = [row for cell in cells for make in makers for row in make(cell)]
    timed = [row for cell in cells for row in _performance_rows(cell)]
    gone = [
        Row(all_of(engine, count), "all", "–", "–", Status.MISSING, "", "") for engine, count in (absent or {}).items()
    ]
    return [*judged, *timed, *gone]


def given(cells: Sequence[CellResult]) -> list[str]:
    """Below the table: with which options that change what is judged its rows were made, and how many."""
    rows = Counter(
        " ".join(f"{option} {value}".strip() for option, value in part.given.items())
        for cell in cells
        for part in (cell.accuracy, cell.performance)
        if part is not None and part.given
    )
    return [f"judged with {options} (rows: {count})" for options, count in rows.items()]


def all_of(engine: str, count: int) -> str:
    """`*-tensorrt (12 cells)`: how the cells of an engine are called together."""
    return f"*-{engine} ({count} cells)"


def _known(known: str) -> str:
    return " (known)" if known else ""


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _accuracy_rows(cell: CellResult) -> list[Row]:
    part = cell.accuracy
    if part is None:
        return []
    expected = part.expected or {}
    figure = f"{_figure(part.map_50_95, 4)} / {_figure(part.map_50, 4)}"
    bound = f"{_figure(expected.get('map_50_95'), 4)} / {_figure(expected.get('map_50'), 4)}"
    bound = f"{bound} −{part.tolerance:g}" if part.tolerance is not None else "–"
    measured_on = _measured_on(cell, accuracy=True)
    return [Row(cell.id, "AP / AP50", figure, bound, part.status, _known(part.known), measured_on)]


def _against_rows(cell: CellResult) -> list[Row]:
    """The change of AP and AP50 since the earlier run, and which checks did not pass."""
    part = cell.against
    if part is None:
        return []
    found = [part.checks[metric] for metric in METRICS if metric in part.checks]
    changes = [
        check.figure - check.expected for check in found if check.figure is not None and check.expected is not None
    ]
    margins = [check.tolerance for check in found if check.tolerance is not None]
    figure = " / ".join(f"{change:+.4f}" for change in changes) or ("same bits" if "identical" in part.checks else "–")
    expected = " / ".join(f"−{margin:g}" for margin in margins) or "–"
    failed = ", ".join(name for name, check in part.checks.items() if check.status not in GREEN)
    return [Row(cell.id, "against before", figure, expected, part.status, _known(part.known), failed)]


def _conformance_rows(cell: CellResult) -> list[Row]:
    """How many promises are held of those that could be asked for, and which are not."""
    part = cell.conformance
    if part is None:
        return []
    asked = {name: check.status for name, check in part.checks.items() if check.status is not Status.MISSING}
    broken = [name for name, status in asked.items() if status not in GREEN]
    figure, expected = (f"{len(asked) - len(broken)} held", f"{len(asked)}") if asked else ("–", "–")
    seen = ", ".join(broken) or _measured_on(cell, accuracy=False)
    return [Row(cell.id, "conformance", figure, expected, part.status, _known(part.known), seen)]


def _performance_rows(cell: CellResult) -> list[Row]:
    part = cell.performance
    if part is None:
        return []
    figure = "–" if part.fps is None else f"{part.fps:.2f} FPS"
    figure += "" if part.uncertainty is None else f" ±{part.uncertainty:.1%}"
    expected = "–" if part.expected is None else f"{part.expected:.2f} −{part.tolerance or 0:.0%}"
    measured_on = _measured_on(cell, accuracy=False)
    return [Row(cell.id, "FPS", figure, expected, part.status, _known(part.known), measured_on)]


def _measured_on(cell: CellResult, accuracy: bool) -> str:
    if cell.batch is None:
        return ""
    words = [f"batch {cell.batch}, {cell.precision_ran} on {cell.device}"]
    if accuracy and cell.dataset is not None:
        words.insert(0, f"{cell.dataset.images} of {cell.dataset.name}")
        if cell.dataset.name == "coco2017" and not cell.dataset.full_val2017:
            words.append("NOT the full val2017")
    if accuracy and cell.accuracy is not None and cell.accuracy.resumed:
        words.append(f"{cell.accuracy.resumed} images taken over from a killed run")
    if cell.start != "checkpoint":
        words.append(str(cell.start).upper())
    return ", ".join(words)
