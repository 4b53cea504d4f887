"""SQLAlchemy's pools: every hold is counted once and ends once, whatever ends it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from unittest import mock

import pytest
import sqlalchemy
from fix_core import Look, book_of, null_pool_of
from helpers import LONG_S, until
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

import poolwatch
from poolwatch import uninstrument
from poolwatch.adapters.sqlalchemy.facts import Connections
from poolwatch.agent.instrument import agent


def figures(watch):
    """(checkouts, checkins, collected) and the holds that are out."""
    look = Look()
    counters = look.counters(watch)
    holds = look.holds(watch)
    assert counters.checkouts == counters.checkins + len(holds)
    return (counters.checkouts, counters.checkins, counters.collected), holds


# -- kinds of pools ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [QueuePool, NullPool, AssertionPool, StaticPool])
def test_a_checkout_is_a_hold_until_it_is_closed(instrument, kind):
    """Every kind of pool shows one hold per checkout, with the caller's line."""
    pool = null_pool_of(kind)
    watch = instrument(pool)
    connection = pool.connect()
    counts, (hold,) = figures(watch)
    assert counts == (1, 0, 0)
    assert hold.site.file == __file__
    assert hold.site.function == "test_a_checkout_is_a_hold_until_it_is_closed"
    assert Look().pool(watch).kind == kind.__name__
    connection.close()
    assert figures(watch) == ((1, 1, 0), [])


@pytest.mark.parametrize("first", [0, 1])
def test_a_static_pool_lends_one_record_twice(instrument, first):
    """Two holds on the one connection of a StaticPool end apart, in either order."""
    pool = null_pool_of(StaticPool)
    watch = instrument(pool)

    def one():
        return pool.connect()

    def two():
        return pool.connect()

    taken = [one(), two()]
    assert {h.site.function for h in figures(watch)[1]} == {"one", "two"}
    taken.pop(first).close()
    counts, (left,) = figures(watch)
    assert counts == (2, 1, 0)
    assert left.site.function == ["two", "one"][first]
    taken.pop().close()
    assert figures(watch) == ((2, 2, 0), [])


@pytest.mark.parametrize("dropped", [0, 1])
def test_a_dropped_hold_of_a_static_pool_is_found(instrument, dropped):
    """A StaticPool's dropped hold is collected, also when the other one is still out
    and SQLAlchemy therefore says nothing."""
    pool = null_pool_of(StaticPool)
    watch = instrument(pool)
    taken = [pool.connect(), pool.connect()]
    del taken[dropped]
    gc.collect()
    counts, holds = figures(watch)
    assert (counts, len(holds)) == ((2, 1, 1), 1)
    taken.pop().close()
    assert figures(watch) == ((2, 2, 1), [])


def test_one_thread_of_a_singleton_pool_has_one_hold(instrument):
    """A SingletonThreadPool gives a thread the same proxy again: that is one hold."""
    pool = null_pool_of(SingletonThreadPool)
    watch = instrument(pool)
    outer = pool.connect()
    inner = pool.connect()
    assert inner is outer
    assert len(figures(watch)[1]) == 1
    inner.close()
    assert len(figures(watch)[1]) == 1
    outer.close()
    assert figures(watch) == ((1, 1, 0), [])
    thread = threading.Thread(target=lambda: pool.connect().close())
    thread.start()
    thread.join()
    assert figures(watch) == ((2, 2, 0), [])


def test_options_are_seen_through(instrument, sqlite):
    """An engine with execution options, also twice over, is the engine itself."""
    engine = sqlite()
    once = engine.execution_options(stream_results=True)
    twice = once.execution_options(compiled_cache=None)
    watch = instrument(twice)
    assert watch._pool_id == instrument(once)._pool_id == instrument(engine)._pool_id
    del once, twice
    gc.collect()
    with engine.execution_options(logging_token="y").connect() as connection:
        connection.execute(text("select 1"))
        (hold,) = figures(watch)[1]
        assert hold.statement == "select ?"
    assert figures(watch) == ((1, 1, 0), [])


