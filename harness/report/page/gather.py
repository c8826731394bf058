"""Takes what a page is made of; gives what it shows, as much of it as there is room for."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import __version__
from harness.judge.verdict import GRAVITY, GREEN, Status
from harness.report.page import belief, charts, pictures, provenance, tables, words
from harness.report.page.changes import Since, changes_of, made_by_tests
from harness.report.page.matrix import absent, matrix
from harness.report.page.shown import Bars, CellView, Chart, Check, Finding, Page, Part, Picture
from harness.report.page.sources import Source, Sources, fails, is_missing, part_fails, parts_of
from harness.report.results import CellResult, ChecksResult

FINDINGS_SHOWN = 6
PICTURES_OF_A_RED_CELL, PICTURES_OF_A_GREEN_CELL = 4, 2
ROOM_BYTES = 2_200_000
"""For charts, pictures and long tables; texts and the rest of the page have what is left of the 3 MB."""
BOX_BYTES, BAR_BYTES = 260, 200
LEFT_OUT = "left out, so that the page stays small: make one of fewer cells"


@dataclass
class Room:
    """Bytes that are left for what is large; cells that the run is red for come first."""

    left: int

    def holds(self, size: int) -> bool:
        """Whether there is room for that many more; then they are taken."""
        if size > self.left:
            return False
        self.left -= size
        return True


def gather(sources: Sources, data_dir: Path, room: Room) -> Page:
    """What the page shows; large things only while there is room."""
    found, since = sources.cells, changes_of(sources.cells, data_dir)
    missing, missing_at = absent(found)
    anchors = [missing_at.get(place, f"cell-{place + 1}") for place in range(len(found))]
    order = sorted(range(len(found)), key=lambda place: _place(found[place].cell))
    against = str(sources.against or "")
    views = [
        _view(found, place, since.get(place), anchors[place], room, against)
        for place in order
        if not is_missing(found[place].cell)
    ]
    verdict, beside, tone = words.verdict([source.cell for source in found])
    findings = [view.finding for view in views if view.finding is not None]
    return Page(
        verdict=verdict,
        beside=beside,
        tone=tone,
        made=f"detgate {__version__}, {_now()}",
        places=tuple(
            provenance.place(file, environment)
            for file, environment in {str(source.file): source.environment for source in found}.items()
        ),
        findings=tuple(findings[:FINDINGS_SHOWN]),
        more_findings=max(0, len(findings) - FINDINGS_SHOWN),
        matrix=matrix(found, anchors),
        legend=tuple((status, words.LEGEND[status]) for status in _statuses(found)),
        absent=tuple(missing),
        cells=tuple(views),
        notes=_notes(sources),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _place(cell: CellResult) -> tuple[bool, int, bool, str]:
    """Red cells first, the gravest of them first; then what improved; the rest by name."""
    status, _ = words.status_of(cell)
    red = fails(cell)
    return not red, -GRAVITY.index(status) if red else 0, status is not Status.IMPROVED, cell.id


def _statuses(sources: Sequence[Source]) -> list[Status]:
    present = {words.status_of(source.cell)[0] for source in sources}
    return [status for status in words.LEGEND if status in present]


def _notes(sources: Sources) -> tuple[str, ...]:
    skipped = [f"history: {line}" for line in sources.skipped[:5]]
    data = dict.fromkeys(s.cell.dataset.note for s in sources.cells if s.cell.dataset and s.cell.dataset.note)
    return (*skipped, *(f"data set: {note}" for note in data))


# --- a cell


def _view(found: Sequence[Source], at: int, since: Since | None, anchor: str, room: Room, against: str) -> CellView:
    source, cell = found[at], found[at].cell
    status, known = words.status_of(cell)
    others = [one.cell for one in found if one.file == source.file]
    finding = _finding(source, since, anchor, others) if fails(cell) else None
    charted, chart_note = _fitting(charts.charts(source, anchor), room)
    pictured, picture_note = _pictures(source, since, anchor, room)
    previous, previous_note = _previous(source, since, against)
    return CellView(
        anchor=anchor,
        id=cell.id,
        status=status,
        fails=fails(cell),
        known=known,
        summary=_summary(cell),
        finding=finding,
        parts=tuple(_part(cell, name) for name in parts_of(cell)),
        figures=tables.figures(source, since),
        charts=charted,
        bars=tuple(_with_room(table, room) for table in tables.bars(source, since)),
        pictures=pictured,
        pictures_note=picture_note,
        previous=previous,
        previous_note=previous_note,
        conformance=tables.checks(cell.conformance),
        facts=provenance.facts(source),
        commands=provenance.commands(source, against),
        notes=tuple(filter(None, (source.note, chart_note))),
    )


def _finding(source: Source, since: Since | None, anchor: str, others: Sequence[CellResult]) -> Finding:
    cell = source.cell
    return Finding(
        anchor=anchor,
        cell=cell.id,
        status=words.status_of(cell)[0],
        lost=words.lost(cell),
        where=words.where(source, since, others),
        believe=belief.believe(source, since),
    )


def _summary(cell: CellResult) -> str:
    """Beside the cell's name, while its section is closed."""
    figures = []
    if cell.accuracy is not None and cell.accuracy.map_50_95 is not None:
        figures.append(f"mAP {cell.accuracy.map_50_95:.4f}")
    if cell.performance is not None and cell.performance.fps is not None:
        figures.append(f"{cell.performance.fps:.2f} FPS")
    return ", ".join(figures)


