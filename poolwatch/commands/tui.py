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
    from poolwatch.sidecar.history.source import HistorySource


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
        help="a moment that was saved in the dashboard, with e",
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
        tui.run(_saved(options), saved=True, refresh=options.refresh)
        return 0
    past = None
    # what is wrong with the history is said before the first frame
    if options.history is not None and options.at is None and _is_live(options):
        past = arguments.opened_history(options)
        past.extent()
    elif (history := arguments.history_source(options)) is not None:
        history.snapshot()
        tui.run(
            newest := history.newest(),
            past=newest,
            at=options.at,
            refresh=options.refresh,
            on_close=history.close,
        )
        return 0
    source = _LazySource(options, past)
    tui.run(source, past=past, refresh=options.refresh, on_close=source.close)
    return 0


def _is_live(options: argparse.Namespace) -> bool:
    """Whether the options are about the processes of this machine."""
    return options.dir is not None or bool(options.dsn)


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

    def __init__(self, options: argparse.Namespace, past: HistorySource | None) -> None:
        self._options = options
        self._past = past
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
        for each in (self._source, self._past):
            if each is not None:
                each.close()
