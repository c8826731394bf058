"""Takes a command line; gives `python -m harness COMMAND`: see `--help` for the commands."""

import argparse
import json
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness.errors import BaselineError, DetgateError, UsageError
from harness.judge.verdict import GREEN
from harness.measure.turns import PAIR_S
from harness.model.registry import SHIPPED_BASELINES

EXIT_OK, EXIT_DIFFERENT, EXIT_FAULT, EXIT_WRONG_INPUT = 0, 1, 3, 4
EXIT_INTERRUPTED, EXIT_PIPE = 130, 141  # as a shell has them: 128 + SIGINT, 128 + SIGPIPE
RESULTS = Path("results/results.json")
HISTORY = Path("results/history.jsonl")
BLAMED = Path("results/blame")
FORMATS = ("table", "json", "markdown")
SKIPPED_SHOWN = 5
TABLE_COLUMNS = 100
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
    form = listing.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="machine-readable")
    form.add_argument("--markdown", action="store_true", help="the engines as the README's table")
    listing.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR")
    listing.set_defaults(run=_list)

    _add_fetch(commands)
    _add_compare(commands)
    _add_blame(commands)

    schema = commands.add_parser(
        "schema", help="write the JSON schemas of results and of the files in baselines/ again"
    )
    schema.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR", help="where to write")
    schema.set_defaults(run=_schema)

    _add_baseline(commands)
    _add_history(commands)
    _add_report(commands)

    cache = commands.add_parser("cache", help="show or clear the cache of graphs and engines")
    cache.add_argument("action", choices=("list", "clear"))
    cache.add_argument("--cache-dir", type=Path, metavar="DIR", help="default $DETGATE_CACHE or ~/.cache/detgate")
    cache.add_argument("--unused-for", type=float, default=0.0, metavar="DAYS", help="clear only what is older")
    cache.set_defaults(run=_cache)
    return parser


def _add_baseline(commands: "argparse._SubParsersAction[_Parser]") -> None:
    actions = commands.add_parser("baseline", help="accepted figures: accept, ratchet, diff")
    baseline = actions.add_subparsers(required=True, metavar="ACTION")
    accept = baseline.add_parser("accept", help="accept the figures of the last run for a cell")
    accept.add_argument("cells", nargs="+", metavar="CELL", help="cell ids, e.g. pisa-mini-fp32-onnxruntime")
    accept.set_defaults(run=_accept)

    ratchet = baseline.add_parser(
        "ratchet",
        help="accept the figures of every cell that is IMPROVED",
        description="Accept the figures of every cell of the last run whose verdict is IMPROVED; no figure gets worse. "
        "An accuracy holds for all engines: it rises to the lowest of those in the results file.",
    )
    ratchet.add_argument("cells", nargs="*", metavar="PATTERN", help="of cell ids, e.g. 'pisa-*' (default: all)")
    ratchet.set_defaults(run=_ratchet)
    for action in (accept, ratchet):
        action.add_argument("--reason", required=True, help="why these figures are right; kept with them")
        action.add_argument("--speed", action="store_true", help="accept FPS on this device in place of accuracy")
        action.add_argument(
            "--history",
            type=_path,
            metavar="FILE",
            help="with --speed: accept the median of the runs of the same engine file in this history, at least 10, "
            "and a tolerance of three times their spread where that is over 5%%",
        )

    diff = baseline.add_parser(
        "diff",
        help="accepted figures beside the last run's, or another directory's",
        description="Accepted figures beside what the last run found, or beside those of another baselines directory. "
        "Exits with 1 where one differs by more than its tolerance, better or worse; between directories also where "
        "one has a figure or a tolerance that the other has not.",
    )
    diff.add_argument("--against", type=_path, metavar="DIR", help="another baselines directory, in place of results")
    diff.add_argument("--format", choices=FORMATS, default="table")
    diff.set_defaults(run=_baseline_diff)
    for action in (accept, ratchet, diff):
        action.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help=f"default {RESULTS}")
        action.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR")


