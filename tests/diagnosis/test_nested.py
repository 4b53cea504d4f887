"""Nested requests and deadlocks: told by holds, waits and stacks, as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading

import pytest
from fix_core import Look, null_pool_of
from greenlet import greenlet
from helpers import until
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import poolwatch
from poolwatch.agent.instrument import agent
from poolwatch.stacks import greenlets

KEPT = []


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    for connection in KEPT:
        connection.close()
    KEPT.clear()
    gc.collect()


def use(session):
    """Takes the session's connection, and returns."""
    session.execute(text("SELECT 1"))  # use


def nested_of(process):
    return [each for each in process.findings if each.kind == "nested"]


def test_a_session_that_took_its_connection_in_a_helper(instrument, sqlite):
    """The helper has returned, and both connections were taken at its one line."""
    engine = sqlite(pool_size=5)
    instrument(engine)
    with Session(engine) as session:
        use(session)
        with Session(engine) as second:
            use(second)
    (finding,) = nested_of(Look().process)
    assert finding.severity == "info"
    assert "1 time" in finding.proof


async def test_a_task_whose_session_took_its_connection_in_a_helper(
    instrument, tmp_path
):
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    instrument(engine)

    async def use(session):
        await session.execute(text("SELECT 1"))

    async with AsyncSession(engine) as session:
        await use(session)
        async with AsyncSession(engine) as second:
            await use(second)
    (finding,) = nested_of(Look().process)
    assert "task" in finding.proof
    await engine.dispose()


def test_a_greenlet_of_the_applications_own_class(instrument, sqlite):
    """It is read without a word from that class."""

    class Hostile(greenlet):
        @property
        def parent(self):
            raise SystemError

        @property
        def gr_frame(self):
            raise SystemError

    def work():
        with Session(engine) as session:
            use(session)
            with Session(engine) as second:
                use(second)

    engine = sqlite(pool_size=5)
    watch = instrument(engine)
    Hostile(work).switch()
    assert not Look().pool(watch).switched_off
    assert nested_of(Look().process)


async def test_tasks_of_the_applications_own_class(instrument, tmp_path):
    """They are told apart without a word from that class."""

    class Hostile(asyncio.Task):
        __hash__ = asyncio.Task.__hash__

        def __eq__(self, other):
            raise SystemError

    async def nested():
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
            async with AsyncSession(engine) as second:
                await second.execute(text("SELECT 1"))
                await asyncio.sleep(0.01)

    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    watch = instrument(engine)
    loop = asyncio.get_running_loop()
    tasks = [Hostile(nested(), loop=loop) for _ in range(2)]
    await asyncio.wait(tasks)
    assert [task.exception() for task in tasks] == [None, None]
    assert not Look().pool(watch).switched_off
    await engine.dispose()


def test_a_greenlet_that_was_the_first_to_ask_is_not_the_thread(instrument):
    """No library schedules it: it ends, and its thread goes on."""
    pool = null_pool_of()
    watch = instrument(pool, long_after=1e-6)
    found = []

    def asks():
        pool.connect().close()

    def works():
        greenlet(asks).switch()
        connection = pool.connect()
        found.extend(Look().holds(watch))
        connection.close()

    thread = threading.Thread(target=works, name="worker")
    thread.start()
    thread.join()
    (hold,) = found
    assert hold.thread == "worker"
    assert "works" in [frame.function for frame in hold.now]
    assert not [each for each in hold.evidence if "has ended" in each]


