"""Ten clients over the two server connections of a PgBouncer: whose row is it?

    python tests/soaks/pooler.py [COMPARISONS] [session | transaction]...

The application is a process of ten threads. It writes down which backend served each
hold, and when. A viewer with PgBouncer's console looks without a pause, and each row
that it shows is compared with what the application knows. Prints how many rows were
right, and exits with 1 if one was wrong.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, QueuePool, create_engine, text

import poolwatch

sys.path.insert(0, str(Path(__file__).parents[1]))

THREADS = 10
_LABEL = re.compile(r"w\d+x\d+")
Served = tuple[str, int, float, float]
"""The label of a hold, its backend's pid, and from when until when it served it."""
Look = tuple[float, float, list[tuple[str, int, str]]]
"""When it began and ended, and the label, pid and statement of each row."""


def work(engine: Engine, name: str, served: list[Served]) -> None:
    """Hold connections for a moment, with one or two transactions in each."""
    dice = random.Random(name)
    number = 0
    while True:
        number += 1
        label = f"{name}x{number}"
        with poolwatch.label(hold=label), engine.connect() as connection:
            for _ in range(dice.randint(1, 2)):
                began = time.monotonic()
                statement = f"SELECT pg_backend_pid() AS {label}"
                pid = connection.execute(text(statement)).scalar_one()
                time.sleep(dice.choice((0, 0.01, 0.05, 0.3)))
                connection.commit()
                served.append((label, pid, began, time.monotonic()))
            time.sleep(dice.choice((0, 0.01, 0.05)))


def application(url: str, mode: str) -> None:
    """Work until the standard input ends; then print what served which hold."""
    # in session mode a pool would keep the two server connections for itself
    kind: dict[str, Any] = (
        {"poolclass": NullPool}
        if mode == "session"
        else {"poolclass": QueuePool, "pool_size": THREADS}
    )
    engine = create_engine(url, **kind)
    poolwatch.instrument(engine, name="shop")
    served: list[Served] = []
    for number in range(THREADS):
        arguments = (engine, f"w{number}", served)
        threading.Thread(target=work, args=arguments, daemon=True).start()
    while not served:
        time.sleep(0.1)
    print("ready", flush=True)
    sys.stdin.read()
    time.sleep(1)  # what was under way at the last look is written down
    print(json.dumps(served), flush=True)
    os._exit(0)


def looks(source: Any, wanted: int) -> tuple[list[Look], int]:
    """Look until as many rows were seen; returns also the number of holds without."""
    found: list[Look] = []
    unknown = rows = 0
    deadline = time.monotonic() + 60 + wanted / 5
    while rows < wanted and time.monotonic() < deadline:
        began = time.monotonic()
        snapshot = source.snapshot()
        holds = [hold for process in snapshot.processes for hold in process.holds]
        shown = [
            (hold.labels["hold"], hold.backend_pid, hold.server.query or "")
            for hold in holds
            if hold.server is not None and hold.backend_pid is not None
        ]
        found.append((began, time.monotonic(), shown))
        rows += len(shown)
        unknown += len(holds) - len(shown)
    return found, unknown


def judged(found: list[Look], served: list[Served], mode: str) -> Counter[str]:
    """The number of rows that are right and wrong."""
    by_hold = defaultdict(list)
    for label, pid, since, until in served:
        by_hold[label].append((pid, since, until))
    counts: Counter[str] = Counter()
    for began, ended, shown in found:
        for label, pid, query in shown:
            known = by_hold[label]
            pids = {
                each
                for each, since, until in known
                if mode == "session" or (since < ended and until > began)
            }
            # not every statement names its hold: BEGIN, COMMIT, DISCARD ALL
            right = pid in pids and set(_LABEL.findall(query)) <= {label}
            counts["right" if right else "wrong"] += 1
            if not right:
                print(f"wrong: {label} shown with {pid} ({query}), known: {known}")
    return counts


def compared(server: Any, mode: str, wanted: int) -> Counter[str]:
    from fix_pgbouncer import drop_pgbouncer, make_pgbouncer
    from helpers import until

    from poolwatch.client.client import Client
    from poolwatch.client.live import LiveSource

    bouncer = make_pgbouncer(server.over_tcp(), mode)
    with tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as directory:
        app = subprocess.Popen(
            [sys.executable, __file__, "--application", bouncer.url(), mode],
            env={**os.environ, "POOLWATCH_DIR": directory},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        source = LiveSource(
            Client(Path(directory)),
            dsn=server.dsn,
            pgbouncer=bouncer.console,
            environ={},
        )
        try:
            assert app.stdout is not None
            app.stdout.readline()
            until(lambda: any(Path(directory).glob("*.sock")))
            found, unknown = looks(source, wanted)
            served = json.loads(app.communicate()[0])
        finally:
            app.kill()
            app.wait()
            source.close()
            drop_pgbouncer(bouncer)
    return judged(found, served, mode) + Counter(unknown=unknown, looks=len(found))


def main(wanted: int, modes: list[str]) -> int:
    from fix_postgres import drop_postgres, make_postgres

    server = make_postgres()
    failed = 0
    try:
        for mode in modes or ["session", "transaction"]:
            counts = compared(server, mode, wanted)
            failed |= bool(counts["wrong"]) or not counts["right"]
            print(
                f"{mode} mode: {counts['right']} rows right, {counts['wrong']} wrong; "
                f"{counts['unknown']} times unknown, in {counts['looks']} looks"
            )
    finally:
        drop_postgres(server)
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--application"]:
        application(*sys.argv[2:])
    sys.exit(main(int(sys.argv[1] if sys.argv[1:] else 1000), sys.argv[2:]))
