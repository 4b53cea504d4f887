"""A connection that one pool has taken from another is held once."""

from __future__ import annotations

import time

import pytest
from fix_core import Look, book_of
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import NullPool, create_engine, text

pytestmark = pytest.mark.postgres


@pytest.fixture
def inner(postgres, instrument):
    pytest.importorskip("psycopg_pool", minversion="3.3")  # close_returns
    dsn = postgres.dsn
    with ConnectionPool(dsn, min_size=1, max_size=2, close_returns=True) as pool:
        instrument(pool, name="inner")
        yield pool


@pytest.fixture
def outer(inner, instrument):
    engine = create_engine(
        "postgresql+psycopg://", creator=inner.getconn, poolclass=NullPool
    )
    instrument(engine, name="outer")
    return engine


def pools():
    return {pool.name: pool for pool in Look().process.pools}


def test_one_hold_of_the_outer_pool(outer):
    with outer.connect() as connection:
        connection.execute(text("SELECT 1"))
        process = Look().process
        stats = {pool.name: pool for pool in process.pools}
        assert [hold.pool for hold in process.holds] == [stats["outer"].id]
        assert (stats["inner"].checked_out, stats["outer"].checked_out) == (1, 1)
        assert stats["outer"].over == (stats["inner"].id,)
    assert Look().process.holds == ()
    counters = pools()["inner"].counters
    assert counters.checkouts == counters.checkins == 1


def test_many_cycles(inner, outer):
    """One session again and again: nothing is kept of the holds that have ended."""
    for _ in range(5):
        with outer.connect():
            pass
    with outer.connect():
        assert pools()["inner"].checked_out == 1
        assert len(book_of(inner).lending) == 1
    assert pools()["inner"].checked_out == 0
    assert len(book_of(inner).lending) == 0


def test_a_pool_at_rest_is_not_used(inner, outer):
    """Whoever counts the checkouts: a lent connection is one."""
    book = book_of(inner)
    with outer.connect():
        book.mark(time.monotonic())
        before = time.monotonic()
        book.stats(0, 0)
        book.mark(time.monotonic())
        book.stats(0, 0)
        now = time.monotonic()
        assert book.setup.record(book.begun, now).used_s > now - before


def test_a_direct_hold_of_the_inner_pool_is_shown(inner, outer):
    with outer.connect(), inner.connection():
        names = {pool.id: pool.name for pool in Look().process.pools}
        held = sorted(names[hold.pool] for hold in Look().process.holds)
        assert held == ["inner", "outer"]


def test_what_the_inner_pool_keeps_idle_has_not_gone(outer):
    """The outer pool has closed it: it went back to the inner pool."""
    with outer.connect():
        pass
    time.sleep(1.1)
    assert Look().process.departed == ()


def test_a_close_that_gives_nothing_back(postgres, instrument):
    """psycopg2's pool never learns that its connection was closed: a hold again."""
    inner = ThreadedConnectionPool(1, 3, postgres.dsn)
    instrument(inner, name="inner")
    engine = create_engine(
        "postgresql+psycopg2://", creator=inner.getconn, poolclass=NullPool
    )
    instrument(engine, name="outer")
    with engine.connect():
        assert len(Look().process.holds) == 1
    assert Look().process.holds == ()
    time.sleep(1.1)
    (hold,) = Look().process.holds
    assert hold.site.function == "test_a_close_that_gives_nothing_back"
    inner.closeall()