def test_gauges_are_those_of_the_pool(instrument):
    """Size, overflow, timeout and idle come from the pool; unknown is null."""
    pool = null_pool_of(pool_size=1, max_overflow=2, timeout=7)
    watch = instrument(pool)
    taken = [pool.connect(), pool.connect()]
    seen = Look().pool(watch)
    assert (seen.size, seen.max_overflow, seen.timeout_s) == (1, 2, 7.0)
    assert (seen.checked_out, seen.overflow, seen.idle) == (2, 1, 0)
    for each in taken:
        each.close()
    unpooled = null_pool_of(NullPool)
    unpooled_watch = instrument(unpooled)
    other = Look().pool(unpooled_watch)
    assert (other.size, other.idle, other.timeout_s) == (None, None, None)


# -- how a hold ends ---------------------------------------------------------------


def test_a_dropped_connection_is_proven(instrument, sqlite):
    """A dropped sync connection is counted as collected, at the line that took it."""
    engine = sqlite()
    watch = instrument(engine)

    def forgets():
        engine.connect().execute(text("select 1"))

    forgets()
    gc.collect()
    assert figures(watch) == ((1, 1, 1), [])
    look = Look()
    assert look.sites(watch)["forgets"].leaked == 1
    assert look.counters(watch).leaked == 1
    (finding,) = [f for f in look.process.findings if f.kind == "leaked.collected"]
    assert finding.sites[0].function == "forgets"


def test_closed_connections_are_never_called_dropped(instrument, sqlite):
    """with blocks, exceptions and explicit close() are honest returns."""
    engine = sqlite()
    watch = instrument(engine)
    with engine.begin() as connection:
        connection.execute(text("select 1"))
    with pytest.raises(ZeroDivisionError), engine.connect():
        raise ZeroDivisionError
    engine.raw_connection().close()
    gc.collect()
    assert figures(watch) == ((3, 3, 0), [])
    assert Look().kinds() == []


def test_dispose_while_a_hold_is_out(instrument, sqlite):
    """A hold survives engine.dispose(), any number of times, and the new pool is
    watched like the old one."""
    engine = sqlite(pool_size=3)
    watch = instrument(engine)
    pools = [engine.pool]
    old = engine.connect()
    for _ in range(5):
        engine.dispose()
    new = engine.connect()
    counts, holds = figures(watch)
    assert (counts, len(holds)) == ((2, 0, 0), 2)
    assert Look().pool(watch).size == 3
    old.close()
    new.close()
    assert figures(watch) == ((2, 2, 0), [])
    pools.append(engine.pool)
    engine.dispose(close=False)
    with engine.connect():
        assert len(figures(watch)[1]) == 1
    for each in pools:
        each.dispose()


def test_a_bare_pool_is_followed_to_its_successor(instrument):
    """recreate() on a pool without an engine carries the watch over, and both pools
    go on being watched."""
    pool = null_pool_of()
    watch = instrument(pool)
    first = pool.connect()
    successor = pool.recreate()
    second = successor.connect()
    assert len(figures(watch)[1]) == 2
    first.close()
    second.close()
    assert figures(watch) == ((2, 2, 0), [])
    assert instrument(successor)._pool_id == watch._pool_id
    del pool, first, second
    gc.collect()
    successor.connect().close()
    assert figures(watch) == ((3, 3, 0), [])


def test_a_successor_nobody_keeps_changes_nothing(instrument, sqlite):
    """A pool that was recreated and thrown away leaves the watch where it was."""
    engine = sqlite(pool_size=4)
    watch = instrument(engine)
    engine.pool.recreate()
    gc.collect()
    with engine.connect():
        assert len(figures(watch)[1]) == 1
        assert Look().pool(watch).size == 4


def test_invalidate_ends_the_hold(instrument, sqlite):
    """An invalidated connection has gone back; its next use is a hold of its own."""
    engine = sqlite()
    watch = instrument(engine)
    with engine.connect() as connection:
        connection.invalidate()
        assert figures(watch) == ((1, 1, 0), [])
        connection.rollback()
        connection.execute(text("select 1"))
        assert len(figures(watch)[1]) == 1
    counters = Look().counters(watch)
    assert (counters.checkouts, counters.checkins) == (2, 2)
    assert (counters.invalidated, counters.connects) == (1, 2)


@pytest.mark.parametrize("kind", [QueuePool, StaticPool])
def test_a_soft_invalidation_keeps_the_hold(instrument, kind):
    """Soft invalidation only marks the connection: the hold lasts until its return."""
    pool = null_pool_of(kind)
    watch = instrument(pool)
    proxy = pool.connect()
    proxy.invalidate(soft=True)
    assert len(figures(watch)[1]) == 1
    proxy.close()
    assert figures(watch) == ((1, 1, 0), [])
    pool.connect().close()
    assert Look().counters(watch).connects == 2


