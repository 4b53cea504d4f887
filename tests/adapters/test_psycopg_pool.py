"""What is particular to psycopg_pool: slots that are lost for good, waiters that the
pool counts long after they left, worker threads, and ways around the public methods.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import weakref
from contextlib import suppress

import psycopg
import pytest
from fix_core import Look
from fix_psycopg_pool import LONG, finding
from helpers import until, until_async
from psycopg import sql
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
)
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from poolwatch.agent.instrument import agent
from poolwatch.errors import ServerViewError

KEPT = []
SINCE_3_3 = pytest.mark.skipif(
    not hasattr(ConnectionPool, "_close_connection"), reason="psycopg_pool before 3.3"
)


def drop_one(pool):
    """Take a connection and forget it."""
    pool.getconn().execute("select 1")


# -- lost slots --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
def test_a_dropped_connection_is_a_slot_that_is_lost(instrument, pools, kind):
    """It is out no more, its place is named, and so is what the pool has lost."""
    pool = pools(kind, max_size=3)
    watch = instrument(pool, name="shop")
    drop_one(pool)
    drop_one(pool)
    gc.collect()
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.lost_slots, stats.overflow) == (0, 2, 0)
    assert (stats.counters.collected, stats.counters.leaked) == (2, 2)
    assert stats.counters.closes == stats.counters.connects == 2
    found = finding("leaked.collected")
    assert found.severity == "critical"
    assert found.sites[0].function == "drop_one"
    assert found.text.endswith("pool 'shop' has lost 2 of 3 slots")
    assert "get lost slots back" in found.remedy
    with pool.connection():  # what is left still works
        assert Look().pool(watch).checked_out == 1


def test_a_pool_without_slots_tells_why_nobody_is_served(instrument, pools):
    """The timeout names the place that dropped everything, though nobody holds any."""
    pool = pools(max_size=1)
    watch = instrument(pool, name="shop")
    drop_one(pool)
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=0.1)
    (note,) = caught.value.__notes__
    assert "size 0 + overflow 1, 1 slot lost) has 0 connections checked out" in note
    assert "test_psycopg_pool.py" in note
    assert "putconn() in a finally clause" in note
    assert str(caught.value) == "couldn't get a connection after 0.10 sec"
    assert Look().counters(watch).timeouts == 1


def test_who_waits_for_lost_slots_finds_the_pool_exhausted(instrument, pools):
    """A capacity of nothing is not an unlimited one."""
    pool = pools(max_size=1)
    watch = instrument(pool)
    drop_one(pool)
    refused = threading.Thread(target=lambda: suppressed(pool.getconn), name="waiter")
    refused.start()
    until(lambda: Look().waits(watch), what="nobody waits")
    found = finding("exhausted")
    assert "0 of 0 out" in found.text
    assert found.text.endswith(", 1 slot lost")
    assert found.proof == "no connection is held: every slot was lost"
    pool.close()
    refused.join()


def test_the_log_tells_of_lost_slots(instrument, pools, caplog, watchdog):
    """As soon as the watchdog comes by, in words that are true of this pool."""
    pool = pools(max_size=2)
    instrument(pool, name="shop")
    drop_one(pool)
    gc.collect()
    watchdog.tick()
    (line,) = [each for each in caplog.messages if each.startswith("leak on pool")]
    assert line.startswith("leak on pool 'shop': 1 connection checked out at ")
    assert line.endswith("dropped: the pool does not replace them, 1 slot lost so far")


def suppressed(call):
    with suppress(psycopg.Error):
        call()


def test_an_unlimited_pool_loses_nothing(instrument, pools):
    """Dropping is a leak all the same, but no slot was there to be lost."""
    pool = pools(NullConnectionPool, max_size=0)
    watch = instrument(pool)
    assert Look().pool(watch).max_overflow == -1
    drop_one(pool)
    assert Look().pool(watch).lost_slots == 0
    assert Look().counters(watch).collected == 1
    assert "slot" not in finding("leaked.collected").remedy


def test_a_pool_that_is_closed_loses_nothing(instrument, pools):
    """What is dropped after close() is a leak; the pool will lend no more anyhow."""
    pool = pools()
    watch = instrument(pool)
    connection = pool.getconn()
    pool.close()
    assert Look().pool(watch).checked_out == 1
    del connection
    gc.collect()
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.lost_slots) == (0, 0)
    assert stats.counters.collected == 1


# -- waits -------------------------------------------------------------------------


def test_requests_that_timed_out_wait_no_longer(instrument, pools):
    """The pool goes on counting them; we do not."""
    pool = pools(max_size=1)
    watch = instrument(pool)
    with pool.connection():
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.05)
        assert pool.get_stats()["requests_waiting"] == 3
        stats = Look().pool(watch)
        assert (stats.waiting, stats.counters.timeouts) == (0, 3)
        assert stats.wait_s.count == 3


def test_a_request_that_was_turned_away_is_a_timeout(instrument, pools):
    """TooManyRequests is the same trouble, and is explained like it."""
    pool = pools(max_size=1, max_waiting=1)
    watch = instrument(pool)
    with pool.connection():
        waiting = threading.Thread(target=lambda: suppressed(pool.getconn))
        waiting.start()
        until(lambda: pool.get_stats().get("requests_waiting"), what="nobody waits")
        with pytest.raises(TooManyRequests) as caught:
            pool.getconn()
        assert "1 held by" in caught.value.__notes__[0]
        assert Look().counters(watch).timeouts == 1
        pool.close()
        waiting.join()


def test_a_wait_that_close_ends_is_no_timeout(instrument, pools):
    """The waiter gets PoolClosed, as ever, and waits no longer."""
    pool = pools(max_size=1)
    watch = instrument(pool)
    raised = []

    def ask():
        try:
            pool.getconn()
        except psycopg.Error as error:
            raised.append(type(error))

    with pool.connection():
        waiting = threading.Thread(target=ask)
        waiting.start()
        until(lambda: Look().waits(watch), what="nobody waits")
        # close() ends only those that are in the pool's own queue already
        until(lambda: pool.get_stats()["requests_waiting"], what="nobody queues")
        pool.close()
        waiting.join()
        stats = Look().pool(watch)
    assert raised == [PoolClosed]
    assert (stats.waiting, stats.counters.timeouts, stats.gave_up) == (0, 0, 0)
    assert Look().pool(watch).checked_out == 0


def test_a_server_that_cannot_be_reached_is_a_timeout(instrument, pools):
    """The pool tries in the background; the one who waits is told that."""
    pool = pools(conninfo="host=127.0.0.1 port=1 dbname=x", reconnect_timeout=0.1)
    watch = instrument(pool)
    with pytest.raises(PoolTimeout) as caught:
        pool.getconn(timeout=0.2)
    assert "has 0 connections checked out" in caught.value.__notes__[0]
    counters = Look().counters(watch)
    assert (counters.connects, counters.timeouts) == (0, 1)


# -- connections -------------------------------------------------------------------


def test_connections_made_in_the_background_are_met(instrument, pools, postgres):
    """A pool that opens later: its workers connect, and that is timed."""
    pool = pools(open=False, min_size=2)
    watch = instrument(pool)
    with pytest.raises(PoolClosed):
        pool.getconn()
    assert Look().pool(watch).wait_s.count == 0
    pool.open(wait=True)
    stats = Look().pool(watch)
    assert (stats.size, stats.max_overflow, stats.idle) == (2, 0, 2)
    assert stats.counters.connects == stats.create_s.count == 2
    with pool.connection() as connection:
        (hold,) = Look().holds(watch)
        assert hold.backend_pid == connection.info.backend_pid
        assert hold.connection.connect_s > 0
        assert hold.connection.address == f"{postgres.host}:{postgres.port}"


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
def test_a_pool_to_come_is_watched_before_it_opens(instrument, pools, kind):
    """Also its very first connections are counted."""
    instrument()
    pool = pools(kind, min_size=0 if kind is NullConnectionPool else 2, name="to come")
    pool.wait()
    (stats,) = [each for each in Look().process.pools if each.name == "to come"]
    assert stats.kind == kind.__name__
    assert stats.counters.connects == (1 if kind is NullConnectionPool else 2)


@SINCE_3_3
def test_a_connection_older_than_the_instrumentation_has_its_age(instrument, pools):
    """The pool notes when it made one; how long that took is not known."""
    pool = pools(min_size=1)
    pool.wait()
    made = pool._pool[0]._created_at
    watch = instrument(pool)
    with pool.connection():
        (hold,) = Look().holds(watch)
        assert hold.connection.connect_s is None
        (known,) = agent.ledger.pools[watch._pool_id].connections.values()
        assert known.opened == made


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
@pytest.mark.parametrize("by_user", [True, False])
def test_a_connection_that_came_back_closed_is_replaced(
    instrument, pools, postgres, kind, by_user
):
    """Closed by the user or by the server: invalidated, closed, and no leak."""
    pool = pools(kind, max_size=1)
    watch = instrument(pool)
    connection = pool.getconn()
    if by_user:
        connection.close()
    else:
        postgres.execute(f"select pg_terminate_backend({connection.info.backend_pid})")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    pool.putconn(connection)
    counters = Look().counters(watch)
    assert (counters.invalidated, counters.closes, counters.collected) == (1, 1, 0)
    del connection
    gc.collect()
    with pool.connection() as another:
        another.execute("select 1")
    stats = Look().pool(watch)
    assert (stats.lost_slots, stats.counters.invalidated) == (0, 1)
    assert stats.counters.connects == 2


def test_a_connection_that_fails_the_check_is_not_lent(instrument, pools, postgres):
    """``check=`` finds it broken and asks again: that is one request and one hold."""
    pool = pools(max_size=1, check=ConnectionPool.check_connection)
    watch = instrument(pool)
    with pool.connection() as connection:
        first = connection.info.backend_pid
    del connection
    postgres.execute(f"select pg_terminate_backend({first})")
    with pool.connection():
        (hold,) = Look().holds(watch)
        assert hold.backend_pid != first
    counters = Look().counters(watch)
    assert (counters.checkouts, counters.checkins, counters.collected) == (2, 2, 0)
    assert (counters.connects, counters.closes) == (2, 1)


def test_a_resized_pool_has_its_new_size(instrument, pools):
    """For what is shown as well as for who wants more than there is."""
    pool = pools(max_size=1)
    watch = instrument(pool)
    pool.resize(1, 3)
    stats = Look().pool(watch)
    assert (stats.size, stats.max_overflow) == (1, 2)
    with pool.connection(), pool.connection(), pool.connection():
        stats = Look().pool(watch)
        assert (stats.checked_out, stats.overflow, stats.most_wanted) == (3, 2, 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_uses_the_parents_connections(instrument, pools):
    """The idle ones come along in a fork: whoever takes one there is told."""
    pool = pools(min_size=1, max_size=1)
    pool.wait()
    instrument(pool)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            connection = pool.getconn()
            code = 0 if Look().kinds() == ["fork_shared"] else 2
            KEPT.append(connection)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert Look().kinds() == []


# -- ways to a connection, and back ------------------------------------------------


@SINCE_3_3
def test_a_bound_method_from_before_is_seen(instrument, pools, postgres):
    """SQLAlchemy over psycopg_pool, as documented: its creator is ``pool.getconn``."""
    pool = pools(close_returns=True)
    engine = create_engine(
        postgres.url("psycopg"), creator=pool.getconn, poolclass=NullPool
    )
    watch = instrument(pool)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        (hold,) = Look().holds(watch)
        assert hold.site.file == __file__
        assert hold.statement == "select ?"
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.idle) == (0, 1)


def test_returning_twice_raises_what_it_always_did(instrument, pools):
    """And does not end somebody else's hold."""
    pool, other = pools(), pools()
    watch = instrument(pool)
    connection = pool.getconn()
    with pytest.raises(ValueError, match="it comes from pool"):
        other.putconn(connection)
    pool.putconn(connection)
    with pool.connection() as again:
        assert again is connection
    with pytest.raises(ValueError, match="it doesn't come from any pool"):
        pool.putconn(connection)
    counters = Look().counters(watch)
    assert (counters.checkouts, counters.checkins) == (2, 2)


