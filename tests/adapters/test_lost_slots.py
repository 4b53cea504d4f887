"""Slots of real pools that nobody has, and slots that only look like it."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

import pytest
from fix_core import Look, book_of, null_pool_of
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from poolwatch.adapters.sqlalchemy import count


class Interrupted(BaseException):
    """Comes when it likes."""


class LosingPool(QueuePool):
    """Is interrupted after it has counted a connection."""

    losing = False

    def _do_get(self):
        record = super()._do_get()
        if self.losing:
            raise Interrupted
        return record


@pytest.fixture
def engine(sqlite):
    return sqlite(poolclass=LosingPool, pool_size=2, max_overflow=1)


def lose(engine):
    engine.pool.losing = True
    with suppress(Interrupted):
        engine.connect()
    engine.pool.losing = False


def stats(look=2):
    """The figures of the only pool, after so many comparisons."""
    for _ in range(look):
        (pool,) = Look().process.pools
        time.sleep(0.26)
    (pool,) = Look().process.pools
    return pool


def lost():
    return [each for each in Look().process.findings if each.kind == "lost_slot"]


def test_a_lost_slot(engine, instrument):
    instrument(engine)
    stats()
    lose(engine)
    assert (stats().lost_slots, stats().capacity) == (1, 2)
    (finding,) = lost()
    assert [site.function for site in finding.sites] == ["lose"]


def test_a_lost_slot_whose_exception_is_kept(engine, instrument):
    """Its traceback has the record of the pool: no proof that anybody uses it."""
    instrument(engine)
    engine.pool.losing = True
    with pytest.raises(Interrupted) as kept:
        engine.connect()
    assert stats().lost_slots == 1
    assert kept.value is not None


def test_dispose_gets_it_back(engine, instrument):
    instrument(engine)
    lose(engine)
    assert stats().lost_slots == 1
    engine.dispose()
    assert stats().lost_slots == 0
    assert lost() == []


def test_the_log_tells_it_once(engine, instrument, caplog, watchdog):
    instrument(engine)
    lose(engine)
    with caplog.at_level(logging.WARNING, "poolwatch"):
        for _ in range(5):
            watchdog.tick()
            time.sleep(0.26)
    (record,) = caplog.records
    assert "has lost 1 of its 3 slots" in record.getMessage()


def test_a_bound_method_from_before(engine, instrument):
    """Its checkouts are not seen: out by the pool's count, and in use."""
    connect = engine.pool.connect
    instrument(engine)
    unseen = connect()
    assert stats().lost_slots == 0
    assert stats().unrecorded == 1
    unseen.close()
    assert stats().unrecorded == 0


def test_dispose_during_use(engine, instrument):
    """The hold of the old pool has no slot of the new one."""
    instrument(engine)
    with engine.connect():
        engine.dispose()
        assert (stats().slotless, stats().out, stats().checked_out) == (1, 0, 1)


def test_a_return_that_fails(engine, instrument):
    """The pool does not get back what a checkin listener keeps from it."""
    instrument(engine)

    def checkin(*_):
        raise KeyError("tenant")

    event.listen(engine, "checkin", checkin)
    with suppress(KeyError), engine.connect():
        pass
    assert stats(4).lost_slots == 1
    assert Look().process.holds == ()
    (finding,) = lost()
    assert "was not completed" in finding.text


def test_a_return_that_fails_is_ended_once(engine, instrument, monkeypatch):
    """Its hold may be gone, or be another one, when its end is recorded."""
    instrument(engine)
    book = book_of(engine)
    event.listen(engine, "checkin", lambda *_: 1 / 0)
    with suppress(ZeroDivisionError), engine.connect():
        pass
    ((key, hold),) = book.holds.items()
    book.find_dropped()
    monkeypatch.setattr(count, "_STEADY_S", 0.0)
    ended = []
    monkeypatch.setattr(book, "end", lambda *given: ended.append(given))

    def gone():
        book.holds.pop(key, None)

    monkeypatch.setattr(hold, "proxy", gone)
    book.find_dropped()
    other = object()

    def replaced():
        book.holds[key] = other

    book.holds[key] = hold
    monkeypatch.setattr(hold, "proxy", replaced)
    book.find_dropped()
    assert (ended, book.holds.pop(key)) == ([], other)


@pytest.mark.postgres
def test_a_connection_that_a_psycopg2_pool_has_lent_unseen(postgres, instrument):
    """In use by somebody, until nobody refers to it."""
    pool = ThreadedConnectionPool(1, 2, postgres.dsn)
    getconn = pool.getconn
    instrument(pool)
    connection = getconn()
    assert (stats().lost_slots, stats().unrecorded) == (0, 1)
    del connection
    assert (stats().lost_slots, stats().unrecorded) == (1, 0)
    pool.closeall()


class TenantPool(ThreadedConnectionPool):
    """Is interrupted after the pool has lent a connection."""

    losing = False

    def getconn(self, key=None):
        connection = super().getconn(key)
        if self.losing:
            raise Interrupted(connection.closed)
        return connection


@pytest.mark.postgres
def test_a_traceback_that_keeps_a_connection(postgres, instrument):
    """The connection is alive; the request that had it has failed some time ago."""
    pool = TenantPool(1, 2, postgres.dsn)
    instrument(pool)
    pool.losing = True
    with pytest.raises(Interrupted) as kept:
        pool.getconn()
    assert (stats().lost_slots, stats().unrecorded) == (0, 1)
    time.sleep(3)
    assert (stats().lost_slots, stats().unrecorded) == (1, 0)
    assert kept.value is not None
    pool.closeall()


class OldPool(ConnectionPool):
    """Loses a connection whose check is interrupted, like 3.2.7."""

    losing = False

    def _getconn_with_check_loop(self, deadline):
        connection = self._getconn_unchecked(deadline - time.monotonic())
        if self.losing:
            raise Interrupted(connection.closed)
        return connection


@pytest.mark.postgres
def test_a_traceback_that_keeps_a_connection_of_psycopg(postgres, instrument):
    with OldPool(postgres.dsn, min_size=1, max_size=2) as pool:
        instrument(pool)
        pool.wait()
        assert (stats().lost_slots, stats().unrecorded) == (0, 0)
        pool.losing = True
        with pytest.raises(Interrupted) as kept:
            pool.getconn()
        assert stats().lost_slots == 0
        time.sleep(3)
        assert stats().lost_slots == 1
        assert kept.value is not None


def test_a_pool_that_is_locked_for_good_is_seen(instrument):
    """An interrupt in the pool's own code may do that: every request waits then."""
    pool = null_pool_of()
    watch = instrument(pool)
    held = pool.connect()
    with pool._pool.mutex:
        process, ended = [], threading.Event()

        def look():
            process.append(Look())
            ended.set()

        threading.Thread(target=look, daemon=True).start()
        assert ended.wait(60)
    assert process[0].pool(watch).checked_out == 1
    held.close()