@pytest.mark.parametrize("kind", [QueuePool, NullPool, StaticPool])
def test_an_invalidated_proxy_has_gone_back(instrument, kind):
    """invalidate() on the proxy itself ends the hold in every kind of pool."""
    pool = null_pool_of(kind)
    watch = instrument(pool)
    pool.connect().invalidate()
    assert figures(watch) == ((1, 1, 0), [])


@pytest.mark.parametrize("kind", [QueuePool, NullPool, StaticPool])
def test_detach_and_close(instrument, kind):
    """A detached connection is a hold until it is closed, and says it is detached."""
    pool = null_pool_of(kind)
    watch = instrument(pool)
    proxy = pool.connect()
    proxy.detach()
    counts, (hold,) = figures(watch)
    assert counts == (1, 0, 0)
    assert "detached" in hold.evidence[0]
    proxy.close()
    assert figures(watch) == ((1, 1, 0), [])
    assert Look().counters(watch).closes == 1


def test_detach_and_drop(instrument):
    """A detached connection that is dropped is collected at once: nobody has to look,
    so nothing piles up."""
    pool = null_pool_of()
    watch = instrument(pool)
    for _ in range(3):
        proxy = pool.connect()
        proxy.detach()
        del proxy
        gc.collect()
        assert agent.ledger.pools[watch._pool_id].detached == {}
    assert figures(watch) == ((3, 3, 3), [])


def lend_in_the_middle(pool, proxy):
    """Detach, while another thread takes the record before SQLAlchemy tells of it.

    Returns what that has taken.
    """
    given_back, others = pool._do_return_conn, []

    def give_back_and_lend(record):
        given_back(record)
        pool._do_return_conn = given_back
        other = threading.Thread(target=lambda: others.append(pool.connect()))
        other.start()
        other.join()

    pool._do_return_conn = give_back_and_lend
    proxy.detach()
    return others.pop()


@pytest.mark.parametrize("first", ["detached", "lent"])
def test_a_detached_record_that_is_lent_again(instrument, first):
    """SQLAlchemy gives a detached record back before it tells: both holds stay, each
    until its own connection is closed, and no thread is left with a count."""
    pool = null_pool_of(pool_size=1, max_overflow=0)
    watch = instrument(pool)
    proxy = pool.connect()
    other = lend_in_the_middle(pool, proxy)
    book = book_of(pool)
    holders = [hold.holder for hold in book.open_holds()]
    assert len({holder.ident for holder in holders}) == len(holders) == 2
    detached = [
        hold for hold in Look().holds(watch) if "detached" in str(hold.evidence)
    ]
    assert [hold.thread for hold in detached] == [threading.current_thread().name]
    for each in (proxy, other) if first == "detached" else (other, proxy):
        each.close()
    assert Look().holds(watch) == []
    assert [holder.hold_count for holder in holders] == [0, 0]
    assert figures(watch) == ((2, 2, 0), [])


def test_a_connection_that_cannot_be_made(instrument):
    """A failed connect is no checkout, leaves no wait, and its error is unchanged."""

    def creator():
        raise ConnectionRefusedError("no server")

    pool = QueuePool(creator)
    watch = instrument(pool)
    with pytest.raises(ConnectionRefusedError, match="no server"):
        pool.connect()
    assert figures(watch) == ((0, 0, 0), [])
    assert Look().waits(watch) == []
    assert Look().counters(watch).timeouts == 0


def test_a_timed_out_wait(instrument):
    """A pool timeout counts once, its wait is gone and its time is in wait_s."""
    pool = null_pool_of(pool_size=1, max_overflow=0, timeout=0.02)
    watch = instrument(pool)
    held = pool.connect()
    with pytest.raises(PoolTimeoutError):
        pool.connect()
    look = Look()
    assert look.counters(watch).timeouts == 1
    assert look.waits(watch) == []
    assert look.pool(watch).wait_s.count == 1  # of what has ended
    assert look.pool(watch).wait_s.max >= 0.02
    held.close()


