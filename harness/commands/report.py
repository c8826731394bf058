"""Takes the words after `report`; writes the page of one run or several."""

import argparse

from harness.commands.shared import EXIT_OK, RESULTS, Commands, add_command, add_places, as_path, data_dir_of


def add(commands: Commands) -> None:
    """`report`."""
    report = add_command(
        commands,
        "report",
        _report,
        "a page of one run or several: verdicts, figures, curves, images that changed",
        "Write one HTML file that needs nothing else, from results files and the record/ folders beside them, whatever "
        "its verdict.",
    )
    report.add_argument(
        "results", nargs="*", type=as_path, default=[RESULTS], metavar="RESULTS", help=f"default {RESULTS}"
    )
    report.add_argument("-o", "--output", required=True, type=as_path, metavar="FILE", help="the page, FILE.html")
    report.add_argument(
        "--record", type=as_path, metavar="DIR", help="records of the runs (default: record/ beside each)"
    )
    report.add_argument(
        "--against", type=as_path, metavar="RUN", help="compare with this earlier run: a results file, or records"
    )
    report.add_argument("--history", type=as_path, metavar="FILE", help="a file that `pytest --history` wrote")
    add_places(report, "data-dir")


def _report(options: argparse.Namespace) -> int:
    from harness.report.page.sources import Request
    from harness.report.page.write import write_page

    request = Request(
        results=tuple(dict.fromkeys(options.results)) or (RESULTS,),
        target=options.output,
        option="-o FILE",
        data_dir=data_dir_of(options),
        record=options.record,
        against=options.against,
        history=options.history,
    )
    print(f"wrote {options.output}, {write_page(request) / 1e6:.2f} MB")
    return EXIT_OK
