"""Takes the words after `doctor`, `list`, `schema` or `cache`; gives what is here: machine, models, schemas, cache."""

import argparse
import json
from pathlib import Path

from harness.commands.shared import (
    EXIT_FOUND,
    EXIT_OK,
    Commands,
    add_baselines,
    add_command,
    add_format,
    add_places,
    cache_dir_of,
    checkpoints_of,
    data_dir_of,
    not_negative,
    show,
)
from harness.errors import BaselineError

SHOWN, LISTS = ("models", "engines"), ("models", "engines", "options", "commands")
SCREEN_COLUMNS = 120


def add_doctor(commands: Commands) -> None:
    """`doctor`."""
    doctor = add_command(
        commands,
        "doctor",
        _doctor,
        "what runs here, what is missing, and the line that mends it",
        finding="a package that all stand on, or every engine, is missing",
    )
    add_format(doctor)
    add_places(doctor, "checkpoints", "data-dir")


def add_list(commands: Commands) -> None:
    """`list`."""
    listing = add_command(
        commands,
        "list",
        _list,
        "models with their published rows; engines and their options; commands",
        "Models with their input sizes and published rows, engines with what each computes in, what --engine-option "
        "may set, and the commands.",
    )
    listing.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(LISTS)} (default: {' '.join(SHOWN)})")
    add_format(listing)
    listing.add_argument("--json", dest="format", action="store_const", const="json", help="as --format json")
    add_baselines(listing)


def add_schema(commands: Commands) -> None:
    """`schema`."""
    add_baselines(
        add_command(
            commands,
            "schema",
            _schema,
            "write the JSON schemas of results and of the files in baselines/ again",
            "Write the JSON schemas of results and of the files in baselines/ again.",
        ),
        "folder to write them into (default: the shipped baselines/)",
    )


def add_cache(commands: Commands) -> None:
    """`cache list`, `cache clear`."""
    cache = add_command(
        commands,
        "cache",
        _cache,
        "show or clear the cache of graphs and engines",
        "Show or clear the cache of graphs and engines. Entries are found by content: clearing costs time, no more.",
    )
    cache.add_argument("action", choices=("list", "clear"), help="show entries and their sizes, or remove them")
    cache.add_argument(
        "--unused-for",
        type=not_negative,
        default=0.0,
        metavar="DAYS",
        help="clear: only entries that were not used for so long (default 0: all)",
    )
    add_format(cache)
    add_places(cache, "cache-dir")


def _doctor(options: argparse.Namespace) -> int:
    from harness.report import doctor

    findings, healthy = doctor.examine(checkpoints_of(options), data_dir_of(options))
    print(doctor.render(findings, healthy, options.format, SCREEN_COLUMNS))
    return EXIT_OK if healthy else EXIT_FOUND


def _list(options: argparse.Namespace) -> int:
    from harness.__main__ import make_parser
    from harness.commands import reference
    from harness.report import listing

    lists = listing.LISTS | {"commands": reference.listing(make_parser())}
    print(listing.render(lists, options.what or SHOWN, options.baselines, options.format))
    return EXIT_OK


def _schema(options: argparse.Namespace) -> int:
    from harness.judge import baseline, known
    from harness.model import registry
    from harness.report import results

    schemas = {
        registry.SCHEMA_FILE: registry.model_schema(),
        results.SCHEMA_FILE: results.results_schema(),
        baseline.SCHEMA_FILE: baseline.recorded_schema(),
        known.SCHEMA_FILE: known.known_schema(),
    }
    for name, schema in schemas.items():
        target: Path = options.baselines / name
        try:
            target.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise BaselineError(
                f"cannot write {target}: {error.strerror}", "give a directory: --baselines DIR"
            ) from error
        print(f"wrote {target}")
    return EXIT_OK


def _cache(options: argparse.Namespace) -> int:
    from harness.cache import Cache
    from harness.report.listing import render_cache

    cache = Cache(cache_dir_of(options))
    listed = options.action == "list"
    entries = cache.entries() if listed else cache.remove(options.unused_for)
    show([render_cache(entries, cache.directory, "in" if listed else "removed from", options.format)])
    return EXIT_OK
