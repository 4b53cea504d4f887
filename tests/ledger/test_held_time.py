"""Where the held time goes, and where a connection was last used."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

import pytest
from fix_core import Look
from helpers import LONG_S, line_of, until, until_async
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

PAUSE = 0.15


HERE = Path(__file__)


@pytest.fixture
def engine(postgres, instrument):
    engine = create_engine(postgres.url("psycopg2"))
    instrument(engine)
    yield engine
    engine.dispose()


class Took(dict):
    """How long each kind of thing has really taken, on this machine."""

    @contextmanager
    def being(self, kind):
        began = time.monotonic()
        yield
        self[kind] = self.get(kind, 0.0) + time.monotonic() - began


def only_hold():
    (hold,) = Look().process.holds
    return hold


def test_in_sql_idle_in_transaction_and_outside(engine):
    """Three kinds of time, told apart without any threshold."""
    took = Took()
    with engine.connect() as connection:
        assert only_hold().in_sql_s is None
        assert only_hold().in_transaction_idle_s is None
        time.sleep(PAUSE)  # outside
        with took.being("sql"):
            connection.execute(text(f"SELECT pg_sleep({PAUSE})"))
        with took.being("idle"):
            time.sleep(PAUSE)
        with took.being("sql"):
            connection.execute(text("SELECT 1"))
        with took.being("idle"):
            time.sleep(PAUSE)
        with took.being("both"):
            connection.commit()
        time.sleep(PAUSE)  # outside
        hold = only_hold()
        with took.being("both"):
            connection.execute(text("SELECT 1"))
            connection.rollback()
    for each in (hold, *Look().process.sites):
        assert PAUSE <= each.in_sql_s <= took["sql"] + took["both"]
        idle = sum(took.values())  # a statement's own idle ends are in it
        assert 2 * PAUSE <= each.in_transaction_idle_s <= idle - PAUSE
    outside = hold.held_s - hold.in_sql_s - hold.in_transaction_idle_s
    assert outside >= 2 * PAUSE


def test_it_runs_on_while_nobody_acts(engine):
    """An open transaction is counted while it is open."""
    took = Took()
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        with took.being("idle"):
            before = only_hold()
            time.sleep(PAUSE)
            after = only_hold()
    grown = after.in_transaction_idle_s - before.in_transaction_idle_s
    assert PAUSE <= grown <= took["idle"]
    assert after.unused_s >= PAUSE


def test_autocommit_is_never_in_a_transaction(engine):
    """Neither by SQLAlchemy's option nor by the driver's own."""
    options = {"isolation_level": "AUTOCOMMIT"}
    with engine.connect().execution_options(**options) as connection:
        connection.execute(text("SELECT 1"))
        time.sleep(0.02)
        assert only_hold().in_transaction_idle_s == 0
    with engine.connect() as connection:
        connection.connection.dbapi_connection.autocommit = True
        connection.execute(text("SELECT 1"))
        time.sleep(0.02)
        assert only_hold().in_transaction_idle_s == 0
        connection.connection.dbapi_connection.autocommit = False


def test_a_switch_to_autocommit(engine):
    """Between two transactions, and back."""
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.commit()
        before = only_hold().in_transaction_idle_s
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("SELECT 1"))
        time.sleep(0.02)
        assert only_hold().in_transaction_idle_s == before
        connection.commit()
        connection.execution_options(isolation_level="READ COMMITTED")
        connection.execute(text("SELECT 1"))
        time.sleep(0.02)
        assert only_hold().in_transaction_idle_s > before


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_phases(postgres, instrument, driver, end):
    """The connection is not in a transaction after the first of them."""
    engine = create_engine(postgres.url(driver))
    instrument(engine)
    with engine.connect() as connection:
        transaction = connection.begin_twophase()
        connection.execute(text("SELECT 1"))
        getattr(transaction, end)()
        hold = only_hold()
        time.sleep(0.02)
        assert only_hold().in_transaction_idle_s == hold.in_transaction_idle_s
        assert only_hold().unused_s > 0
    engine.dispose()


def test_last_used_elsewhere(engine):
    """The stack that sent the last statement, not the one that took the connection."""

    def ask(connection):
        connection.execute(text("SELECT 1"))  # used

    def take():
        return engine.connect()  # taken

    connection = take()
    ask(connection)
    hold = only_hold()
    assert hold.site.line == line_of(HERE, "taken")
    used = [f for f in hold.used if f.file == __file__]
    assert (used[0].function, used[0].line) == ("ask", line_of(HERE, "used"))
    assert used[1].function == "test_last_used_elsewhere"
    assert hold.statement == "SELECT ?"
    connection.close()


def test_last_used_by_the_orm(engine):
    """Below twenty frames of the ORM the user's own line is still there."""

    def ask(session):
        session.scalars(text("SELECT 1")).all()  # orm

    with Session(engine) as session:
        ask(session)
        used = [f for f in only_hold().used if f.file == __file__]
    assert (used[0].function, used[0].line) == ("ask", line_of(HERE, "orm"))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_last_used_by_a_task(postgres, instrument, driver):
    """Across the greenlet that SQLAlchemy runs in."""
    engine = create_async_engine(postgres.url(driver))
    instrument(engine)

    async def ask(connection):
        await connection.execute(text("SELECT 1"))  # awaited

    took = Took()

    async def main():
        async with engine.connect() as connection:
            with took.being("idle"):
                await ask(connection)
                await asyncio.sleep(PAUSE)
                hold = only_hold()
                await connection.commit()
            await asyncio.sleep(PAUSE)
            later = only_hold()
        await engine.dispose()
        return hold, later

    hold, later = asyncio.run(main())
    used = [f for f in hold.used if f.file == __file__]
    assert (used[0].function, used[0].line) == ("ask", line_of(HERE, "awaited"))
    assert PAUSE <= hold.in_transaction_idle_s <= took["idle"]
    assert hold.in_transaction_idle_s <= later.in_transaction_idle_s <= took["idle"]


