"""Programs with an instrumented pool in processes of their own, and viewers of them."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
PROLOGUE = '''
import json, logging, os, sys, threading, time
from contextlib import suppress
from sqlalchemy.pool import QueuePool
from helpers import Driver, until
import poolwatch

class OneLine(logging.Formatter):
    def format(self, record):
        return "LOG " + repr(super().format(record))

handler = logging.StreamHandler()
handler.setFormatter(OneLine())
logging.getLogger().addHandler(handler)

def new_pool(**settings):
    pool = QueuePool(Driver, **{"pool_size": 5, "max_overflow": 5, **settings})
    poolwatch.instrument(pool, long_after=3600)
    return pool

def say(pool, **more):
    """What the pool and its ledger say."""
    (process,) = poolwatch.snapshot().processes
    (mine,) = process.pools
    counters = mine.counters
    print(json.dumps({
        "out": pool.checkedout(), "holds": len(process.holds),
        "waits": len(process.waits), "checkouts": counters.checkouts,
        "checkins": counters.checkins, "leaked": counters.leaked, **more,
    }), flush=True)

def ready():
    print("ready", flush=True)

pool = new_pool()
'''
"""What every program begins with. Its log is one line for each record."""


@dataclass
class Ended:
    """What a program has left: its exit code, what it said, what was logged."""

    code: int
    said: list[Any]
    log: list[str]
    raised: list[str]
    """Other lines on its standard error."""

    def fine(self) -> bool:
        """Whether it ended well, with nothing raised and one log line at most."""
        return self.code == 0 and not self.raised and len(self.log) <= 1

    def words(self) -> str:
        log = f"log: {self.log[0][5:95]}" if self.log else "nothing logged"
        more = f" (+{len(self.log) - 1})" if len(self.log) > 1 else ""
        raised = f"; RAISED {self.raised[-1][:90]}" if self.raised else ""
        return f"exit code {self.code}, {log}{more}{raised}"


class Program:
    """A program that runs, with its own socket directory."""

    def __init__(
        self, source: str, directory: Path, *options: str, **environ: str
    ) -> None:
        self.directory = directory
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until finish()
        paths = os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "soaks"]))
        self.process = subprocess.Popen(
            [
                sys.executable,
                *options,
                "-c",
                PROLOGUE + textwrap.dedent(source),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "POOLWATCH_DIR": str(directory),
                **environ,
            },
        )

    def wait_until_ready(self) -> None:
        """Wait for its line ``ready``."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", line + self.errors()

    def go_on(self) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def finish(self, seconds: float = 120.0) -> Ended:
        """Close its input, wait for its end."""
        try:
            said, _ = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
            self.process.wait()
        lines = self.errors().splitlines()
        self._errors.close()
        log = [line for line in lines if line.startswith("LOG ")]
        return Ended(
            self.process.returncode,
            [json.loads(each) for each in said.splitlines() if each.startswith("{")],
            log,
            [line for line in lines if line not in log],
        )


@contextmanager
def new_directory() -> Iterator[Path]:
    """A socket directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as directory:
        yield Path(directory)


def socket_in(directory: Path) -> Path | None:
    """The socket in a directory, once there is one."""
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries if entry.name.endswith(".sock")]
    return directory / found[0] if found else None


def ask(path: Path, target: str = "/snapshot", patience_s: float = 30.0) -> Any:
    """The document that an agent answers with; OSError if it does not."""
    connection = http.client.HTTPConnection("poolwatch", timeout=patience_s)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))  # waits if the queue is full
        connection.sock.settimeout(patience_s)
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise OSError(f"it answered {answer.status}")
    return json.loads(body)
