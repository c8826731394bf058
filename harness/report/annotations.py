"""Takes verdicts that failed; gives GitHub's workflow commands that show each failing cell beside the change.

The form, and what must be escaped in it, are those of the `error` command of GitHub Actions' workflow commands.
"""

from collections.abc import Sequence

from harness.judge.verdict import Verdict, gravest

_DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY = _DATA | {":": "%3A", ",": "%2C"}


def annotations(failing: Sequence[Verdict], complaints: Sequence[str] = ()) -> list[str]:
    """One line for each failing cell, with the messages of all its checks, and one for each other complaint."""
    by_cell: dict[str, list[Verdict]] = {}
    for verdict in failing:
        by_cell.setdefault(verdict.cell, []).append(verdict)
    cells = [
        error(f"{gravest([v.status for v in verdicts])} {cell}", "\n".join(v.message() for v in verdicts))
        for cell, verdicts in by_cell.items()
    ]
    return [*cells, *(error("detgate", complaint) for complaint in complaints)]


def error(title: str, message: str) -> str:
    """One annotation."""
    return f"::error title={_escaped(title, _PROPERTY)}::{_escaped(message, _DATA)}"


def _escaped(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(sign, sign) for sign in text)
