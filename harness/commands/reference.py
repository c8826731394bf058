"""Takes the parsers of all commands; gives one row for each: what it does, how it prints, when it exits with 1."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from harness.commands.shared import FORMATS
from harness.report.grid import markdown_table
from harness.report.listing import Listing


@dataclass(frozen=True)
class Row:
    """One command. `prints`: its output formats; empty where it prints lines only."""

    command: str
    does: str
    prints: tuple[str, ...]
    finding: str


def rows(parser: argparse.ArgumentParser, words: str = "") -> list[Row]:
    """Every command of `parser`, those of groups (`baseline accept`) as their own."""
    return [row for name, summary, command in _below(parser) for row in _rows(f"{words}{name}", summary, command)]


def _rows(name: str, summary: str, command: argparse.ArgumentParser) -> list[Row]:
    if any(_below(command)):
        return rows(command, f"{name} ")
    prints = FORMATS if any("--format" in action.option_strings for action in command._actions) else ()
    return [Row(name, summary, prints, command.get_default("finding"))]


def _below(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.dest, choice.help or "", action.choices[choice.dest]


def listing(parser: argparse.ArgumentParser) -> Listing:
    """The commands as `python -m harness list commands` prints them."""
    found = rows(parser)
    return Listing(
        data=lambda _: [asdict(row) for row in found],
        markdown=lambda _: table(found),
        text=lambda _: "\n".join(["commands:", *(f"  {row.command:<17} {row.does}" for row in found)]),
    )


def table(found: list[Row]) -> str:
    """Markdown; the README holds it."""
    head = ("`python -m harness …`", "does", "prints", "exits with 1 where")
    shown = [(f"`{r.command}`", r.does, ", ".join(r.prints) or "lines", r.finding or "–") for r in found]
    return markdown_table(head, shown)