def test_a_timeout_below_another_tools_wrapper(instrument):
    """Which shows the method's code as its own, as wrapt does: the pool raised it."""
    calls = []

    class Proxy:
        def __init__(self, wrapped):
            self.wrapped = wrapped
            self.__code__ = wrapped.__code__

        def __call__(self, *args):
            calls.append(args)
            return self.wrapped(*args)

        def __get__(self, pool, _):
            return self if pool is None else lambda: self(pool)

    class Traced(QueuePool):
        connect = Proxy(QueuePool.connect)

    pool = null_pool_of(Traced, pool_size=1, max_overflow=0, timeout=0.02)
    watch = instrument(pool)
    held = pool.connect()
    with pytest.raises(PoolTimeoutError):
        pool.connect()
    assert len(calls) == 2
    assert Look().counters(watch).timeouts == 1
    assert not Look().pool(watch).switched_off
    held.close()


def test_a_wait_names_its_caller(instrument):
    """While a thread waits it is shown with its line, and the pool as exhausted."""
    pool = null_pool_of(pool_size=1, max_overflow=0, timeout=LONG_S)
    watch = instrument(pool)
    held = pool.connect()

    def waits_here():
        pool.connect().close()

    thread = threading.Thread(target=waits_here, name="waiter")
    thread.start()
    found = until(lambda: Look().waits(watch))
    assert (found[0].thread, found[0].site.function) == ("waiter", "waits_here")
    assert "exhausted" in Look().kinds()
    held.close()
    thread.join()
    assert Look().waits(watch) == []
    assert figures(watch) == ((2, 2, 0), [])