def _part(cell: CellResult, name: str) -> Part:
    part = getattr(cell, name)
    reason = _of_checks(part) if isinstance(part, ChecksResult) else part.reason
    return Part(words.PARTS[name], part.status, part_fails(cell, name), reason, part.known, part.remedy)


def _of_checks(part: ChecksResult) -> str:
    """Which of the checks that are listed below have the part's verdict."""
    named = [name for name, check in part.checks.items() if check.status is part.status]
    if part.status in GREEN:
        asked = [check for check in part.checks.values() if check.status is not Status.MISSING]
        return f"{len(asked)} of {len(part.checks)} checks could be made, and hold"
    return f"{', '.join(named)} of {len(part.checks)} checks"


def _previous(source: Source, since: Since | None, against: str) -> tuple[tuple[Check, ...], str]:
    """The checks since the earlier run, those of the tests where they were made; and what to say of them."""
    here = tuple(Check(one.check, one.status, one.reason) for one in since.verdicts) if since else ()
    checks = here or tables.checks(made_by_tests(source))
    if since is None:
        lacks = f"{against} has no record of this cell to compare with." if against and source.now else ""
        return checks, lacks
    same = "Both were made of the same, on the same machine."
    note = f"What made them differs in: {'; '.join(since.provenance)}." if since.provenance else same
    if not checks and not since.note:
        note += " The checks take minutes on so many images and were not made here: run `python -m harness compare`."
    return checks, " ".join(filter(None, (since.note, note)))


# --- what takes room


def _fitting(drawn: Sequence[Chart], room: Room) -> tuple[tuple[Chart, ...], str]:
    kept = tuple(chart for chart in drawn if room.holds(len(chart.svg)))
    return kept, "" if len(kept) == len(drawn) else f"{len(drawn) - len(kept)} charts are {LEFT_OUT}"


def _with_room(table: Bars, room: Room) -> Bars:
    return table if room.holds(BAR_BYTES * len(table.rest)) else replace(table, rest=())


def _pictures(source: Source, since: Since | None, anchor: str, room: Room) -> tuple[tuple[Picture, ...], str]:
    """The images that changed most; or why there are none."""
    if since is None:
        return (), "" if source.now is None else "Give an earlier run, --against RUN, to see the images that changed."
    if since.pair is None:
        return (), f"The images are not at hand, so none is shown: {since.note}."
    if since.identical:
        return (), "Every detection has the bits of the earlier run: no image changed."
    count = PICTURES_OF_A_RED_CELL if fails(source.cell) else PICTURES_OF_A_GREEN_CELL
    changed = since.pair.comparison.images
    if not changed:
        return (), "No confident box was lost, won or moved."
    drawn = pictures.pictures(since.pair, count, anchor)
    kept = tuple(picture for picture in drawn if room.holds(_size(picture)))
    why = "these the most." if kept else f"they are {LEFT_OUT}." if drawn else "their files cannot be read."
    return kept, f"{len(changed)} images changed; {why}"


def _size(picture: Picture) -> int:
    return len(picture.href) + BOX_BYTES * sum(len(panel.boxes) for panel in picture.panels)
