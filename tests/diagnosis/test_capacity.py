"""Findings on what pools cost the server: connections opened for nothing, and too many
of them for the server.
"""

from __future__ import annotations

import fakes
import pytest
from fix_core import Look
from helpers import until
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.diagnosis.evidence import ServerEvidence
from poolwatch.diagnosis.findings import with_server_findings
from poolwatch.diagnosis.pools import unpooled
from poolwatch.diagnosis.servers import over_capacity
from poolwatch.model import Counters, Distribution
from poolwatch.protocol import document as wire

# -- unpooled --------------------------------------------------------------------------


def worn(checkouts=100, connects=100, closes=99, cost=3.0, **changes):
    """A pool that has opened and closed so many connections."""
    counters = Counters(checkouts, checkouts, 0, connects, closes, 0, 0, 0)
    opened = Distribution(connects, cost, cost, cost, cost, cost)
    return fakes.pool(counters=counters, create_s=opened, **changes)


def test_unpooled():
    """What is said: what it has cost."""
    (finding,) = unpooled(worn(name="orders", max_overflow=0))
    assert finding.text == (
        "pool 'orders' opens a connection for nearly every checkout: 3.0s spent "
        "connecting so far, 30 ms each time"
    )
    assert finding.proof == "100 checkouts, 100 connections opened, 99 closed"


@pytest.mark.parametrize(
    ("kind", "overflow", "words"),
    [
        ("QueuePool", 10, "create_engine(..., pool_size=<the peak>, max_overflow=0): "),
        ("QueuePool", 0, "Find out what closes connections: a recycle"),
        ("SimpleConnectionPool", 0, "SimpleConnectionPool(..., minconn=<the peak>): "),
        ("AsyncConnectionPool", 6, "AsyncConnectionPool(..., min_size=<the peak>): "),
        ("asyncpg.Pool", 9, "asyncpg.create_pool(..., min_size=<the peak>): "),
    ],
)
def test_unpooled_and_what_to_do(kind, overflow, words):
    """In the words of its library."""
    (finding,) = unpooled(worn(kind=kind, max_overflow=overflow))
    assert finding.remedy.startswith(words)


@pytest.mark.parametrize(
    "pool",
    [
        worn(connects=20, closes=20),  # most of them are used again
        worn(closes=10),  # growing to its size
        worn(checkouts=5, connects=5, closes=5),  # too few to tell
        worn(cost=0.01),  # a file's connections cost nothing
        worn(kind="NullPool"),  # chosen on purpose
        worn(kind="AsyncNullConnectionPool"),
    ],
    ids=["reused", "growing", "few", "cheap", "null", "null of psycopg"],
)
def test_not_unpooled(pool):
    assert unpooled(pool) == []


def test_unpooled_really(postgres, instrument):
    """A psycopg2 pool with minconn=0 keeps nothing."""
    pool = ThreadedConnectionPool(0, 5, postgres.dsn)
    instrument(pool)
    for _ in range(60):
        pool.putconn(pool.getconn())
    (finding,) = Look().process.findings
    assert (finding.kind, finding.severity) == ("unpooled", "warning")
    pool.closeall()
    kept = ThreadedConnectionPool(1, 5, postgres.dsn)
    watch = instrument(kept)
    for _ in range(60):
        kept.putconn(kept.getconn())
    assert [f.pool for f in Look().process.findings] != [watch._pool_id]
    kept.closeall()


def test_no_pool_on_purpose(postgres, instrument):
    """Nobody is told that his NullPool keeps nothing."""
    engine = create_engine(postgres.url(), poolclass=NullPool)
    watch = instrument(engine)
    for _ in range(40):
        engine.connect().close()
    look = Look()
    assert look.counters(watch).connects == 40
    assert look.kinds() == []


# -- over capacity ---------------------------------------------------------------------


def worker(pid, *pools, **status):
    """A process with such pools on one server."""
    values = {"identity": "s", "max_connections": 100, "reserved": 3, "sessions": 20}
    server = fakes.server_status(*(p.id for p in pools), **{**values, **status})
    return fakes.process(pid=pid, pools=pools, servers=(server,))


def sized(size, overflow=0, name="orders", **changes):
    return fakes.pool(id=name, name=name, size=size, max_overflow=overflow, **changes)


def test_over_capacity():
    """All processes together; told once, of the one that can open most."""
    processes = [worker(1, sized(40)), worker(2, sized(40, 20)), worker(3, sized(10))]
    assert [list(found) for found in [over_capacity(processes)]] == [[1]]
    first, second, third = with_server_findings(
        [ServerEvidence(each) for each in processes]
    )
    assert (first.findings, third.findings) == ((), ())
    (finding,) = second.findings
    assert (finding.kind, finding.severity) == ("over_capacity", "warning")
    assert finding.pool is None
    assert finding.text == (
        "the pools of 3 processes can open 110 connections; PostgreSQL at db:5432 "
        "accepts 97"
    )
    assert finding.proof == (
        "max_connections is 100, 3 of them reserved; 20 sessions now; 'orders' of pid "
        "2 can open 60, 'orders' of pid 1 can open 40, 'orders' of pid 3 can open 10"
    )


