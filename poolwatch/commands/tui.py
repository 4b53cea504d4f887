"""``poolwatch tui``: the dashboard in this terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.errors import UsageError

if TYPE_CHECKING:
    from poolwatch.client.live import LiveSource
    from poolwatch.model import IncidentSnapshot, Snapshot, Source, Unreachable


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch tui``."""
    tui = parsers.add_parser(
        "tui",
        help="the dashboard",
        description="Watch all instrumented processes, live, or see how it was, from "
        "the history of the sidecars or a saved moment. Press ? inside for help.",
        epilog=arguments.EXIT_CODES,
    )
    tui.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a moment that was saved with e",
    )
    arguments.add_refresh(tui)
    arguments.add_source(tui)
    arguments.add_history(tui, live=True)
    arguments.add_at(tui)
    return tui


def run(options: argparse.Namespace) -> int:
    """Show the dashboard until the user quits."""
    from poolwatch import tui

    if options.file is not None:
        tui.run(_saved(options), refresh=options.refresh)
        return 0
    past = arguments.history_source(options)
    if past is not None:
        past.snapshot()  # what is wrong with the history is said before the first frame
        tui.run(past, refresh=options.refresh, on_close=past.close)
        return 0
    source = _LazySource(options)
    tui.run(source, refresh=options.refresh, on_close=source.close)
    return 0


def _saved(options: argparse.Namespace) -> Source:
    """The moment of FILE; what is wrong with it is said before the first frame."""
    from poolwatch.tui.time.saved import open_saved

    for name in ("dir", "dsn", "history", "at"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name} cannot be combined with a saved moment")
    return open_saved(options.file)


class _LazySource:
    """A live source that imports its modules in its first snapshot().

    The dashboard calls snapshot() on a thread, so its first frame does not wait.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._source: LiveSource | None = None

    def snapshot(self) -> Snapshot:
        if self._source is None:
            self._source = arguments.live_source(self._options, linger_s=5.0)
        return self._source.snapshot()

    def all_incident_snapshots(
        self,
    ) -> tuple[tuple[IncidentSnapshot, ...], tuple[Unreachable, ...]]:
        """Use a separate client: this is called on another thread."""
        from poolwatch.client.client import Client

        return Client(self._options.dir).all_incident_snapshots()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
