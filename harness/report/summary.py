"""Takes what a run found; gives its Markdown for the page of a CI job: verdict, what failed, cells, what is missing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.judge.verdict import GRAVITY, Status, Verdict
from harness.report.grid import code, markdown_table, plain
from harness.report.results import CellResult
from harness.report.table import HEADINGS, given, rows

# By exit code, as README.md has them.
OUTCOMES = {
    0: "passed",
    1: "failed",
    2: "interrupted",
    3: "failed by a fault of its own",
    4: "wrong input",
    5: "no cell was judged",
}
COMMANDS = ("pytest ", "python ", "pip ", "make ")
SHOWN = 30


class Lack(NamedTuple):
    """What cells are MISSING for: who (a cell and its check, or all cells of an engine), why, and what mends it."""

    who: str
    reason: str
    remedy: str

    def message(self) -> str:
        """As the terminal shows it."""
        return f"{Status.MISSING} {self.who}: {self.reason}\n  next: {self.remedy}"


@dataclass(frozen=True)
class Summary:
    """A run at its end.

    exit_code: of the run. cells: without those of engines that are not here, which `absent` counts. failing: verdicts
    that fail their tests. complaints: what else made it red. lacks: what was skipped, each remedy once. notes: where
    results lie, and the like.
    """

    exit_code: int
    cells: Sequence[CellResult]
    absent: Mapping[str, int] = field(default_factory=dict)
    failing: Sequence[Verdict] = ()
    complaints: Sequence[str] = ()
    lacks: Sequence[Lack] = ()
    notes: Sequence[str] = ()


def markdown(summary: Summary) -> str:
    """The page; a job's page may hold others before and after it."""
    parts = [f"## detgate: {OUTCOMES.get(summary.exit_code, 'failed')}{_counts(summary)}"]
    if summary.failing or summary.complaints:
        parts += ["### What failed", _failing(summary)]
    if summary.cells or summary.absent:
        parts += ["### Cells", _table(summary)]
    parts += [plain(line) for line in given(summary.cells)]
    if summary.lacks:
        parts.append(_lacks(summary.lacks))
    if summary.notes:
        parts.append("\n".join(f"- {plain(note)}" for note in summary.notes))
    return "\n\n".join(parts) + "\n"


def _counts(summary: Summary) -> str:
    found = Counter(row.status for row in rows(summary.cells))
    found[Status.MISSING] += sum(summary.absent.values())
    counts = [f"{found[status]} {status}" for status in reversed(GRAVITY) if found[status]]
    return f" ({', '.join(counts)})" if counts else ""


def _failing(summary: Summary) -> str:
    """The gravest first; beyond SHOWN they are counted, for a job's page holds a megabyte."""
    ordered = sorted(summary.failing, key=lambda verdict: -GRAVITY.index(verdict.status))
    lines = [
        f"- **{v.status}** {code(v.cell)} {plain(v.check)}: {plain(v.reason)}{_next(v.remedy)}" for v in ordered[:SHOWN]
    ]
    if len(ordered) > SHOWN:
        lines.append(f"- … and {len(ordered) - SHOWN} more, in the table below and in the results file")
    return "\n".join([*lines, *(f"- {plain(complaint)}" for complaint in summary.complaints)])


def _next(remedy: str) -> str:
    return f"<br>next: {_command(remedy)}" if remedy else ""


def _command(remedy: str) -> str:
    return code(remedy) if remedy.startswith(COMMANDS) else plain(remedy)


def _table(summary: Summary) -> str:
    shown = [
        (code(row.cell), row.check, row.figure, row.expected, f"{_emphasised(row.status)}{row.known}", row.measured_on)
        for row in rows(summary.cells, summary.absent)
    ]
    return markdown_table(HEADINGS, shown)


def _emphasised(status: Status) -> str:
    grave = GRAVITY.index(status) > GRAVITY.index(Status.MISSING)
    return f"**{status}**" if grave else str(status)


def _lacks(lacks: Sequence[Lack]) -> str:
    lines = [f"- {code(lack.who)}: {plain(lack.reason)}{_next(lack.remedy)}" for lack in lacks]
    return "\n".join(["<details><summary>What is MISSING, and what mends it</summary>", "", *lines, "", "</details>"])