def test_gevent_that_must_not_be_imported(monkeypatch):
    """A name with None in ``sys.modules`` is no library that is loaded."""
    for name in ("gevent", "eventlet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not greenlets.are_scheduled()


def test_what_was_left_behind_is_not_nested(instrument):
    """Two functions that run one after the other, the first of which leaks."""
    pool = null_pool_of()
    instrument(pool)

    def leaks():
        KEPT.append(pool.connect())

    def works():
        pool.connect().close()

    def application():
        leaks()
        works()
        works()

    application()
    assert Look().kinds() == []


def test_a_loop_that_drops_its_connection_is_not_nested(instrument):
    """At the second turn the variable still has the connection of the first."""
    pool = null_pool_of()
    instrument(pool)
    for _ in range(3):
        connection = pool.connect()
    connection.close()
    assert nested_of(Look().process) == []


def test_a_loop_that_collects_connections_is_nested(instrument):
    pool = null_pool_of()
    instrument(pool)

    def take():
        return pool.connect()

    connections: list[object] = []
    connections.extend(take() for _ in range(3))
    (finding,) = nested_of(Look().process)
    assert finding.severity == "warning"
    assert len(finding.holds) == 3
    for connection in connections:
        connection.close()


def jam(engine, holders):
    """Threads that each hold a connection, taken in a helper, and wait for another."""
    ready = threading.Barrier(holders)

    def work():
        with Session(engine) as session:
            use(session)
            ready.wait(30)
            with contextlib.suppress(PoolTimeoutError), Session(engine) as second:
                use(second)

    threads = [threading.Thread(target=work) for _ in range(holders)]
    for thread in threads:
        thread.start()
    return threads


def test_a_deadlock_is_proven_without_a_search(instrument, sqlite):
    """Fifteen holders of one pair of lines are one finding with a count."""
    engine = sqlite(pool_size=15, max_overflow=0, pool_timeout=5)
    watch = instrument(engine)
    threads = jam(engine, 15)
    until(lambda: len(Look().waits(watch)) == 15)
    process = agent.source.process(search=False)
    (deadlock,) = [f for f in process.findings if f.kind == "pool_deadlock"]
    assert (len(deadlock.holds), len(deadlock.waits)) == (15, 15)
    (nested,) = nested_of(process)
    assert nested.severity == "critical"
    assert (len(nested.holds), len(nested.waits)) == (15, 15)
    assert "and 14 other holders" in nested.text
    for thread in threads:
        thread.join()
    assert "pool_deadlock" not in Look().kinds()


def test_one_holder_that_can_move_is_no_deadlock(instrument, sqlite):
    engine = sqlite(pool_size=3, max_overflow=0, pool_timeout=2)
    watch = instrument(engine)
    with engine.connect():
        threads = jam(engine, 2)
        until(lambda: len(Look().waits(watch)) == 2)
        kinds = Look().kinds()
    for thread in threads:
        thread.join()
    assert "nested" in kinds
    assert "pool_deadlock" not in kinds


def test_waiting_for_a_pool_is_not_work_outside_the_database(instrument, sqlite):
    """A site whose holders mostly wait for a second connection, of another pool."""
    engine = sqlite(pool_size=5)
    other = sqlite(pool_size=1, max_overflow=0, pool_timeout=0.05)
    instrument(engine)
    instrument(other)
    in_the_way = threading.Event()

    def holds_the_other():
        with other.connect():
            in_the_way.wait(60)

    thread = threading.Thread(target=holds_the_other)
    thread.start()
    until(other.pool.checkedout)
    for _ in range(12):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            with pytest.raises(PoolTimeoutError):
                other.connect()
    in_the_way.set()
    thread.join()
    assert "held_across_io" not in Look().kinds()
    (site,) = [s for s in Look().process.sites if s.count == 12]
    assert site.hold_s.sum > 0.5
    assert poolwatch.snapshot().processes[0].holds == ()


def test_one_connection_after_the_other_makes_no_chain(instrument):
    """A holder takes the next connection before it returns the last one, for ever."""
    pool = null_pool_of()
    instrument(pool)
    (book,) = agent.ledger.pools.values()
    taken = [pool.connect()]
    for _ in range(20):
        taken.append(pool.connect())
        taken.pop(0).close()
    (hold,) = book.holds.values()
    length = 0
    while within := getattr(hold, "within", ()):
        length, hold = length + 1, within[0]
    assert 1 <= length <= 2
    taken.pop().close()
