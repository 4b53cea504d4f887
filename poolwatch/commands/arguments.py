"""Options that several commands share, and the types of option values."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from poolwatch.errors import ForbiddenError, MissingExtraError, UsageError
from poolwatch.text import times
from poolwatch.text.format import one_line

if TYPE_CHECKING:
    from poolwatch.client.live import LiveSource
    from poolwatch.sidecar.history.reading import History
    from poolwatch.sidecar.history.source import HistorySource

Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - has no public name

EXIT_CODES = """\
exit codes: 0 fine, 2 usage, 3 no process found, 4 permission denied
"""
CHECK_EXIT_CODES = """\
exit codes: 0 fine, 1 something is wrong, or a process or its server does not answer,
2 usage, 3 no process found, 4 permission denied
"""
_ENVIRONMENT = {
    "POOLWATCH_DIR": "socket directory (default: poolwatch in XDG_RUNTIME_DIR)",
    "POOLWATCH_DSN": "as --dsn; keeps a password out of the process list",
    "POOLWATCH_PGBOUNCER": "as --pgbouncer",
    "POOLWATCH_HISTORY": "as --history; keeps a password out of the process list",
    "POOLWATCH_HOST": "as --host",
    "POOLWATCH_THEME": "as --theme",
    "POOLWATCH_NAME": "name of the process (default: that of the program)",
    "POOLWATCH_DISABLE": "1: instruments nothing",
    "DATABASE_URL, PG*": "the server, if there is no DSN and no process reads it",
    "OTEL_*": "OpenTelemetry's own settings, for --otlp",
    "XDG_STATE_HOME": "parent of the default history (default: ~/.local/state)",
}
VIEWER = (
    "POOLWATCH_DIR",
    "POOLWATCH_DSN",
    "POOLWATCH_PGBOUNCER",
    "DATABASE_URL, PG*",
)
"""The variables of a command that looks at the processes of this machine."""
HISTORY = ("POOLWATCH_HISTORY", "XDG_STATE_HOME")


def environment(*names: str) -> str:
    """The section of a command's help on the variables that it reads."""
    lines = (f"  {name:<20} {_ENVIRONMENT[name]}\n" for name in names)
    return "environment:\n" + "".join(lines)


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
    """Add the options of live_source(): --dir, --dsn and --pgbouncer."""
    add_dir(parser)
    parser.add_argument(
        "--dsn",
        metavar="DSN",
        help="where to read pg_stat_activity: a SQLAlchemy URL or a libpq string "
        "(default: POOLWATCH_DSN, or else each process reads its own server)",
    )
    parser.add_argument(
        "--pgbouncer",
        metavar="DSN",
        help="the PgBouncer in front of the server of --dsn, with a role in its "
        "stats_users (default: POOLWATCH_PGBOUNCER)",
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


def given_dsn(options: argparse.Namespace, *, required: bool = False) -> str | None:
    """Return the DSN of --dsn or POOLWATCH_DSN, if any.

    One that can never be read is refused; a server that is away may come back. Without
    the driver all the rest works, unless the DSN is ``required``.
    """
    dsn = options.dsn or os.environ.get("POOLWATCH_DSN") or None
    _check_dsn(dsn, required=required)
    return dsn


def given_console(options: argparse.Namespace) -> str | None:
    """Return the DSN of --pgbouncer or POOLWATCH_PGBOUNCER, if any.

    It is only of use beside a DSN of the server itself.
    """
    if given_dsn(options) is None:
        if options.pgbouncer:
            raise UsageError(
                "--pgbouncer needs --dsn: PgBouncer knows whose a session is, "
                "PostgreSQL what it does"
            )
        return None
    console = options.pgbouncer or os.environ.get("POOLWATCH_PGBOUNCER") or None
    _check_dsn(console, required=False)
    return console


def _check_dsn(dsn: str | None, *, required: bool) -> None:
    if dsn is not None:
        from poolwatch.postgres.dsn_reader import libpq_parameters

        try:
            libpq_parameters(dsn)
        except MissingExtraError:
            if required:
                raise


def live_source(
    options: argparse.Namespace,
    *,
    linger_s: float,
    patience_s: float | None = None,
    sessions: bool = False,
) -> LiveSource:
    """Return a source of this machine's processes, as --dir and --dsn select.

    ``sessions``: with all sessions of their databases.
    """
    from poolwatch.client.client import PATIENCE_S, Client
    from poolwatch.client.live import LiveSource

    return LiveSource(
        Client(options.dir),
        dsn=given_dsn(options),
        pgbouncer=given_console(options),
        linger_s=linger_s,
        sessions=sessions,
        patience_s=patience_s or PATIENCE_S,
    )


# -- the history ---------------------------------------------------------------------

TIMES = """\
TIME is ISO 8601 (UTC unless it says otherwise), the last 03:12 (UTC), or -10min (s,
min, h, d)
"""
_TIMES = ("--at", "--since", "--until")
"""Options whose value may begin with a minus sign."""


def add_history(parser: argparse.ArgumentParser, *, live: bool) -> None:
    """Add --history; ``live``: without it the command looks at this machine."""
    parser.add_argument(
        "--history",
        metavar="URL",
        help="read the history of the sidecars instead: any SQLAlchemy URL (default: "
        "POOLWATCH_HISTORY)"
        if live
        else "the history: any SQLAlchemy URL (default: POOLWATCH_HISTORY, or else the "
        "SQLite file that the sidecar writes)",
    )


def add_at(parser: argparse.ArgumentParser) -> None:
    """Add --at, a moment of the history."""
    parser.add_argument(
        "--at",
        type=moment,
        metavar="TIME",
        help="how it was then, from the history; " + " ".join(TIMES.split()),
    )


def history_source(options: argparse.Namespace) -> HistorySource | None:
    """Return the source that --history, --at or POOLWATCH_HISTORY select, if any.

    --dir, --dsn, --pgbouncer and --allow-actions are about processes of this machine:
    with them, POOLWATCH_HISTORY does not count.
    """
    at: float | None = getattr(options, "at", None)
    live = {
        "--dir": options.dir is not None,
        "--dsn": options.dsn,
        "--pgbouncer": options.pgbouncer,
        "--allow-actions": getattr(options, "allow_actions", False),
    }
    given = [option for option, is_given in live.items() if is_given]
    if options.history is None and at is None:
        if given or not os.environ.get("POOLWATCH_HISTORY"):
            return None
    elif given:
        raise UsageError(f"{given[-1]} cannot be combined with the history")
    return opened_history(options, at)


def opened_history(
    options: argparse.Namespace, at: float | None = None
) -> HistorySource:
    """Return the history as a source: of a moment, or of the processes alive now."""
    opened = history(options)
    from poolwatch.sidecar.history.source import HistorySource

    return HistorySource(opened, at)


def history(options: argparse.Namespace) -> History:
    """Open the history for reading. Raises PoolwatchError with one sentence."""
    from poolwatch.sidecar.history.reading import History
    from poolwatch.sidecar.history.store import open_store

    url = options.history or os.environ.get("POOLWATCH_HISTORY") or None
    return History(open_store(url, write=False))


def moment(text: str) -> float:
    """Parse TIME; raises UsageError: the usage would bury the sentence."""
    return times.moment(text)


def joined_times(given: Sequence[str]) -> list[str]:
    """Join ``--at -10min`` to ``--at=-10min``, which argparse takes for a value."""
    if given[:1] == ["run"]:  # what follows is for another program
        return list(given)
    joined: list[str] = []
    for text in given:
        if joined and joined[-1] in _TIMES and times.AGO.fullmatch(text):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


# -- files that are written ----------------------------------------------------------


def check_writable(output: Path) -> None:
    """Say before the long work that its outcome could not be written."""
    folder, name = output.parent, one_line(str(output))
    try:
        mode, has_folder = _mode(output), stat.S_ISDIR(_mode(folder))
    except OSError as error:  # its name is too long, or the way to it is closed
        kind = ForbiddenError if isinstance(error, PermissionError) else UsageError
        raise kind(f"cannot write {name}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise UsageError(f"cannot write {name}: it is a directory")
    if not has_folder:
        raise UsageError(
            f"cannot write {name}: there is no directory {one_line(str(folder))}"
        )
    if not os.access(output if mode else folder, os.W_OK):
        raise ForbiddenError(f"cannot write {name}: permission denied")


def _mode(path: Path) -> int:
    """The mode of a file; 0 if there is none. Path.exists() would hide other errors."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0


def write(output: Path, text: str) -> None:
    """Write a file; a file of that name is replaced."""
    try:
        output.write_text(text, "utf-8")
    except PermissionError:
        raise ForbiddenError(f"cannot write {output}: permission denied") from None
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None


@contextmanager
def progress(what: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that tells a terminal which share of something is done."""
    terminal = sys.stderr.isatty()

    def tell(share: float) -> None:
        if terminal:
            sys.stderr.write(f"\r{what}: {share:.0%}")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")


# -- types of option values ----------------------------------------------------------


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
