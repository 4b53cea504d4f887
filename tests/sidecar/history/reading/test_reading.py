"""What the readers find in a store, in both dialects."""

from __future__ import annotations

import time

import pytest
from fakes import hold, pool, process
from sqlalchemy import event

from poolwatch.errors import NoProcessError, UsageError
from poolwatch.model import Frame
from poolwatch.sidecar.history import schema
from poolwatch.sidecar.history.reading import History
from poolwatch.sidecar.history.source import HistorySource
from poolwatch.text.format import utc_time

T0 = 1_700_000_000.0


def test_a_moment(store):
    """For each process the newest snapshot at or before it, as it was then."""
    history = History(store.engine)
    with pytest.raises(NoProcessError, match="empty"):
        history.snapshot()
    assert history.extent() is None
    web = store.process(process(host="web-1"), T0 - 50, T0 + 100)
    jobs = store.process(process(host="web-2"), T0 - 50, T0 + 30)
    for at, held_s in ((0, 1.0), (60, 61.0), (100, 101.0)):
        store.snapshot(web, T0 + at, process(hold(held_s=held_s), host="web-1"), "x")
    store.snapshot(jobs, T0 + 30, process(host="web-2"))

    assert history.extent() == (T0, T0 + 100)
    taken = history.snapshot(T0 + 99.5)
    assert [each.host for each in taken.processes] == ["web-1", "web-2"]
    assert [each.at for each in taken.processes] == [
        "2023-11-14T22:14:20.000+00:00",
        "2023-11-14T22:13:50.000+00:00",
    ]
    assert taken.at == "2023-11-14T22:14:20.000+00:00"
    assert [each.held_s for each in taken.processes[0].holds] == [61.0]
    assert [each.host for each in history.snapshot(T0 + 29).processes] == ["web-1"]
    # after the end, the end is shown; of what had ended long before, nothing is
    assert len(history.snapshot(T0 + 5000).processes) == 2
    store.process(process(host="web-3"), T0, T0 + 5000)
    with pytest.raises(NoProcessError, match="no snapshot"):
        history.snapshot(T0 + 5000)
    with pytest.raises(UsageError, match=r"before the history.* 2023-11-14T22:13:20"):
        history.snapshot(T0 - 1)
    with pytest.raises(NoProcessError, match=r"last look .* at 2023-11-14T23:36:40"):
        history.snapshot()


def test_now(store):
    """The newest of each process that is alive; a damaged one spoils no other."""
    now = time.time()
    alive = store.process(process(host="web-1"), T0, now - 30)
    gone = store.process(process(host="web-2"), T0, now - 300)
    damaged = store.process(process(host="web-3", pid=7), T0, now)
    for key in (alive, gone):
        store.snapshot(key, now - 400, process(hold("old")), "x")
        store.snapshot(key, now - 350, process(hold("new")))
    row = {"at": now, "process_id": damaged, "newest": True, "document": b"x"}
    store.add(schema.snapshots, row)
    source = HistorySource(History(store.engine))
    found = source.snapshot()
    assert found.at == utc_time(now - 350)
    assert [each.id for p in found.processes for each in p.holds] == ["new"]
    assert [(each.pid, "damaged" in each.why) for each in found.unreachable] == [
        (7, True)
    ]
    source.close()


def test_incidents(store):
    history = History(store.engine)
    web = store.process(process(host="web-1"), T0, T0 + 1000)
    jobs = store.process(process(host="web-2", pid=9), T0, T0 + 1000)
    first = store.incident(web, T0 + 10)
    lasting = store.incident(
        jobs, T0 + 12, last_seen_at=T0 + 900, ended_at=None, kind="leaked.orphaned"
    )
    stale = store.incident(web, T0 + 500, last_seen_at=T0 + 600, ended_at=None)
    store.snapshot(web, T0 + 10, process(hold("then")), first)

    (one, two, three) = history.incidents()
    assert (one.id, two.id, three.id) == (first, lasting, stale)
    assert (one.host, one.pid, one.sites) == (
        "web-1",
        8812,
        (Frame("/srv/repo.py", 55, "load"),),
    )
    assert (one.started_at, one.ended_at) == (
        "2023-11-14T22:13:30.000+00:00",
        "2023-11-14T22:13:40.000+00:00",
    )
    assert [one.snapshot, two.snapshot, three.snapshot] == [True, False, False]

    def ids(*args, **named):
        return [each.id for each in history.incidents(*args, **named)]

    assert ids(since=T0 + 20) == [first, lasting, stale]
    assert ids(since=T0 + 21) == [lasting, stale]
    assert ids(since=T0 + 601) == [lasting]
    assert ids(until=T0 + 11) == [first]
    assert ids(kinds=["leaked.orphaned"]) == [lasting]
    assert ids(host="web-1") == [first, stale]

    kept = history.snapshot_of_incident(first)
    assert kept is not None
    assert [each.id for each in kept.holds] == ["then"]
    assert history.snapshot_of_incident(lasting) is None
    assert history.snapshot_of_incident("nonsense") is None


def test_snapshots_of_incidents(store):
    """What the dashboard lists under z: of the pool with the name of the incident."""
    web = store.process(process(), T0, T0 + 1000)
    exhausted = process(hold("then"), pools=(pool("other"), pool("orders", id="p7")))
    for number, kind in enumerate(["exhausted", "ghost", "pool_deadlock"]):
        at = T0 + 100 * number
        store.snapshot(web, at, exhausted, store.incident(web, at, kind=kind))
    source = HistorySource(History(store.engine), T0 + 150)
    found, unreachable = source.all_incident_snapshots()
    assert [(each.pool, each.kind, each.at) for each in found] == [
        ("p7", "exhausted", "2023-11-14T22:13:20.000+00:00")
    ]
    assert unreachable == ()
    assert [each.id for each in found[0].process.holds] == ["then"]