def test_holds_from_before_are_not_invented(instrument, pools):
    """Their return is no error, and their drop is not ours to tell."""
    pool = pools()
    early, lost = pool.getconn(), pool.getconn()
    watch = instrument(pool)
    assert Look().holds(watch) == []
    pool.putconn(early)
    del lost
    gc.collect()
    stats = Look().pool(watch)
    assert (stats.counters.checkouts, stats.counters.checkins) == (0, 0)
    assert (stats.idle, stats.lost_slots) == (1, 0)


@pytest.mark.parametrize("kind", [ConnectionPool, AsyncConnectionPool])
def test_the_pool_looks_as_before(instrument, postgres, kind):
    """Signatures, coroutine functions, and nothing left on it afterwards."""
    pool = kind(postgres.dsn, min_size=0, max_size=1, open=False)
    before = dict(pool.__dict__)
    signature = inspect.signature(pool.getconn)
    instrument(pool)
    assert inspect.signature(pool.getconn) == signature
    assert inspect.iscoroutinefunction(pool.getconn) == (kind is AsyncConnectionPool)
    assert pool.putconn.__func__ is kind.putconn
    agent.pools.unwatch(pool)
    assert pool.__dict__ == before


def test_connections_look_as_before(instrument, pools):
    """Their class, and after uninstrument() what hangs on them."""
    pool = pools()
    instrument(pool)
    held = pool.getconn()
    with pool.connection() as idle:
        assert type(idle) is psycopg.Connection
    agent.pools.unwatch(pool)
    assert "wait" not in vars(held)
    assert "wait" not in vars(idle)
    assert held.execute("select 1").fetchone() == (1,)
    pool.putconn(held)


