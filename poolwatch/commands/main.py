"""The command line: runs a command, prints its errors, returns its exit code."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from poolwatch.commands import (
    advise,
    attach,
    bench,
    check,
    completion,
    demo,
    history,
    profile,
    ps,
    report,
    run,
    serve,
    sidecar,
    tui,
)
from poolwatch.commands.arguments import CHECK_EXIT_CODES, Command, joined_times
from poolwatch.commands.installed import ShowInstalled
from poolwatch.errors import PoolwatchError, UsageError

COMMANDS: tuple[Command, ...] = (
    ps, tui, serve, demo, check, advise, profile, run, attach, sidecar, history, report,
    bench, completion,
)  # fmt: skip
"""Commands are cheap to import: each imports its dependencies when it runs."""

_GETTING_STARTED = """\
In the application, one line:

    import poolwatch
    poolwatch.instrument(engine)      # an Engine, AsyncEngine or Pool of SQLAlchemy

then, from any terminal of the same user:

    poolwatch tui                     # the dashboard
    poolwatch ps                      # the same as one table

No application at hand?  poolwatch demo  starts one, with PostgreSQL and real faults.
Options, examples and environment of each command: poolwatch COMMAND --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may be limited to ASCII
            stream.reconfigure(errors="replace")
    try:
        return int(_flushed(_run(sys.argv[1:] if arguments is None else arguments)))
    except SystemExit as end:  # of --help, --version, and a wrong option
        raise SystemExit(_flushed(end.code)) from None


def _run(given: Sequence[str]) -> int:
    try:
        parser = _parser()
        if not given:
            parser.print_help(sys.stderr)
            return UsageError.exit_code
        options = parser.parse_args(joined_times(given))
        return int(options.run(options))
    except PoolwatchError as error:
        from poolwatch.text.format import neutral

        print(f"poolwatch: {neutral(str(error), lines=True)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has ended, as with head
        _discard_output()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _not_written(error)


def _flushed(code: Any) -> Any:
    """The exit code once all output is written: Python's own end would say nothing."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        return _not_written(error)
    return code


def _not_written(error: OSError) -> int:
    _discard_output()
    print(f"poolwatch: cannot write the output: {error.strerror}", file=sys.stderr)
    return UsageError.exit_code


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="poolwatch",
        description="Who holds my database connections?",
        epilog=f"{_GETTING_STARTED}\n{CHECK_EXIT_CODES}",
    )
    parser.add_argument(
        "--version",
        action=ShowInstalled,
        help="print what is installed: poolwatch, Python and libraries",
    )
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(parsers).set_defaults(run=command.run, parser=parser)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that preserves the line breaks of descriptions and epilogs.

    Its errors are one sentence: argparse's own usage would bury it.
    """

    def __init__(self, **texts: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **texts)

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """Refuse unknown arguments here: this parser knows the command's name."""
        options, unknown = super().parse_known_args(*given, **named)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit."""
        from poolwatch.text.format import one_line

        sentence = one_line(message.removeprefix("argument "))
        text = f"poolwatch: {sentence}; more: {self.prog} --help\n"
        self.exit(UsageError.exit_code, text)
