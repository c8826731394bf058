"""Takes the cells of a page; gives the matrix of models and precisions by engines, and what is missing, folded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from harness.judge.verdict import NEEDS, Status
from harness.model.registry import PRECISIONS
from harness.report.page.shown import Absent, Matrix, MatrixRow, Tile
from harness.report.page.sources import Source, fails, is_missing, parts_of
from harness.report.page.words import PARTS, status_of
from harness.report.results import CellResult
from harness.report.table import all_of

NAMED = 3


@dataclass(frozen=True)
class Lacking:
    """One part of a cell that is MISSING."""

    source: Source
    part: str
    reason: str
    remedy: str


def columns(sources: Sequence[Source]) -> dict[tuple[str, Path], str]:
    """Headings by engine and results file: an engine that several files have is told apart by its file.

    Engines that are not here come last: what was judged is seen without scrolling.
    """
    judged = {(source.cell.engine, source.file) for source in sources if not is_missing(source.cell)}
    keys = sorted({(source.cell.engine, source.file) for source in sources}, key=lambda key: (key not in judged, key))
    engines = [engine for engine, _ in keys]
    return {key: key[0] if engines.count(key[0]) == 1 else f"{key[0]} ({key[1]})" for key in keys}


def matrix(sources: Sequence[Source], anchors: Sequence[str]) -> Matrix:
    """A row for each model and precision, a column for each engine; `anchors` are the places that cells link to."""
    heads = columns(sources)
    cells = {
        (source.cell.model, source.cell.precision, source.cell.engine, source.file): (source.cell, anchor)
        for source, anchor in zip(sources, anchors, strict=True)
    }
    names = sorted({key[:2] for key in cells}, key=lambda key: (key[0], PRECISIONS.index(key[1])))
    rows = []
    for model, group in groupby(names, key=lambda key: key[0]):
        own = list(group)
        for at, (_, precision) in enumerate(own):
            tiles = tuple(_tile(cells.get((model, precision, *column))) for column in heads)
            rows.append(MatrixRow(model, precision, len(own) if at == 0 else 0, tiles))
    return Matrix(tuple(heads.values()), tuple(rows))


def _tile(found: tuple[CellResult, str] | None) -> Tile:
    if found is None:
        return Tile(None, "", "not run", ())
    cell, anchor = found
    status, known = status_of(cell)
    figures = []
    if cell.accuracy and cell.accuracy.map_50_95 is not None:
        figures.append(f"AP {cell.accuracy.map_50_95:.4f}")
    if cell.performance and cell.performance.fps is not None:
        figures.append(f"{cell.performance.fps:.1f} FPS")
    return Tile(status, anchor, cell.id, tuple(figures), fails(cell), known)


# --- what is missing


def absent(sources: Sequence[Source]) -> tuple[list[Absent], dict[int, str]]:
    """What is missing, one row for what the same command mends; and the row's anchor by place of a missing source."""
    lacking = [found for source in sources for found in _lacking(source)]
    groups: dict[tuple[str, str, str], list[Lacking]] = {}
    for one in lacking:
        groups.setdefault((one.source.cell.engine, one.reason, one.remedy), []).append(one)
    rows: list[Absent] = []
    anchors: dict[int, str] = {}
    for at, ((engine, reason, remedy), found) in enumerate(groups.items(), start=1):
        ids = list(dict.fromkeys(one.source.cell.id for one in found))
        rows.append(Absent(f"missing-{at}", _named(engine, ids, sources), _checks(found), reason, remedy))
        for place, source in enumerate(sources):
            if is_missing(source.cell) and source.cell.id in ids:
                anchors.setdefault(place, f"missing-{at}")
    return rows, anchors


def _lacking(source: Source) -> Iterable[Lacking]:
    """Each part of the cell that is MISSING; where nothing could be asked, what the first part lacks."""
    found = [
        Lacking(source, name, part.reason.removeprefix(f"{NEEDS}: "), _remedy(part))
        for name in parts_of(source.cell)
        if (part := getattr(source.cell, name)).status is Status.MISSING
    ]
    if not is_missing(source.cell):
        return found
    return [one for one in found if one.reason == found[0].reason]


def _remedy(part: object) -> str:
    return str(vars(part)["remedy"]) or "python -m harness doctor"


def _named(engine: str, ids: list[str], sources: Sequence[Source]) -> str:
    every = {source.cell.id for source in sources if source.cell.engine == engine}
    if len(ids) > 1 and set(ids) == every:
        return all_of(engine, len(ids))
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def _checks(found: Iterable[Lacking]) -> str:
    return ", ".join(dict.fromkeys(PARTS[one.part] for one in found))
