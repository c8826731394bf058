"""Takes the words after `history`; gives the course of AP and FPS over the runs of a history file."""

import argparse
from pathlib import Path

from harness.commands.shared import EXIT_OK, Commands, add_command, add_format, as_path, tell, whole_number
from harness.errors import UsageError

HISTORY = Path("results/history.jsonl")
SKIPPED_SHOWN = 5


def add(commands: Commands) -> None:
    """`history`."""
    history = add_command(
        commands,
        "history",
        _history,
        "the course of AP and FPS over the runs of a history file",
        "The course of each cell's AP and FPS over the runs that `pytest --history FILE` wrote down. FPS of different "
        "devices, and AP of different data, are never joined or compared.",
    )
    history.add_argument("file", nargs="?", type=as_path, default=HISTORY, metavar="FILE", help=f"default {HISTORY}")
    history.add_argument("--cell", action="append", default=[], metavar="PATTERN", help="cells to show; repeatable")
    history.add_argument(
        "--last", type=whole_number, default=12, metavar="N", help="runs of each course to show (default 12)"
    )
    history.add_argument("--plot", type=as_path, metavar="FILE", help="draw the courses too: .png or .svg")
    add_format(history)


def _history(options: argparse.Namespace) -> int:
    from harness.report import course, history

    if options.last < 1:
        raise UsageError(f"--last {options.last}: wanted at least 1", "give a positive number")
    found = history.load(options.file)
    courses = course.courses(found.entries, options.cell, options.last)
    print(course.render(found, courses, options.format))
    if options.plot is not None:
        course.plot(courses, options.plot)
        tell(f"wrote {options.plot}")
    if found.skipped:
        lines = "; ".join(found.skipped[:SKIPPED_SHOWN])
        tell(f"{options.file}, lines skipped: {len(found.skipped)} ({lines})")
    return EXIT_OK
