"""Options that several commands share, and the types of option values."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from poolwatch.client.live import LiveSource

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - has no public name

EXIT_CODES = """\
exit codes: 0 fine, 2 usage, 3 no process found, 4 permission denied
"""
CHECK_EXIT_CODES = """\
exit codes: 0 fine, 1 something is wrong, or a process or its server does not answer,
2 usage, 3 no process found, 4 permission denied
"""


class Command(Protocol):
    """The interface of a command: a module or package of poolwatch.commands."""

    def add(self, parsers: Parsers) -> argparse.ArgumentParser:
        """Add the command's parser."""
        ...

    def run(self, options: argparse.Namespace) -> int:
        """Run the command; returns the exit code. May raise PoolwatchError."""
        ...


def add_json(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help=text)


def add_dir(parser: argparse.ArgumentParser) -> None:
    """Add --dir, the socket directory."""
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIRECTORY",
        help="socket directory (default: POOLWATCH_DIR, or else the user's own)",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options of live_source(): --dir and --dsn."""
    add_dir(parser)
    parser.add_argument(
        "--dsn",
        metavar="DSN",
        help="where to read pg_stat_activity: a SQLAlchemy URL or a libpq string "
        "(default: POOLWATCH_DSN, or else each process reads its own server)",
    )


def add_refresh(parser: argparse.ArgumentParser) -> None:
    """Add --refresh, the dashboard's interval."""
    parser.add_argument(
        "--refresh",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two refreshes (default 1)",
    )


def live_source(
    options: argparse.Namespace, *, linger_s: float, patience_s: float | None = None
) -> LiveSource:
    """Return a source of this machine's processes, as --dir and --dsn select."""
    from poolwatch.client.client import PATIENCE_S, Client
    from poolwatch.client.live import LiveSource

    dsn = options.dsn or os.environ.get("POOLWATCH_DSN") or None
    return LiveSource(
        Client(options.dir),
        dsn=dsn,
        linger_s=linger_s,
        patience_s=patience_s or PATIENCE_S,
    )


def seconds(text: str) -> float:
    """Parse a duration in seconds, up to a day."""
    value = _number(text)
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of seconds from 0.1 to 86400"
        )
    return value


def milliseconds(text: str) -> float:
    """Parse a wait or delay in milliseconds, up to ten seconds."""
    value = _number(text)
    if not 0 <= value <= 10_000:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of milliseconds from 0 to 10000"
        )
    return value


def _number(text: str) -> float:
    """Parse a number; NaN, which no range contains, if the text is not one."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
