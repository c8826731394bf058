"""Takes the words after `compare`; gives what changed between two runs, or between the speeds of two engines."""

import argparse
import os
import shutil
import sys

from harness.commands.shared import (
    EXIT_FOUND,
    EXIT_OK,
    Commands,
    Parser,
    add_baselines,
    add_batch_size,
    add_command,
    add_engine_option,
    add_format,
    add_places,
    as_path,
    cache_dir_of,
    checkpoints_of,
    data_dir_of,
    positive,
    tell,
    whole_number,
)
from harness.judge.verdict import GREEN
from harness.measure.turns import PAIR_S


def add(commands: Commands) -> None:
    """`compare`."""
    compare = add_command(
        commands,
        "compare",
        _compare,
        "two recorded accuracy runs, or the speed of two engines: what changed, and whether it is worse",
        "Compare the detections of two runs, before and after, cell by cell. A RUN is a folder of records, "
        "one cell's folder in it, or a results file that has record/ beside it; two runs of one cell each are compared "
        "whatever their cells, fp32 with int8 for example. With --speed, OLD and NEW are cells, engine files or "
        "virtual environments, and fresh processes of both take turns until the figures decide; two files that it kept "
        "(--pairs) are compared where both were measured beside the same old engine.",
        finding="worse, invalid or inconclusive",
    )
    compare.add_argument("before", metavar="RUN_A|OLD", help="the run, or the engine, that was good")
    compare.add_argument("after", metavar="RUN_B|NEW", help="the run, or the engine, in question")
    compare.add_argument(
        "--images", type=whole_number, default=5, metavar="N", help="classes and images to list (default 5)"
    )
    add_format(compare)
    add_places(compare, "data-dir")
    _add_speed(compare)


def _add_speed(compare: Parser) -> None:
    speed = compare.add_argument_group("with --speed")
    speed.add_argument("--speed", action="store_true", help="compare how long a call takes, by 6 to 24 pairs")
    speed.add_argument("--cell", metavar="CELL", help="what engine files and virtual environments run")
    for side in ("old", "new"):
        add_engine_option(speed, f"--{side}-option", f"set an engine's option on the {side} side; repeatable")
    speed.add_argument(
        "--seconds",
        type=positive,
        default=PAIR_S,
        metavar="S",
        help=f"how long the turns of one pair last, in seconds (default {PAIR_S:g})",
    )
    speed.add_argument("--pairs", type=as_path, metavar="FILE", help="keep every pair here (JSON)")
    add_batch_size(speed)
    add_baselines(speed)
    add_places(speed, "checkpoints", "cache-dir")


def _compare(options: argparse.Namespace) -> int:
    from harness.judge.record import of_speed

    if of_speed(as_path(options.before)) and of_speed(as_path(options.after)):
        return _compare_speed_records(options)
    if options.speed:
        return _compare_speed(options)
    from harness.report.compare import compare, render

    report = compare(as_path(options.before), as_path(options.after), data_dir_of(options), options.images, tell)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(render(report, options.format, shutil.get_terminal_size((100, 24)).columns, colour))
    return EXIT_OK if report.green else EXIT_FOUND


def _compare_speed_records(options: argparse.Namespace) -> int:
    from harness.report.speed import render_records
    from harness.sides.kept import compare_records

    found = compare_records(as_path(options.before), as_path(options.after))
    print(render_records(found, options.format))
    return EXIT_OK if found.status in GREEN else EXIT_FOUND


def _compare_speed(options: argparse.Namespace) -> int:
    from harness.report.speed import render
    from harness.sides.arguments import Places, asked
    from harness.sides.comparison import compare

    places = Places(options.baselines, checkpoints_of(options), cache_dir_of(options), options.batch_size)
    old = asked(options.before, options.cell, options.old_option, places)
    new = asked(options.after, options.cell, options.new_option, places)
    found = compare(old, new, tell, options.seconds)
    if options.pairs:
        found.save(options.pairs)
    print(render(found, options.format))
    return EXIT_OK if found.status in GREEN else EXIT_FOUND
