"""Six sessions that each want a second connection, until the pool's timeout.

    python tests/soaks/jam.py [SECONDS]

The pool has six connections and a timeout as long as ``long_after``, so that each jam
resolves at the very moment when its holds become suspicious. Busy threads keep the
interpreter, and a viewer in another process looks 20 times a second. All of this is
honest work: nothing may be called leaked, in a snapshot, in the log or in a counter.
Prints what was seen, and exits with 1 if a hold was accused.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections import Counter

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from watching import main

import poolwatch

LONG_AFTER = 1.0


def first_line(session: Session) -> None:
    session.execute(text("SELECT 1"))


def nested(engine: Engine) -> None:
    with Session(engine) as second:
        first_line(second)


def work(engine: Engine, until: float, done: Counter[str]) -> None:
    while time.monotonic() < until:
        try:
            with Session(engine) as session:
                first_line(session)  # it is taken in a helper that returns
                nested(engine)
                done["served"] += 1
        except PoolTimeoutError:
            done["timed out"] += 1


def busy(until: float) -> None:
    while time.monotonic() < until:
        sum(range(2000))


def application(seconds: float) -> str:
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(
            f"sqlite:///{directory}/jam.db",
            poolclass=QueuePool,
            pool_size=6,
            max_overflow=0,
            pool_timeout=LONG_AFTER,
        )
        poolwatch.instrument(engine, long_after=LONG_AFTER)
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
        engine.dispose()
    return f"second sessions: {dict(done)}"


if __name__ == "__main__":
    sys.exit(main(__file__, application, seconds=300, looks_a_second=20))
