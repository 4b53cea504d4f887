"""``poolwatch run``: run a program with all its pools instrumented."""

from __future__ import annotations

import argparse
import os
import sys

from poolwatch.commands.arguments import Parsers, environment
from poolwatch.errors import UsageError

_DESCRIPTION = """\
Run a program and instrument every pool of every Python process that it starts: a
script, a module, gunicorn, uvicorn, celery, pytest. The program replaces this command,
so signals reach it directly and the exit code is its own.
"""

_EXAMPLES = f"""\
examples:
  poolwatch run -- python app.py
  poolwatch run -- python -m shop.worker
  poolwatch run -- gunicorn --workers 4 shop:app
  poolwatch run -- celery --app shop worker
  env $(poolwatch run --environment) python app.py      # the same, e.g. in a container

Python's own switches -I, -E and -S disable it, and so does POOLWATCH_DISABLE=1.

{environment("POOLWATCH_DIR", "POOLWATCH_NAME", "POOLWATCH_DISABLE")}
exit codes: those of the program; 2 usage, or the program cannot be run
"""


def add(parsers: Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch run``."""
    run = parsers.add_parser(
        "run",
        help="instrument a program without touching its code",
        usage="poolwatch run [--] COMMAND [ARGUMENT ...]\n"
        "       poolwatch run --environment",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    run.add_argument(
        "--environment",
        action="store_true",
        help="only print the environment variable to set (for containers)",
    )
    run.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="the program with its arguments",
    )
    return run


def run(options: argparse.Namespace) -> int:
    """Replace this process by the program."""
    from poolwatch.agent import autostart

    variables = autostart.environment(dict(os.environ))
    if options.environment:
        print(f"PYTHONPATH={variables['PYTHONPATH']}")
        return 0
    program = options.program
    if program[:1] == ["--"]:
        program = program[1:]
    if not program or not program[0]:
        raise UsageError(
            "no program given, for example: poolwatch run -- gunicorn shop:app"
        )
    sys.stdout.flush()
    try:
        os.execvpe(program[0], program, variables)  # noqa: S606 - the user's program
    except FileNotFoundError:
        raise UsageError(f"program not found: {program[0]!r}") from None
    except OSError as error:
        raise UsageError(f"cannot run {program[0]!r}: {error.strerror}") from None
