"""Takes the results of a conformance run; gives the page that an engine's team can be sent: Markdown or HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import __version__
from harness.environment import collect
from harness.errors import UsageError
from harness.files import write_atomically
from harness.judge.verdict import GREEN, INTERNAL_ERROR, Status, gravest
from harness.report.grid import markdown_table
from harness.report.page.sources import renamed
from harness.report.results import CellResult, unwritable

SUFFIXES = (".md", ".html")
HEADINGS = ("check", "verdict", "what it means, and what was seen", "figure", "at most", "to repeat it")
HASH_DIGITS = 12
TITLE = "What the engines hold, and what they do not"
Rerun = Callable[[CellResult, str], str]
"""The command that repeats one check of a cell alone; without its name, all of them."""
ANY_CHECK = "CHECK"


@dataclass(frozen=True)
class Line:
    """One promise: what it means and what was seen, its figure and the most that this may be, what repeats it."""

    name: str
    status: Status
    seen: str
    figure: str
    bound: str
    command: str


@dataclass(frozen=True)
class Section:
    """What one cell holds and what not; `command` repeats any of the lines."""

    id: str
    status: Status
    known: bool
    ran: str
    made_of: str
    lines: tuple[Line, ...]
    command: str

    @property
    def summary(self) -> str:
        """The number of promises held, and what was examined."""
        return f"{len(self.held)} of {len(self.held) + len(self.broken)} held. {self.ran}. {self.made_of}"

    @property
    def held(self) -> list[Line]:
        """Promises that are kept."""
        return [line for line in self.lines if line.status in GREEN]

    @property
    def unasked(self) -> list[Line]:
        """Promises that could not be asked for here."""
        return [line for line in self.lines if line.status is Status.MISSING]

    @property
    def broken(self) -> list[Line]:
        """Promises that are not kept."""
        return [line for line in self.lines if line.status not in GREEN and line.status is not Status.MISSING]


@dataclass(frozen=True)
class Page:
    """All cells that were asked."""

    title: str
    where: str
    cells: tuple[Section, ...]

    @property
    def status(self) -> Status:
        """The gravest."""
        return gravest([cell.status for cell in self.cells]) if self.cells else Status.MISSING

    @property
    def verdict(self) -> str:
        """In one line."""
        if not self.cells:
            return "no promise could be asked for: the table of the run says what is missing, and what mends it"
        held, broken = (sum(len(getattr(cell, kind)) for cell in self.cells) for kind in ("held", "broken"))
        unkept = f"{broken} not held" if broken else "all that could be asked are held"
        count = len(self.cells)
        return f"{held} of {held + broken} promises held by {count} cell{'' if count == 1 else 's'}: {unkept}"


def require_suffix(file: Path) -> None:
    """Refuse a file that is neither Markdown nor HTML.

    Raises:
        UsageError: by its suffix.
    """
    if file.suffix not in SUFFIXES:
        raise UsageError(
            f"--conformance-report {file}: wanted a file that ends in {' or '.join(SUFFIXES)}",
            f"--conformance-report {renamed(file, '.html')}",
        )


def write(file: Path, cells: Sequence[CellResult], rerun: Rerun) -> None:
    """Write the page; nothing else in the file stays.

    Raises:
        ResultsError: the file cannot be written.
    """
    page = html(cells, rerun) if file.suffix == ".html" else markdown(cells, rerun)
    try:
        write_atomically(file, page)
    except OSError as error:
        raise unwritable(file, error, "--conformance-report FILE") from error


def markdown(cells: Sequence[CellResult], rerun: Rerun) -> str:
    """A section for each cell; what is not held comes first."""
    page = _page(cells, rerun)
    parts = [f"# {page.title}", page.where, f"{page.verdict}."]
    for cell in page.cells:
        rows = [
            (line.name, str(line.status), line.seen, line.figure, line.bound, f"`{line.command}`")
            for line in (*cell.broken, *cell.unasked, *cell.held)
        ]
        parts += [f"## {cell.id}", cell.summary, markdown_table(HEADINGS, rows)]
    return "\n\n".join(parts) + "\n"


def html(cells: Sequence[CellResult], rerun: Rerun) -> str:
    """The same for people: one file that needs nothing else; figures stand in the sentences."""
    from harness.report.page.render import fill

    return fill("conformance.html.j2", _page(cells, rerun))


def _page(cells: Sequence[CellResult], rerun: Rerun) -> Page:
    return Page(TITLE, _where(), tuple(_section(cell, rerun) for cell in _asked(cells)))


def _section(cell: CellResult, rerun: Rerun) -> Section:
    assert cell.conformance is not None  # `_asked` took the others out
    checks = cell.conformance.checks
    lines = tuple(
        Line(name, c.status, c.reason, _number(c.figure), _number(c.expected), rerun(cell, _asked_for(name)))
        for name, c in checks.items()
    )
    hashes = ", ".join(
        f"{name} {sha256[:HASH_DIGITS]}" for name, sha256 in cell.artifacts.model_dump().items() if sha256
    )
    options = "".join(f", {name}={value}" for name, value in cell.options.items())
    known = f" Known: {cell.conformance.known}." if cell.conformance.known else ""
    return Section(
        id=cell.id,
        status=cell.conformance.status,
        known=bool(cell.conformance.known),
        ran=f"{cell.engine} {cell.engine_version}{options}: {cell.precision_ran} on {cell.device}, batch {cell.batch}",
        made_of=f"Start: {cell.start}; SHA-256: {hashes}.{known}",
        lines=lines,
        command=rerun(cell, ANY_CHECK),
    )


def _asked_for(check: str) -> str:
    """What -k takes: a fault of detgate has no check's name."""
    return "" if check == INTERNAL_ERROR else check


def _asked(cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells that conformance checks were made of; not those of engines that are not here."""
    return [cell for cell in cells if cell.conformance is not None and cell.conformance.status is not Status.MISSING]


def _where() -> str:
    environment = collect()
    device = environment.device.get("gpu") or environment.device["cpu"]
    return f"detgate {__version__} on {device}, {environment.platform}, Python {environment.python}."


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