def _add_history(commands: "argparse._SubParsersAction[_Parser]") -> None:
    history = commands.add_parser(
        "history",
        help="the course of AP and FPS over the runs of a history file",
        description="The course of each cell's AP and FPS over the runs that `pytest --history FILE` wrote down. FPS "
        "of different devices, and AP of different data, are never joined or compared.",
    )
    history.add_argument("file", nargs="?", type=_path, default=HISTORY, metavar="FILE", help=f"default {HISTORY}")
    history.add_argument("--cell", action="append", default=[], metavar="PATTERN", help="cells to show; repeatable")
    history.add_argument("--last", type=int, default=12, metavar="N", help="runs of each course to show (default 12)")
    history.add_argument("--format", choices=FORMATS, default="table")
    history.add_argument("--plot", type=_path, metavar="FILE", help="draw the courses too: .png or .svg")
    history.set_defaults(run=_history)


def _add_report(commands: "argparse._SubParsersAction[_Parser]") -> None:
    report = commands.add_parser(
        "report",
        help="a page of one run or several: verdicts, figures, curves, images that changed",
        description="Write one HTML file that needs nothing else, from results files and the record/ folders beside "
        "them. Exit code: 0 written, whatever its verdict; 4 wrong input.",
    )
    report.add_argument(
        "results", nargs="*", type=_path, default=[RESULTS], metavar="RESULTS", help=f"default {RESULTS}"
    )
    report.add_argument("-o", "--output", required=True, type=_path, metavar="FILE", help="the page, FILE.html")
    report.add_argument(
        "--record", type=_path, metavar="DIR", help="records of the runs (default: record/ beside each)"
    )
    report.add_argument("--against", type=_path, metavar="RUN", help="an earlier run: a results file, or records")
    report.add_argument("--history", type=_path, metavar="FILE", help="a file that `pytest --history` wrote")
    report.add_argument("--data-dir", type=_path, metavar="DIR", help="COCO (env DATASETS_DIR, default ./coco)")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from harness.report.page.sources import Request
    from harness.report.page.write import write_page

    request = Request(
        results=tuple(dict.fromkeys(options.results)) or (RESULTS,),
        target=options.output,
        option="-o FILE",
        data_dir=options.data_dir or _data_dir(),
        record=options.record,
        against=options.against,
        history=options.history,
    )
    print(f"wrote {options.output}, {write_page(request) / 1e6:.2f} MB")
    return EXIT_OK


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


def _add_compare(commands: "argparse._SubParsersAction[_Parser]") -> None:
    compare = commands.add_parser(
        "compare",
        help="two recorded accuracy runs, or the speed of two engines: what changed, and whether it is worse",
        description="Compare the detections of two runs, before and after, cell by cell. A RUN is a folder of records, "
        "one cell's folder in it, or a results file that has record/ beside it. With --speed, OLD and NEW are cells, "
        "engine files or virtual environments, and fresh processes of both take turns until the figures decide; two "
        "files that it kept (--record) are compared where both were measured beside the same old engine. "
        "Exit code: 0 green, 1 worse, invalid or inconclusive, 4 wrong input.",
        epilog="Two runs of one cell each are compared whatever their cells, fp32 with int8 for example.",
    )
    compare.add_argument("before", metavar="RUN_A|OLD", help="the run, or the engine, that was good")
    compare.add_argument("after", metavar="RUN_B|NEW", help="the run, or the engine, in question")
    compare.add_argument(
        "--data-dir",
        type=_path,
        metavar="DIR",
        help="COCO that they were run on (env DATASETS_DIR, default ./coco); the embedded images are found without it",
    )
    compare.add_argument("--format", choices=("table", "json", "markdown"), default="table", help="default table")
    compare.add_argument(
        "--images", type=_whole_number, default=5, metavar="N", help="classes and images to list (default 5)"
    )
    speed = compare.add_argument_group("with --speed")
    speed.add_argument("--speed", action="store_true", help="compare how long a call takes, by 6 to 24 pairs")
    speed.add_argument("--cell", metavar="CELL", help="what engine files and virtual environments run")
    for side in ("old", "new"):
        speed.add_argument(
            f"--{side}-option", action="append", default=[], metavar="ENGINE.KEY=VALUE", help=f"of the {side} side"
        )
    speed.add_argument(
        "--seconds", type=float, default=PAIR_S, metavar="S", help=f"turns of a pair (default {PAIR_S:g})"
    )
    speed.add_argument("--record", type=_path, metavar="FILE", help="keep every pair here (JSON)")
    speed.add_argument("--batch-size", type=_whole_number, metavar="N", help="images of a call, for both sides")
    speed.add_argument("--baselines", type=_path, default=SHIPPED_BASELINES, metavar="DIR")
    speed.add_argument("--checkpoints", type=_path, metavar="DIR", help="env CHECKPOINTS_DIR, default ./checkpoints")
    speed.add_argument("--cache-dir", type=_path, metavar="DIR", help="default $DETGATE_CACHE or ~/.cache/detgate")
    compare.set_defaults(run=_compare)


