"""Each idle connection has a last user; one that is out, gone or inherited is none."""

from __future__ import annotations

import gc
import os
import weakref

import psycopg2.pool
import pytest
from fix_core import Look, book_of, null_pool_of
from sqlalchemy import NullPool, create_engine, event, text

import poolwatch
from poolwatch.agent.idle_connections import idle_pids
from poolwatch.agent.ledger_reading import LedgerReading

pytestmark = pytest.mark.postgres

LOCK = text("SELECT pg_advisory_lock(1)")


@pytest.fixture
def engine(instrument, postgres):
    engine = create_engine(postgres.url(), pool_size=3)
    instrument(engine, name="orders")
    yield engine
    engine.dispose()


def use(engine, *statements):
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
        return connection.connection.dbapi_connection.info.backend_pid


def last_use(engine, *statements):
    use(engine, *statements)
    (idle,) = Look().process.idle
    return idle


def test_the_last_user_of_a_returned_connection(engine):
    pid = use(engine, "SELECT 1")
    (idle,) = Look().process.idle
    assert idle.backend_pid == pid
    assert (idle.site.function, idle.used.function) == ("use", "use")
    assert idle.used.line > idle.site.line
    assert idle.held_s > 0
    assert 0 <= idle.returned_s < 60
    assert idle.connection.connect_s > 0
    assert (idle.lock, idle.listening, idle.declared) == (None, False, False)


def test_a_connection_that_is_out_is_not_idle(engine):
    use(engine, "SELECT 1")
    with engine.connect():
        assert Look().process.idle == ()
    assert len(Look().process.idle) == 1


def test_a_connection_that_comes_back_or_goes_during_the_reading_is_known(
    engine, monkeypatch
):
    """Else it would be in neither list, and a viewer would take it for a stranger's."""
    with engine.connect() as first, engine.connect() as second:
        pids = {
            each.connection.dbapi_connection.info.backend_pid
            for each in (first, second)
        }
        second.close()  # idle: it is taken below
        taken = []
        verify = LedgerReading.verify

        def late(reading):
            taken.append(engine.connect())
            first.close()
            verify(reading)

        monkeypatch.setattr(LedgerReading, "verify", late)
        process = Look().process
        assert process.holds == ()
        assert {each.backend_pid for each in process.idle} == pids
        taken[0].close()


def test_a_connection_that_was_closed_is_not_idle(engine):
    use(engine, "SELECT 1")
    engine.dispose()
    assert Look().process.idle == ()


def test_an_invalidated_connection_is_not_idle(engine):
    """Its record stays in the pool, to be connected again."""
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.invalidate()
    assert Look().process.idle == ()


def test_a_null_pool_has_no_idle_connections(instrument, postgres):
    engine = create_engine(postgres.url(), poolclass=NullPool)
    instrument(engine)
    use(engine, "SELECT 1")
    assert Look().process.idle == ()


def test_without_a_backend_there_is_nothing_to_list(instrument):
    pool = null_pool_of()
    instrument(pool)
    pool.connect().close()
    assert Look().process.idle == ()


def test_before_the_first_return_the_connection_may_be_out(instrument, postgres):
    """Such a connection may have been checked out before the instrumentation."""
    pool = psycopg2.pool.ThreadedConnectionPool(2, 2, postgres.dsn)
    out = pool.getconn()
    instrument(pool)
    assert Look().process.idle == ()
    pool.putconn(pool.getconn())
    assert len(Look().process.idle) == 1
    pool.putconn(out)
    pool.closeall()


def test_nothing_is_known_once_checkouts_are_not_recorded(engine):
    use(engine, "SELECT 1")
    ledger = book_of(engine)
    ledger.switched_off = lambda: True
    assert Look().process.idle == ()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_connections_of_a_parent_are_not_ours(engine):
    use(engine, "SELECT 1")
    reading, writing = os.pipe()
    if os.fork() == 0:
        use(engine, "SELECT 1")
        os.write(writing, b"%d" % len(Look().process.idle))
        os._exit(0)
    assert os.read(reading, 9) == b"0"
    os.wait()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock(1, 2)",
        "select pg_advisory_lock_shared(3)",
    ],
)
def test_the_statement_that_requested_a_session_level_lock(engine, statement):
    idle = last_use(engine, "SELECT 1", statement, "SELECT pg_advisory_unlock_all()")
    assert idle.lock is None
    idle = last_use(engine, statement, "SELECT 1")
    assert idle.lock.site == idle.site
    assert idle.lock.sent.function == "use"
    use(engine, "SELECT pg_advisory_unlock_all()")


def test_the_lock_stays_with_the_user_that_requested_it(engine):
    last_use(engine, "SELECT pg_advisory_lock(1)")

    def another_user():
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            (hold,) = Look().process.holds
            return hold

    hold = another_user()
    (idle,) = Look().process.idle
    assert idle.site.function == "another_user"
    assert idle.lock.site.function == "use"
    assert hold.earlier_lock.site == idle.lock.site
    use(engine, "SELECT pg_advisory_unlock_all()")


def test_a_lock_of_the_hold_itself_is_not_an_earlier_one(engine):
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(1)"))
        (hold,) = Look().process.holds
        connection.execute(text("SELECT pg_advisory_unlock(1)"))
    assert hold.earlier_lock is None


def test_a_lock_of_a_transaction_is_no_session_level_one(engine):
    assert last_use(engine, "SELECT pg_advisory_xact_lock(1)").lock is None


def test_a_long_statement_is_not_searched(engine):
    comment = "/* " + "x" * 200 + " */"
    assert last_use(engine, f"SELECT pg_advisory_lock(1) {comment}").lock is None
    use(engine, "SELECT pg_advisory_unlock_all()")


def test_a_last_statement_that_listens(engine):
    assert last_use(engine, "SELECT 1", "listen orders").listening
    pid = Look().process.idle[0].backend_pid
    assert idle_pids([book_of(engine)]) == ({pid}, {pid})
    assert not last_use(engine, "LISTEN orders", "UNLISTEN orders").listening
    assert idle_pids([book_of(engine)]) == ({pid}, set())


def test_a_declared_user_or_lock(engine):
    with poolwatch.long_hold("the scheduler's lock"):
        assert last_use(engine, "SELECT pg_advisory_lock(1)").declared
    assert last_use(engine, "SELECT 1").declared  # the lock is still the declared one
    assert not last_use(engine, "SELECT pg_advisory_unlock_all()").declared


def test_a_last_user_keeps_nothing_alive(engine):
    """Neither the thread or task nor its earlier holds: only stacks and texts."""

    class Local:
        pass

    def job():
        local = Local()
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return weakref.ref(local)

    gone = job()
    assert gone() is None
    (facts,) = book_of(engine).connections.values()
    stack, usage, context, checked_out_at, returned_at = facts.last_use
    for each in gc.get_referents(usage, context):
        assert type(each).__module__ != "sqlalchemy.engine.base"
    assert checked_out_at <= returned_at
    assert stack.site().function == "job"


def test_a_connection_that_a_failed_request_may_have_got_is_not_idle(engine):
    """The pool may count it as checked out: it is not known whose it is."""
    use(engine, "SELECT 1")

    def refuse(*_):
        raise ZeroDivisionError

    event.listen(engine, "checkout", refuse)
    with pytest.raises(ZeroDivisionError):
        engine.connect()
    event.remove(engine, "checkout", refuse)
    assert Look().process.idle == ()
    use(engine, "SELECT 1")
    assert len(Look().process.idle) == 1
