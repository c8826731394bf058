"""Takes a command line; gives `python -m harness COMMAND`: see `--help` for the commands."""

import os
import sys
import traceback
from collections.abc import Sequence

from harness.commands import baseline, blame, compare, fetch, history, machine, report
from harness.commands.shared import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_PIPE, EXIT_WRONG_INPUT, Parser, tell
from harness.errors import DetgateError, UsageError

# In the order of --help: what is here, what changed, what is expected.
COMMANDS = (
    machine.add_doctor,
    machine.add_list,
    fetch.add,
    compare.add,
    blame.add,
    machine.add_schema,
    baseline.add,
    history.add,
    report.add,
    machine.add_cache,
)


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="python -m harness",
        description="detgate: conformance and regression of detection engines. Tests run with pytest; see README.md.",
        epilog="Exit codes: 0 done; 1 found something; 3 a fault of detgate; 4 wrong input. "
        "`python -m harness COMMAND --help` says what each finds.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code.

    0 done, 1 found something, 3 internal error, 4 wrong input; 130 interrupted, 141 nobody reads on.
    """
    try:
        options, unknown = make_parser().parse_known_args(arguments)
        if unknown:  # told of the command that they were given to; `parse_args` would name the parser of all
            raise UsageError(f"unrecognized arguments: {' '.join(unknown)}", f"{options.prog} --help")
        code: int = options.run(options)
    except DetgateError as error:
        print(error, file=sys.stderr)
        return EXIT_WRONG_INPUT
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt:
        tell("interrupted")
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001  whatever it is, scripts must tell it from a finding (1) and from their input (4)
        traceback.print_exc()
        print("this is a fault of detgate", file=sys.stderr)
        return EXIT_FAULT
    return code


if __name__ == "__main__":
    sys.exit(main())