def _add_blame(commands: "argparse._SubParsersAction[_Parser]") -> None:
    blame = commands.add_parser(
        "blame",
        help="which stage, and which layer, a cell loses accuracy in",
        description="Take the same images through torch, ONNX, the simplified and the typed graph and the engine, tell "
        "what each hop costs, and look within the graph of the first that breaks for the first layer that departs. "
        "That layer is kept as an ONNX of its own, with its inputs. Given such a folder in place of a cell, run it "
        "again. Exit code: 0 nothing departs, 1 a hop breaks or a layer departs, 4 wrong input.",
    )
    blame.add_argument("cell", metavar="CELL|FOLDER", help="e.g. pisa-fp16-tensorrt, or a folder that this wrote")
    blame.add_argument("--against", metavar="CELL", help="a cell to compare layers with, in place of ONNX Runtime's")
    blame.add_argument("--format", choices=FORMATS, default="table", help="default table")
    blame.add_argument("--html", type=_path, metavar="FILE", help="write a page too")
    blame.add_argument(
        "--out", type=_path, default=BLAMED, metavar="DIR", help=f"where the layer is kept, by cell (default {BLAMED})"
    )
    blame.add_argument("--onnx", type=_path, metavar="FILE", help="start from this ONNX of the raw head maps")
    blame.add_argument("--engine-file", type=_path, metavar="FILE", help="the engine is this file")
    blame.add_argument("--engine-option", action="append", default=[], metavar="ENGINE.KEY=VALUE")
    blame.add_argument("--batch-size", type=_whole_number, metavar="N", help="images of a call")
    blame.add_argument("--dataset", choices=("auto", "mini", "coco2017"), default="auto", help="default auto")
    blame.add_argument("--data-dir", type=_path, metavar="DIR", help="COCO (env DATASETS_DIR, default ./coco)")
    blame.add_argument("--baselines", type=_path, default=SHIPPED_BASELINES, metavar="DIR")
    blame.add_argument("--checkpoints", type=_path, metavar="DIR", help="env CHECKPOINTS_DIR, default ./checkpoints")
    blame.add_argument("--cache-dir", type=_path, metavar="DIR", help="default $DETGATE_CACHE or ~/.cache/detgate")
    blame.set_defaults(run=_blame)


def _blame(options: argparse.Namespace) -> int:
    from harness.blame.command import Request, blame, run_alone
    from harness.cache import default_directory
    from harness.engines.table import parse_options
    from harness.pipeline import Settings

    settings = Settings(
        baselines=options.baselines,
        cache_dir=options.cache_dir or default_directory().expanduser(),
        checkpoints=options.checkpoints or _path(os.environ.get("CHECKPOINTS_DIR") or "checkpoints"),
        data_dir=options.data_dir or _data_dir(),
        dataset=options.dataset,
        batch_size=options.batch_size,
        onnx=options.onnx,
        engine_file=options.engine_file,
        engine_options=parse_options(options.engine_option),
    )

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if _path(options.cell).is_dir():
        line, departs = run_alone(_path(options.cell), settings)
        print(line)
        return EXIT_DIFFERENT if departs else EXIT_OK
    request = Request(options.cell, options.against, options.out, options.html, options.format, _columns())
    text, healthy = blame(request, settings, tell)
    print(text)
    return EXIT_OK if healthy else EXIT_DIFFERENT


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted a whole number, found '{text}'")
    return int(text)


def _compare(options: argparse.Namespace) -> int:
    from harness.judge.record import of_speed

    if of_speed(_path(options.before)) and of_speed(_path(options.after)):
        return _compare_speed_records(options)
    if options.speed:
        return _compare_speed(options)
    from harness.report.compare import compare, render

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    before, after = _path(options.before), _path(options.after)
    report = compare(before, after, options.data_dir or _data_dir(), options.images, tell)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(render(report, options.format, shutil.get_terminal_size((100, 24)).columns, colour))
    return EXIT_OK if report.green else EXIT_DIFFERENT


