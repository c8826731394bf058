"""Takes the words after `baseline`; gives accepted figures: one more, better ones, or beside other figures."""

import argparse

from harness.commands.shared import (
    EXIT_FOUND,
    EXIT_OK,
    Commands,
    add_baselines,
    add_command,
    add_format,
    add_results,
    as_path,
    columns,
    show,
)
from harness.errors import BaselineError, UsageError


def add(commands: Commands) -> None:
    """`baseline accept`, `baseline ratchet`, `baseline diff`."""
    actions = commands.add_parser(
        "baseline",
        help="accepted figures: accept, ratchet, diff",
        description="Accepted figures of cells, which later runs are held to: in baselines/recorded/, with who "
        "accepted them, when and why.",
    )
    baseline = actions.add_subparsers(required=True, metavar="ACTION")
    accept = add_command(
        baseline,
        "accept",
        _accept,
        "accept the figures of the last run for a cell",
        "Accept the figures of the last run for a cell, in place of those accepted before, which are kept beside them.",
    )
    accept.add_argument("cells", nargs="+", metavar="CELL", help="cell ids, e.g. pisa-mini-fp32-onnxruntime")
    ratchet = add_command(
        baseline,
        "ratchet",
        _ratchet,
        "accept the figures of every cell that is IMPROVED",
        "Accept the figures of every cell of the last run whose verdict is IMPROVED; no figure gets worse. "
        "An accuracy holds for all engines: it rises to the lowest of those in the results file.",
    )
    ratchet.add_argument("cells", nargs="*", metavar="PATTERN", help="of cell ids, e.g. 'pisa-*' (default: all)")
    for action in (accept, ratchet):
        _add_acceptance(action)
    diff = add_command(
        baseline,
        "diff",
        _diff,
        "accepted figures beside the last run's, or another directory's",
        "Accepted figures beside what the last run found, or beside those of another baselines directory.",
        finding="a figure differs by more than its tolerance, better or worse; between directories also one that "
        "only one of them has",
    )
    diff.add_argument(
        "--against", type=as_path, metavar="DIR", help="compare with this baselines directory, in place of results"
    )
    add_format(diff)
    for action in (accept, ratchet, diff):
        add_results(action)
        add_baselines(action)


def _add_acceptance(action: argparse.ArgumentParser) -> None:
    action.add_argument("--reason", required=True, help="why these figures are right; kept with them")
    action.add_argument("--speed", action="store_true", help="accept FPS on this device in place of accuracy")
    action.add_argument(
        "--history",
        type=as_path,
        metavar="FILE",
        help="with --speed: accept the median of the runs of the same engine file in this history, at least 10, "
        "and a tolerance of three times their spread where that is over 5%%",
    )


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
        "run `pytest -m accuracy` for that cell first, with the same --results: its figures are proposed there",
    )


def _ratchet(options: argparse.Namespace) -> int:
    from harness.report import accepting

    lines = accepting.ratchet(
        options.baselines, options.results, options.cells, options.reason, options.speed, options.history
    )
    show(lines or [f"nothing to ratchet: no {'speed' if options.speed else 'accuracy'} there is IMPROVED"])
    return EXIT_OK


def _diff(options: argparse.Namespace) -> int:
    from harness.report import differing

    if options.against is not None:
        found = differing.against_baselines(options.baselines, options.against)
    else:
        found = differing.against_results(options.baselines, options.results)
    print(differing.render(found, options.format, columns()))
    return EXIT_FOUND if found.any else EXIT_OK