def test_it_is_critical_when_they_are_all_taken():
    processes = [worker(1, sized(98), sessions=97)]
    ((finding,),) = over_capacity(processes).values()
    assert finding.severity == "critical"
    assert finding.text.startswith("the pools of one process can open 98 connections;")
    assert finding.text.endswith("accepts 97, and all of those are in use")


def test_pools_without_a_limit_are_named():
    """They count for nothing that could be summed up, but they are told."""
    endless = sized(5, -1, name="reports")
    null = sized(None, None, name="jobs", kind="NullPool")
    unknown = sized(None, None, name="odd", kind="SingletonThreadPool")
    ((finding,),) = over_capacity(
        [worker(1, sized(98), endless, null, unknown)]
    ).values()
    assert "without a limit: 'reports' of pid 1, 'jobs' of pid 1" in finding.proof
    assert "odd" not in finding.proof
    assert over_capacity([worker(1, endless, null)]) == {}
    ((finding,),) = over_capacity([worker(1, endless, null, sessions=97)]).values()
    assert finding.text.startswith("the pools of one process have no limit;")


@pytest.mark.parametrize(
    "processes",
    [
        [worker(1, sized(97))],
        [worker(1, sized(60)), worker(2, sized(60), identity="another")],
        [worker(1, sized(60)), worker(2, sized(60), error="no answer")],
        [worker(1, sized(98), identity=None)],
        [worker(1, sized(98), max_connections=None)],
        [worker(1, sized(98, behind_pooler=True))],
    ],
    ids=["they fit", "two servers", "one not read", "unknown", "no limit", "pooler"],
)
def test_not_over_capacity(processes):
    assert over_capacity(processes) == {}


def test_many_pools_are_counted():
    pools = [sized(15, name=f"p{number}") for number in range(9)]
    ((finding,),) = over_capacity([worker(1, *pools)]).values()
    assert finding.proof.endswith("'p5' of pid 1 can open 15, and 3 more pools")


def test_over_capacity_really(start_postgres, instrument, socket_dir):
    """Two pools of this process on a small server, looked at from outside."""
    server = start_postgres(
        max_connections=12, superuser_reserved_connections=2, reserved_connections=1
    )
    pool = ThreadedConnectionPool(1, 6, server.dsn)
    engine = create_engine(server.url(), pool_size=2, max_overflow=0)
    instrument(pool, name="orders"), instrument(engine, name="search")
    held = [pool.getconn()]
    engine.connect().close()
    source = LiveSource(Client(socket_dir), environ={})
    try:
        (process,) = source.snapshot().processes
        (status,) = {(s.max_connections, s.reserved) for s in process.servers}
        assert status == (12, 3)
        assert [f.kind for f in process.findings] == []  # 6 + 2 fit into 12 - 3
        more = create_engine(server.url(), pool_size=2, max_overflow=0)
        instrument(more, name="reports")
        more.connect().close()
        finding = _found(source)
        assert finding.severity == "warning"
        assert "can open 10 connections" in finding.text
        assert "accepts 9" in finding.text
        assert "'orders' of pid" in finding.proof
        held += [server.connect() for _ in range(6)]  # 3 are the pools' already
        assert _found(source).severity == "critical"
        document = wire.to_document(source.snapshot())
        kinds = [f["kind"] for p in document["processes"] for f in p["findings"]]
        assert kinds == ["over_capacity"]
    finally:
        source.close()
        for connection in held:
            connection.close()
        for each in (engine, more):
            each.dispose()


def _found(source):
    """The one finding, as soon as the server has been read."""

    def found():
        (process,) = source.snapshot().processes
        return [f for f in process.findings if f.kind == "over_capacity"]

    return until(found)[0]


# -- how long is long ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("long_after_s", "kinds"), [(5.0, ["idle_in_transaction"]), (30.0, []), (None, [])]
)
def test_an_idle_transaction_is_judged_by_the_limit_of_its_pool(long_after_s, kinds):
    """Without a limit, as in a foreign document, nothing proves that it is long."""
    idle = fakes.server_row("idle in transaction", state_age_s=10.0)
    held = fakes.hold(backend_pid=7, verdict="long", server=idle)
    watched = fakes.process(held, pools=(fakes.pool(long_after_s=long_after_s),))
    (process,) = with_server_findings([ServerEvidence(watched)])
    assert [finding.kind for finding in process.findings] == kinds