def test_a_pool_that_is_gone_is_forgotten(instrument, pools, postgres):
    """Nothing of ours keeps it alive, nor its connections."""
    pool = ConnectionPool(postgres.dsn, min_size=0, max_size=1, open=True)
    instrument(pool)
    with pool.connection() as connection:
        connection.execute("select 1")
    pool.close()
    gone = [weakref.ref(pool), weakref.ref(connection)]
    del pool, connection
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert agent.ledger.pools == {}


# -- statements --------------------------------------------------------------------


def test_the_last_statement_and_an_open_transaction_are_known(instrument, pools):
    """From the connection itself, whatever cursor it went through."""
    pool = pools()
    watch = instrument(pool)
    with pool.connection() as connection:
        (hold,) = Look().holds(watch)
        assert (hold.statement, hold.in_sql_s) == (None, None)
        connection.execute("select 1, 'secret'")
        (hold,) = Look().holds(watch)
        assert hold.statement == "select ?, ?"
        assert hold.in_sql_s > 0
        assert hold.in_transaction_idle_s > 0
        assert hold.used[-1] == hold.stack[-1]
        connection.commit()
        first = Look().holds(watch)[0].in_transaction_idle_s
        assert Look().holds(watch)[0].in_transaction_idle_s == first
        with connection.cursor() as cursor:
            cursor.executemany("select %s", [(1,), (2,)])
            assert Look().holds(watch)[0].statement == "select %s"
            with cursor.copy(b"copy (select 7) to stdout") as copy:
                assert Look().holds(watch)[0].statement == "copy (select ?) to stdout"
                assert list(copy)
        with connection.cursor("named") as cursor:
            cursor.execute("select 8")
            assert cursor.fetchall() == [(8,)]


