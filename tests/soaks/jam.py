"""Six sessions that each want a second connection, until the pool's timeout.

    python tests/soaks/jam.py [SECONDS]

The pool has six connections and a timeout as long as ``long_after``, so that each jam
resolves at the very moment when its holds become suspicious. Busy threads keep the
interpreter, and a viewer in another process looks 20 times a second. All of this is
honest work: nothing may be called leaked, in a snapshot, in the log or in a counter.
Prints what was seen, and exits with 1 if a hold was accused.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

import poolwatch
from poolwatch.client import Client

LONG_AFTER = 1.0
LOOKS_A_SECOND = 20


class Log(logging.Handler):
    """Keeps what poolwatch says of leaks."""

    def __init__(self) -> None:
        super().__init__()
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "leak" in message:
            self.leaks.append(message)


def first_line(session: Session) -> None:
    session.execute(text("SELECT 1"))


def nested(engine: object, session: Session) -> None:
    with Session(engine) as second:  # type: ignore[arg-type]
        first_line(second)


def work(engine: object, until: float, done: Counter[str]) -> None:
    while time.monotonic() < until:
        with Session(engine) as session:  # type: ignore[arg-type]
            first_line(session)  # the connection is taken in a helper that returns
            try:
                nested(engine, session)
                done["served"] += 1
            except PoolTimeoutError:
                done["timed out"] += 1


def busy(until: float) -> None:
    while time.monotonic() < until:
        sum(range(2000))


def run_application(seconds: float) -> int:
    log = Log()
    logging.getLogger("poolwatch").addHandler(log)
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(
            f"sqlite:///{directory}/jam.db",
            poolclass=QueuePool,
            pool_size=6,
            max_overflow=0,
            pool_timeout=LONG_AFTER,
        )
        watch = poolwatch.instrument(engine, long_after=LONG_AFTER)
        until = time.monotonic() + seconds
        done: Counter[str] = Counter()
        threads = [
            threading.Thread(target=work, args=(engine, until, done)) for _ in range(6)
        ]
        threads += [threading.Thread(target=busy, args=(until,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (pool,) = watch.snapshot().processes[0].pools
        engine.dispose()
    print(f"checkouts {pool.counters.checkouts}: {dict(done)}")
    print(f"counted as leaked {pool.counters.leaked}, in the log {len(log.leaks)}")
    print("\n".join(log.leaks[:3]))
    return 1 if pool.counters.leaked or log.leaks else 0


def look(directory: Path, application: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Look as a viewer does, until the application ends."""
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
        time.sleep(max(0.0, 1 / LOOKS_A_SECOND - (time.monotonic() - began)))
    return looks, accused


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as directory:
        environment = {**os.environ, "POOLWATCH_DIR": directory}
        command = [sys.executable, __file__, str(seconds), "--application"]
        application = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        )
        looks, accused = look(Path(directory), application)
        said, _ = application.communicate()
    print(f"{looks} looks in {seconds:g} s, {len(accused)} accusations", said, sep="\n")
    print("\n".join(accused[:3]))
    return 1 if accused or application.returncode or not looks else 0


if __name__ == "__main__":
    duration = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    sys.exit(run_application(duration) if sys.argv[2:] else main(duration))
