"""Takes results files, an earlier run and a history; gives what the page is made of, each file read once."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import EvaluationError, RecordError, UsageError
from harness.judge import record as records
from harness.judge.record import EnvironmentResult, Recorded
from harness.judge.verdict import Status
from harness.measure.curves import Curves
from harness.report import history as past
from harness.report.course import LAST, Course, courses
from harness.report.results import CellResult, load, require_writable

SUFFIX = ".html"
OTHER_RUN = "its record is of another run: made from another file, or on other data"


@dataclass(frozen=True)
class Request:
    """What to make a page of.

    results: files of runs. record: where their records are, None: in record/ beside each. cells: ids to show, None:
    all. against: an earlier run's results file or records. history: a file of `pytest --history`. data_dir: COCO.
    """

    results: tuple[Path, ...]
    target: Path
    option: str
    data_dir: Path
    record: Path | None = None
    cells: Collection[str] | None = None
    against: Path | None = None
    history: Path | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """What a record holds, with its curves where they were kept."""

    recorded: Recorded
    curves: Curves | None


@dataclass(frozen=True, eq=False)
class Source:
    """A cell of one results file, and what lies beside it.

    now, before: this run's record and the earlier one's. note: why there is no record where the run should have one.
    """

    cell: CellResult
    file: Path
    environment: EnvironmentResult
    now: Side | None = None
    before: Side | None = None
    note: str = ""
    history: tuple[Course, ...] = ()


@dataclass(frozen=True)
class Sources:
    """All of a page; `skipped` are lines of the history that could not be read."""

    cells: tuple[Source, ...]
    against: Path | None
    skipped: tuple[str, ...] = field(default=())


def require_target(target: Path, option: str) -> None:
    """Refuse a file that cannot be written, or that does not end in .html, before anything is measured.

    Raises:
        UsageError, ResultsError: by its name, or where it lies.
    """
    if target.suffix != SUFFIX:
        found = f"found '{target.suffix}'" if target.suffix else "found none"
        flag = option.split()[0]
        raise UsageError(
            f"{flag} {target}: wanted a file that ends in {SUFFIX}, {found}", f"{flag} {renamed(target, SUFFIX)}"
        )
    require_writable(target, option)


def renamed(target: Path, suffix: str) -> Path:
    """The same path with this suffix; `report` where it names no file."""
    return target.parent / f"{target.stem or 'report'}{suffix}"


def gather_sources(request: Request) -> Sources:
    """Read all that the request names.

    Raises:
        ResultsError, RecordError: a results file, the earlier run or the history cannot be read.
        UsageError: no cell is left to show.
    """
    old = {} if request.against is None else records.folders(request.against)
    kept = None if request.history is None else past.load(request.history)
    courses_by_cell: dict[str, list[Course]] = {}
    for course in courses(kept.entries, last=LAST) if kept else ():
        courses_by_cell.setdefault(course.cell, []).append(course)
    found = [
        _source(cell, file, results.environment, request.record, old, courses_by_cell)
        for file, results in ((file, load(file)) for file in request.results)
        for cell in results.cells
        if request.cells is None or cell.id in request.cells
    ]
    if not found:
        raise UsageError(
            f"no cell in {', '.join(map(str, request.results))}: nothing to show", "run pytest first, on some cells"
        )
    return Sources(tuple(found), request.against, kept.skipped if kept else ())


def _source(
    cell: CellResult,
    file: Path,
    environment: EnvironmentResult,
    record: Path | None,
    old: dict[str, Path],
    history: dict[str, list[Course]],
) -> Source:
    now, note = _own(cell, (record or file.parent / records.FOLDER) / cell.id)
    before = side_of(old[cell.id]) if now is not None and cell.id in old else None
    return Source(cell, file, environment, now, before, note, tuple(history.get(cell.id, ())))


def _own(cell: CellResult, folder: Path) -> tuple[Side | None, str]:
    """The record of exactly this cell's run; or why it is not there: the page is made without it."""
    part = cell.accuracy
    if part is None or part.map_50_95 is None:
        return None, ""
    if not (folder / records.RECORD).is_file():
        return None, f"no record in {folder}: curves, and what changed, are not shown"
    try:
        side = side_of(folder)
    except RecordError as error:
        return None, str(error)
    own = side.recorded.record
    same = (own.artifacts.engine, own.dataset.sha256) == (cell.artifacts.engine, cell.dataset and cell.dataset.sha256)
    if not same or own.metrics.get("map_50_95") != part.map_50_95:
        return None, OTHER_RUN
    return side, ""


def side_of(folder: Path) -> Side:
    """A record and its curves, None where they were not kept.

    Raises:
        RecordError: the record is damaged, or its curves are.
    """
    recorded, file = records.load(folder), folder / records.CURVES
    if not file.is_file():
        return Side(recorded, None)
    try:
        return Side(recorded, Curves.load(file))
    except EvaluationError as error:
        raise RecordError(error.cause, error.remedy) from error


def is_missing(cell: CellResult) -> bool:
    """Nothing of the cell could be asked."""
    return all(status is Status.MISSING for status in cell.statuses) and not fails(cell)


def parts_of(cell: CellResult) -> Iterable[str]:
    """Names of the parts that were checked."""
    return [name for name in ("accuracy", "against", "performance", "conformance") if getattr(cell, name) is not None]


def fails(cell: CellResult) -> bool:
    """The run is red for it."""
    return any(part_fails(cell, name) for name in parts_of(cell))


def part_fails(cell: CellResult, name: str) -> bool:
    """The run is red for this part; read off the status where an older detgate did not say."""
    part = getattr(cell, name)
    if part.fails is not None:
        return bool(part.fails)
    return not part.known and part.status in (Status.REGRESSED, Status.INVALID, Status.INCONCLUSIVE)
