"""Takes two runs' records and the data set they name; gives what changed, as a table, JSON or Markdown."""

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.detect.dataset import Dataset
from harness.environment import differences
from harness.errors import RecordError
from harness.judge import record as records
from harness.judge.accuracy import METRICS
from harness.judge.previous import ALPHA, Pair, Relation, judge_all
from harness.judge.record import DatasetIdentity, Record, Recorded
from harness.judge.verdict import GRAVITY, Status, Verdict, gravest
from harness.measure.compare import CONFIDENT
from harness.pipeline import Cell, load_dataset
from harness.report.grid import Format, markdown_table
from harness.report.table import COLOURS

FORMATS: tuple[Format, ...] = ("table", "json", "markdown")
SHA_DIGITS = 12
MANY_IMAGES = 2000
Section = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]
"""Title, headings and rows of what is listed below a cell's checks."""
IMAGES_HEADING = f"images with most boxes (score > {CONFIDENT:g}) lost and won"


@dataclass(frozen=True)
class Change:
    """A figure before and after, absolute AP; `interval` holds the change with 95 % confidence, None where unknown."""

    before: float
    after: float
    interval: tuple[float, float] | None

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclass(frozen=True)
class ClassChange:
    """AP of one class before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class ImageRow:
    """One image, and how many of its boxes were lost and won; `lowest_iou` is that of the worst matched pair."""

    file_name: str
    id: int
    boxes: int
    lost: int
    won: int
    lowest_iou: float


@dataclass(frozen=True)
class CellReport:
    """All that is shown of one pair of records; `boxes` counts those with a score above CONFIDENT, before and after."""

    id: str
    before: str
    dataset: DatasetIdentity
    relation: Relation
    verdicts: tuple[Verdict, ...]
    accuracy: dict[str, Change]
    boxes: tuple[int, int]
    classes: tuple[ClassChange, ...]
    images: tuple[ImageRow, ...]
    provenance: tuple[str, ...]

    @property
    def status(self) -> Status:
        """The gravest of the checks, of the improvement of AP too."""
        return gravest([verdict.status for verdict in self.verdicts])

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that failed."""
        return tuple(verdict.check for verdict in self.verdicts if verdict.fails(required=False))

    @property
    def title(self) -> str:
        """The cell, or both where they differ."""
        return self.id if self.before == self.id else f"{self.before} -> {self.id}"


