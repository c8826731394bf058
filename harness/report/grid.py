"""Takes headings and rows of plain text; gives a table for a terminal or in Markdown."""

import io
from collections.abc import Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Format = Literal["table", "json", "markdown"]

RIGHT = frozenset("+-−0123456789–")


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Aligned columns, figures to the right; where they do not fit into `width` columns the first is folded."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        figures = all(row[place][:1] in RIGHT for row in rows)
        table.add_column(heading, justify="right" if figures else "left", overflow="fold", no_wrap=place > 0)
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as GitHub and GitLab show it."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