def test_an_interrupted_wait_is_gone(instrument, monkeypatch):
    """Ctrl-C while waiting, or right after the pool has answered, leaves no wait."""
    pool = null_pool_of()

    def interrupted(*_):
        raise KeyboardInterrupt

    pool._do_get, original = interrupted, pool._do_get
    watch = instrument(pool)
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    pool._do_get = original
    book = agent.ledger.pools[watch._pool_id]
    assert book.waits == {}
    pool.connect().close()
    book.connections.clear()
    hooks = agent.pools._adapters["sqlalchemy"]._hooks[book.id]
    monkeypatch.setattr(Connections, "_remember", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    assert book.waits == {}
    assert not hooks.guard.tripped


@pytest.mark.parametrize("how", ["rollback", "commit", None])
def test_reset_on_return_does_not_matter(instrument, how):
    """Holds end with every reset_on_return."""
    for kind in (QueuePool, StaticPool):
        pool = null_pool_of(kind, reset_on_return=how)
        watch = instrument(pool)
        pool.connect().close()
        assert figures(watch) == ((1, 1, 0), [])


HAND_OVER = """
import threading, time
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
import poolwatch

connect_args = {"check_same_thread": False}
engine = create_engine("sqlite://", poolclass=QueuePool, connect_args=connect_args)
poolwatch.instrument(engine, long_after=1e-9)
connections = {}

def check_out(key):
    connections[key] = engine.connect()

def verdicts():
    (process,) = poolwatch.snapshot().processes
    return {hold.thread: hold.verdict for hold in process.holds}

def main():
    for key in ("handed over", "forgotten"):
        thread = threading.Thread(target=check_out, args=(key,), name=key)
        thread.start()
        thread.join()
    mine = connections.pop("handed over")
    mine.execute(text("select 1"))
    deadline = time.monotonic() + 60
    expected = {"handed over": "long", "forgotten": "leaked"}
    while verdicts() != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert verdicts() == expected, poolwatch.snapshot()
    mine.close()
    connections.popitem()[1].close()
    assert not verdicts()

main()
"""


def test_handed_over_to_another_thread():
    """A connection that another thread uses is not leaked when its holder ends.

    In a process of its own: the frames of a long test run refer to so much that a
    search cannot be complete.
    """
    subprocess.run([sys.executable, "-c", HAND_OVER], check=True, timeout=120)


def test_what_is_running_now(instrument, sqlite):
    """The last statement and the time in SQL are noted, also when it fails."""
    engine = sqlite()
    watch = instrument(engine)
    with engine.connect() as connection:
        connection.execute(text("select 'secret', :x"), {"x": "param"})
        (hold,) = figures(watch)[1]
        assert hold.statement == "select ?, ?"
        assert hold.in_sql_s > 0
        with pytest.raises(OperationalError):
            connection.execute(text("select * from nowhere"))
        (hold,) = figures(watch)[1]
        assert hold.statement == "select * from nowhere"
        in_sql = hold.in_sql_s
        assert figures(watch)[1][0].in_sql_s == in_sql  # nothing is running


def test_a_statement_without_a_context(instrument, sqlite):
    """Code that calls the dialect by itself, without a context, is served as before and
    switches nothing off."""
    engine = sqlite()
    watch = instrument(engine)
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        engine.dialect.do_execute(cursor, "select 42", ())
        assert cursor.fetchall() == [(42,)]
        engine.dialect.do_executemany(cursor, "create table if not exists t (a)", [()])
    assert not agent.pools._adapters["sqlalchemy"]._hooks[watch._pool_id].guard.tripped


# -- PostgreSQL --------------------------------------------------------------------


def test_pre_ping_replaces_a_killed_backend(instrument, postgres):
    """A backend that was killed while idle: the hold has the new backend's pid, and
    the pool's own repair counts as invalidated."""
    engine = create_engine(postgres.url(), pool_pre_ping=True)
    watch = instrument(engine)
    with engine.connect() as connection:
        pid = connection.scalar(text("select pg_backend_pid()"))
        assert figures(watch)[1][0].backend_pid == pid
    postgres.execute(f"select pg_terminate_backend({pid}, 5000)")
    with engine.connect() as connection:
        new = connection.scalar(text("select pg_backend_pid()"))
        (hold,) = figures(watch)[1]
        assert hold.backend_pid == new != pid
    counters = Look().counters(watch)
    assert (counters.checkouts, counters.checkins, counters.connects) == (2, 2, 2)
    assert counters.invalidated == 1
    engine.dispose()


def test_a_backend_killed_while_held(instrument, postgres):
    """A disconnect in the middle of a hold ends it, and nothing is called leaked."""
    engine = create_engine(postgres.url())
    watch = instrument(engine)
    with engine.connect() as connection:
        pid = connection.scalar(text("select pg_backend_pid()"))
        postgres.execute(f"select pg_terminate_backend({pid}, 5000)")
        with pytest.raises(OperationalError):
            connection.execute(text("select 1"))
        assert figures(watch) == ((1, 1, 0), [])
    assert figures(watch) == ((1, 1, 0), [])
    engine.dispose()


# -- async engines -----------------------------------------------------------------

ASYNC = [
    pytest.param("psycopg", marks=pytest.mark.postgres),
    pytest.param("asyncpg", marks=pytest.mark.postgres),
    "aiosqlite",
]


@pytest.fixture(params=ASYNC)
async def async_engine(request, instrument, tmp_path):
    if request.param == "aiosqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/async.db"
    else:
        url = request.getfixturevalue("postgres").url(request.param)
    engine = create_async_engine(
        url, poolclass=AsyncAdaptedQueuePool, pool_size=2, max_overflow=0
    )
    yield engine
    await engine.dispose()


async def test_an_async_hold(instrument, async_engine):
    """An async hold has its task, its line and its statement, and ends with its
    block."""
    watch = instrument(async_engine)
    async with async_engine.connect() as connection:
        await connection.execute(text("select 1"))
        counts, (hold,) = figures(watch)
        assert counts == (1, 0, 0)
        assert hold.task == asyncio.current_task().get_name()
        assert hold.site.function == "test_an_async_hold"
        assert hold.statement == "select ?"
        assert hold.now[-1].function == "test_an_async_hold"
    assert figures(watch) == ((1, 1, 0), [])
    assert Look().pool(watch).size == 2


@pytest.mark.filterwarnings("ignore:The garbage collector is trying")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_dropped_async_connection(instrument, async_engine):
    """A dropped async connection never fires checkin: it is collected all the same."""
    watch = instrument(async_engine)

    async def forgets():
        connection = await async_engine.connect()
        await connection.execute(text("select 1"))

    before = set(threading.enumerate())
    await forgets()
    workers = set(threading.enumerate()) - before
    gc.collect()
    assert figures(watch) == ((1, 1, 1), [])
    while any("worker" in t.name and t.is_alive() for t in workers):  # noqa: ASYNC110
        await asyncio.sleep(0.01)  # aiosqlite's thread must end before its loop does
    assert Look().sites(watch)["forgets"].leaked == 1
    async with async_engine.connect():
        assert len(figures(watch)[1]) == 1


async def test_a_cancelled_wait(instrument, async_engine):
    """A task that is cancelled while it waits for the pool leaves no wait behind, and
    the counters add up."""
    watch = instrument(async_engine)

    async def take():
        async with async_engine.connect():
            pass

    async with async_engine.connect(), async_engine.connect():
        task = asyncio.create_task(take(), name="impatient")
        while not (waits := Look().waits(watch)):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        assert (waits[0].task, waits[0].site.function) == ("impatient", "take")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert Look().waits(watch) == []
        assert len(figures(watch)[1]) == 2
    assert figures(watch) == ((2, 2, 0), [])


async def test_a_cancelled_statement_is_over(instrument, postgres):
    """After a cancelled statement nothing is said to be running any more."""
    engine = create_async_engine(postgres.url("asyncpg"))
    watch = instrument(engine)
    async with engine.connect() as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await connection.execute(text("select pg_sleep(10)"))
        holds = figures(watch)[1]
        assert [hold.in_sql_s for hold in holds] == [
            hold.in_sql_s for hold in figures(watch)[1]
        ]
    assert figures(watch)[1] == []
    await engine.dispose()


async def test_an_async_timeout(instrument, async_engine):
    """The async pool's own timeout counts once."""
    async_engine.pool._timeout = 0.02
    watch = instrument(async_engine)
    async with async_engine.connect(), async_engine.connect():
        with pytest.raises(PoolTimeoutError):
            await async_engine.connect()
    assert Look().counters(watch).timeouts == 1
    assert figures(watch) == ((2, 2, 0), [])


@pytest.mark.parametrize("kind", [NullPool, StaticPool])
async def test_async_engines_with_other_pools(instrument, tmp_path, kind):
    """NullPool and StaticPool are right under asyncio, too."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/other.db", poolclass=kind
    )
    watch = instrument(engine)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        (hold,) = figures(watch)[1]
        assert hold.site.function == "test_async_engines_with_other_pools"
    assert figures(watch) == ((1, 1, 0), [])
    await engine.dispose()


# -- many at once --------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["null driver", "sqlite"])
def test_the_counters_add_up(instrument, sqlite, pool):
    """100,000 cycles over 16 threads: checkouts are checkins plus holds, exactly."""
    cycles, threads = (100_000, 16) if pool == "null driver" else (8_000, 16)
    if pool == "sqlite":
        target = sqlite(
            pool_size=16, max_overflow=0, connect_args={"check_same_thread": False}
        )
    else:
        target = null_pool_of(pool_size=8, max_overflow=8)
    watch = instrument(target)
    connect = target.raw_connection if pool == "sqlite" else target.connect
    kept = []

    def work(number):
        for _ in range(cycles // threads):
            connect().close()
        if number < 3:
            kept.append(connect())

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    seen = 0
    while any(worker.is_alive() for worker in workers):
        counters = Look().counters(watch)
        assert counters.checkins >= seen  # never backwards
        seen = counters.checkins
        workers[0].join(0.01)
    assert (figures(watch)[0], len(figures(watch)[1])) == ((cycles + 3, cycles, 0), 3)
    look = Look().pool(watch)
    assert look.hold_s.count == look.wait_s.count == cycles
    assert sum(site.count for site in Look().process.sites) == cycles + 3
    for each in kept:
        each.close()


async def test_the_counters_add_up_with_tasks(instrument, tmp_path):
    """The same with tasks on one event loop."""
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/many.db",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=4,
        max_overflow=0,
    )
    watch = instrument(engine)

    async def work():
        for _ in range(50):
            async with engine.connect():
                pass

    await asyncio.gather(*(work() for _ in range(40)))
    assert figures(watch) == ((2000, 2000, 0), [])
    assert Look().counters(watch).connects == 4
    await engine.dispose()


# -- nobody notices ----------------------------------------------------------------


def test_bound_methods_keep_their_pool(instrument):
    """``connect = pool.connect`` works on, also when nobody keeps the pool itself."""
    pool = null_pool_of()
    instrument(pool)
    connect, recreate = pool.connect, pool.recreate
    del pool
    gc.collect()
    connect().close()
    assert isinstance(recreate(), QueuePool)


def test_the_version_is_supported():
    """These tests ran with a SQLAlchemy of the supported range."""
    assert sqlalchemy.__version__ >= "2.0"


def test_other_listeners_go_on(instrument, sqlite):
    """Listeners of the application are called once each, before and after."""
    engine = sqlite()
    calls = []
    for name in ("connect", "checkout", "checkin", "close"):
        event.listen(engine, name, lambda *_, name=name: calls.append(name))
    instrument(engine)
    engine.connect().close()
    import poolwatch

    poolwatch.uninstrument(engine)
    engine.connect().close()
    engine.dispose()
    assert calls == ["connect", "checkout", "checkin", "checkout", "checkin", "close"]


# -- pools that do something of their own ----------------------------------------------


class Counting(QueuePool):
    lent = 0

    def connect(self):
        self.lent += 1
        return super().connect()


def test_a_pool_with_a_connect_of_its_own(instrument, sqlite):
    """It keeps it, and each of its connections is noted once."""
    engine = sqlite(poolclass=Counting)
    watch = instrument(engine)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        [hold] = figures(watch)[1]
        assert hold.statement == "select ?"
    assert figures(watch) == ((1, 1, 0), [])
    assert engine.pool.lent == 1


class Traced:
    """An object that stands for a function, as tracers put it into classes."""

    def __init__(self, below):
        self.below = below
        self.called = 0

    def __get__(self, pool, kind=None):
        def connect():
            self.called += 1
            return self.below(pool)

        return connect if pool is not None else self

    def __call__(self, pool):
        return self.__get__(pool)()


def test_a_class_that_another_tool_traces(instrument, monkeypatch, sqlite):
    """The tool is called once per checkout, and stays when we go."""
    theirs = Traced(Pool.connect)
    monkeypatch.setattr(Pool, "connect", theirs)
    engine = sqlite()
    watch = instrument(engine)
    with engine.connect():
        assert len(figures(watch)[1]) == 1
    assert theirs.called == 1
    uninstrument()
    assert vars(Pool)["connect"] is theirs


@pytest.mark.parametrize("before", [True, False])
def test_a_class_that_a_test_patches(instrument, sqlite, before):
    """The patch reaches instrumented pools, and is gone with the test."""
    engine = sqlite()
    if before:
        watch = instrument(engine)
    refusal = PoolTimeoutError("down")
    with mock.patch.object(Pool, "connect", side_effect=refusal) as patched:
        if not before:
            watch = instrument(engine)
        with pytest.raises(PoolTimeoutError):
            engine.connect()
        patched.assert_called_once_with()
    assert Look().counters(watch).timeouts == 1
    with engine.connect():
        assert len(figures(watch)[1]) == 1


class Tagged(QueuePool):
    """A pool of the application: connect() has parameters, its size is a secret."""

    secret = True

    def connect(self, *, tag=None):
        self.tag = tag
        return super().connect()

    def size(self):
        if self.secret:
            raise RuntimeError("unknown")
        return super().size()


def test_a_pool_class_of_the_application(instrument, sqlite):
    """It gets its arguments, its holds are recorded, and other pools are read."""
    engine, other = sqlite(poolclass=Tagged), sqlite()
    watch = instrument(engine)
    instrument(other)
    connection = engine.pool.connect(tag="nightly")
    assert engine.pool.tag == "nightly"
    (_, [hold]) = figures(watch)
    assert hold.site.function == "test_a_pool_class_of_the_application"
    connection.close()
    engine.connect().close()
    assert figures(watch) == ((2, 2, 0), [])
    assert len(poolwatch.snapshot().processes[0].pools) == 2
    engine.pool.secret = False


class Odd(QueuePool):
    """A pool whose new one is made by that of its base, and may be none."""

    gone = False

    def recreate(self):
        return None if self.gone else super().recreate()


def test_a_recreate_of_its_own(instrument, sqlite):
    """Each pool is followed once; one that cannot be followed fails nobody."""
    engine = sqlite(poolclass=Odd)
    watch = instrument(engine)
    engine.connect().close()
    engine.dispose()
    raw = engine.raw_connection()
    raw.detach()
    raw.close()
    counters = Look().counters(watch)
    assert (counters.connects, counters.closes) == (2, 2)
    engine.pool.gone = True
    assert engine.pool.recreate() is None


class Vague(QueuePool):
    """A pool that answers whatever it is asked."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


def test_a_pool_that_answers_everything(instrument):
    """It has no engine, so nobody watches it, and it is asked for nothing of ours."""
    pool = null_pool_of(Vague)
    instrument()
    pool.connect().close()
    assert pool.checkedin() == 1


# -- the life of a pool ----------------------------------------------------------------


def test_instrumented_again(instrument, sqlite):
    """Hooks of an earlier time do not count twice."""
    engine, unused = sqlite(), sqlite()
    instrument()
    engine.connect().close()
    uninstrument()
    instrument()
    for each in (engine, unused, sqlite()):
        with each.connect() as connection:
            connection.execute(text("select 1"))
            [hold] = book_of(each).open_holds()
            assert hold.holder.hold_count == 1
        assert hold.holder.hold_count == 0
        each.dispose()


def test_pools_that_threads_instrument_and_dispose(instrument, sqlite):
    """Nothing is left of it, in whatever order the threads come."""
    engines = [sqlite() for _ in range(3)]
    over = time.monotonic() + 1.5

    def toggle(engine):
        while time.monotonic() < over:
            poolwatch.instrument(engine)
            engine.connect().close()
            uninstrument(engine)

    def dispose():
        while time.monotonic() < over:
            engines[0].dispose()

    threads = [threading.Thread(target=toggle, args=(each,)) for each in engines]
    threads.append(threading.Thread(target=dispose))
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    uninstrument()
    assert [vars(each.pool).get("connect") for each in engines] == [None] * 3
    assert not agent.ledger.pools
    assert agent.pools is None


def test_an_engine_for_each_test(instrument):
    """Hooks and ledger go in the same collection as the engine."""
    instrument()
    engine = create_engine("sqlite:///", poolclass=QueuePool)
    engine.connect().close()
    pool_id = book_of(engine).id
    # the callback: without one it is cleared later than others from Python 3.15 on
    books, seen = weakref.ref(book_of(engine), bool), []
    weakref.finalize(engine.pool, lambda: seen.append(books()))
    del engine
    gc.collect()
    assert seen == [None]
    assert pool_id not in agent.ledger.pools


def test_facts_of_the_next_connection(instrument, sqlite):
    """A record that has opened another connection has other facts."""
    engine = sqlite(pool_size=1, max_overflow=0)
    instrument(engine)
    facts = []
    for _ in range(3):
        raw = engine.raw_connection()
        [hold] = book_of(engine).open_holds()
        facts.append(hold.facts)
        raw.invalidate()
        raw.close()
    assert len(set(map(id, facts))) == 3
    assert facts[0].opened < facts[1].opened < facts[2].opened


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child(instrument, sqlite):
    """The parent's holds are not the child's."""
    engine = sqlite()
    instrument(engine)
    with engine.connect():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, str(len(book_of(engine).open_holds())).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 9) == b"0"
        os.close(reader)
        os.close(writer)
        assert len(book_of(engine).open_holds()) == 1