def test_evidence_names_the_last_use(engine, instrument):
    """A long hold says where it was last used, in the public document too."""
    instrument(engine, long_after=0.05)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))  # evidence
        time.sleep(PAUSE)
        evidence = "; ".join(only_hold().evidence)
    assert f"ledger/test_held_time.py:{line_of(HERE, 'evidence')}" in evidence


def test_waits_that_the_application_ends(instrument, postgres):
    """A cancelled task gave up: that is no timeout of the pool."""
    engine = create_async_engine(
        postgres.url("asyncpg"), pool_size=1, max_overflow=0, pool_timeout=LONG_S
    )
    watch = instrument(engine)
    took = Took()

    async def wait():
        async with engine.connect():
            pass

    async def main():
        async with engine.connect():
            with took.being("wait"):
                task = asyncio.create_task(wait())
                await until_async(lambda: Look().waits(watch))
                await asyncio.sleep(PAUSE)
                look = Look()
                assert len(look.waits(watch)) == 1
                assert 0 < look.pool(watch).waiting_s_per_s < 1
                (main,) = look.sites(watch).values()
                assert main.wait_caused_s > 0
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            pool = Look().pool(watch)
        await engine.dispose()
        return pool

    pool = asyncio.run(main())
    (holder,) = [s for s in Look().process.sites if s.site.function == "main"]
    assert PAUSE <= holder.wait_caused_s <= took["wait"]
    assert pool.gave_up == 1
    assert pool.counters.timeouts == 0
    assert pool.wait_s.max >= PAUSE
    assert pool.most_wanted == 2
    assert pool.waiting == 0


def test_a_wait_counts_as_served_while_its_hold_is_open(engine, instrument):
    """A metric has it when the connection is there, not when it comes back."""
    instrument(engine)
    with engine.connect():
        pool = Look().process.pools[0]
        assert (pool.served_s.count, pool.wait_s.count) == (1, 0)
        assert sum(pool.served_s.up_to[-1:]) == 1
    assert Look().process.pools[0].served_s.count == 1


def test_nesting_is_noted_as_it_happens(instrument, sqlite):
    """Over before anybody looks, and still known, with both places."""
    engine = sqlite(pool_size=5)
    watch = instrument(engine)

    def inner():
        with engine.connect():  # inner
            pass

    def outer():
        with engine.connect():  # outer
            inner()

    outer()
    outer()
    assert Look().holds(watch) == []
    (nested,) = Look().process.findings
    assert (nested.kind, nested.severity) == ("nested", "info")
    assert [s.line for s in nested.sites] == [
        line_of(HERE, "outer"),
        line_of(HERE, "inner"),
    ]
    assert "2 times" in nested.proof


def test_not_nested(instrument, sqlite):
    """A second connection of another thread, pool or turn is none."""
    engine, other = sqlite(), sqlite(poolclass=QueuePool)
    instrument(engine)
    instrument(other)

    def take():
        engine.connect().close()

    with engine.connect():
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        other.connect().close()
    take()
    take()
    assert Look().kinds() == []


@pytest.mark.parametrize("kept", [False, True], ids=["left-behind", "kept"])
def test_a_wait_for_one_more_at_the_same_line(instrument, sqlite, kept):
    """What an earlier call has left to the collector is not in anybody's hands."""
    engine = sqlite(pool_size=1, max_overflow=0, pool_timeout=2 * LONG_S)
    instrument(engine)
    taken = []
    said = set()

    def take():
        connection = engine.connect()
        taken.append(weakref.ref(connection))
        around = [connection]
        around.append(around)  # a cycle, as sessions are
        return connection if kept else None

    def work():
        first = take()
        take()
        del first

    gc.disable()
    thread = threading.Thread(target=work)
    try:
        thread.start()
        expected = {"exhausted"} | ({"nested", "pool_deadlock"} if kept else set())
        until(lambda: said.update(Look().kinds()) or expected <= said)
        for _ in range(20):
            said.update(Look().kinds())
    finally:
        taken[0]().close()
        thread.join()
        gc.enable()
        gc.collect()
    assert "exhausted" in said
    assert ("nested" in said) == ("pool_deadlock" in said) == kept


def test_a_recursive_walk_is_nested(instrument, sqlite):
    """The same line again, further down the same stack."""
    engine = sqlite()
    instrument(engine)

    def walk(depth):
        with engine.connect():
            if depth:
                walk(depth - 1)

    walk(2)
    (nested,) = Look().process.findings
    assert nested.kind == "nested"
    assert "up to 3 connections" in nested.proof
