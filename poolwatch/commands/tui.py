"""``poolwatch tui``: the dashboard in this terminal."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.commands.signals import ended_by_signals
from poolwatch.errors import UsageError

if TYPE_CHECKING:
    from poolwatch.client.live import LiveSource
    from poolwatch.model import IncidentSnapshot, Snapshot, Unreachable
    from poolwatch.model.actions import Actions
    from poolwatch.sidecar.history.source import HistorySource
    from poolwatch.tui.time.saved import Saved
_DESCRIPTION = """\
Watch all instrumented processes live, or look at the past: in the history of the
sidecars, or in a saved moment. Press ? inside for help.
"""

_EXAMPLES = """\
examples:
  poolwatch tui                   the processes of this user, live
  poolwatch tui --at 03:12        how it was then, from the history of the sidecar
  poolwatch tui FILE              a moment that was saved with e
  POOLWATCH_DSN=... poolwatch tui --allow-actions     may cancel and end sessions
"""
_ENVIRONMENT = arguments.environment(
    *arguments.VIEWER, *arguments.HISTORY, "POOLWATCH_THEME"
)


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch tui``."""
    tui = parsers.add_parser(
        "tui",
        help="the dashboard",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{_ENVIRONMENT}\n{arguments.EXIT_CODES}",
    )
    tui.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a moment saved in the dashboard with e",
    )
    arguments.add_refresh(tui)
    tui.add_argument(
        "--theme",
        metavar="NAME",
        help="colours: a theme of Textual's, such as textual-light or ansi-dark "
        "(default: POOLWATCH_THEME, or else poolwatch)",
    )
    arguments.add_source(tui)
    arguments.add_history(tui, live=True)
    arguments.add_at(tui)
    tui.add_argument(
        "--allow-actions",
        action="store_true",
        help="let C cancel a statement and K end a session, after a dialogue; needs a "
        "DSN: --dsn, POOLWATCH_DSN, DATABASE_URL or libpq's environment",
    )
    return tui


def run(options: argparse.Namespace) -> int:
    """Show the dashboard until the user quits."""
    with ended_by_signals():  # the terminal must be as it was
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from poolwatch import tui

    if options.file is not None:
        moment = _saved(options)
        known = moment.incidents
        tui.run(moment, saved=known, refresh=options.refresh, theme=options.theme)
        return 0
    past = None
    # errors of the history are raised before the first frame
    if options.history is not None and options.at is None and _is_live(options):
        past = arguments.opened_history(options)
        past.extent()
    elif (history := arguments.history_source(options)) is not None:
        history.snapshot()
        newest = history.newest()
        tui.run(
            newest,
            past=newest,
            at=options.at,
            refresh=options.refresh,
            theme=options.theme,
            on_close=history.close,
        )
        return 0
    arguments.given_console(options)
    live = _LazySource(options, past)
    tui.run(
        live,
        past=past,
        refresh=options.refresh,
        theme=options.theme,
        actions=_actions(options) if options.allow_actions else None,
        on_close=live.close,
    )
    return 0


def _is_live(options: argparse.Namespace) -> bool:
    """Whether the options are about the processes of this machine."""
    return options.dir is not None or bool(options.dsn or options.pgbouncer)


def _saved(options: argparse.Namespace) -> Saved:
    """Return the moment of FILE; its errors are raised before the first frame."""
    from poolwatch.tui.time.saved import open_saved

    for name in ("dir", "dsn", "pgbouncer", "history", "at"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} cannot be combined with a saved moment")
    if options.allow_actions:
        raise UsageError("--allow-actions cannot be combined with a saved moment")
    return open_saved(options.file)


def _actions(options: argparse.Namespace) -> Actions:
    """Return the actions on the server of the DSN; each one is logged in a file."""
    from poolwatch.adapters.connection_facts import connection_facts
    from poolwatch.postgres.actions import DsnActions
    from poolwatch.postgres.dsn_reader import environment_dsn, libpq_parameters

    if "TEXTUAL_DRIVER" in os.environ:
        raise UsageError("--allow-actions is for a terminal, not for a browser")
    dsn = arguments.given_dsn(options, required=True)
    if dsn is None:
        dsn = environment_dsn()
    if dsn is None:
        raise UsageError(
            "--allow-actions needs a DSN: give --dsn, POOLWATCH_DSN or DATABASE_URL"
        )
    libpq_parameters(dsn)
    _log_in_a_file()
    return DsnActions(dsn, connection_facts)


def _log_in_a_file() -> None:
    """Keep the log of actions: the screen of the dashboard is gone when it ends."""
    import logging

    from poolwatch.runtime.guard import log
    from poolwatch.runtime.installation import state_directory
    from poolwatch.text.format import one_line

    try:
        path = state_directory() / "actions.log"
    except RuntimeError:
        raise UsageError(
            "this user has no home directory: set XDG_STATE_HOME"
        ) from None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW
        os.close(os.open(path, flags, 0o600))
        handler = logging.FileHandler(path, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"actions are logged in {one_line(str(path))}, which cannot be written "
            f"({error.strerror}): set XDG_STATE_HOME to a directory of yours"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log().addHandler(handler)
    log().setLevel(logging.INFO)


class _LazySource:
    """A live source that imports its modules in its first snapshot().

    The dashboard calls snapshot() on a thread, so its first frame does not wait.
    """

    def __init__(self, options: argparse.Namespace, past: HistorySource | None) -> None:
        self._options = options
        self._past = past
        self._source: LiveSource | None = None

    def snapshot(self) -> Snapshot:
        if self._source is None:
            self._source = arguments.live_source(
                self._options, linger_s=5.0, sessions=True
            )
        return self._source.snapshot()

    def all_incident_snapshots(
        self,
    ) -> tuple[tuple[IncidentSnapshot, ...], tuple[Unreachable, ...]]:
        """Use a separate client: this is called on another thread."""
        from poolwatch.client.client import Client

        return Client(self._options.dir).all_incident_snapshots()

    def close(self) -> None:
        for each in (self._source, self._past):
            if each is not None:
                each.close()
