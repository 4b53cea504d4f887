"""A fleet on one PostgreSQL: what it writes, and how long it takes to read.

    python tests/soaks/fleet.py [MINUTES [HOSTS]]

Each of 200 hosts has the writer of a sidecar, and looks at 5 processes once a second
and writes every 5 seconds, on a stepping clock. Each process has 2 pools with 5 call
sites each, and now and then an incident. The writers take turns, so that the time of a
write is its own; the server's own CPU time is read from /proc. The history is then
filled with a day of minutes and incidents, and read by the commands that users run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import fakes
from fix_postgres import Postgres, drop_postgres, make_postgres
from sqlalchemy import create_engine

from poolwatch.diagnosis.incidents import Began, Changes
from poolwatch.model import Distribution, Incident, LabelStats, Process, SiteStats
from poolwatch.sidecar.history import partitions, schema
from poolwatch.sidecar.history.writing import HistoryWriter
from poolwatch.sidecar.looks import Look

PROCESSES = 5
POOLS = ("orders", "search")
SITES = 5
ENDPOINTS = 5
EVERY_S = 5
INCIDENT_S = 30
READING_S = 600
SERVER = fakes.server_status(*POOLS, identity="s/1", max_connections=9000)
STACK = tuple(fakes.frame(f"/srv/app/shop/views/part{n}.py:{n + 40}") for n in range(9))


def utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def times(count: int, each_s: float) -> Distribution:
    up_to = tuple(int(count * share) for share in (0, 0.2, 0.4, 0.8, 0.9, 1, 1, 1, 1))
    spread = (each_s * 9, each_s, each_s * 3, each_s * 6)
    return Distribution(count, count * each_s, *spread, up_to=up_to)


class Host:
    """One host: its writer, and its processes as they are at a moment."""

    def __init__(self, number: int, url: str, began: float) -> None:
        self.name = f"web-{number}"
        self.number = number
        self.began = began
        self.chance = random.Random(number)
        self.incident: Incident | None = None
        self.writer = HistoryWriter(
            url, keep_s=7 * 86400, keep_bytes=1 << 40, hosts={self.name}, threaded=False
        )

    def look(self, at: float) -> None:
        processes = [self.process(number, at) for number in range(PROCESSES)]
        snapshot = fakes.snapshot(*processes)
        self.writer.take(Look(at, 0.01, snapshot, None, self.changes(processes[0], at)))

    def process(self, number: int, at: float) -> Process:
        done = int((at - self.began) * (10 + number))
        counted = fakes.counters(checkouts=done + 2, checkins=done, connects=5)
        waits, holds = times(done, 0.002), times(done, 0.02)
        pools = [
            fakes.pool(
                pool,
                counters=counted,
                wait_s=waits,
                hold_s=holds,
                served_s=waits,
                checked_out=self.chance.randint(0, 9),
                waiting=max(0, self.chance.randint(-20, 2)),
            )
            for pool in POOLS
        ]
        sites = [
            SiteStats(
                pool, STACK[n], done // SITES, 0.2, holds, waits, 0,
                wait_caused_s=done / 1e3, held_s=done / 50 / SITES, path="shop/a.py",
            )
            for pool in POOLS
            for n in range(SITES)
        ]  # fmt: skip
        labels = [
            LabelStats(
                POOLS[0], "endpoint", f"/page/{n}", done // ENDPOINTS, 0.2, holds,
                waits, 0, None, None, 0.0, done / 50 / ENDPOINTS,
            )
            for n in range(ENDPOINTS)
        ]  # fmt: skip
        held = [
            fakes.hold(f"{done}-{n}", site=STACK[n], stack=STACK, now=STACK)
            for n in range(2)
        ]
        return fakes.process(
            *held,
            host=self.name,
            pid=1000 + number,
            started_at=utc(self.began),
            pools=tuple(pools),
            sites=tuple(sites),
            labels=tuple(labels),
            servers=(SERVER,),
        )

    def changes(self, process: Process, at: float) -> Changes:
        """An incident begins every 5 minutes and lasts for half a minute."""
        now = self.incident
        if now is None:
            if round(at - self.began + 7 * self.number) % 300:
                return Changes()
            began = incident(self.name, process, at)
            self.incident = began
            return Changes(began=(Began(began, process),))
        age = at - datetime.fromisoformat(now.started_at).timestamp()
        changed: dict[str, Any] = {"last_seen_at": utc(at)}
        if age > INCIDENT_S:
            changed["ended_at"] = utc(at)
        latest = incident(self.name, process, at, now, **changed)
        self.incident = None if latest.ended_at else latest
        return Changes((), (latest,)) if latest.ended_at else Changes((), (), (latest,))


def incident(
    host: str, process: Process, at: float, of: Incident | None = None, **changes: Any
) -> Incident:
    values: dict[str, Any] = {
        "id": of.id if of else uuid.uuid4().hex,
        "host": host,
        "pid": process.pid,
        "process": "orders-api",
        "pool": "orders",
        "kind": "exhausted",
        "severity": "critical",
        "started_at": of.started_at if of else utc(at),
        "last_seen_at": utc(at),
        "ended_at": None,
        "text": "pool 'orders' is exhausted: 10 of 10 out, 3 waiting",
        "proof": "nothing is free and requests wait",
        "remedy": "return the connection before the slow call",
        "sites": STACK[:1],
        "snapshot": True,
    }
    return Incident(**{**values, **changes})


def server_cpu_s(server: Postgres) -> float:
    """CPU time of the server's processes so far, those that have ended included."""
    postmaster = (server.directory / "postmaster.pid").read_text().split()[0]
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[1] == postmaster:
                ticks += int(fields[11]) + int(fields[12])
            elif stat.parent.name == postmaster:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def write(server: Postgres, hosts: int, minutes: int) -> None:
    """Simulate, and print what was written."""
    began = (time.time() // 60 - minutes) * 60
    fleet = [Host(number, server.url(), began - 3600) for number in range(hosts)]
    for host in fleet:  # all rows that are written once: processes, pools, pictures
        for before_s in (60, 1):
            host.look(began - before_s)
            host.writer.write()
    cpu, before, wal = server_cpu_s(server), sizes(server), wal_bytes(server)
    took = simulate(fleet, began, minutes)
    cpu = (server_cpu_s(server) - cpu) / (60 * minutes)
    wal = (wal_bytes(server) - wal) / 2**20 / minutes
    print(
        f"{hosts} hosts of {PROCESSES} processes, {minutes} min: {len(took)} writes, "
        f"{len(took) / 60 / minutes:.0f} a second; one takes {median(took) * 1e3:.1f} "
        f"ms (p99 {took[int(len(took) * 0.99)] * 1e3:.0f}, max {took[-1] * 1e3:.0f})"
    )
    print_growth(before, sizes(server), minutes)
    most = hosts / max(cpu, 0.01)
    print(
        f"the server uses {cpu:.2f} of a core and writes {wal:.0f} MiB of write-ahead "
        f"log a minute. The limit: a core of it is full at {most:.0f} hosts."
        "\nBeyond that: write each minute once (a minute that runs is written every "
        f"{EVERY_S} s; once took a quarter of the CPU and a sixth of the log), then a "
        "store for each part of the fleet."
    )
    for host in fleet:  # they are alive, until all commands have read
        host.writer.write()
        host.look(time.time() + READING_S)
        host.writer.close()


def simulate(fleet: list[Host], began: float, minutes: int) -> list[float]:
    """Let the clock step; returns how long each write took, sorted."""
    took: list[float] = []
    for second in range(60 * minutes):
        for number, host in enumerate(fleet):
            host.look(began + second)
            if (second + number) % EVERY_S == 0:
                start = time.perf_counter()
                host.writer.write()
                took.append(time.perf_counter() - start)
    return sorted(took)


def wal_bytes(server: Postgres) -> int:
    ((found,),) = server.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
    return int(found)


def sizes(server: Postgres) -> dict[str, tuple[int, int]]:
    """Rows and bytes of each table, its indexes and partitions included."""
    found = {}
    for table in schema.metadata.sorted_tables:
        ((rows, size),) = server.execute(
            f"SELECT (SELECT count(*) FROM {table.name}), sum(pg_total_relation_size("
            "c.oid)) FROM pg_class c WHERE c.relkind = 'r' AND (c.relname = "
            f"'{table.name}' OR c.relname ~ '^{table.name}_[0-9]+$')"
        )
        found[table.name] = int(rows), int(size)
    return found


def print_growth(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], minutes: int
) -> None:
    total = 0
    for name, (rows, size) in after.items():
        more, grown = rows - before[name][0], size - before[name][1]
        total += grown
        print(
            f"  {name:16}{rows:>10,} rows{more / minutes:>10,.0f} a minute"
            f"{grown / 2**20 / minutes:>9.2f} MiB a minute"
        )
    a_day = total / 2**30 / minutes * 1440
    print(f"  {total / 2**20 / minutes:.1f} MiB a minute, {a_day:.0f} GiB a day")


