"""What a pool's first trouble looked like, kept for a viewer that comes later."""

from __future__ import annotations

import json
import threading
import weakref

import pytest
from fix_core import Look, null_pool_of
from helpers import LONG_S, until
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from poolwatch.agent.incident_snapshots import MAX_SNAPSHOTS, IncidentSnapshots
from poolwatch.agent.instrument import agent
from poolwatch.model import IncidentSnapshot
from poolwatch.protocol import document as wire


def kept():
    return wire.list_from_json(
        IncidentSnapshot, agent.source.incident_snapshots.document(), "frozen"
    )


@pytest.fixture
def fresh():
    agent.source.incident_snapshots.forget()
    agent._early_ticks.clear()
    yield
    agent.source.incident_snapshots.forget()


def holding(pool, release):
    with_connection = threading.Event()

    def hold():
        connection = pool.connect()
        with_connection.set()
        release.wait()
        connection.close()

    thread = threading.Thread(target=hold, name="holder")
    thread.start()
    with_connection.wait()
    return thread


def test_the_first_exhaustion_is_kept_without_a_viewer(instrument, fresh):
    """A wait of half a second is seen, though nobody looked before it was over."""
    pool = null_pool_of(pool_size=1, max_overflow=0)
    watch = instrument(pool, name="orders")
    release = threading.Event()
    thread = holding(pool, release)
    waiter = threading.Thread(target=lambda: pool.connect().close(), name="waiter")
    waiter.start()
    until(kept)
    release.set()
    thread.join()
    waiter.join()
    (picture,) = kept()
    assert picture.kind == "exhausted"
    (hold,) = picture.process.holds
    assert hold.thread == "holder"
    assert next(frame.function for frame in hold.stack) == "hold"
    assert any(frame.function == "wait" for frame in hold.now)
    assert [wait.thread for wait in picture.process.waits] == ["waiter"]
    (mark,) = Look().process.frozen
    assert (mark.pool, mark.kind, mark.at) == (watch._pool_id, "exhausted", picture.at)
    assert Look().holds(watch) == []


def test_timeouts_and_deadlocks_are_kept(instrument, fresh):
    """One of each kind; a second timeout changes nothing."""
    pool = null_pool_of(pool_size=1, max_overflow=0, timeout=LONG_S)
    instrument(pool)
    outers = []

    def nests():
        outer = pool.connect()
        outers.append(weakref.ref(outer))  # this thread alone could return it
        pool.connect().close()

    thread = threading.Thread(target=nests)
    thread.start()
    until(lambda: {"exhausted", "pool_deadlock"} <= {p.kind for p in kept()})
    outers.pop()().close()
    thread.join()
    pool._timeout = 0.1
    outer = pool.connect()
    with pytest.raises(PoolTimeoutError):
        pool.connect()
    first = {picture.kind: picture for picture in kept()}
    assert set(first) == {"exhausted", "timeout", "pool_deadlock"}
    assert {f.kind for f in first["pool_deadlock"].process.findings} >= {
        "pool_deadlock",
        "nested",
    }
    with pytest.raises(PoolTimeoutError):
        pool.connect()
    assert {picture.kind: picture for picture in kept()} == first
    outer.close()


def test_over_the_socket(instrument, fresh, http_get, socket_dir):
    """GET /frozen, an empty list if there was no trouble."""
    pool = null_pool_of(pool_size=1, max_overflow=0, timeout=0.1)
    instrument(pool)
    pool.connect().close()
    (path,) = socket_dir.glob("*.sock")
    assert json.loads(http_get(path, "/frozen")[1]) == {"schema": 1, "frozen": []}
    outer = pool.connect()
    with pytest.raises(PoolTimeoutError):
        pool.connect()
    outer.close()
    answer = http_get(path, "/frozen")[1]
    assert "timeout" in [
        f.kind for f in wire.list_from_json(IncidentSnapshot, answer, "frozen")
    ]


def test_bounded(instrument, fresh):
    """The oldest gives way."""
    snapshots = IncidentSnapshots()
    process = Look().process
    for number in range(MAX_SNAPSHOTS + 5):
        snapshots.add(f"p{number}", "timeout", process)
    assert [mark.pool for mark in snapshots.marks()] == [
        f"p{number}" for number in range(5, MAX_SNAPSHOTS + 5)
    ]
