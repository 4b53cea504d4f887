"""``poolwatch serve``: the dashboard in a browser."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from poolwatch.commands.arguments import EXIT_CODES, Parsers, add_refresh, add_source
from poolwatch.errors import MissingExtraError

_DESCRIPTION = """\
Show in a browser what "poolwatch tui" shows in a terminal. It listens on this machine
only and, on Linux, lets in only this user and root.
"""

_EXAMPLES = """\
examples:
  poolwatch serve                       then open http://127.0.0.1:8000/
  POOLWATCH_DSN=... poolwatch serve     a DSN that no history or process list shows
  ssh -t -L 8000:127.0.0.1:8000 HOST poolwatch serve    from another machine

There is no password. With --host ADDRESS --anyone-may-look, everybody who can reach the
address sees statements, call sites and labels. A page can look, and change nothing.
"""

_INSTALL = "install it with: python -m pip install 'poolwatch[serve]'"
_NEEDED = ("textual_serve", "textual", "aiohttp", "sqlparse")


def add(parsers: Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch serve``."""
    serve = parsers.add_parser(
        "serve",
        help="the dashboard in a browser",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{EXIT_CODES}",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)"
    )
    serve.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="0 takes any free port, and prints which (default 8000)",
    )
    serve.add_argument(
        "--anyone-may-look",
        action="store_true",
        help="allow a host that other machines can reach: there is no password",
    )
    add_refresh(serve)
    add_source(serve)
    return serve


def run(options: argparse.Namespace) -> int:
    """Serve the dashboard until a signal ends it."""
    dashboard = ["--refresh", f"{options.refresh:g}"]
    if options.dir is not None:
        dashboard += ["--dir", str(options.dir.absolute())]
    if options.dsn:
        _restart_without_dsn(options, dashboard)
    try:
        import sqlparse  # noqa: F401 - fail now, not in the dashboard's own process
        import textual  # noqa: F401

        from poolwatch.commands.serve import serving
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        raise MissingExtraError(
            f"the dashboard in a browser needs {missing}; {_INSTALL}"
        ) from error
    serving.serve(
        ["tui", *dashboard],
        host=options.host,
        port=options.port,
        anyone_may_look=options.anyone_may_look,
    )
    return 0


def _restart_without_dsn(options: argparse.Namespace, dashboard: Sequence[str]) -> None:
    """Run the same command in this process, with the DSN in the environment.

    The DSN may carry a password, and the server may run for days: as an argument it
    would stand in the process list all that time.
    """
    from poolwatch.runtime.installation import python_path

    command = [sys.executable, "-P", "-m", "poolwatch", "serve", *dashboard]
    command += [f"--host={options.host}", f"--port={options.port}"]
    command += ["--anyone-may-look"] * options.anyone_may_look
    changes = {"POOLWATCH_DSN": options.dsn, "PYTHONPATH": python_path()}
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **changes})  # noqa: S606 - ourselves


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 0 to 65535")
    return int(text)
