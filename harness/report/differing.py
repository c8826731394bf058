"""Takes accepted figures and what the last run found, or another baselines directory; gives them side by side."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.errors import BaselineError
from harness.judge.accuracy import expectation
from harness.judge.baseline import Acceptance, Accuracy, Recorded, Speed, load_recorded
from harness.model.registry import PRECISIONS, ModelSpec, PublishedRow, load_models
from harness.report.accepting import accuracy_key, speed_key
from harness.report.grid import Format, markdown_table, text_table
from harness.report.results import CellResult, load

HEADINGS = ("figure of", "check", "accepted", "found", "difference", "tolerance", "", "why")
Check = Literal["AP", "AP50", "FPS", "tolerance"]
METRICS: dict[Check, str] = {"AP": "map_50_95", "AP50": "map_50"}


@dataclass(frozen=True)
class Row:
    """One figure, accepted and found; None where there is none on that side.

    tolerance: absolute AP; of FPS a fraction of them. why: who accepted it, when and why, or where it is published.
    differs: beyond the tolerance; or one side has none where both should.
    """

    name: str
    check: Check
    accepted: float | None
    found: float | None
    tolerance: float | None
    why: str
    differs: bool

    @property
    def difference(self) -> float | None:
        """Found less accepted; of FPS as a fraction of the accepted."""
        return _difference(self.check, self.accepted, self.found)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "difference": self.difference}


@dataclass(frozen=True)
class Differences:
    """All rows, and the accepted figures to which the run had no counterpart."""

    rows: tuple[Row, ...]
    not_run: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """True where a figure differs beyond its tolerance."""
        return any(row.differs for row in self.rows)


def _difference(check: Check, accepted: float | None, found: float | None) -> float | None:
    if accepted is None or found is None:
        return None
    return round(found / accepted - 1 if check == "FPS" else found - accepted, 9)


def _row(name: str, check: Check, accepted: float | None, found: float | None, tolerance: float, why: str) -> Row:
    difference = _difference(check, accepted, found)
    differs = difference is not None and abs(difference) > tolerance
    return Row(name, check, accepted, found, tolerance, why, differs)


def _by(accepted: Acceptance) -> str:
    return f"{accepted.when[:10]} {accepted.by}: {accepted.reason}"


# --- beside the last run


def against_results(baselines: Path, file: Path) -> Differences:
    """What is accepted for the cells of a results file beside what they found.

    Raises:
        ResultsError, SpecError: a file cannot be read.
        BaselineError: there is nothing to compare.
    """
    results, models = load(file), load_models(baselines)
    rows: list[Row] = []
    matched: set[object] = set()
    for cell in results.cells:
        if cell.model in models:
            recorded = load_recorded(baselines, cell.model)
            rows += _accuracy_rows(cell, models[cell.model], recorded, matched)
            rows += _speed_rows(cell, results.environment.fingerprint, recorded, matched)
    if not any(row.accepted is not None for row in rows):
        raise BaselineError(
            f"nothing is accepted in {baselines} of what {file} holds, {len(rows)} figures",
            "accept figures with `python -m harness baseline accept`, or give the --baselines of that run",
        )
    entries = [entry for model in models for entry in _entries(load_recorded(baselines, model), model)]
    not_run = tuple(name for name, entry in entries if _identity(entry) not in matched)
    return Differences(tuple(rows), not_run)


def _identity(entry: Accuracy | Speed) -> object:
    return tuple(entry.key) if isinstance(entry, Accuracy) else entry.key


def _entries(recorded: Recorded, model: str) -> Iterable[tuple[str, Accuracy | Speed]]:
    for accuracy in recorded.accuracy:
        yield f"{model} {accuracy.precision} on {accuracy.images} of {accuracy.dataset_name}", accuracy
    for speed in recorded.speed:
        options = "".join(f", {key}={value}" for key, value in sorted(speed.options.items()))
        yield f"{speed.cell} at batch {speed.batch} on {speed.fingerprint}{options}", speed


def _accuracy_rows(cell: CellResult, spec: ModelSpec, recorded: Recorded, matched: set[object]) -> list[Row]:
    part, key = cell.accuracy, accuracy_key(cell, spec)
    if part is None or part.map_50_95 is None or key is None or cell.dataset is None:
        return []
    expected = expectation(spec, cell.precision, cell.dataset.full_val2017, key, recorded)
    entry, published = recorded.find_accuracy(key), spec.published_row(cell.precision)
    matched.add(tuple(key))
    why = "" if expected is None else _source(published if cell.dataset.full_val2017 else None, entry)
    tolerance = float(getattr(spec.tolerance, cell.precision))
    return [
        _row(cell.id, check, _of(expected, metric), _of(part, metric), tolerance, why)
        for check, metric in METRICS.items()
    ]


def _source(published: PublishedRow | None, entry: Accuracy | None) -> str:
    if published is not None:
        return f"published for {published.engine}: {published.source}"
    assert entry is not None
    return _by(entry.accepted)


def _speed_rows(cell: CellResult, fingerprint: str, recorded: Recorded, matched: set[object]) -> list[Row]:
    part = cell.performance
    if part is None or part.fps is None:
        return []
    key = speed_key(cell, fingerprint)
    matched.add(key)
    entry = recorded.find_speed(key)
    if entry is None:
        return [Row(cell.id, "FPS", None, part.fps, None, "", differs=False)]
    return [_row(cell.id, "FPS", entry.fps, part.fps, entry.tolerance, _by(entry.accepted))]


# --- beside another directory


def against_baselines(baselines: Path, other: Path) -> Differences:
    """The accepted figures and tolerances of one directory beside those of another; one-sided ones differ.

    Raises:
        SpecError: a file cannot be read, or a directory has no models.
    """
    here, there = load_models(baselines), load_models(other)
    rows: list[Row] = []
    for model in sorted(here.keys() | there.keys()):
        rows += _tolerance_rows(model, here.get(model), there.get(model))
        old, new = (dict(_keyed(load_recorded(folder, model), model)) for folder in (baselines, other))
        spec = here.get(model) or there[model]
        for key in [*old, *(key for key in new if key not in old)]:
            rows += _entry_rows(spec, old.get(key), new.get(key))
    return Differences(tuple(rows))


Named = tuple[str, Accuracy | Speed]


def _keyed(recorded: Recorded, model: str) -> Iterable[tuple[object, Named]]:
    return ((_identity(entry), (name, entry)) for name, entry in _entries(recorded, model))


def _tolerance_rows(model: str, here: ModelSpec | None, there: ModelSpec | None) -> list[Row]:
    """Those that are not the same: what a published or recorded accuracy may fall short by."""
    rows = []
    for precision in PRECISIONS:
        old, new = (None if spec is None else float(getattr(spec.tolerance, precision)) for spec in (here, there))
        if old != new:
            rows.append(Row(f"{model} {precision}", "tolerance", old, new, 0.0, "", differs=True))
    return rows


def _entry_rows(spec: ModelSpec, old: Named | None, new: Named | None) -> list[Row]:
    shown = new or old
    assert shown is not None
    name, entry = shown
    one, other = old and old[1], new and new[1]
    checks: dict[Check, str] = METRICS if isinstance(entry, Accuracy) else {"FPS": "fps"}
    tolerance = entry.tolerance if isinstance(entry, Speed) else float(getattr(spec.tolerance, entry.precision))
    why = _by(entry.accepted)
    rows = [_row(name, check, _of(one, key), _of(other, key), tolerance, why) for check, key in checks.items()]
    if one is None or other is None:
        return [replace(row, differs=True) for row in rows]
    if _of(one, "tolerance") != _of(other, "tolerance"):
        rows.append(_row(name, "tolerance", _of(one, "tolerance"), _of(other, "tolerance"), 0.0, why))
    return rows


def _of(entry: object, key: str) -> float | None:
    value = getattr(entry, key, None)
    return None if value is None else float(value)


# --- showing


def render(found: Differences, form: Format, width: int) -> str:
    """The rows in one of three forms; what was accepted when, by whom and why is below the table, each once."""
    if form == "json":
        rows = [row.as_json() for row in found.rows]
        return json.dumps({"schema": 1, "rows": rows, "not_run": found.not_run}, indent=1)
    why = {text: number for number, text in enumerate(dict.fromkeys(row.why for row in found.rows if row.why), start=1)}
    cells = [_cells(row, why) for row in found.rows]
    table = markdown_table(HEADINGS, cells) if form == "markdown" else text_table(HEADINGS, cells, width)
    notes = [f"[{number}] {text}" for text, number in why.items()]
    notes += [f"not in the results: {name}" for name in found.not_run]
    if form == "markdown":
        return "\n\n".join([table, *notes])
    return "\n".join([table, *(textwrap.fill(note, width, subsequent_indent="    ") for note in notes)])


def _cells(row: Row, why: dict[str, int]) -> Sequence[str]:
    digits, percent = (2, True) if row.check == "FPS" else (4, False)
    shown = ["–" if value is None else f"{value:.{digits}f}" for value in (row.accepted, row.found)]
    difference, tolerance = "–", "–"
    if row.difference is not None:
        difference = f"{row.difference:+.1%}" if percent else f"{row.difference:+.4f}"
    if row.tolerance is not None:
        tolerance = f"{row.tolerance * 100:.3g}%" if percent else f"{row.tolerance:g}"
    mark = "DIFFERS" if row.differs else ""
    return [row.name, row.check, *shown, difference, tolerance, mark, f"[{why[row.why]}]" if row.why else "–"]