def _compare_speed_records(options: argparse.Namespace) -> int:
    from harness.report.speed import render_records
    from harness.sides.kept import compare_records

    found = compare_records(_path(options.before), _path(options.after))
    print(render_records(found, options.format))
    return EXIT_OK if found.status in GREEN else EXIT_DIFFERENT


def _compare_speed(options: argparse.Namespace) -> int:
    from harness.cache import default_directory
    from harness.report.speed import render
    from harness.sides.arguments import Places, asked
    from harness.sides.comparison import compare

    checkpoints = options.checkpoints or _path(os.environ.get("CHECKPOINTS_DIR") or "checkpoints")
    cache = options.cache_dir or default_directory().expanduser()
    places = Places(options.baselines, checkpoints, cache, options.batch_size)
    old = asked(options.before, options.cell, options.old_option, places)
    new = asked(options.after, options.cell, options.new_option, places)
    found = compare(old, new, lambda line: print(line, file=sys.stderr, flush=True), options.seconds)
    if options.record:
        found.save(options.record)
    print(render(found, options.format))
    return EXIT_OK if found.status in GREEN else EXIT_DIFFERENT


def _data_dir() -> Path:
    return _path(os.environ.get("DATASETS_DIR") or "coco")


def _path(text: str) -> Path:
    """A path option, with `~` as the home directory however it is written."""
    return Path(text).expanduser()


def _fetch(options: argparse.Namespace) -> int:
    from harness.fetch.command import Request, fetch

    request = Request(
        names=tuple(options.names),
        baselines=options.baselines,
        checkpoints=options.checkpoints or _path(os.environ.get("CHECKPOINTS_DIR") or "checkpoints"),
        data_dir=options.data_dir or _data_dir(),
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
    from harness.report.listing import as_json, as_text, engines_table

    if options.markdown:
        print(engines_table())
        return EXIT_OK
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


def _accept(options: argparse.Namespace) -> int:
    if options.history is not None and not options.speed:
        raise UsageError("--history is for speed alone: accuracy does not vary from process to process", "add --speed")
    for cell in options.cells:
        print(_accept_speed(options, cell) if options.speed else _accept_accuracy(options, cell))
    return EXIT_OK


def _accept_speed(options: argparse.Namespace, cell: str) -> str:
    from harness.report.accepting import accept_speed

    return accept_speed(options.baselines, options.results, cell, options.reason, options.history)


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


def _ratchet(options: argparse.Namespace) -> int:
    from harness.report import accepting

    lines = accepting.ratchet(
        options.baselines, options.results, options.cells, options.reason, options.speed, options.history
    )
    for line in lines or [f"nothing to ratchet: no {'speed' if options.speed else 'accuracy'} there is IMPROVED"]:
        print(line)
    return EXIT_OK


def _baseline_diff(options: argparse.Namespace) -> int:
    from harness.report import differing

    if options.against is not None:
        found = differing.against_baselines(options.baselines, options.against)
    else:
        found = differing.against_results(options.baselines, options.results)
    print(differing.render(found, options.format, _columns()))
    return EXIT_DIFFERENT if found.any else EXIT_OK


def _columns() -> int:
    """Of the terminal, but no fewer than tables need."""
    return max(shutil.get_terminal_size().columns, TABLE_COLUMNS)


def _history(options: argparse.Namespace) -> int:
    from harness.report import course, history

    if options.last < 1:
        raise UsageError(f"--last {options.last}: wanted at least 1", "give a positive number")
    found = history.load(options.file)
    courses = course.courses(found.entries, options.cell, options.last)
    print(course.render(found, courses, options.format))
    if options.plot is not None:
        course.plot(courses, options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)
    if found.skipped:
        lines = "; ".join(found.skipped[:SKIPPED_SHOWN])
        print(f"{options.file}, lines skipped: {len(found.skipped)} ({lines})", file=sys.stderr)
    return EXIT_OK


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
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception:  # noqa: BLE001  whatever it is, scripts must tell it from a finding (1) and from their input (4)
        traceback.print_exc()
        print("this is a fault of detgate", file=sys.stderr)
        return EXIT_FAULT
    return code


if __name__ == "__main__":
    sys.exit(main())
