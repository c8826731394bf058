"""Takes a command line; gives `python -m harness COMMAND`: doctor, list, fetch, schema, baseline, cache."""

import argparse
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness.errors import BaselineError, DetgateError, UsageError
from harness.model.registry import SHIPPED_BASELINES

EXIT_OK, EXIT_DIFFERENT, EXIT_FAULT, EXIT_WRONG_INPUT = 0, 1, 3, 4
EXIT_INTERRUPTED = 130  # as a shell has it: 128 + SIGINT
RESULTS = Path("results/results.json")
SCREEN_COLUMNS = 120


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Mistakes on the command line look like every other wrong input, and exit alike."""
        raise UsageError(message, f"{self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m harness",
        description="detgate: conformance and regression of detection engines. Tests run with pytest; see README.md.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what runs here, what is missing, and the line that mends it")
    doctor.set_defaults(run=_doctor)

    listing = commands.add_parser("list", help="models, their precisions and published rows, and engines")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR")
    listing.set_defaults(run=_list)

    _add_fetch(commands)

    schema = commands.add_parser("schema", help="write the JSON schemas of model files and results again")
    schema.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR", help="where to write")
    schema.set_defaults(run=_schema)

    baseline = commands.add_parser("baseline", help="accepted figures").add_subparsers(required=True, metavar="ACTION")
    accept = baseline.add_parser("accept", help="accept the figures of the last run for a cell")
    accept.add_argument("cells", nargs="+", metavar="CELL", help="cell ids, e.g. pisa-mini-fp32-onnxruntime")
    accept.add_argument("--reason", required=True, help="why these figures are right; kept with them")
    accept.add_argument("--speed", action="store_true", help="accept FPS on this device in place of accuracy")
    accept.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help=f"default {RESULTS}")
    accept.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR")
    accept.set_defaults(run=_accept)

    cache = commands.add_parser("cache", help="show or clear the cache of graphs and engines")
    cache.add_argument("action", choices=("list", "clear"))
    cache.add_argument("--cache-dir", type=Path, metavar="DIR", help="default $DETGATE_CACHE or ~/.cache/detgate")
    cache.add_argument("--unused-for", type=float, default=0.0, metavar="DAYS", help="clear only what is older")
    cache.set_defaults(run=_cache)
    return parser


def _add_fetch(commands: "argparse._SubParsersAction[_Parser]") -> None:
    fetch = commands.add_parser(
        "fetch",
        help="checkpoints of models, coco2017-val, coco2017-train",
        description="Fetch published checkpoints and COCO to where the suites look for them. What is there already is "
        "left alone; what was interrupted goes on where it stopped. Without names: a list of what there is.",
        epilog="Proxies and CA bundles are taken from HTTP_PROXY, HTTPS_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE. A zip "
        "of COCO that lies in --data-dir under its own name is unpacked in place of being fetched, and stays.",
    )
    fetch.add_argument("names", nargs="*", metavar="NAME", help="models as in `list`, coco2017-val, coco2017-train")
    fetch.add_argument(
        "--checkpoints", type=_path, metavar="DIR", help="where weights go (env CHECKPOINTS_DIR, default ./checkpoints)"
    )
    fetch.add_argument(
        "--data-dir", type=_path, metavar="DIR", help="where COCO goes (env DATASETS_DIR, default ./coco)"
    )
    fetch.add_argument(
        "--mirror",
        metavar="BASE_URL",
        help="ask BASE_URL/HOST/PATH in place of https://HOST/PATH, as `wget -x` lays copies out (env DETGATE_MIRROR)",
    )
    fetch.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR")
    fetch.add_argument(
        "--dry-run", action="store_true", help="say what, from where, how large, to where; write nothing"
    )
    fetch.set_defaults(run=_fetch)


def _path(text: str) -> Path:
    """A path option, with `~` as the home directory however it is written."""
    return Path(text).expanduser()


def _fetch(options: argparse.Namespace) -> int:
    from harness.fetch.command import Request, fetch

    request = Request(
        names=tuple(options.names),
        baselines=options.baselines,
        checkpoints=options.checkpoints or _path(os.environ.get("CHECKPOINTS_DIR") or "checkpoints"),
        data_dir=options.data_dir or _path(os.environ.get("DATASETS_DIR") or "coco"),
        mirror=options.mirror or os.environ.get("DETGATE_MIRROR") or None,
        dry_run=options.dry_run,
    )
    try:
        for line in fetch(request):
            print(line, flush=True)
    except KeyboardInterrupt:
        print(f"interrupted; to go on where it stopped: {request.command}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _list(options: argparse.Namespace) -> int:
    from harness.report.listing import as_json, as_text

    print(json.dumps(as_json(options.baselines), indent=1) if options.json else as_text(options.baselines))
    return EXIT_OK


def _doctor(_options: argparse.Namespace) -> int:
    from harness.report.doctor import report

    lines, healthy = report()
    for line in lines:
        print(
            textwrap.fill(
                line, SCREEN_COLUMNS, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False
            )
        )
    return EXIT_OK if healthy else EXIT_DIFFERENT


def _schema(options: argparse.Namespace) -> int:
    from harness.model import registry
    from harness.report import results

    schemas = {registry.SCHEMA_FILE: registry.model_schema(), results.SCHEMA_FILE: results.results_schema()}
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


def _accept(options: argparse.Namespace) -> int:
    for cell in options.cells:
        print(_accept_speed(options, cell) if options.speed else _accept_accuracy(options, cell))
    return EXIT_OK


def _accept_accuracy(options: argparse.Namespace, cell: str) -> str:
    from harness.judge import baseline

    directory = options.results.parent / "proposed"
    for path in sorted(directory.glob("*.json")):
        proposal = baseline.load_proposal(path)
        if cell in proposal.accuracy:
            entry = baseline.accept_accuracy(
                options.baselines, proposal.model, cell, proposal.accuracy[cell], options.reason
            )
            old = f" (was {entry.accepted.previous['map_50_95']:.4f})" if entry.accepted.previous else ""
            return (
                f"accepted {proposal.model} {entry.precision}: AP {entry.map_50_95:.4f}{old}, AP50 {entry.map_50:.4f}"
            )
    raise BaselineError(
        f"no proposal for cell '{cell}' in {directory}",
        "run `pytest -m accuracy` for that cell first; it proposes figures where no baseline is accepted",
    )


def _accept_speed(options: argparse.Namespace, cell: str) -> str:
    from harness.judge import baseline
    from harness.report import results

    found = results.load(options.results)
    result = next((c for c in found.cells if c.id == cell), None)
    if result is None or result.performance is None or result.performance.fps is None:
        raise BaselineError(
            f"{options.results} has no speed of cell '{cell}'", "run `pytest -m performance` for it first"
        )
    figures = {
        "cell": cell,
        "batch": result.batch,
        "fingerprint": found.environment.fingerprint,
        "device": found.environment.device,
        "fps": result.performance.fps,
        "options": result.options,
    }
    entry = baseline.accept_speed(
        options.baselines, result.model, figures, result.performance.uncertainty, options.reason
    )
    old = f" (was {entry.accepted.previous['fps']:.2f})" if entry.accepted.previous else ""
    return f"accepted {cell}: {entry.fps:.2f} FPS{old} at batch {entry.batch}, tolerance {entry.tolerance:.0%}"


def _cache(options: argparse.Namespace) -> int:
    from harness.cache import Cache, default_directory

    cache = Cache(options.cache_dir or default_directory())
    entries = cache.entries() if options.action == "list" else cache.remove(options.unused_for)
    for entry in entries:
        print(f"{entry.kind:<11} {entry.key}  {entry.size / 1e6:9.1f} MB  {entry.inputs.get('engine', '')}")
    word = "in" if options.action == "list" else "removed from"
    print(f"{len(entries)} entries, {sum(e.size for e in entries) / 1e6:.1f} MB {word} {cache.directory}")
    return EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code (0 done, 1 found something, 3 internal error, 4 wrong input)."""
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
    except DetgateError as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_INPUT
    except Exception:  # noqa: BLE001  whatever it is, scripts must tell it from a finding (1) and from their input (4)
        traceback.print_exc()
        print("this is a fault of detgate", file=sys.stderr)
        return EXIT_FAULT
    return code


if __name__ == "__main__":
    sys.exit(main())
