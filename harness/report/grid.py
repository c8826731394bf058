"""Takes headings and rows of plain text; gives a table for a terminal or in Markdown."""

import io
import re
from collections.abc import Sequence
from typing import Literal

Format = Literal["table", "json", "markdown"]

RIGHT = frozenset("+-−0123456789–")


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Aligned columns, figures to the right; where they do not fit into `width` columns the first is folded."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        figures = all(row[place][:1] in RIGHT for row in rows)
        table.add_column(heading, justify="right" if figures else "left", overflow="fold", no_wrap=place > 0)
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def code(text: str) -> str:
    """Markdown that shows a command or a name as it is, or nothing."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def plain(text: str) -> str:
    """Markdown that shows text as it is, on one line: none of its signs is taken for a mark."""
    return re.sub(r"([\\`*_\[\]<>&|~#])", r"\\\1", " ".join(text.split()))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as GitHub and GitLab show it."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
