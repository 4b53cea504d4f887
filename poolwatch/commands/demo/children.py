"""The demo's two child processes: the database's keeper and the app.

Both live in a session of their own, so Ctrl-C reaches neither, and both end when their
standard input does: a demo that is killed leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from poolwatch.commands.demo import keeper
from poolwatch.errors import PoolwatchError
from poolwatch.runtime.installation import python_path
from poolwatch.text.format import neutral, one_line

_DATABASE_STARTS_IN = 60.0
_DATABASE_STOPS_IN = 20.0
_APP_STOPS_IN = 3.0
_LONGEST_TEMPORARY = 40
"""Characters; a Unix socket's path may have 107 in all."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Database:
    """A database that lives as long as somebody holds its lifeline."""

    url: str
    """SQLAlchemy URL."""
    lifeline: int
    """File descriptor of the keeper's standard input. The app holds it too, so the
    keeper never cleans up before both are gone."""


class DemoError(PoolwatchError):
    """The database or the app of the demo cannot start."""

    exit_code = 1


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= _LONGEST_TEMPORARY else "/tmp"  # noqa: S108 (mkdtemp)
    base = Path(tempfile.mkdtemp(prefix="poolwatch-", dir=parent))
    try:
        yield base
    finally:  # the keeper removes it too, but may not have started
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def database(base: Path, dsn: str | None, say: Say) -> Iterator[Database]:
    """Start the database and its keeper, and stop both."""
    settings = {
        keeper.BASE: str(base),
        keeper.DSN: dsn or "",
        "TMPDIR": str(base),  # where the wheel keeps its lock file, which it leaves
        "XDG_RUNTIME_DIR": str(base),
    }
    with (base / "keeper.log").open("wb") as log:
        child = _start(
            "poolwatch.commands.demo.keeper", settings, subprocess.PIPE, log.fileno()
        )
    assert child.stdin is not None
    try:
        yield Database(_url(child), child.stdin.fileno())
    finally:
        _close(child, say)


@contextmanager
def app(
    database: Database, directory: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the app against a database, its socket in ``directory``."""
    settings = {
        "POOLWATCH_DEMO_URL": database.url,
        "POOLWATCH_DIR": str(directory),
        "POOLWATCH_NAME": "shop",
        "POOLWATCH_DISABLE": "",
    }
    with log.open("wb") as output:
        child = _start(
            "poolwatch.commands.demo.app",
            settings,
            output.fileno(),
            output.fileno(),
            keep=[database.lifeline],
        )
    try:
        yield child
    finally:
        _terminate(child)


def last_line(log: Path) -> str:
    """What a child said last, the line that matters of a traceback."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        plain = [line for line in said if not line.startswith(("(Background", "["))]
        return one_line(plain[-1]) if plain else ""
    return ""


def tail(log: Path, lines: int) -> str:
    """The last lines of a child's log."""
    with suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(neutral(line) for line in text.splitlines()[-lines:])
    return ""


def _start(
    module: str,
    settings: Mapping[str, str],
    stdout: int,
    stderr: int,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Run a module of this very poolwatch, wherever it was imported from."""
    return subprocess.Popen(  # noqa: S603 (our own modules)
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **settings, "PYTHONPATH": python_path()},
        start_new_session=True,
        pass_fds=keep,
    )


def _url(keeper: subprocess.Popen[bytes]) -> str:
    assert keeper.stdout is not None
    readable, _, _ = select.select([keeper.stdout], [], [], _DATABASE_STARTS_IN)
    if not readable:
        raise DemoError(f"PostgreSQL did not start in {_DATABASE_STARTS_IN:.0f} s")
    message = _message(keeper.stdout.readline())
    if "url" not in message:
        raise DemoError(message.get("error", "PostgreSQL did not start"))
    return message["url"]


def _message(line: bytes) -> dict[str, str]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _close(keeper: subprocess.Popen[bytes], say: Say) -> None:
    """End the keeper's standard input: it cleans up and exits."""
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    with suppress(OSError):
        keeper.stdin.close()
    with keeper.stdout:
        try:
            keeper.wait(_DATABASE_STOPS_IN)
        except subprocess.TimeoutExpired:
            keeper.send_signal(signal.SIGTERM)
            say("the database does not stop: left to itself")
            return
        complaint = _message(keeper.stdout.readline()).get("error")
    if complaint:
        say(f"cleaning up: {complaint}")


def _terminate(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_APP_STOPS_IN)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    assert child.stdin is not None
    with suppress(OSError):
        child.stdin.close()


def wait_until(
    answers: Callable[[], bool],
    child: subprocess.Popen[bytes],
    log: Path,
    seconds: float,
) -> None:
    """Wait for the app's socket; raises DemoError if it dies or stays silent."""
    deadline = time.monotonic() + seconds
    while not answers():
        if child.poll() is not None:
            raise DemoError(f"the demo app does not start: {last_line(log)}")
        if time.monotonic() > deadline:
            raise DemoError(f"the demo app did not answer in {seconds:.0f} s")
        time.sleep(0.1)
