"""The dashboard beside pg_activity, on the same server at the same time.

    python tests/benchmarks/dashboard_beside.py PROGRAM [SESSIONS [SECONDS]] [agents]

PROGRAM is the path of pg_activity. Half of the sessions are idle in transaction, a
sixth runs a statement, a sixth waits for a lock, a sixth is idle; all belong to the
pools of instrumented processes. First the time to the first frame, in turns; then, at
1 s and at 0.5 s, both at once. Both read the server themselves; with ``agents`` the
applications read it for poolwatch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from fix_postgres import Postgres, drop_postgres, make_postgres
from terminals import SIZE, Terminal, cpu_s

APPLICATION = """
import sys, threading, time
from sqlalchemy import create_engine, text
import poolwatch

url, number, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
engine = create_engine(url, pool_size=count, max_overflow=0)
poolwatch.instrument(engine, name="shop", long_after=3600)
kept = [engine.connect() for _ in range(count)]
idle, active, blocked = count // 6, count // 6, count // 6

def update(connection, row):
    connection.execute(text("UPDATE t SET n = n + 1 WHERE id = :id"), {"id": row})

def sleep(connection):
    connection.execute(text("SELECT pg_sleep(36000)"))

def begin(target, *arguments):
    threading.Thread(target=target, args=arguments, daemon=True).start()

for connection in kept[:idle]:
    connection.close()
for connection in kept[idle:idle + active]:
    begin(sleep, connection)
held = kept[idle + active + blocked:]
for n, connection in enumerate(held):
    update(connection, number * 1000 + n)
for n, connection in enumerate(kept[idle + active:idle + active + blocked]):
    begin(update, connection, number * 1000 + n % len(held))