def test_composed_statements_show_no_value(instrument, pools):
    """Identifiers are kept, literals are not, and none is asked to adapt itself."""
    pool = pools()
    watch = instrument(pool)
    query = sql.SQL("select {}, {}, {} as {}").format(
        sql.Literal("secret"), sql.Literal(3), sql.Placeholder(), sql.Identifier("a b")
    )
    with pool.connection() as connection:
        assert connection.execute(query, ["x"]).fetchone() == ("secret", 3, "x")
        (hold,) = Look().holds(watch)
        assert hold.statement == 'select ?, ?, ? as "a b"'


def test_waiting_for_notifications_is_no_sql(instrument, pools):
    """A listener is idle, however long nothing comes."""
    pool = pools(kwargs={"autocommit": True})
    watch = instrument(pool)
    with pool.connection() as connection:
        connection.execute("listen news")
        before = Look().holds(watch)[0].in_sql_s
        assert list(connection.notifies(timeout=0.1)) == []
        assert Look().holds(watch)[0].in_sql_s == before
        assert Look().holds(watch)[0].in_transaction_idle_s == 0


def test_another_thread_that_uses_it_is_noticed(instrument, pools):
    """A hold that was handed over is nobody's leak."""
    pool = pools()
    watch = instrument(pool)
    taken = []
    taker = threading.Thread(target=lambda: taken.append(pool.getconn()))
    taker.start()
    taker.join()
    taken[0].execute("select 1")
    (hold,) = agent.ledger.pools[watch._pool_id].holds.values()
    assert hold.usage.by_others
    assert Look().holds(watch)[0].verdict == "ok"
    pool.putconn(taken.pop())


# -- names, places, and a connection of our own ------------------------------------


def test_names_and_urls(instrument, postgres, pools):
    """The user's name, or else the database; no password."""
    named = instrument(pools(name="shop", open=False))
    secret = f"{postgres.dsn}&password=hush&application_name=me"
    numbered = instrument(pools(conninfo=secret, open=False))
    parts = instrument(
        pools(conninfo="", kwargs={"host": "db", "port": 5, "user": "me"}, open=False)
    )
    look = Look()
    assert look.pool(named).name == "shop"
    assert look.pool(numbered).name == "postgres"
    assert "hush" not in str(look.process)
    assert look.pool(numbered).url == (
        f"postgresql://postgres:***@/postgres?host={postgres.host}&port={postgres.port}"
        "&application_name=me"
    )
    assert look.pool(parts).url == "postgresql://me@db:5/"
    assert look.pool(parts).name.startswith("pool-")