def fill(server: Postgres, incidents_a_day: int) -> None:
    """Fill the last 24 hours: with the pools' last minute, and incidents like one."""
    engine = create_engine(server.url())
    today = partitions.day_of(time.time())
    figures = ", ".join(c.name for c in schema.pool_minutes.c if c.name != "minute")
    times = {"id", "process_id", "started_at", "last_seen_at", "ended_at"}
    rest = ", ".join(c.name for c in schema.incidents.c if c.name not in times)
    with engine.begin() as connection:
        partitions.make(connection, (today - 1, today))
        connection.exec_driver_sql(
            f"INSERT INTO pool_minutes (minute, {figures}) "
            f"SELECT minute - 60 * n, {figures} "
            "FROM pool_minutes, generate_series(1, 1440) n "
            "WHERE minute = (SELECT max(minute) FROM pool_minutes) "
            "ON CONFLICT DO NOTHING"
        )
        connection.exec_driver_sql(
            f"INSERT INTO incidents ({', '.join(sorted(times))}, {rest}) "
            "SELECT at + 30, gen_random_uuid(), at + 30, owner, at, "
            f"{rest} FROM (SELECT * FROM incidents LIMIT 1) one, "
            "(SELECT min(id) AS owner, extract(epoch FROM now()) - random() * 86400 "
            f"AS at FROM processes, generate_series(1, {incidents_a_day}) n "
            "GROUP BY host, n) others"
        )
    engine.dispose()
    server.execute("VACUUM ANALYZE")
    filled = sizes(server)
    for name in ("pool_minutes", "incidents"):
        rows, size = filled[name]
        print(f"filled for 24 h: {name} {rows:,} rows, {size / 2**20:.0f} MiB")


def read(server: Postgres) -> None:
    """Time the commands of users."""
    for command in (
        ("ps",), ("check",), ("history", "--since", "24h"), ("advise",)
    ):  # fmt: skip
        start, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "poolwatch", *command, "--history", server.url()],
            capture_output=True,
            text=True,
            check=False,
        )
        took_s, after = time.perf_counter() - start, getrusage(RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"poolwatch {' '.join(command)} --history: {took_s:.2f} s, {cpu_s:.2f} s "
            f"of CPU, {len(done.stdout.splitlines())} lines, "
            f"exit code {done.returncode} {done.stderr[-200:]}"
        )


def main(minutes: int = 3, hosts: int = 200) -> None:
    server = make_postgres(max_connections=hosts + 50, fsync="on")
    try:
        write(server, hosts, minutes)
        fill(server, incidents_a_day=100)
        read(server)
    finally:
        drop_postgres(server)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
