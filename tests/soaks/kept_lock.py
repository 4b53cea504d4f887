"""A session lock that a pooled connection has kept, while workers borrow it.

    python tests/soaks/kept_lock.py [SECONDS] [seen | hidden | retried | chain]

Workers of two processes borrow and return the connections of their pools each 0.3 s;
one of these connections came back with an advisory lock, for which two threads of each
process wait. ``hidden``: a function of the server requested it, so that poolwatch has
not seen the request. ``retried``: who waits gives up after a second, and tries again.
``chain``: four transactions of both processes wait one behind the other, the first one
for a session of another program. Prints what ``ps --json`` and the dashboard have made
of it. Exits with 1 unless it was one finding, with one identity, all the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fix_postgres import make_postgres

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.diagnosis.merging import merged
from poolwatch.model import Snapshot
from poolwatch.protocol.document import from_document
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.board import Board

APP = """
import sys, threading, time
from sqlalchemy import create_engine, text
import poolwatch
engine = create_engine(sys.argv[1], pool_size=6, pool_logging_name="shop")
poolwatch.instrument(engine)

def keep(request):
    with engine.connect() as connection:
        connection.execute(text(request))

def borrow(number):
    while True:
        with engine.connect() as connection:
            connection.execute(text(f"select {number}, pg_sleep(0.3)"))

def count(number):
    while True:
        with engine.begin() as connection:
            connection.execute(text(f"select count(*), {number} from pg_class"))
            time.sleep(0.3)

def wait(number):
    while True:
        try:
            with engine.connect() as connection:
                if sys.argv[2] == "retried":
                    connection.execute(text("set lock_timeout = '1s'"))
                connection.execute(text("select pg_advisory_xact_lock(42)"))
                return
        except Exception:
            pass

def link(number):
    lock = text("select from chain where id = :id for update")
    with engine.begin() as connection:
        connection.execute(lock, {"id": number})
        connection.execute(lock, {"id": number - 1})

if sys.argv[3] == "0" and sys.argv[2] != "chain":
    keep("select hide()" if sys.argv[2] == "hidden" else "select pg_advisory_lock(42)")
for each in [borrow, count] * 2:
    threading.Thread(target=each, args=(len(threading.enumerate()),)).start()
print("ready", flush=True)
for line in sys.stdin:
    for number in map(int, line.split()):
        work = link if sys.argv[2] == "chain" else wait
        threading.Thread(target=work, args=(number,)).start()
"""


class Seen:
    """What each look has told of locks."""

    def __init__(self) -> None:
        self.looks = 0
        self.raw: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self.counts: Counter[int] = Counter()

    def add(self, snapshot: Snapshot, document: str) -> None:
        self.looks += 1
        for process in from_document(json.loads(document)).processes:
            for each in process.findings:
                if each.kind == "lock_wait":
                    lines = [site.line for site in each.sites]
                    self.raw[f"process {process.pid}: lines {lines}"] += 1
        found = [each for each in merged(snapshot) if each.kind == "lock_wait"]
        self.keys.update(str(each.key) for each in found)
        self.names.update(each.text.partition(" hold")[0] for each in found)
        self.counts[len(found)] += 1


def main(seconds: float, way: str) -> int:
    with ExitStack() as stack:
        server = make_postgres()
        stack.callback(server.stop, "immediate")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = directory / "shop.py"
        program.write_text(APP)
        server.execute(
            "create function hide() returns void language sql as "
            "'select pg_advisory_lock(42)'"
        )
        server.execute("create table chain as select generate_series(0, 4) as id")
        environ = {**os.environ, "POOLWATCH_DIR": str(directory)}
        os.environ["POOLWATCH_DIR"] = str(directory)
        apps = []
        for number in range(2):
            command = [sys.executable, program, server.url(), way, str(number)]
            app = subprocess.Popen(
                command,
                env=environ,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.callback(app.kill)
            assert app.stdout is not None
            assert app.stdout.readline() == "ready\n"
            apps.append(app)
        stranger = stack.enter_context(
            closing(server.connect(application_name="dba-laptop"))
        )
        stranger.autocommit = False
        stranger.cursor().execute("select from chain where id = 0 for update")
        for number in range(1, 5):
            app = apps[number % 2]
            assert app.stdin is not None
            print(number, file=app.stdin, flush=True)
            time.sleep(0.3)
        time.sleep(2.0)
        seen, board = Seen(), Board()
        source = stack.enter_context(closing(LiveSource(Client(directory), environ={})))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            reading = Reading(began, source.snapshot())
            board.accept(reading)
            done = subprocess.run(
                [sys.executable, "-m", "poolwatch", "ps", "--json"],
                env=environ,
                capture_output=True,
                text=True,
                check=True,
            )
            seen.add(reading.snapshot or Snapshot(), done.stdout)
            time.sleep(max(0.0, began + 1.0 - time.monotonic()))
        return report(seen, board)


def report(seen: Seen, board: Board) -> int:
    entries = [e for e in board.found._entries.values() if e.key.kind == "lock_wait"]
    print(f"{seen.looks} looks")
    for what, found in (
        ("findings a look", seen.counts),
        ("identities", seen.keys),
        ("names", seen.names),
        ("in the processes", seen.raw),
    ):
        print(f"{what}: {len(found)}")
        for each, count in found.most_common():
            print(f"  {count:4} {each}")
    print(f"on the dashboard: {len(entries)}")
    now = board.last.at if board.last else 0.0
    for entry in entries:
        print(f"  {entry.lasts(now):.0f} s, over: {entry.over} {entry.merged.text}")
    return int((len(seen.keys), len(entries)) != (1, 1) or list(seen.counts) != [1])


if __name__ == "__main__":
    given = (
        [*sys.argv[1:], "30", "seen"][:2]
        if len(sys.argv) != 2
        else [sys.argv[1], "seen"]
    )
    sys.exit(main(float(given[0]), given[1]))
