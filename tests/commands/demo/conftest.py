"""The demo as a user runs it: in processes and a directory of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers import until

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session", autouse=True)
def signals_as_from_a_terminal() -> None:
    """What we ignore, our children ignore; what we handle, they do not.

    Tests may run in the background of a script, or under nohup.
    """
    for each in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, lambda *_: None)


@pytest.fixture
def place() -> Iterator[Path]:
    """A short temporary directory (socket paths are limited), removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="pw-", dir="/tmp"))
    path.chmod(0o755)  # PostgreSQL may have to run as another user
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(place: Path) -> Iterator[Start]:
    """Start a Python process whose temporary files are in ``place``."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(place)} | environment,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        if process.stdin and process.stdin.closed:
            process.stdin = None  # a test did; communicate() would flush it
        process.communicate()


def processes_of(place: Path) -> list[str]:
    """Command lines of the processes that have to do with a directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            command = process.cmdline()
            words = [*command, *process.environ().values()]
            if process.pid != os.getpid() and any(str(place) in word for word in words):
                found.append(" ".join(command) or process.name())
    return found


def nothing_left(place: Path) -> bool:
    """Wait until no process and no file of the demo is left."""
    return until(lambda: not processes_of(place) and not list(place.iterdir()))