def test_minutes(store):
    history = History(store.engine)
    key = store.process(process(host="web-1", name=None), T0, T0)
    pool = store.pool(key)
    site = {"file": "/srv/repo.py", "line": 55, "function": "load"}
    site_id = schema.identifier(*site.values())
    store.add(schema.call_sites, {"id": site_id, **site, "path": "repo.py"})
    minute = int(T0) // 60 * 60
    zero = ("looks", "out_sum", "out_max", "waiting_sum", "waiting_max", "checkouts")
    zero += ("timeouts", "connects", "leaked", "wait_count", "hold_count")
    counts = dict.fromkeys(zero, 0)
    usage = {"held_s": 1.0, "wait_s": 0.0, "wait_caused_s": 0.0, "leaked": 0}
    for at in (minute, minute + 60):
        head = {"minute": at, "pool_id": pool}
        times = {"wait_s": 0.0, "hold_s": 2.0, "hold_up_to": [1, 2]}
        store.add(schema.pool_minutes, {**head, **counts, **times, "out_max": 3})
        store.add(
            schema.site_minutes, {**head, "call_site_id": site_id, "count": 4, **usage}
        )
        label = {"label": "endpoint", "value": "/orders", "count": 5}
        store.add(schema.label_minutes, {**head, **label, **usage})

    (one, two) = history.pool_minutes(T0, T0 + 60)
    assert (one.minute, two.minute) == (minute, minute + 60)
    assert (one.host, one.pid, one.service, one.pool) == (
        "web-1",
        8812,
        "app.py",
        "orders",
    )
    assert (one.size, one.out_max, one.hold_up_to) == (5, 3, [1, 2])
    (site,) = history.site_minutes(minute + 60, minute + 119)
    assert (site.site, site.path, site.count) == (
        Frame("/srv/repo.py", 55, "load"),
        "repo.py",
        4,
    )
    (_, label) = history.label_minutes(0, minute + 60)
    assert (label.label, label.value, label.held_s) == ("endpoint", "/orders", 1.0)
    assert history.pool_minutes(minute + 120, minute + 180) == []


def test_indexes(store):
    """A moment and a stretch of time are found by indexes, not by reading it all."""
    key = store.process(process(), T0, T0)
    store.snapshot(key, T0, process())
    statements = []

    @event.listens_for(store.engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, *rest):
        statements.append((statement, parameters))

    history = History(store.engine)
    history.snapshot(T0)
    history.incidents(T0)
    event.remove(store.engine, "before_cursor_execute", note)
    plans = {}
    with store.engine.connect() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        if not is_sqlite:  # an empty table is read whole, whatever its indexes
            connection.exec_driver_sql("set enable_seqscan = off")
        for statement, parameters in statements:
            explain = "explain query plan" if is_sqlite else "explain"
            rows = connection.exec_driver_sql(f"{explain} {statement}", parameters)
            plans[statement] = "\n".join(str(row[-1]) for row in rows)
    picture = next(plan for sql, plan in plans.items() if "document" in sql)
    assert "(process_id=?" in picture or "(process_id = processes.id)" in picture
    listed = next(plan for sql, plan in plans.items() if "ended_at >=" in sql)
    assert "ix_incidents_ended_at" in listed
    for plan in (picture, listed):
        for table in ("snapshots", "incidents"):
            assert f"SCAN {table}" not in plan
            assert f"Seq Scan on {table}" not in plan


def test_nothing_but_damage(sqlite_store):
    """It is said of each process; it is no reason to say nothing."""
    key = sqlite_store.process(process(), T0, T0)
    row = {"at": T0, "process_id": key, "newest": True, "document": b"x"}
    sqlite_store.add(schema.snapshots, row)
    found = History(sqlite_store.engine).snapshot(T0)
    assert (found.processes, [each.pid for each in found.unreachable]) == ((), [8812])


@pytest.mark.parametrize("column", ["minute", "out_max", "wait_s", "hold_up_to"])
def test_damaged_minutes(sqlite_store, column):
    """They are one sentence; minutes outside the stretch of time do not matter."""
    pool = sqlite_store.pool(sqlite_store.process(process(), T0, T0))
    minute = int(T0) // 60 * 60
    row = dict.fromkeys([each.name for each in schema.pool_minutes.c], 0)
    row |= {"pool_id": pool, "wait_up_to": None, "hold_up_to": None}
    for at in (minute, minute + 600):
        sqlite_store.add(schema.pool_minutes, {**row, "minute": at})
    with sqlite_store.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE pool_minutes SET {column} = 'x' WHERE minute = {minute + 600}"
        )
    history = History(sqlite_store.engine)
    assert len(history.pool_minutes(minute, minute + 60)) == 1
    readings = [lambda: history.totals(minute)]
    if column != "minute":  # a text is in no stretch that has an end
        end = minute + 600
        readings.append(lambda: history.pool_minutes(minute, end))
        readings.append(lambda: history.most_a_minute(minute, end))
    for read in readings:
        with pytest.raises(UsageError, match="pool_minutes has values of wrong types"):
            read()
