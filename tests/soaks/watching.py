"""Runs an honest application in a process of its own, and looks as a viewer does."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import poolwatch
from poolwatch.client.client import Client

LEAKS = ("leaked.", "nested", "pool_deadlock")


class Log(logging.Handler):
    """Keeps what poolwatch says of leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "leak" in message:
            self.leaks.append(message)


def run_application(application: Callable[[float], object], seconds: float) -> int:
    """Run it here; exits with 1 if a leak was logged or counted."""
    log = Log()
    logging.getLogger("poolwatch").addHandler(log)
    print(application(seconds))
    (process,) = poolwatch.snapshot().processes
    counted = sum(pool.counters.leaked for pool in process.pools)
    print(f"counted as leaked {counted}, in the log {len(log.leaks)}")
    print("\n".join(log.leaks[:3]))
    return 1 if counted or log.leaks else 0


def watch(script: str, seconds: float, looks_a_second: float) -> int:
    """Run the script's application and look at it; returns 1 if a hold was accused.

    On a busy machine it may end before its first answer: then it runs twice as long.
    """
    for _ in range(3):
        looks, failed = _watch(script, seconds, looks_a_second)
        if looks:
            return failed
        seconds *= 2
    return 1


def _watch(script: str, seconds: float, looks_a_second: float) -> tuple[int, int]:
    with tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as directory:
        environment = {**os.environ, "POOLWATCH_DIR": directory}
        command = [sys.executable, script, str(seconds), "--application"]
        application = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        )
        looks, accused = _look(Path(directory), application, looks_a_second)
        said, _ = application.communicate()
    print(f"{looks} looks in {seconds:g} s, {len(accused)} accusations", said, sep="\n")
    print("\n".join(accused[:3]))
    return looks, 1 if accused or application.returncode else 0


def _look(
    directory: Path, application: subprocess.Popen[str], looks_a_second: float
) -> tuple[int, list[str]]:
    client, looks, accused = Client(directory), 0, []
    while application.poll() is None:
        began = time.monotonic()
        try:
            processes = [client.view(address) for address in client.agents()]
        except poolwatch.PoolwatchError:
            processes = []
        looks += len(processes)
        accused += [
            f"{hold.site}: {'; '.join(hold.evidence)}"
            for process in processes
            for hold in process.holds
            if hold.verdict == "leaked"
        ]
        time.sleep(max(0.0, 1 / looks_a_second - (time.monotonic() - began)))
    return looks, accused


def main(
    script: str,
    application: Callable[[float], object],
    *,
    seconds: float,
    looks_a_second: float,
) -> int:
    """``script [SECONDS]``: watch; with ``--application`` be what is watched."""
    if len(sys.argv) > 1:
        seconds = float(sys.argv[1])
    if sys.argv[2:]:
        return run_application(application, seconds)
    return watch(script, seconds, looks_a_second)