@SINCE_3_3
def test_a_url_that_only_a_call_tells_is_learned(instrument, pools, postgres):
    """The call is the user's: it is not made for a name; the connection knows."""
    calls = []

    def conninfo():
        calls.append(1)
        return postgres.dsn

    pool = pools(conninfo=conninfo)
    watch = instrument(pool)
    assert calls == []
    assert Look().pool(watch).url is None
    with pool.connection():
        assert postgres.host in Look().pool(watch).url


@pytest.mark.parametrize("kind", [ConnectionPool, AsyncConnectionPool])
def test_a_connection_of_our_own_is_none_of_the_pools(instrument, postgres, kind):
    """Sync also for an async pool, with plain rows, whatever the pool's are."""
    pool = kind(
        postgres.dsn,
        min_size=0,
        max_size=1,
        open=False,
        kwargs={"row_factory": psycopg.rows.dict_row, "autocommit": True},
    )
    watch = instrument(pool)
    book = agent.ledger.pools[watch._pool_id]
    connection = book.server_connect()
    try:
        assert connection.execute("select 1").fetchone() == (1,)
        assert not connection.autocommit
    finally:
        connection.close()
    assert Look().pool(watch).counters.connects == 0


async def test_parameters_that_only_the_loop_can_tell(instrument, async_pool):
    """An async call for them is not made by us: one sentence says what to do."""

    async def conninfo():
        raise AssertionError("not ours to call")

    pool = async_pool(conninfo=conninfo)
    watch = instrument(pool)
    with pytest.raises(ServerViewError, match="give --dsn"):
        agent.ledger.pools[watch._pool_id].server_connect()


# -- asyncio -----------------------------------------------------------------------

ASYNC = pytest.mark.parametrize("kind", [AsyncConnectionPool, AsyncNullConnectionPool])


@ASYNC
async def test_a_cancelled_task_that_drops_its_connection(instrument, async_pool, kind):
    """The site is where the task took it, and the slot is lost."""
    async with async_pool(kind, max_size=2) as pool:
        watch = instrument(pool)
        taken = asyncio.Event()

        async def forgetful():
            connection = await pool.getconn()
            await connection.execute("select 1")
            taken.set()
            await asyncio.sleep(LONG)

        task = asyncio.create_task(forgetful(), name="forgetful")
        await taken.wait()
        (hold,) = Look().holds(watch)
        assert (hold.task, hold.site.function) == ("forgetful", "forgetful")
        assert hold.statement == "select ?"
        assert [frame.function for frame in hold.now][-1] == "forgetful"
        task.cancel()
        await asyncio.wait([task])  # its exception keeps its frames
        del task
        gc.collect()
        stats = Look().pool(watch)
        assert (stats.checked_out, stats.lost_slots) == (0, 1)
        assert finding("leaked.collected").sites[0].function == "forgetful"


@ASYNC
async def test_requests_of_tasks(instrument, async_pool, kind):
    """Timed out, or cancelled by the application: told apart, and both over."""
    async with async_pool(kind, max_size=1) as pool:
        watch = instrument(pool)
        async with pool.connection():
            with pytest.raises(PoolTimeout) as caught:
                await pool.getconn(timeout=0.05)
            assert "1 held by" in caught.value.__notes__[0]

            waiting = asyncio.create_task(pool.getconn(), name="waiting")
            await until_async(lambda: Look().waits(watch), what="nobody waits")
            (wait,) = Look().waits(watch)
            assert wait.task == "waiting"
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            stats = Look().pool(watch)
            assert (stats.waiting, stats.counters.timeouts, stats.gave_up) == (0, 1, 1)
        assert Look().pool(watch).checked_out == 0


async def test_now_shows_what_the_task_waits_for(instrument, async_pool):
    """A statement that runs: psycopg's own frames, none of ours."""
    async with async_pool() as pool:
        watch = instrument(pool)

        async def busy():
            async with pool.connection() as connection:
                await connection.execute("select pg_sleep(60)")

        task = asyncio.create_task(busy())
        await until_async(lambda: any(h.in_sql_s for h in Look().holds(watch)))
        (hold,) = Look().holds(watch)
        assert [frame.function for frame in hold.now][-2:] == ["execute", "busy"]
        assert not any("poolwatch/adapters" in frame.file for frame in hold.now)
        assert hold.statement == "select pg_sleep(?)"
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