def test_a_pool_that_waits_for_ever(instrument):
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_timeout=None)
    instrument(engine)
    with engine.connect():
        (process,) = poolwatch.snapshot().processes
    assert process.pools[0].timeout_s is None
    assert len(process.holds) == 1


@pytest.mark.parametrize("password", ["a@s3cret", "a/s3cret", "s3cret@b@c"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_password_that_is_not_escaped(instrument, password, driver):
    """It is cut into a host or a database, which would be shown."""
    url = f"postgresql+{driver}://bob:{password}@127.0.0.1:1/shop"
    try:
        engine = create_engine(url)
    except (ArgumentError, ValueError):
        return  # SQLAlchemy takes none of it for a port
    instrument(engine)
    (pool,) = poolwatch.snapshot().processes[0].pools
    assert "s3cret" not in f"{pool.name} {pool.url}"


def test_the_drivers_connection_of_a_detached_one_is_used(instrument, postgres):
    """The application goes on with it alone, to LISTEN for example."""
    engine = create_engine(postgres.url())
    instrument(engine)

    def listener():
        proxy = engine.raw_connection()
        proxy.detach()
        return proxy.dbapi_connection

    connection = listener()
    gc.collect()
    (process,) = poolwatch.snapshot().processes
    assert process.pools[0].counters.collected == 0
    connection.close()
    engine.raw_connection().detach()  # nobody has this one
    gc.collect()
    (process,) = poolwatch.snapshot().processes
    assert process.pools[0].counters.collected == 1
