"""What pools have used, summed up by both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, insert

from poolwatch.sidecar.history import schema
from poolwatch.sidecar.history.totals import most_out, pool_totals

MINUTE = 1_800_000_000
URL = "postgresql://web:***@db/orders"
NOTHING = dict.fromkeys(
    ("checkouts", "timeouts", "connects", "leaked", "wait_count", "hold_count"), 0
)


def add_pool(connection, host, pid, minutes, *, url=URL, **changes):
    """``minutes``: of each, its number, connections out at most, requests waiting."""
    process = schema.identifier(host, pid, 0.0)
    connection.execute(
        insert(schema.processes).values(
            id=process,
            host=host,
            pid=pid,
            started_at=0.0,
            program="app.py",
            name="orders-api",
            python="3.12.4",
            poolwatch="0.1.0",
            last_seen_at=float(MINUTE),
        )
    )
    pool = {"kind": "QueuePool", "size": 5, "max_overflow": 5, "url": url, **changes}
    number = schema.identifier(process, "p1")
    connection.execute(
        insert(schema.pools).values(
            id=number, process_id=process, pool="p1", name="orders", **pool
        )
    )
    rows = [
        {
            **NOTHING,
            "minute": MINUTE + 60 * minute,
            "pool_id": number,
            "looks": 60,
            "out_sum": 60 * out,
            "out_max": out,
            "waiting_sum": waiting,
            "waiting_max": waiting,
            "timeouts": waiting,
            "wait_s": 0.0,
            "hold_s": 0.0,
        }
        for minute, out, waiting in minutes
    ]
    connection.execute(insert(schema.pool_minutes), rows)


@pytest.fixture(params=["sqlite", "postgresql"])
def connection(request, tmp_path):
    url = f"sqlite:///{tmp_path}/history.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").url()
    engine = create_engine(url)
    with engine.connect() as connection:
        if request.param == "postgresql":  # other tests may have tables there
            connection.exec_driver_sql("CREATE SCHEMA totals")
            connection.exec_driver_sql("SET search_path TO totals")
        schema.metadata.create_all(connection)
        yield connection
        connection.rollback()
    engine.dispose()


def test_totals(connection):
    add_pool(connection, "web-1", 1, [(0, 2, 0), (1, 9, 3), (2, 10, 1)])
    add_pool(connection, "web-2", 2, [(1, 4, 0)], size=None, max_overflow=None)
    first, second = pool_totals(connection, 0.0)
    assert (first.host, first.pid, first.service) == ("web-1", 1, "orders-api")
    assert (first.pool_id, first.pool, first.limit) == ("p1", "orders", 10)
    assert (first.first, first.last) == (MINUTE, MINUTE + 120)
    assert (first.out_max, first.wanted_max, first.out_mean) == (10, 12, 7.0)
    assert (first.timeouts, first.leaked) == (4, 0)
    assert (second.limit, second.out_max, second.first) == (None, 4, MINUTE + 60)
    assert isinstance(first.out_mean, float)
    assert isinstance(first.timeouts, int)
    (last,) = pool_totals(connection, MINUTE + 120.5)
    assert (last.host, last.first, last.wanted_max) == ("web-1", MINUTE + 120, 11)


def test_most_out_at_once(connection):
    """Of one minute, over all hosts; the pools' own peaks were in different ones."""
    add_pool(connection, "web-1", 1, [(0, 2, 0), (1, 9, 3), (2, 10, 1)])
    add_pool(connection, "web-2", 2, [(1, 4, 0)])
    add_pool(connection, "web-2", 3, [(1, 7, 0)], url=None)
    assert most_out(connection, 0.0) == {URL: 13, None: 7}
    assert most_out(connection, MINUTE + 120.5) == {URL: 10}


def test_nothing_yet(connection):
    assert pool_totals(connection, 0.0) == []
    assert most_out(connection, 0.0) == {}
