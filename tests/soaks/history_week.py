"""A week of looks, written into a history by a stepping clock.

    python tests/soaks/history_week.py [DAYS] [SECONDS A LOOK] [KEEP IN DAYS] [URL]

Five processes with ten busy pools each, three call sites a pool, labels on the holds of
one pool, a few holds that change at every look, and an incident an hour. Every look is
written in a transaction of its own, as fast as the store takes it. Prints the size of a
day, and the processor time of a write and of take(). Exits with 1 if something is kept
longer than it should be, or if what was counted differs from what has happened.
"""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import fakes
from sqlalchemy import Engine, func, select, text

from poolwatch.diagnosis.incidents import Began, Changes
from poolwatch.model import (
    Distribution,
    Frame,
    Incident,
    LabelStats,
    PoolStats,
    Process,
    SiteStats,
    Snapshot,
)
from poolwatch.sidecar.history.schema import metadata, pool_minutes, snapshots
from poolwatch.sidecar.history.store import open_store
from poolwatch.sidecar.history.writing import HistoryWriter
from poolwatch.sidecar.looks import Look

PROCESSES, POOLS, SITES = 5, 10, 3
BEGAN = datetime(2026, 3, 2, tzinfo=UTC).timestamp()
RATE = 4
"""Checkouts a second of each pool."""


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def spread(count: int, mean_s: float) -> Distribution:
    shares = (0.05, 0.4, 0.7, 0.95, 0.98, 1.0, 1.0, 1.0, 1.0)
    up_to = tuple(int(count * share) for share in shares)
    return Distribution(count, count * mean_s, 0.8, 0.006, 0.04, 0.08, up_to)