print("ready", flush=True)
sys.stdin.read()
"""
FIRST_FRAMES = 7
WARM_S = 8.0


@contextmanager
def applications(
    server: Postgres, sockets: str, sessions: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """Instrumented processes, a hundred sessions each at most."""
    server.execute("CREATE TABLE t (id int PRIMARY KEY, n int)")
    server.execute("INSERT INTO t SELECT g, 0 FROM generate_series(0, 99999) g")
    count = -(-sessions // 100)
    environ = {**os.environ, "POOLWATCH_DIR": sockets}
    with ExitStack() as stack:
        started = []
        for number in range(count):
            share = sessions // count + (number < sessions % count)
            arguments = [server.url(), str(number), str(share)]
            process = subprocess.Popen(
                [sys.executable, "-c", APPLICATION, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environ,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            started.append(process)
        yield started


class Rig:
    """Server and applications, and the two programs beside each other."""

    def __init__(
        self, server: Postgres, sockets: str, other: str, *, agents: bool
    ) -> None:
        self.server = server
        self._poolwatch = [sys.executable, "-m", "poolwatch", "tui", "--dir", sockets]
        self._poolwatch += [] if agents else ["--dsn", server.dsn]
        self._other = [other, "-h", server.host, "-p", str(server.port)]
        self._other += ["-U", server.user, "-d", server.database]

    def poolwatch(self, every: float) -> Terminal:
        return Terminal([*self._poolwatch, "--refresh", f"{every:g}"])

    def pg_activity(self, every: float) -> Terminal:
        interval = f"{every:g}"
        return Terminal([*self._other, "--refresh", interval], PAGER="cat")

    def first_frames(self) -> None:
        """Print the times to the first frame, and to the first rows."""
        seen: dict[str, list[tuple[float, float]]] = {}  # the first one warms caches
        for _ in range(FIRST_FRAMES):
            with self.poolwatch(1) as ours:
                for name, text in (("frame", "HOLDS"), ("rows", "idle-tx")):
                    seen.setdefault(name, []).append((ours.until(text), ours.cpu_s))
            with self.pg_activity(1) as other:
                taken = other.until("RUNNING QUERIES"), other.cpu_s
                seen.setdefault("other", []).append(taken)
        for what, number in (("seconds", 0), ("CPU", 1)):
            ours, rows, others = (
                median(each[number] for each in seen[name][1:])
                for name in ("frame", "rows", "other")
            )
            print(
                f"first frame, {what}: poolwatch {ours:.2f} (rows {rows:.2f}), "
                f"pg_activity {others:.2f}, ratio {ours / others:.2f}"
            )

    def at_once(self, every: float, seconds: float, agents: list[int]) -> None:
        """Print CPU, memory and statements of both at one interval."""
        with self.poolwatch(every) as ours, self.pg_activity(every) as other:
            both = {"poolwatch": ours, "pg_activity": other}
            drains = [
                threading.Thread(target=each.drain, args=(WARM_S + seconds + 3,))
                for each in both.values()
            ]
            for each in drains:
                each.start()
            time.sleep(WARM_S)
            backends = self._backends()
            spent = _difference(
                lambda: {
                    **{name: each.cpu_s for name, each in both.items()},
                    **{f"written {n}": float(t.written) for n, t in both.items()},
                    **{f"server {n}": sum(map(cpu_s, p)) for n, p in backends.items()},
                    "agents": sum(map(cpu_s, agents)),
                },
                seconds,
            )
            memory = {name: each.rss_mib for name, each in both.items()}
            for each in drains:
                each.join()
            statements = self._statements(both, every)
        for name in both:
            print(
                f"  every {every:g} s, {name:11}: CPU {spent[name]:.2f} s in "
                f"{seconds:g} s, its server processes {spent[f'server {name}']:.2f}; "
                f"{memory[name]:.0f} MiB; {statements[name]:.1f} statements a refresh; "
                f"{spent[f'written {name}'] / seconds * every / 1024:.1f} KiB a refresh"
            )
        own, sum_ = spent["poolwatch"], spent["poolwatch"] + spent["agents"]
        other_s = spent["pg_activity"]
        print(
            f"  every {every:g} s: ratio {own / other_s:.2f}; the agents in "
            f"{len(agents)} applications {spent['agents']:.2f} s, with them "
            f"{sum_ / other_s:.2f}"
        )

    def _backends(self) -> dict[str, list[int]]:
        rows = self.server.execute(
            "SELECT application_name, pid FROM pg_stat_activity "
            "WHERE application_name IN ('poolwatch', 'pg_activity')"
        )
        return {
            name: [pid for application, pid in rows if application == name]
            for name in ("poolwatch", "pg_activity")
        }

    def _statements(self, both: dict[str, Terminal], every: float) -> dict[str, float]:
        """Statements a refresh, from the server's log of ten seconds."""
        self.server.execute("ALTER SYSTEM SET log_min_duration_statement = 0")
        self.server.execute("ALTER SYSTEM SET log_line_prefix = '%m app=%a '")
        self.server.execute("SELECT pg_reload_conf()")
        before = len(self.server.log)
        drains = [threading.Thread(target=t.drain, args=(10,)) for t in both.values()]
        for each in drains:
            each.start()
        for each in drains:
            each.join()
        log = self.server.log[before:]
        self.server.execute("ALTER SYSTEM SET log_min_duration_statement = -1")
        self.server.execute("SELECT pg_reload_conf()")
        found = re.findall(
            r"app=(\S+) LOG:  duration: \S+ ms  (?:statement|execute)", log
        )
        return {name: found.count(name) / 10 * every for name in both}


def _difference(
    read: Callable[[], dict[str, float]], seconds: float
) -> dict[str, float]:
    before = read()
    time.sleep(seconds)
    return {name: value - before[name] for name, value in read().items()}


def main(other: str, sessions: int, seconds: float, *, agents: bool) -> None:
    server = make_postgres(max_connections=sessions + 50)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as sockets,
            applications(server, sockets, sessions) as started,
        ):
            load, reader = os.getloadavg()[0], "agents" if agents else "poolwatch"
            print(
                f"{sessions} sessions in {len(started)} processes, {reader} read the "
                f"server, {SIZE[0]}x{SIZE[1]}, load {load:.0f}"
            )
            rig = Rig(server, sockets, other, agents=agents)
            rig.first_frames()
            for every in (1, 0.5):
                rig.at_once(every, seconds, [each.pid for each in started])
    finally:
        drop_postgres(server)


if __name__ == "__main__":
    numbers = [each for each in sys.argv[2:] if each.isdecimal()]
    count, seconds = [*numbers, *["60", "30"][len(numbers) :]]
    main(sys.argv[1], int(count), float(seconds), agents="agents" in sys.argv)
