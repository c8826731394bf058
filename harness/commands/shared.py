"""Takes argparse's parsers; gives them what all commands have in common: options, output formats, exit codes."""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import UsageError
from harness.model.registry import SHIPPED_BASELINES

EXIT_OK, EXIT_FOUND, EXIT_FAULT, EXIT_WRONG_INPUT = 0, 1, 3, 4
EXIT_INTERRUPTED, EXIT_PIPE = 130, 141  # as a shell has them: 128 + SIGINT, 128 + SIGPIPE
FORMATS = ("table", "json", "markdown")
RESULTS = Path("results/results.json")
HELP_COLUMNS = 100
TABLE_COLUMNS = 100

Run = Callable[[argparse.Namespace], int]
Commands = Any  # argparse._SubParsersAction, which is no public name


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes look like every other wrong input, and exit alike."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError in place of leaving the process."""
        raise UsageError(message, f"{self.prog} --help")


def add_command(
    commands: Commands, name: str, run: Run, summary: str, description: str = "", finding: str = ""
) -> Parser:
    """One command. `finding`: when it exits with 1; empty where it never does."""
    ends = f"{EXIT_OK} done{f'; {EXIT_FOUND} {finding}' if finding else ''}"
    parser: Parser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[:1].upper()}{summary[1:]}.",
        epilog=f"Exit codes: {ends}; {EXIT_FAULT} a fault of detgate; {EXIT_WRONG_INPUT} wrong input.",
        formatter_class=_help,
    )
    parser.set_defaults(run=run, finding=finding, prog=parser.prog)
    return parser


def _help(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=HELP_COLUMNS, max_help_position=30)


# --- options that several commands have, spelt alike in each


def add_format(parser: Parser) -> None:
    """`--format`, of every command that prints data."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default table)")


def add_baselines(
    parser: "Parser | argparse._ArgumentGroup", text: str = "models/ and recorded/ to use in place of the shipped ones"
) -> None:
    """`--baselines DIR`."""
    parser.add_argument(
        "--baselines",
        type=as_path,
        default=SHIPPED_BASELINES,
        metavar="DIR",
        help=text,
    )


def add_results(parser: Parser) -> None:
    """`--results FILE`."""
    parser.add_argument(
        "--results", type=as_path, default=RESULTS, metavar="FILE", help=f"results file of the run (default {RESULTS})"
    )


def add_places(parser: "Parser | argparse._ArgumentGroup", *names: str) -> None:
    """`--checkpoints`, `--data-dir`, `--cache-dir`: those that are named."""
    texts = {
        "checkpoints": "published checkpoints (env CHECKPOINTS_DIR, default ./checkpoints)",
        "data-dir": "COCO folder with annotations/ and images/val2017/ (env DATASETS_DIR, default ./coco)",
        "cache-dir": "graphs and engines (env DETGATE_CACHE, default ~/.cache/detgate)",
    }
    for name in names:
        parser.add_argument(f"--{name}", type=as_path, metavar="DIR", help=texts[name])


def add_batch_size(parser: "Parser | argparse._ArgumentGroup") -> None:
    """`--batch-size N`."""
    parser.add_argument(
        "--batch-size",
        type=whole_number,
        metavar="N",
        help="images per engine call (default: the model file's for this device)",
    )


def add_engine_option(parser: "Parser | argparse._ArgumentGroup", name: str, text: str) -> None:
    """`--engine-option ENGINE.KEY=VALUE`, and its like for one side of a comparison."""
    parser.add_argument(name, action="append", default=[], metavar="ENGINE.KEY=VALUE", help=text)


# --- their values


def as_path(text: str) -> Path:
    """A path option, with `~` as the home directory however it is written."""
    return Path(text).expanduser()


def whole_number(text: str) -> int:
    """A number of things."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted a whole number, found '{text}'")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    return _number(text, "above 0", lambda number: number > 0)


def not_negative(text: str) -> float:
    """A number of at least 0."""
    return _number(text, "of at least 0", lambda number: number >= 0)


def _number(text: str, wanted: str, holds: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and holds(number)):
        raise argparse.ArgumentTypeError(f"wanted a number {wanted}, found '{text}'")
    return number


def checkpoints_of(options: argparse.Namespace) -> Path:
    """`--checkpoints`, or where the environment says."""
    return options.checkpoints or as_path(os.environ.get("CHECKPOINTS_DIR") or "checkpoints")


def data_dir_of(options: argparse.Namespace) -> Path:
    """`--data-dir`, or where the environment says."""
    return options.data_dir or as_path(os.environ.get("DATASETS_DIR") or "coco")


def cache_dir_of(options: argparse.Namespace) -> Path:
    """`--cache-dir`, or where the environment says."""
    from harness.cache import default_directory

    return options.cache_dir or default_directory().expanduser()


# --- what they print


def columns() -> int:
    """Of the terminal, but no fewer than tables need."""
    return max(shutil.get_terminal_size().columns, TABLE_COLUMNS)


def tell(line: str) -> None:
    """How long work goes on: to stderr, so that stdout holds the result alone."""
    print(line, file=sys.stderr, flush=True)


def show(lines: Sequence[str]) -> None:
    """Lines to stdout."""
    for line in lines:
        print(line)