def pool_at(number: int, done: int, out: int, waiting: int) -> PoolStats:
    return fakes.pool(
        f"orders-{number}",
        id=f"p{number}",
        checked_out=out,
        idle=5 - out,
        waiting=waiting,
        counters=fakes.counters(
            checkouts=done + out, checkins=done, connects=5 + done // 1000
        ),
        wait_s=spread(done, 0.0004),
        hold_s=spread(done, 0.012),
        create_s=spread(5 + done // 1000, 0.02),
        served_s=spread(done + out, 0.0004),
    )


def process_at(number: int, at: float) -> Process:
    """A process that is busy by day and rests at night."""
    elapsed = at - BEGAN
    pools, sites, labels, holds = [], [], [], []
    for each in range(POOLS):
        done = int(elapsed * RATE) * (each % 3 + 1)
        out = int(at * 7 + each + number) % 3
        pools.append(pool_at(each, done, out, int(int(at + each) % 61 == 0)))
        for line in range(SITES):
            frame = Frame(f"/srv/shop/orders/views_{each}.py", 40 + line, "load_orders")
            sites.append(site_at(f"p{each}", frame, done // SITES, elapsed))
        if not each:
            labels.append(label_at(f"p{each}", done, elapsed))
        stack = (sites[-1].site, Frame("/srv/shop/app.py", 12, "handle"))
        holds += [
            fakes.hold(
                f"h{done + one}",
                pool=f"p{each}",
                held_s=0.01 * one,
                site=stack[0],
                stack=stack * 4,
                now=stack * 6,
                statement="SELECT orders.id, orders.total FROM orders WHERE id = ?",
            )
            for one in range(out if each < 3 else 0)
        ]
    return fakes.process(
        *holds,
        pid=4000 + number,
        started_at=iso(BEGAN),
        pools=tuple(pools),
        sites=tuple(sites),
        labels=tuple(labels),
    )


def site_at(pool: str, frame: Frame, count: int, elapsed: float) -> SiteStats:
    held = count * 0.012
    return SiteStats(
        pool,
        frame,
        count,
        held / max(1.0, elapsed),
        spread(count, 0.012),
        spread(count, 0.0004),
        0,
        held_s=held,
        path=frame.file[5:],
    )


def label_at(pool: str, count: int, elapsed: float) -> LabelStats:
    site = site_at(pool, Frame("", 0, ""), count, elapsed)
    return LabelStats(
        pool, "endpoint", "/orders", count, site.connections, site.hold_s, site.wait_s,
        0, None, None, site.wait_caused_s, site.held_s,
    )  # fmt: skip


def changes_at(process: Process, at: float, lasting: list[Incident]) -> Changes:
    """An incident an hour that lasts a minute."""
    began: tuple[Began, ...] = ()
    ended: tuple[Incident, ...] = ()
    if lasting and at - datetime.fromisoformat(lasting[0].started_at).timestamp() > 60:
        ended = (replace(lasting.pop(), ended_at=iso(at)),)
    elif not lasting and at % 3600 < 60:
        incident = Incident(
            uuid.uuid4().hex, process.host, process.pid, "orders-api", "orders-1",
            "exhausted", "critical", iso(at), iso(at), None,
            'pool "orders" is exhausted: 10/10 out, 3 waiting',
            "nothing is free and requests wait",
            "return the connection before the slow call",
            (process.sites[0].site,), True,
        )  # fmt: skip
        lasting.append(incident)
        began = (Began(incident, process),)
    return Changes(
        began, ended, tuple(replace(e, last_seen_at=iso(at)) for e in lasting)
    )


def size_of(engine: Engine) -> int:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            return Path(str(engine.url.database)).stat().st_size
        query = "SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables"
        return int(connection.scalar(text(query)))


def main(days: float, step_s: float, keep_days: float, url: str) -> int:
    keep_s = keep_days * 86400
    writer = HistoryWriter(url, keep_s=keep_s, keep_bytes=1 << 30, threaded=False)
    reader = open_store(url, write=False)
    takes, writes, lasting = [], [], []
    at = BEGAN + 3600.0
    first = [process_at(number, at) for number in range(PROCESSES)]
    day, failed, sizes = 1, 0, [0]
    while at < BEGAN + 3600 + days * 86400:
        processes = [process_at(number, at) for number in range(PROCESSES)]
        look = Look(at, 0.01, Snapshot(tuple(processes)), None,
                    changes_at(processes[0], at, lasting))  # fmt: skip
        clock = time.thread_time()
        writer.take(look)
        taken = time.thread_time()
        writer.write()
        takes.append(taken - clock)
        writes.append(time.thread_time() - taken)
        at += step_s
        if at >= BEGAN + 3600 + day * 86400:
            sizes.append(size_of(reader))
            failed |= report(reader, day, sizes, takes, writes, at, keep_s)
            day += 1
            takes, writes = [], []
    writer.close()
    sizes.append(size_of(reader))
    if writes:
        failed |= report(reader, day, sizes, takes, writes, at, keep_s)
    if days < keep_days:
        failed |= compare(reader, first, processes)
    with reader.connect() as connection:
        for name in sorted(metadata.tables):
            count = connection.scalar(text(f"SELECT count(*) FROM {name}"))
            print(f"  {name:15} {count:9,} rows")
        if reader.dialect.name == "sqlite":
            print("integrity:", connection.scalar(text("PRAGMA integrity_check")))
    return failed


def report(engine, day, sizes, takes, writes, at, keep_s) -> int:
    with engine.connect() as connection:
        oldest = connection.scalar(select(func.min(pool_minutes.c.minute)))
        oldest_kept = connection.scalar(
            select(func.min(snapshots.c.at)).where(snapshots.c.newest.is_(False))
        )
    age = at - min(oldest, oldest_kept)
    ordered = sorted(writes)
    print(
        f"day {day}: {sizes[-1] / 2**20:.1f} MiB "
        f"(+{(sizes[-1] - sizes[-2]) / 2**20 / PROCESSES:.2f} MiB a process), "
        f"oldest {age / 86400:.2f} days; {len(writes)} writes: "
        f"median {median(writes) * 1000:.1f} ms, p99 "
        f"{ordered[int(len(ordered) * 0.99)] * 1000:.1f} ms, max "
        f"{ordered[-1] * 1000:.0f} ms; take() {median(takes) * 1000:.2f} ms",
        flush=True,
    )
    slack = 86400 if engine.dialect.name == "postgresql" else 120
    return int(age > keep_s + slack)


def compare(engine: Engine, first: list[Process], last: list[Process]) -> int:
    """Whether the minutes add up to what the counters have grown by."""
    grown = sum(
        now.counters.checkouts - before.counters.checkouts
        for process, earlier in zip(last, first, strict=True)
        for now, before in zip(process.pools, earlier.pools, strict=True)
    )
    with engine.connect() as connection:
        counted = connection.scalar(select(func.sum(pool_minutes.c.checkouts)))
    print(f"checkouts: {grown:,} happened, {counted:,} counted")
    return int(grown != counted)


if __name__ == "__main__":
    arguments = [float(each) for each in sys.argv[1:4]]
    days, step_s, keep_days = (*arguments, *(1.0, 10.0, 7.0)[len(arguments) :])
    with tempfile.TemporaryDirectory() as directory:
        url = sys.argv[4] if len(sys.argv) > 4 else f"sqlite:///{directory}/history.db"
        sys.exit(main(days, step_s, keep_days, url))
