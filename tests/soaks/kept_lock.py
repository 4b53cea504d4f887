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

from fix_postgres import Postgres, drop_postgres, make_postgres
from helpers import until

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.diagnosis.merging import merged
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.board import Board

APP = """
import sys, threading, time
from sqlalchemy import create_engine, text
import poolwatch
engine = create_engine(sys.argv[1], pool_size=6, pool_logging_name="shop")
jobs = create_engine(sys.argv[1], pool_logging_name="jobs")
poolwatch.instrument(engine)
poolwatch.instrument(jobs)

def begin(request):
    opened = [engine.connect() for _ in range(6)]
    opened[2].execute(text(request))
    for connection in opened:
        connection.close()

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
            with jobs.connect() as connection:
                if sys.argv[2] == "retried":
                    connection.execute(text("set lock_timeout = '1s'"))
                connection.execute(text("select pg_advisory_xact_lock(42)"))
        except Exception:
            pass

def link(number):
    lock = text("select from chain where id = :id for update")
    with engine.begin() as connection:
        connection.execute(lock, {"id": number})
        connection.execute(lock, {"id": number - 1})

keep = "select hide()" if sys.argv[2] == "hidden" else "select pg_advisory_lock(42)"
keeps = sys.argv[3] == "0" and sys.argv[2] != "chain"
begin(keep if keeps else "select 1")
for each in [borrow, count]:
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
        self.counts: Counter[int] = Counter()
        self.keys: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self.printed: Counter[str] = Counter()
        """By process and call sites: the findings of ``ps --json``."""
        self.board = Board()

    def look(self, source: LiveSource) -> None:
        began = time.monotonic()
        snapshot = source.snapshot()
        self.board.accept(Reading(began, snapshot))
        found = [each for each in merged(snapshot) if each.kind == "lock_wait"]
        self.counts[len(found)] += 1
        self.keys.update(str(each.key) for each in found)
        self.names.update(each.text.partition(" (")[0] for each in found)
        done = subprocess.run(
            [sys.executable, "-m", "poolwatch", "ps", "--json"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for process in json.loads(done.stdout)["processes"]:
            for each in process["findings"]:
                if each["kind"] == "lock_wait":
                    lines = [site["line"] for site in each["sites"]]
                    self.printed[f"process {process['pid']}: lines {lines}"] += 1
        time.sleep(max(0.0, began + 1.0 - time.monotonic()))

    def report(self) -> bool:
        """Whether it was one finding all the time; prints what was seen."""
        history = [*self.board.found.open, *self.board.found.over]
        entries = [each for each in history if each.key.kind == "lock_wait"]
        for what, found in (
            ("findings a look", self.counts),
            ("identities", self.keys),
            ("names", self.names),
            ("identities in ps --json, by process", self.printed),
        ):
            print(f"{what}: {len(found)}")
            for each, count in found.most_common():
                print(f"  {count:4} {each}")
        print(f"on the dashboard: {len(entries)}")
        for entry in entries:
            print(f"  {entry.seen} looks, over: {entry.over}; {entry.merged.text}")
        sizes = len(self.keys), len(self.names), len(self.printed), len(entries)
        return max(self.counts) == 1 and sizes == (1, 1, 2, 1)


def start(server: Postgres, directory: Path, way: str, stack: ExitStack) -> None:
    """Start two processes, and four threads that wait."""
    program = directory / "shop.py"
    program.write_text(APP)
    server.execute(
        "create function hide() returns void language sql as "
        "'select pg_advisory_lock(42)';"
        "create table chain as select generate_series(0, 4) as id"
    )
    stranger = stack.enter_context(closing(server.connect(application_name="dba")))
    stranger.cursor().execute("begin; select from chain where id = 0 for update")
    inputs = []
    for number in range(2):
        app = subprocess.Popen(
            [sys.executable, program, server.url(), way, str(number)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stack.callback(app.kill)
        assert app.stdin is not None
        assert app.stdout is not None
        assert app.stdout.readline() == "ready\n"
        inputs.append(app.stdin)
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    for number in range(1, 5):
        print(number, file=inputs[number % 2], flush=True)
        until(lambda n=number: server.execute(waiting) == [(n,)])
    if way == "hidden":  # a wait that began long before the borrower came is the proof
        waited = f"{waiting} and state_change < clock_timestamp() - interval '3 s'"
        until(lambda: server.execute(waited) == [(4,)])


def main(seconds: float, way: str) -> int:
    with ExitStack() as stack:
        server = make_postgres()
        stack.callback(drop_postgres, server)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["POOLWATCH_DIR"] = str(directory)
        start(server, directory, way, stack)
        source = stack.enter_context(closing(LiveSource(Client(directory), environ={})))
        seen, end = Seen(), time.monotonic() + seconds
        while time.monotonic() < end:
            seen.look(source)
        return 0 if seen.report() else 1


if __name__ == "__main__":
    asked = [*sys.argv[1:], *("30", "seen")[len(sys.argv) - 1 :]]
    sys.exit(main(float(asked[0]), asked[1]))
