"""The history as the past of the dashboard, in both dialects."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import hold, process
from sqlalchemy import event

from poolwatch.errors import PoolwatchError, UsageError
from poolwatch.model import Step
from poolwatch.sidecar.history import schema
from poolwatch.sidecar.history.reading import History
from poolwatch.sidecar.history.source import HistorySource

T0 = 1_700_000_040.0
"""The beginning of a minute."""
MINUTE = {
    column.name: 0
    for column in schema.pool_minutes.columns
    if not column.nullable and not column.name.endswith("_up_to")
}


def filled(store):
    """Two processes, five moments; the third minute has nobody seen."""
    keys = [store.process(process(pid=pid), T0, T0 + 600) for pid in (1, 2)]
    for at in (0, 60, 300, 301, 302):
        for key, pid in zip(keys, (1, 2), strict=True):
            store.snapshot(key, T0 + at, process(hold(held_s=float(at)), pid=pid), "x")
    pools = [store.pool(keys[0]), store.pool(keys[1]), store.pool(keys[1], "reports")]
    for minute, out, waiting in ((0, 1, 0), (60, 4, 2), (180, 2, 1)):
        for pool in pools:
            head = {"minute": int(T0) + minute, "pool_id": pool}
            most = {"out_max": out, "waiting_max": waiting}
            store.add(schema.pool_minutes, {**MINUTE, **head, **most})
    store.incident(keys[0], T0 + 70)
    return HistorySource(History(store.engine))


def test_a_timeline(store):
    source = filled(store)
    assert source.extent() == (T0, T0 + 600)
    each_minute = [Step(3, 0), Step(12, 6), None, Step(6, 3)]
    assert source.steps(T0, T0 + 240, 4) == each_minute
    assert source.steps(T0, T0 + 240, 2) == [Step(12, 6), Step(6, 3)]
    assert source.steps(T0 + 90, T0 + 150, 4) == [*[Step(12, 6)] * 2, None, None]
    assert source.steps(T0 - 60, T0 + 60, 2) == [None, Step(3, 0)]
    assert [each.id for each in source.incidents(T0, T0 + 75)] == [
        f"i{T0 + 70}-{schema.identifier(process().host, 1, T0)}"
    ]
    assert source.incidents(T0 + 90, T0 + 600) == []


def test_moments(store):
    source = filled(store)
    assert source.snapshot_at(T0 + 299).processes[1].holds[0].held_s == 60.0
    after = source.moment_after
    assert after(T0 + 60, 1) == T0 + 300
    assert after(T0 + 61, 1) == T0 + 300
    assert after(T0 + 301, -1) == T0 + 300
    assert after(T0 + 301.5, -2) == T0 + 60
    assert after(T0 + 61, 0) == T0 + 60
    assert after(T0, 3) == T0 + 301
    assert after(T0 + 60, 50) == T0 + 302
    assert after(T0 + 302, 1) == T0 + 302
    assert after(T0 + 60, -50) == T0
    assert after(T0 - 500, -1) == T0
    with pytest.raises(UsageError, match="before the history"):
        source.snapshot_at(T0 - 500)


def test_a_step_is_a_look_up(sqlite_store):
    source = filled(sqlite_store)
    plans = []
    engine = sqlite_store.engine

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, *rest):
        if statement.startswith("SELECT"):
            explain = f"explain query plan {statement}"
            rows = connection.exec_driver_sql(explain, parameters).all()
            plans.append("; ".join(str(row[-1]) for row in rows))

    source.moment_after(T0 + 60, 1)
    source.moment_after(T0 + 60, -1)
    source.steps(T0, T0 + 60, 1)
    assert len(plans) == 4
    assert all("at>?" in plan or "at<?" in plan for plan in plans[:2])
    assert all("minute>? AND minute<?" in plan for plan in plans[2:])
    assert not any("SCAN" in plan or "TEMP B-TREE" in plan for plan in plans)


def test_an_empty_history(store):
    source = HistorySource(History(store.engine))
    assert source.extent() is None
    assert source.moment_after(T0, 1) == T0
    assert source.steps(T0, T0 + 60, 1) == [None]
    with pytest.raises(PoolwatchError, match="empty"):
        source.snapshot_at(T0)


def test_it_goes_away_while_one_looks(sqlite_store, tmp_path: Path):
    source = filled(sqlite_store)
    sqlite_store.engine.dispose()
    for path in tmp_path.glob("history.db*"):
        path.write_bytes(b"gone" * 5000)
    for ask in (
        source.extent,
        lambda: source.snapshot_at(T0),
        lambda: source.steps(T0, T0 + 60, 1),
        lambda: source.moment_after(T0, 1),
        lambda: source.incidents(T0, T0 + 60),
    ):
        with pytest.raises(PoolwatchError, match="the history: SQLite says: "):
            ask()
