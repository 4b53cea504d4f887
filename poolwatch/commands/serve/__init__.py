"""``poolwatch serve``: the dashboard in a browser."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from poolwatch.commands.arguments import (
    VIEWER,
    Parsers,
    add_refresh,
    add_source,
    environment,
    given_console,
)
from poolwatch.errors import MissingExtraError

_DESCRIPTION = """\
Show the dashboard of "poolwatch tui" in a browser. The server listens on this machine
only; on Linux it admits only this user and root.
"""

_EXAMPLES = """\
examples:
  poolwatch serve                       then open http://127.0.0.1:8000/
  POOLWATCH_DSN=... poolwatch serve     keeps the DSN out of the process list
  ssh -t -L 8000:127.0.0.1:8000 HOST poolwatch serve    from another machine

There is no password. With --host ADDRESS --anyone-may-look, everyone who can reach the
address sees statements, call sites and labels. Pages are read-only.
"""
_EXIT_CODES = """\
exit codes: 0 it was told to end, 2 usage, or an address that cannot be listened on
"""

_NEEDED = ("textual_serve", "textual", "aiohttp", "sqlparse")


def add(parsers: Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch serve``."""
    serve = parsers.add_parser(
        "serve",
        help="the dashboard in a browser",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{environment(*VIEWER)}\n{_EXIT_CODES}",
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default 127.0.0.1)",
    )
    serve.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="port to listen on; 0 selects a free port and prints it (default 8000)",
    )
    serve.add_argument(
        "--anyone-may-look",
        action="store_true",
        help="allow a host that other machines can reach, without a password",
    )
    add_refresh(serve)
    add_source(serve)
    return serve


def run(options: argparse.Namespace) -> int:
    """Serve the dashboard until SIGINT or SIGTERM."""
    arguments = ["--refresh", f"{options.refresh:g}"]
    if options.dir is not None:
        arguments += ["--dir", str(options.dir.absolute())]
    given_console(options)
    if options.dsn or options.pgbouncer:
        _restart_without_dsn(options, arguments)
    try:
        import sqlparse  # noqa: F401 - fail now, not in a dashboard's process
        import textual  # noqa: F401

        from poolwatch.commands.serve import serving
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        raise MissingExtraError(
            f"the dashboard in a browser needs {missing}", "serve"
        ) from error
    serving.serve(
        ["tui", *arguments],
        host=options.host,
        port=options.port,
        anyone_may_look=options.anyone_may_look,
    )
    return 0


def _restart_without_dsn(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Run the same command in this process, with the DSNs in the environment.

    A DSN may contain a password. As an argument it would be in the process list for as
    long as the server runs.
    """
    from poolwatch.runtime.installation import python_path

    command = [sys.executable, "-P", "-m", "poolwatch", "serve", *arguments]
    command += [f"--host={options.host}", f"--port={options.port}"]
    command += ["--anyone-may-look"] * options.anyone_may_look
    changes = {"PYTHONPATH": python_path()}
    if options.dsn:
        changes["POOLWATCH_DSN"] = options.dsn
    if options.pgbouncer:
        changes["POOLWATCH_PGBOUNCER"] = options.pgbouncer
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **changes})  # noqa: S606 - ourselves


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 0 to 65535")
    return int(text)
