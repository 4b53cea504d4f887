"""The life cycle of the demo: starts its processes, shows them, and ends them."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from poolwatch import tui
from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.commands.demo import children, report, server
from poolwatch.commands.demo.faults import APP, planted
from poolwatch.commands.signals import ended_by_signals, handled
from poolwatch.errors import UsageError
from poolwatch.model import Snapshot, Source
from poolwatch.protocol import document, sockets

_FAREWELL = """\
That was a small shop with {faults} faults from real life; its source: {app}
Your own application: python -m pip install poolwatch, then in it: \
import poolwatch; poolwatch.instrument(engine)
Then, from any terminal of the same user: poolwatch tui"""
_TAIL = 15
"""Lines of the app's log that are printed if it does not start."""


def run_demo(options: argparse.Namespace) -> None:
    """Start PostgreSQL and the app, show them, end them.

    A headless demo prints one snapshot after ``seconds``, as a table of the planted
    faults or as JSON. Otherwise the dashboard is opened.
    """
    headless = options.headless or options.json
    dashboard = () if headless else ("textual", "sqlparse")
    server.require("the demo", *dashboard, embedded=not options.dsn)
    problem = None if headless else tui.terminal_problem()
    if problem is not None:
        raise UsageError(f"{problem}; without one: poolwatch demo --headless")
    if options.dsn:  # report an invalid DSN before anything is started
        from poolwatch.commands.demo import lease

        lease.sqlalchemy_url(options.dsn)
    progress = _Progress(sys.stderr)
    try:
        with (
            ended_by_signals(),
            _started(options.dsn, options.dir, progress) as (app, source),
        ):
            if headless:
                app.run_for(options.seconds)
                _print(app.wait_until_seen(source), options.json)
            else:
                tui.run(source)
                app.check()
    finally:
        progress.clear()
    if not options.json:
        print(_FAREWELL.format(faults=len(planted()), app=APP), file=sys.stderr)


@contextmanager
def _started(
    dsn: str | None, directory: Path | None, progress: _Progress
) -> Iterator[tuple[children.App, Source]]:
    with ExitStack() as stack:
        outermost = stack.enter_context(ExitStack())
        base = stack.enter_context(children.temporary_directory())
        directory = sockets.runtime_directory(directory or base / "s")
        sockets.prepare(directory)
        progress.show("connecting to PostgreSQL" if dsn else "starting PostgreSQL")
        database = stack.enter_context(children.database(base, dsn, progress.say))
        progress.show("starting the demo app")
        app = stack.enter_context(children.app(database, directory, base / "app.log"))
        source = LiveSource(Client(directory), environ={}, sessions=True)
        stack.callback(source.close)
        try:
            app.wait_until_seen(source)
        except children.DemoError:
            progress.say("\n".join(app.log_lines()[-_TAIL:]))
            raise
        progress.clear()
        try:
            yield app, source
        finally:
            progress.show("stopping")
            # another Ctrl-C must not interrupt the cleanup
            ignored = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
            outermost.enter_context(handled(signal.SIG_IGN, *ignored))


def _print(snapshot: Snapshot, as_json: bool) -> None:
    if as_json:
        print(document.to_json(snapshot), flush=True)
    else:
        print(report.table(report.sightings(snapshot, planted())), flush=True)


class _Progress:
    """Shows the demo's current step: a changing line on a terminal, otherwise a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def show(self, text: str) -> None:
        """Replace the line."""
        self._write(f"\r\x1b[K{text} …" if self._terminal else f"poolwatch: {text}\n")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        self._write(f"poolwatch: {text}\n")

    def clear(self) -> None:
        """Remove the changing line."""
        if self._terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        print(text, end="", file=self._stream, flush=True)
