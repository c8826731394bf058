"""Takes the results of a conformance run; gives the page that an engine's team can be sent: Markdown or HTML."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from harness.environment import collect
from harness.errors import UsageError
from harness.files import write_atomically
from harness.judge.verdict import GREEN, Status
from harness.report.grid import markdown_table
from harness.report.results import CellResult, CheckResult, unwritable

SUFFIXES = (".md", ".html")
HEADINGS = ("check", "verdict", "what it means, and what was seen", "figure", "at most", "to repeat it")
HASH_DIGITS = 12
TITLE = "What the engines hold, and what they do not"
VIEWPORT = '<meta name="viewport" content="width=device-width,initial-scale=1">'
STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:80em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}
.bad td:nth-child(2){color:#b00020;font-weight:bold}code{font-size:12px}"""
Rerun = Callable[[CellResult, str], str]
"""The command that repeats one check of a cell alone."""


def require_suffix(file: Path) -> None:
    """Refuse a file that is neither Markdown nor HTML.

    Raises:
        UsageError: by its suffix.
    """
    if file.suffix not in SUFFIXES:
        raise UsageError(
            f"--conformance-report {file}: wanted a file that ends in {' or '.join(SUFFIXES)}",
            f"--conformance-report {file.with_suffix('.html')}",
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
    parts = [f"# {TITLE}", _where()]
    for cell in _asked(cells):
        rows = [(*row[:-1], f"`{row[-1]}`") for row in _rows(cell, rerun)]
        parts += [f"## {cell.id}", _summary(cell), markdown_table(HEADINGS, rows)]
    return "\n\n".join(parts) + "\n"


def html(cells: Sequence[CellResult], rerun: Rerun) -> str:
    """The same as one file that needs nothing else."""
    parts = [f"<h1>{TITLE}</h1>", f"<p>{escape(_where())}</p>"]
    for cell in _asked(cells):
        parts += [f"<h2>{escape(cell.id)}</h2>", f"<p>{escape(_summary(cell))}</p>", _html_table(cell, rerun)]
    head = f'<meta charset="utf-8">{VIEWPORT}<title>{TITLE}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _html_table(cell: CellResult, rerun: Rerun) -> str:
    lines = [f"<tr>{''.join(f'<th>{heading}</th>' for heading in HEADINGS)}</tr>"]
    for row in _rows(cell, rerun):
        texts = [escape(text) for text in row]
        cells = [*texts[:-1], f"<code>{texts[-1]}</code>"]
        kind = "" if row[1] in GREEN or row[1] == Status.MISSING else ' class="bad"'
        lines.append(f"<tr{kind}>{''.join(f'<td>{text}</td>' for text in cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _asked(cells: Sequence[CellResult]) -> list[CellResult]:
    """Cells that conformance checks were made of; not those of engines that are not here."""
    return [cell for cell in cells if cell.conformance is not None and cell.conformance.status is not Status.MISSING]


def _where() -> str:
    environment = collect()
    device = environment.device.get("gpu") or environment.device["cpu"]
    return f"On {device}, {environment.platform}, Python {environment.python}."


def _summary(cell: CellResult) -> str:
    """What was examined, and the number of promises held."""
    held = sum(check.status in GREEN for check in _checks(cell).values())
    asked = sum(check.status is not Status.MISSING for check in _checks(cell).values())
    hashes = ", ".join(
        f"{name} {sha256[:HASH_DIGITS]}" for name, sha256 in cell.artifacts.model_dump().items() if sha256
    )
    options = "".join(f", {name}={value}" for name, value in cell.options.items())
    engine = f"{cell.engine} {cell.engine_version}{options}: {cell.precision_ran} on {cell.device}, batch {cell.batch}"
    known = f" Known: {cell.conformance.known}." if cell.conformance and cell.conformance.known else ""
    return f"{held} of {asked} held. {engine}. Start: {cell.start}; SHA-256: {hashes}.{known}"


def _checks(cell: CellResult) -> dict[str, CheckResult]:
    assert cell.conformance is not None  # `_asked` took the others out
    return cell.conformance.checks


def _rows(cell: CellResult, rerun: Rerun) -> list[tuple[str, ...]]:
    found = sorted(_checks(cell).items(), key=lambda item: (item[1].status in GREEN, item[1].status is Status.MISSING))
    return [
        (name, str(check.status), check.reason, _number(check.figure), _number(check.expected), rerun(cell, name))
        for name, check in found
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