@dataclass(frozen=True)
class Report:
    """A comparison of two runs; cells that only one of them has are named."""

    before: str
    after: str
    cells: tuple[CellReport, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def green(self) -> bool:
        """No check failed."""
        return not any(cell.failed for cell in self.cells)


def compare(before: Path, after: Path, data_dir: Path, rows: int, tell: Callable[[str], None]) -> Report:
    """Compare the records of two runs, cell by cell; where both hold one cell, whatever their ids.

    Args:
        data_dir: COCO's folder; the embedded images are found without it.
        rows: how many classes and images are listed.
        tell: told what is going to take minutes.

    Raises:
        RecordError: a run that holds no record, a damaged one, no cell in common, or other data.
        Missing, DatasetError: the data set is not there, or damaged.
    """
    old, new = records.folders(before), records.folders(after)
    if len(old) == len(new) == 1:
        chosen = [(*old.values(), *new.values())]
    else:
        chosen = [(old[cell], new[cell]) for cell in old if cell in new]
    if not chosen:
        raise RecordError(
            f"no cell in common: {before} holds {', '.join(old)}; {after} holds {', '.join(new)}",
            "name one cell's folder of each, to compare them whatever their cells",
        )
    sets: dict[tuple[str, int], Dataset] = {}
    pairs = [pair_of(records.load(one), records.load(other), data_dir, sets) for one, other in chosen]
    for pair in pairs:
        if len(pair.dataset.images) >= MANY_IMAGES and not pair.comparison.identical:
            tell(f"{pair.cell}: resampling {len(pair.dataset.images)} images for an interval, which takes minutes")
    cells = [_cell(pair, verdicts, rows) for pair, verdicts in zip(pairs, judge_all(pairs), strict=True)]
    compared = {pair.before.record.id for pair in pairs}, {pair.after.record.id for pair in pairs}
    left = [tuple(cell for cell in run if cell not in seen) for run, seen in zip((old, new), compared, strict=True)]
    return Report(str(before), str(after), tuple(cells), *left)


def pair_of(before: Recorded, after: Recorded, data_dir: Path, sets: dict[tuple[str, int], Dataset]) -> Pair:
    """Two records and the data set that they name; `sets` holds those that were loaded already.

    Raises:
        RecordError: they are of other data.
        Missing, DatasetError: the data set is not there, or damaged.
    """
    data = before.record.dataset
    key = data.name, data.images
    if key not in sets:
        loaded = load_dataset(data.name, data_dir)
        sets[key] = loaded.limit(data.images)
    cell = after.record
    return Pair(sets[key], before, after, Cell(cell.model, cell.precision, cell.engine).command("accuracy"))


def _cell(pair: Pair, verdicts: list[Verdict], rows: int) -> CellReport:
    comparable = all(verdict.check != "integrity" or verdict.status is Status.PASS for verdict in verdicts)
    details = _details(pair, rows) if comparable and not pair.comparison.identical else {}
    before, after = pair.before.record, pair.after.record
    content: dict[str, Any] = {
        "accuracy": {name: Change(before.metrics[name], after.metrics[name], None) for name in METRICS},
        "classes": (),
        "images": (),
        **details,
    }
    return CellReport(
        id=after.id,
        before=before.id,
        dataset=after.dataset,
        relation=pair.relation,
        verdicts=tuple(verdicts),
        boxes=(len(pair.before.detections.above(CONFIDENT)), len(pair.after.detections.above(CONFIDENT))),
        provenance=provenance(before, after),
        **content,
    )


def _details(pair: Pair, rows: int) -> dict[str, Any]:
    compared = pair.comparison
    classes = sorted(compared.classes.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
    names = {record.id: record.path.name for record in pair.dataset.images}
    return {
        "accuracy": {
            name: Change(found.before, found.after, found.interval()) for name, found in compared.differences.items()
        },
        "classes": tuple(ClassChange(name, *values) for name, values in classes[:rows]),
        "images": tuple(
            ImageRow(names[image.image_id], image.image_id, image.boxes, image.lost, image.won, image.iou)
            for image in compared.images[:rows]
        ),
    }


def provenance(before: Record, after: Record) -> tuple[str, ...]:
    """In what two records differ, besides their figures."""
    return tuple(differences(_provenance(before), _provenance(after)))


def _provenance(record: Record) -> dict[str, Any]:
    """What a run was made of and where, one level deep, hashes shortened."""
    data = record.model_dump(
        by_alias=True, exclude={"schema_", "id", "metrics", "detections", "dataset", "environment"}
    )
    artifacts, options = data.pop("artifacts"), data.pop("options")
    environment = record.environment
    return {
        **data,
        **{f"{name} file": sha256 and f"{sha256[:SHA_DIGITS]}…" for name, sha256 in artifacts.items()},
        **{f"option {name}": value for name, value in options.items()},
        **{f"version of {name}": value for name, value in environment.versions.items()},
        **{f"device's {name}": value for name, value in environment.device.items()},
        "python": environment.python,
        "platform": environment.platform,
    }


# --- rendering


def render(report: Report, form: Format, width: int, colour: bool) -> str:
    """The report in one of FORMATS; `width` and `colour` are the terminal's."""
    if form == "json":
        return json.dumps(as_json(report), indent=1, ensure_ascii=False)
    return _markdown(report) if form == "markdown" else _table(report, width, colour)


def as_json(report: Report) -> dict[str, Any]:
    """Plain data, all of the report."""
    cells = [
        {
            "id": cell.id,
            "before": cell.before,
            "dataset": cell.dataset.model_dump(),
            "relation": cell.relation,
            "status": cell.status,
            "accuracy": {name: asdict(change) | {"change": change.change} for name, change in cell.accuracy.items()},
            "boxes": {"score_above": CONFIDENT, "before": cell.boxes[0], "after": cell.boxes[1]},
            "checks": [
                {
                    key: verdict.as_json()[key]
                    for key in ("check", "status", "reason", "figure", "expected", "tolerance")
                }
                for verdict in cell.verdicts
            ],
            "classes": [asdict(one) for one in cell.classes],
            "images": [asdict(one) for one in cell.images],
            "provenance": list(cell.provenance),
        }
        for cell in report.cells
    ]
    outside = {"only_before": list(report.only_before), "only_after": list(report.only_after)}
    return {"schema": 1, "before": report.before, "after": report.after, "cells": cells, **outside}


SUMMARY = ("cell", "verdict", "AP", "change", "AP50", "change", "failed")


def _summary_row(cell: CellReport) -> tuple[str, ...]:
    row = [cell.title, str(cell.status)]
    for change in cell.accuracy.values():
        row += [f"{change.before:.4f} -> {change.after:.4f}", _shown(change)]
    return (*row, ", ".join(cell.failed) or "–")


def _shown(change: Change) -> str:
    text = f"{change.change:+.4f}"
    return text if change.interval is None else f"{text} (95 %: {change.interval[0]:+.4f} to {change.interval[1]:+.4f})"


def _sections(cell: CellReport) -> list[Section]:
    """None that is empty."""
    classes = [
        (one.name, f"{one.before:.4f} -> {one.after:.4f}", f"{one.after - one.before:+.4f}") for one in cell.classes
    ]
    images = [
        (one.file_name, str(one.boxes), str(one.lost), str(one.won), f"{one.lowest_iou:.3f}") for one in cell.images
    ]
    sections: list[Section] = [
        ("classes that changed most", ("class", "AP", "change"), classes),
        (IMAGES_HEADING, ("image", "boxes", "lost", "won", "lowest IoU of a pair"), images),
    ]
    return [section for section in sections if section[2]]


def _made(cell: CellReport) -> str:
    return "what made them differs in:" if cell.provenance else "made of the same, on the same machine"


def _notes(report: Report) -> list[str]:
    found = {report.before: report.only_before, report.after: report.only_after}
    return [f"only in {run}: {', '.join(cells)}" for run, cells in found.items() if cells]


def _table(report: Report, width: int, colour: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, no_color=not colour, highlight=False)
    for cell in report.cells:
        console.rule(f"{cell.title}", align="left", style="dim")
        data = cell.dataset
        console.print(f"{data.images} images of {data.name}; judged as: {cell.relation}\n")
        checks = [(v.check, f"[{COLOURS[v.status]}]{v.status}[/]", escape(v.reason)) for v in cell.verdicts]
        console.print(_grid(("check", "verdict", "figure"), checks))
        for title, headings, rows in _sections(cell):
            console.print(f"\n{title}:")
            console.print(_grid(headings, [tuple(map(escape, row)) for row in rows]))
        console.print(f"\n{_made(cell)}")
        for line in cell.provenance:
            console.print(f"  {escape(line)}")
        console.print()
    for note in _notes(report):
        console.print(f"{escape(note)}\n")
    cells = sorted(report.cells, key=lambda cell: GRAVITY.index(cell.status))
    for cell in cells:
        console.print(_verdict_lines(cell))
    if len(cells) > 1:
        counts = Counter(str(cell.status) for cell in cells)
        console.print(f"{len(cells)} cells: {', '.join(f'{n} {status}' for status, n in counts.items())}")
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _verdict_lines(cell: CellReport) -> str:
    """What a person should see last: verdict, what changed and by how much, and what else failed."""
    head = f"[{COLOURS[cell.status]}]{cell.status}[/] {escape(cell.title)}"
    if cell.verdicts[0].check == "identical":
        return f"{head}: {cell.verdicts[0].reason}"
    failed = [verdict for verdict in cell.verdicts if verdict.check in cell.failed]
    return "\n".join(
        [
            f"{head}{': ' if failed else ''}{', '.join(verdict.check for verdict in failed)}",
            *(line for name, change in cell.accuracy.items() for line in _changed(cell, name, change)),
            f"  boxes  {cell.boxes[0]} -> {cell.boxes[1]}  {cell.boxes[1] - cell.boxes[0]:+d} (score > {CONFIDENT:g})",
            *(f"  class  {_moved(one.before, one.after)} {escape(one.name)}, the most" for one in cell.classes[:1]),
            *(f"  {verdict.check}: {escape(verdict.reason)}" for verdict in failed if verdict.check not in METRICS),
        ]
    )


def _changed(cell: CellReport, name: str, change: Change) -> list[str]:
    """AP or AP50 before, after and the change; and why it passes where it fell by its margin or more."""
    label = {"map_50_95": "AP", "map_50": "AP50"}[name]
    line = f"  {label:<5}  {change.before:.4f} -> {change.after:.4f}  {_shown(change)}"
    beyond = [
        f"         beyond its margin of {verdict.tolerance:g}, but p < {ALPHA:g} is wanted: may be chance"
        for verdict in cell.verdicts
        if (verdict.check, verdict.status) == (name, Status.PASS) and -change.change >= (verdict.tolerance or 0)
    ]
    return [line, *beyond]


def _moved(before: float, after: float) -> str:
    return f"{before:.4f} -> {after:.4f}  {after - before:+.4f}"


def _grid(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1], overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(report: Report) -> str:
    summary = markdown_table(SUMMARY, [_summary_row(cell) for cell in report.cells])
    lines = [f"`{report.before}` -> `{report.after}`", "", summary]
    for cell in report.cells:
        checks = [(verdict.check, str(verdict.status), verdict.reason) for verdict in cell.verdicts]
        lines += ["", f"### {cell.title}", "", f"{cell.dataset.images} images of {cell.dataset.name}; "]
        lines[-1] += f"judged as: {cell.relation}"
        lines += ["", markdown_table(("check", "verdict", "figure"), checks)]
        for title, headings, rows in _sections(cell):
            lines += ["", f"{title}:", "", markdown_table(headings, rows)]
        lines += ["", _made(cell), "", *(f"- {line}" for line in cell.provenance)]
    return "\n".join([*lines, "", *_notes(report)]).rstrip()
