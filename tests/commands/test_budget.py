"""The connections of a server, divided among the services of a history."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import fakes
import pytest
from sqlalchemy import insert

from poolwatch.commands.advise import budget
from poolwatch.commands.main import main
from poolwatch.protocol import document
from poolwatch.sidecar.history import schema
from poolwatch.sidecar.history.store import open_store
from poolwatch.sidecar.history.totals import PoolTotal

HOUR = 3600


def total(host="web-1", pid=1, peak=4, **changes):
    values = {
        "host": host,
        "pid": pid,
        "service": "orders-api",
        "pool_id": "orders",
        "pool": "orders",
        "kind": "QueuePool",
        "url": "postgresql://web:***@db/orders",
        "size": 5,
        "max_overflow": 10,
        "first": 0,
        "last": HOUR,
        "out_max": peak,
        "wanted_max": peak,
        "out_mean": peak / 4,
        "timeouts": 0,
        "leaked": 0,
    }
    return PoolTotal(**{**values, **changes})


def fleet(count, peak=4, **changes):
    return [total(f"web-{number}", number, peak, **changes) for number in range(count)]


def divide(totals, limit, processes=(), out=0):
    (found,), unknown = budget.server_budgets(
        totals, processes, {"postgresql://web:***@db/orders": out}, limit
    )
    assert unknown == []
    assert found.after == sum(s.processes * s.proposed for s in found.services)
    return found


def test_they_fit():
    """Nothing changes."""
    found = divide(fleet(10), 200)
    assert (found.before, found.after, found.fits) == (150, 150, True)
    (service,) = found.services
    assert (service.processes, service.limit, service.proposed) == (10, 15, 15)
    assert service.line is None
    assert found.advice == ()


def test_they_are_made_to_fit():
    """In proportion to the peaks, so that all have the same room above them."""
    jobs = fleet(5, peak=8, service="jobs", pool="jobs")
    found = divide([*fleet(10), *jobs], 97)
    assert found.before == 225
    assert found.after <= 97
    assert found.fits
    orders, jobs = sorted(found.services, key=lambda each: each.peak)
    assert (orders.proposed, jobs.proposed) == (5, 9)
    assert orders.line == "create_engine(..., pool_size=4, max_overflow=1)"
    assert jobs.line == "create_engine(..., pool_size=8, max_overflow=1)"
    text = "\n".join(budget.lines(found))
    assert "all pools together can open 225; with these limits 95: within" in text


def test_who_waited_gets_more():
    waited = fleet(2, peak=15, wanted_max=20, timeouts=3)
    (service,) = divide(waited, 97).services
    assert (service.limit, service.proposed) == (15, 20)
    assert service.line == "create_engine(..., pool_size=15, max_overflow=5)"


def test_a_leak_is_no_reason_for_a_larger_pool():
    found = divide(fleet(1, peak=15, wanted_max=99, leaked=15), 97)
    assert found.services[0].proposed == 15
    assert found.advice[0].startswith("orders-api has leaked 15 connections")


def test_the_peaks_do_not_fit():
    """A pooler would do; or nothing but shorter holds."""
    found = divide(fleet(10), 30, out=25)
    assert (found.after, found.fits) == (30, False)
    assert found.advice[0].startswith("orders-api had 4 of pool 'orders' out at once")
    assert "no more than 25 were out at once" in found.advice[1]
    assert "PgBouncer" in found.advice[1]
    found = divide(fleet(10), 30, out=35)
    assert "no pooler fits into 30" in found.advice[1]
    assert "does not fit" in "\n".join(budget.lines(found))


def test_not_even_one_each():
    found = divide(fleet(10), 7)
    assert (found.after, found.fits) == (10, False)
    assert any("run fewer processes" in each for each in found.advice)


def test_pools_without_a_limit():
    found = divide(fleet(3, size=5, max_overflow=-1), 97)
    assert (found.before, found.unlimited) == (0, 3)
    (service,) = found.services
    assert (service.limit, service.proposed) == (None, 8)
    assert service.line == "create_engine(..., pool_size=4, max_overflow=4)"
    assert "and 3 pools without a limit" in "\n".join(budget.lines(found))


@pytest.mark.parametrize(
    ("kind", "size", "overflow", "line"),
    [
        ("AsyncConnectionPool", 4, 16, "AsyncConnectionPool(..., max_size=6)"),
        ("ConnectionPool", 9, 0, "ConnectionPool(..., min_size=6, max_size=6)"),
        ("asyncpg.Pool", 10, 0, "asyncpg.create_pool(..., min_size=6, max_size=6)"),
        ("ThreadedConnectionPool", 20, 0, "ThreadedConnectionPool(..., maxconn=6)"),
    ],
)
def test_in_the_words_of_the_library(kind, size, overflow, line):
    (service,) = divide(
        fleet(2, kind=kind, size=size, max_overflow=overflow), 12
    ).services
    assert service.line == line


def test_processes_that_follow_each_other_are_one():
    """A deployment: the new one begins in the minute in which the old one ends."""
    generations = [
        total(pid=1, last=HOUR),
        total(pid=2, first=HOUR, last=2 * HOUR, size=3),
        total(pid=3, first=HOUR, last=HOUR + 600),
    ]
    (service,) = divide(generations, 97).services
    assert service.processes == 2
    assert service.limit == 13  # of the newest


def test_a_service_that_has_gone():
    """Or that runs on Sundays only: its share is kept, and that is said."""
    old = total("web-9", service="old-api")
    found = divide([old, total(first=0, last=30 * HOUR)], 97)
    assert found.advice == (
        "old-api has not run for 1d05h: its 15 connections are kept for it",
    )


def watched(host, **status):
    return fakes.process(host=host, pid=1, servers=(fakes.server_status(**status),))


def test_the_servers_own_limit():
    """Known by name also for a host that could not read it."""
    processes = [watched("web-0", identity="s/1", max_connections=40, reserved=3)]
    totals = [total("web-0"), total("web-1")]
    found = divide(totals, None, processes)
    assert (found.server, found.budget, found.reserved) == ("db:5432", 37, 3)
    assert found.services[0].processes == 2


def test_two_servers_are_divided_each():
    other = replace(total("web-1"), url="postgresql://web:***@db2/orders")
    local = replace(total("web-2"), url="postgresql://web:***@localhost/orders")
    found, unknown = budget.server_budgets([total(), other, local], [], {}, 50)
    addresses = ["db2:5432", "db:5432", "localhost:5432 of web-2"]
    assert sorted(each.server for each in found) == addresses
    found, unknown = budget.server_budgets([total(), other, local], [], {}, None)
    assert (found, sorted(unknown)) == ([], addresses)


@pytest.mark.parametrize("text", ["0", "-5", "many", "1e3", "99999999"])
def test_a_budget_that_is_none(text, capsys):
    with pytest.raises(SystemExit) as end:
        main(["advise", "--budget", text])
    assert end.value.code == 2
    assert "must be a number of connections from 1" in capsys.readouterr().err


@pytest.fixture
def store(tmp_path):
    """The URL of a history with one process, whose server accepts 12."""
    url = f"sqlite:///{tmp_path}/history.db"
    engine = open_store(url, write=True)
    process = fakes.process(
        servers=(fakes.server_status(identity="s/1", max_connections=15, reserved=3),)
    )
    text = document.to_json(fakes.snapshot(process), viewers=True)
    kept = zlib.compress(text.encode())
    zeros = ("waiting_sum", "waiting_max", "checkouts", "timeouts", "connects")
    minute = dict.fromkeys((*zeros, "leaked", "wait_count", "hold_count"), 0)
    minute |= {"wait_s": 0.0, "hold_s": 0.0, "looks": 60, "out_sum": 120, "out_max": 4}
    with engine.begin() as connection:
        connection.execute(
            insert(schema.processes).values(
                id=1,
                host=process.host,
                pid=process.pid,
                started_at=0.0,
                program=process.program,
                name=process.name,
                python="3.12",
                poolwatch="0.1.0",
                last_seen_at=90.0,
            )
        )
        (pool,) = process.pools
        connection.execute(
            insert(schema.pools).values(
                id=2,
                process_id=1,
                pool=pool.id,
                name=pool.name,
                kind=pool.kind,
                url=pool.url,
                size=pool.size,
                max_overflow=20,
            )
        )
        connection.execute(
            insert(schema.pool_minutes).values(minute=60, pool_id=2, **minute)
        )
        connection.execute(
            insert(schema.snapshots).values(
                at=90.0,
                process_id=1,
                newest=True,
                document=kept,
            )
        )
    engine.dispose()
    return url


def test_from_a_store(store, capsys):
    assert main(["advise", "--history", store]) == 0
    text = capsys.readouterr().out
    assert "a budget of 12 connections (max_connections 15, 3 reserved)" in text
    assert "create_engine(..., pool_size=4, max_overflow=8)" in text
    assert main(["advise", "--history", store, "--budget", "9", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["budgets"]
    assert (found["before"], found["after"], found["budget"]) == (25, 9, 9)
    assert found["services"][0]["proposed"] == 9


def test_since_when(store, capsys):
    assert main(["advise", "--history", store, "--since", "1970-01-01T00:01:30"]) == 0
    assert main(["advise", "--history", store, "--since", "-1d"]) == 2
    assert "lies after the history, which ends at" in capsys.readouterr().err


def test_no_history(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/none.db"
    assert main(["advise", "--history", url]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
