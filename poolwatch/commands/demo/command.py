"""The command behind ``poolwatch demo``: everything started, shown, and ended."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.commands.demo import children, report, server
from poolwatch.commands.demo.faults import planted
from poolwatch.commands.demo.progress import Progress
from poolwatch.errors import NoProcessError, UnreachableError, UsageError
from poolwatch.model import Snapshot, Source
from poolwatch.protocol import document as wire
from poolwatch.tui import has_terminal, run

_HEADLESS_SECONDS = 10.0
_APP_STARTS_IN = 30.0
_TAIL = 15


@dataclass(frozen=True, slots=True)
class _Running:
    """The demo app, alive, and what looks at it."""

    app: subprocess.Popen[bytes]
    log: Path
    source: Source


def run_demo(
    *,
    headless: bool,
    seconds: float | None,
    as_json: bool,
    dsn: str | None,
    directory: Path | None,
) -> int:
    """Start PostgreSQL and the app, show them, end them; returns the exit code.

    With ``headless`` it prints one snapshot after ``seconds``: as a table of the
    planted faults, or with ``as_json`` as the snapshot document. Else it opens the
    dashboard. ``dsn`` is a database to use instead of the embedded one, ``directory``
    the socket directory.
    """
    headless = headless or as_json
    seconds = _checked(headless, seconds)
    server.require(embedded=not dsn)
    if dsn:
        _check(dsn)
    progress = Progress(sys.stderr)
    try:
        with _ending_on_signals(), _running(dsn, directory, progress) as running:
            if headless:
                return _print_after(running, seconds, as_json)
            return _dashboard(running.source)
    except KeyboardInterrupt:
        return 130
    finally:
        progress.clear()


def _checked(headless: bool, seconds: float | None) -> float:
    seconds = _HEADLESS_SECONDS if seconds is None else seconds
    if not math.isfinite(seconds) or seconds < 0:
        raise UsageError("--seconds takes a number that is not negative")
    if not headless and not has_terminal():
        raise UsageError("the dashboard needs a terminal: add --headless")
    return seconds


def _check(dsn: str) -> None:
    from poolwatch.commands.demo import lease

    lease.sqlalchemy_url(dsn)


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does.

    A job in the background of a shell script ignores SIGINT, one under nohup SIGHUP.
    """

    def interrupt(_signum: int, _frame: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # the dashboard's event loop handles it

    before = {
        each: signal.signal(each, interrupt)
        for each in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(each) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and its like from here on: cleaning up takes a second or two."""
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.signal(each, signal.SIG_IGN) for each in caught}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _running(
    dsn: str | None, directory: Path | None, progress: Progress
) -> Iterator[_Running]:
    with ExitStack() as stack:
        outermost = stack.enter_context(ExitStack())
        base = stack.enter_context(children.temporary_directory())
        log = base / "app.log"
        progress.say("starting PostgreSQL" if not dsn else "connecting to PostgreSQL")
        database = stack.enter_context(children.database(base, dsn, progress.keep))
        sockets = _made(directory or base / "s")
        progress.say("starting the demo app")
        app = stack.enter_context(children.app(database, sockets, log))
        source = _source(sockets)
        stack.callback(source.close)
        try:
            children.wait_until(
                lambda: _answers(source, app.pid), app, log, _APP_STARTS_IN
            )
        except children.DemoError:
            progress.keep(children.tail(log, _TAIL))
            raise
        progress.clear()
        try:
            yield _Running(app, log, source)
        finally:
            progress.say("stopping")
            outermost.enter_context(_uninterrupted())


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"no socket directory {directory}: {error.strerror}") from None
    return directory.absolute()


def _source(directory: Path) -> LiveSource:
    return LiveSource(Client(directory), environ={})


def _answers(source: Source, pid: int) -> bool:
    try:
        return any(each.pid == pid for each in source.snapshot().processes)
    except (NoProcessError, UnreachableError):
        return False


def _print_after(running: _Running, seconds: float, as_json: bool) -> int:
    try:
        running.app.wait(seconds)
    except subprocess.TimeoutExpired:
        sys.stdout.write(_words(running.source.snapshot(), as_json) + "\n")
        sys.stdout.flush()
        return 0
    raise children.DemoError(f"the demo app died: {children.last_line(running.log)}")


def _words(snapshot: Snapshot, as_json: bool) -> str:
    if as_json:
        return wire.to_json(snapshot)
    return report.table(report.sightings(snapshot, planted()))


def _dashboard(source: Source) -> int:
    run(source)
    return 0
