"""What is peculiar to asyncpg's pools; the rest is in the contract of all adapters."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import json
import subprocess
import sys

import asyncpg
import pytest
from asyncpg.pool import Pool, PoolConnectionHolder, PoolConnectionProxy
from fix_core import Look
from helpers import until_async
from sqlalchemy.ext.asyncio import create_async_engine

import poolwatch
from poolwatch.agent.instrument import agent


@pytest.fixture
async def make_pool(postgres):
    """Makes pools on the session's server; initialised unless told otherwise."""
    pools = []

    async def make(wait=True, **settings):
        pool = asyncpg.create_pool(
            postgres.dsn, **{"min_size": 1, "max_size": 2, **settings}
        )
        pools.append(pool)
        return await pool if wait else pool

    yield make
    for pool in pools:
        if not pool._closed and pool._initialized:
            pool.terminate()


def verdicts(watch):
    """The verdicts on all holds, after more than one look."""
    looks = [Look() for _ in range(3)]
    return [hold.verdict for hold in looks[-1].holds(watch)]


def untouched(pool):
    """Whether nothing of ours is on a pool."""
    return (
        type(pool) is Pool
        and type(pool._holders) is list
        and all(type(each) is PoolConnectionHolder for each in pool._holders)
        and all(
            type(each._con) in {asyncpg.Connection, type(None)}
            for each in pool._holders
        )
    )


async def test_a_hold(instrument, make_pool):
    """A hold names the task, the line that took it and the backend."""
    pool = await make_pool()
    watch = instrument(pool)

    async def handler():
        async with pool.acquire() as connection:
            (hold,) = Look().holds(watch)
            return hold, connection.get_server_pid()

    hold, pid = await asyncio.create_task(handler(), name="orders-7")
    assert (hold.task, hold.site.function) == ("orders-7", "handler")
    assert (hold.backend_pid, hold.verdict) == (pid, "ok")
    assert Look().holds(watch) == []
    found = Look().pool(watch)
    assert (found.kind, found.name) == ("asyncpg.Pool", "postgres")
    assert (found.size, found.max_overflow, found.timeout_s) == (1, 1, None)
    assert (found.idle, found.overflow, found.checked_out) == (1, 0, 0)


async def test_awaited_without_with(instrument, make_pool):
    """``await pool.acquire()`` and ``pool.release()`` are seen all the same."""
    pool = await make_pool()
    watch = instrument(pool)
    connection = await pool.acquire()
    (hold,) = Look().holds(watch)
    assert hold.site.function == "test_awaited_without_with"
    await pool.release(connection)
    assert (Look().counters(watch).checkouts, Look().holds(watch)) == (1, [])


async def test_shortcuts(instrument, make_pool):
    """``pool.fetch()`` and its like are checkouts, and their caller is the site."""
    pool = await make_pool()
    watch = instrument(pool)
    assert await pool.fetchval("SELECT 1") == 1
    await pool.execute("SELECT 2")
    assert Look().counters(watch).checkins == 2
    assert set(Look().sites(watch)) == {"test_shortcuts"}


async def test_what_is_lent_looks_the_same(instrument, make_pool):
    """The application gets asyncpg's own proxy, and nothing about it is new."""
    pool = await make_pool()
    instrument(pool)
    connection = await pool.acquire()
    assert type(connection) is PoolConnectionProxy
    assert isinstance(connection, asyncpg.Connection)
    assert repr(connection).startswith("<PoolConnectionProxy <asyncpg.connection.Conn")
    assert connection._params.user == "postgres"
    assert not connection.is_closed()
    assert inspect.iscoroutinefunction(type(connection).fetch) is (
        inspect.iscoroutinefunction(PoolConnectionProxy.fetch)
    )
    with pytest.raises(AttributeError):
        connection.mine = 1
    await pool.release(connection)
    assert "[released]" in repr(connection)
    with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
        await connection.fetch("SELECT 1")
    await pool.release(connection)  # is silently fine, as before


async def test_a_foreign_connection_is_refused(instrument, make_pool):
    """Each pool takes back its own only, and says so as it did."""
    pool, other, third = await make_pool(), await make_pool(), await make_pool()
    watch = instrument(pool)
    instrument(other)
    connection = await pool.acquire()
    for stranger in (other, third):
        with pytest.raises(asyncpg.InterfaceError, match="not a member of this pool"):
            await stranger.release(connection)
    with pytest.raises(asyncpg.InterfaceError, match="not a member of this pool"):
        await pool.release("nonsense")
    assert len(Look().holds(watch)) == 1
    await pool.release(connection)
    assert Look().holds(watch) == []


async def test_other_pools_are_not_touched(instrument, make_pool):
    """A pool that is not watched has asyncpg's own classes."""
    pool, other = await make_pool(), await make_pool()
    instrument(pool)
    assert untouched(other)
    assert type(pool) is not Pool
    connection = await other.acquire()
    assert type(connection) is PoolConnectionProxy
    await other.release(connection)


async def test_its_timeout(instrument, make_pool):
    """The pool's timeout error, empty by itself, tells who holds the connections."""
    pool = await make_pool(max_size=1)
    watch = instrument(pool)

    async def report():
        return await pool.acquire()

    connection = await report()
    with pytest.raises(TimeoutError) as caught:
        await pool.acquire(timeout=0.02)
    (note,) = caught.value.__notes__
    assert "report" in note
    assert "1 connection checked out" in note
    assert Look().counters(watch).timeouts == 1
    assert Look().waits(watch) == []
    await pool.release(connection)


async def test_a_connect_timeout_is_not_the_pools(instrument, make_pool):
    """A server that does not answer in time is another matter than an empty pool."""

    async def connect(*args, **kwargs):
        raise TimeoutError

    pool = await make_pool(connect=connect, min_size=0)
    watch = instrument(pool)
    with pytest.raises(TimeoutError) as caught:
        await pool.acquire(timeout=60)
    with pytest.raises(TimeoutError):
        await pool.acquire()
    assert not hasattr(caught.value, "__notes__")
    assert (Look().counters(watch).timeouts, Look().waits(watch)) == (0, [])


async def test_a_wait_that_was_cancelled(instrument, make_pool):
    """A task that is cancelled while it waits has given up."""
    pool = await make_pool(max_size=1)
    watch = instrument(pool)
    connection = await pool.acquire()

    async def wait():
        async with pool.acquire():
            raise AssertionError

    task = asyncio.create_task(wait(), name="waiter")
    await until_async(lambda: Look().waits(watch))
    (waiting,) = Look().waits(watch)
    assert (waiting.task, waiting.site.function) == ("waiter", "wait")
    assert "exhausted" in Look().kinds()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (Look().pool(watch).gave_up, Look().waits(watch)) == (1, [])
    await pool.release(connection)


async def test_dropped(instrument, make_pool):
    """A dropped connection is told at once, and takes its place for good."""
    pool = await make_pool(max_size=1)
    watch = instrument(pool)

    async def careless():
        connection = await pool.acquire()
        await connection.execute("SELECT 1")

    await careless()
    assert Look().kinds() == []  # one look might have met a moment in between
    look = Look()
    (finding,) = look.process.findings
    assert (finding.kind, finding.severity) == ("leaked.collected", "critical")
    assert finding.sites[0].function == "careless"
    (hold,) = look.holds(watch)
    assert (hold.verdict, hold.statement) == ("leaked", "SELECT ?")
    waiter = asyncio.create_task(_take(pool))
    await until_async(lambda: Look().waits(watch))
    (empty,) = [each for each in Look().process.findings if each.kind == "exhausted"]
    assert "careless" in empty.proof or "test_asyncpg_pool.py" in empty.proof
    pool.terminate()
    counters = Look().counters(watch)
    assert (counters.collected, counters.leaked, counters.checkins) == (1, 1, 1)
    waiter.cancel()


@pytest.mark.parametrize("setting", [True, False])
async def test_a_proof_that_is_not_wanted(instrument, make_pool, setting):
    """``prove_dropped=False`` looks at no reference."""
    pool = await make_pool()
    watch = instrument(pool, prove_dropped=setting)
    await _take(pool)
    assert verdicts(watch) == ["leaked" if setting else "ok"]


async def _take(pool):
    return await pool.acquire()


async def test_an_exception_that_is_dropped_with_it(instrument, make_pool):
    """A connection kept by a traceback is out as long as that is there."""
    pool = await make_pool()
    watch = instrument(pool)

    async def fails():
        connection = await pool.acquire()
        raise LookupError(connection.is_closed())

    try:
        await fails()
    except LookupError as error:
        kept = error
    assert verdicts(watch) == ["ok"]
    del kept
    gc.collect()
    assert verdicts(watch) == ["leaked"]


async def test_who_listens_has_not_dropped_it(instrument, make_pool):
    """A connection that is there for its listeners is in use, though nobody has it."""
    pool = await make_pool()
    watch = instrument(pool)
    heard = []

    async def listen():
        connection = await pool.acquire()
        await connection.add_listener("news", lambda *given: heard.append(given))

    await listen()
    assert verdicts(watch) == ["ok"]
    await pool.execute("NOTIFY news")
    await until_async(lambda: heard)
    with pytest.warns(asyncpg.InterfaceWarning):
        await pool.release(heard[0][0])
    assert Look().holds(watch) == []


class Events:
    """A service in a global, whose listener keeps its connection."""

    async def listen(self, pool):
        self.connection = await pool.acquire()
        await self.connection.add_listener("news", self.hear)

    def hear(self, *given): ...


EVENTS = Events()


async def test_who_listens_uses_it(instrument, make_pool):
    """... until the listener is removed: then the global is all that has it."""
    pool = await make_pool()
    watch = instrument(pool, long_after=0.001)
    await asyncio.gather(EVENTS.listen(pool))
    assert verdicts(watch) == ["long"]
    (hold,) = Look().holds(watch)
    assert "asyncpg calls a listener for its notifications" in hold.evidence
    await EVENTS.connection.remove_listener("news", EVENTS.hear)
    await until_async(lambda: verdicts(watch) == ["leaked"])
    await pool.release(EVENTS.connection)


async def test_who_listens_over_sqlalchemy(instrument, postgres):
    engine = create_async_engine(postgres.url("asyncpg"))
    watch = instrument(engine, long_after=0.001)

    async def listen():
        EVENTS.connection = await engine.connect()
        raw = await EVENTS.connection.get_raw_connection()
        await raw.driver_connection.add_listener("news", EVENTS.hear)

    await asyncio.gather(listen())
    assert verdicts(watch) == ["long"]
    await EVENTS.connection.close()
    await engine.dispose()


async def test_a_release_that_nobody_awaits(instrument, make_pool):
    """``pool.release(connection)`` without await returns nothing: it is a leak."""
    pool = await make_pool()
    watch = instrument(pool)

    async def hasty():
        connection = await pool.acquire()
        pool.release(connection)

    with pytest.warns(RuntimeWarning, match="never awaited"):
        await hasty()
    assert verdicts(watch) == ["leaked"]


async def test_cancelled_while_it_returns(instrument, make_pool):
    """asyncpg returns the connection all the same: nothing was dropped."""

    async def slow_reset(connection):
        await resume.wait()

    resume = asyncio.Event()
    pool = await make_pool(reset=slow_reset)
    watch = instrument(pool)

    async def handler():
        connection = await pool.acquire()
        held.set()
        await pool.release(connection)

    held = asyncio.Event()
    task = asyncio.create_task(handler())
    await held.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    assert verdicts(watch) == ["ok"]
    resume.set()
    await until_async(lambda: not Look().holds(watch))
    counters = Look().counters(watch)
    assert (counters.collected, counters.checkins) == (0, 1)


_ORPHAN = """
import asyncio, json, sys
import asyncpg, poolwatch

kept = []

async def handler(pool):
    kept.append(await pool.acquire())

async def main():
    async with asyncpg.create_pool(sys.argv[1], min_size=1, max_size=2) as pool:
        watch = poolwatch.instrument(pool)
        await asyncio.create_task(handler(pool), name="handler-1")
        (process,) = poolwatch.snapshot().processes
        (hold,) = process.holds
        print(json.dumps([hold.verdict, hold.evidence, process.findings[0].kind]))
        await pool.release(kept.pop())

asyncio.run(main())
"""


def test_a_task_that_ended_with_it(postgres, socket_dir, tmp_path):
    """The owner is gone and a global keeps the connection: it is orphaned.

    In a process of its own: who keeps it cannot be told for sure in a heap like ours.
    """
    script = tmp_path / "app.py"
    script.write_text(_ORPHAN)
    done = subprocess.run(
        [sys.executable, "-W", "error", script, postgres.dsn],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    verdict, evidence, kind = json.loads(done.stdout)
    assert (verdict, kind) == ("leaked", "leaked.orphaned")
    assert evidence[0] == "task handler-1 checked it out and has ended"
    assert "'kept'" in evidence[1]


@pytest.mark.parametrize("way", ["close", "terminate", "pool.terminate", "killed"])
async def test_a_connection_that_ends_while_it_is_lent(instrument, make_pool, way):
    """The hold ends with its connection, which counts as invalidated and closed."""
    pool = await make_pool()
    watch = instrument(pool)
    connection = await pool.acquire()
    if way == "close":
        await connection.close()
    elif way == "terminate":
        connection.terminate()
    elif way == "pool.terminate":
        pool.terminate()
    else:
        pid = connection.get_server_pid()
        await pool.execute("SELECT pg_terminate_backend($1)", pid)
        await until_async(lambda: not Look().holds(watch))
    assert Look().holds(watch) == []
    counters = Look().counters(watch)
    assert (counters.invalidated, counters.collected) == (1, 0)
    assert counters.closes == 1
    await pool.release(connection)  # as before: there is nothing to do


async def test_an_idle_connection_that_the_server_ends(instrument, make_pool):
    """The pool lets go of it at the next checkout; then it is counted."""
    pool = await make_pool(min_size=0, max_size=1)  # none is replaced by itself
    watch = instrument(pool)
    admin = await make_pool()
    pid = await pool.fetchval("SELECT pg_backend_pid()")
    await admin.execute("SELECT pg_terminate_backend($1)", pid)
    await until_async(lambda: pool.get_size() == 0)
    assert await pool.fetchval("SELECT 1") == 1
    gc.collect()
    counters = Look().counters(watch)
    assert (counters.connects, counters.closes) == (2, 1)


async def test_expired(instrument, make_pool):
    """Expired connections are replaced as they are used; they count at once."""
    pool = await make_pool(min_size=2)
    watch = instrument(pool)
    connection = await pool.acquire()
    await pool.expire_connections()
    assert Look().counters(watch).invalidated == 2
    await pool.release(connection)
    async with pool.acquire(), pool.acquire():  # one alone may always be the same
        pass
    await until_async(lambda: Look().counters(watch).closes == 2)
    assert Look().counters(watch).invalidated == 2


async def test_worn_out(instrument, make_pool):
    """A connection that has served its time is closed, not invalidated."""
    pool = await make_pool(max_queries=1, max_size=1)
    watch = instrument(pool)
    await pool.execute("SELECT 1")
    await pool.execute("SELECT 1")
    counters = Look().counters(watch)
    assert (counters.closes > 0, counters.invalidated) == (True, 0)


async def test_connects_are_measured(instrument, make_pool):
    """Connections are counted with their time from before the pool has any."""
    pool = await make_pool(wait=False)
    watch = instrument(pool)
    await pool
    async with pool.acquire(), pool.acquire():
        found = Look().pool(watch)
        assert (found.counters.connects, found.create_s.count) == (2, 2)
        assert found.create_s.max > 0
        assert all(hold.connection.connect_s for hold in Look().holds(watch))
    await pool.close()
    assert Look().counters(watch).closes == 2


async def test_closed_in_peace(instrument, make_pool):
    """``pool.close()`` waits for holds, as it does."""
    pool = await make_pool()
    watch = instrument(pool)
    connection = await pool.acquire()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    assert len(Look().holds(watch)) == 1
    await pool.release(connection)
    await closing
    assert Look().holds(watch) == []
    with pytest.raises(asyncpg.InterfaceError, match=r"pool is (closing|closed)"):
        await pool.acquire()
    assert Look().waits(watch) == []


async def test_while_it_is_initialised(instrument, make_pool):
    """A pool may be instrumented while it connects for the first time."""

    async def slow(connection):
        connecting.set()
        await go_on.wait()

    connecting, go_on = asyncio.Event(), asyncio.Event()
    pool = await make_pool(wait=False, init=slow)
    initialising = asyncio.ensure_future(_initialised(pool))
    await connecting.wait()
    watch = instrument(pool)
    go_on.set()
    await initialising
    async with pool.acquire() as connection:
        assert await connection.fetchval("SELECT 1") == 1
        assert len(Look().holds(watch)) == 1
    assert Look().holds(watch) == []


async def _initialised(pool):
    return await pool


async def test_statements(instrument, make_pool):
    """The last statement, its place, the time in SQL and idle in a transaction."""
    pool = await make_pool()
    watch = instrument(pool)

    async def asks(connection):
        return await connection.fetchval("SELECT $1::int, 'secret'", 7)

    async with pool.acquire() as connection:
        async with connection.transaction():
            assert await asks(connection) == 7
            (hold,) = Look().holds(watch)
            assert hold.statement == "SELECT $1::int, ?"
            assert "asks" in [frame.function for frame in hold.used]
            assert hold.in_sql_s > 0
            before = hold.in_transaction_idle_s
            await asyncio.sleep(0.002)
            (hold,) = Look().holds(watch)
            assert hold.in_transaction_idle_s > before
        (hold,) = Look().holds(watch)
        after = hold.in_transaction_idle_s
        await asyncio.sleep(0.002)
        (hold,) = Look().holds(watch)
        assert hold.in_transaction_idle_s == after  # it was committed


async def test_a_statement_that_runs(instrument, make_pool):
    """While a statement runs its time counts, and ends when it is cancelled."""
    pool = await make_pool()
    watch = instrument(pool)

    async def sleeps():
        async with pool.acquire() as connection:
            await connection.execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(sleeps())
    await until_async(lambda: any(h.statement for h in Look().holds(watch)))
    (hold,) = Look().holds(watch)
    assert (hold.statement, hold.unused_s) == ("SELECT pg_sleep(?)", 0.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_async(lambda: not Look().holds(watch))
    assert not Look().pool(watch).switched_off


async def test_all_ways_to_send_something(instrument, make_pool):
    """Every part of asyncpg's API goes on working, and what it sends is noted."""
    pool = await make_pool()
    watch = instrument(pool)

    def said():
        return Look().holds(watch)[0].statement

    async with pool.acquire() as connection:
        await connection.execute("CREATE TEMP TABLE t (a int)")
        await connection.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,)])
        assert said() == "INSERT INTO t VALUES ($1)"
        await connection.copy_records_to_table("t", records=[(3,)])
        assert said() == "COPY t FROM STDIN"
        await connection.copy_to_table("t", source=io.BytesIO(b"4\n"))
        assert said().startswith("COPY ")
        out = io.BytesIO()
        await connection.copy_from_query("SELECT a FROM t ORDER BY a", output=out)
        assert out.getvalue() == b"1\n2\n3\n4\n"
        statement = await connection.prepare("SELECT count(*) FROM t")
        assert await statement.fetchval() == 4
        assert said() == "SELECT count(*) FROM t"
        async with connection.transaction():
            rows = [row["a"] async for row in connection.cursor("SELECT a FROM t")]
        assert sorted(rows) == [1, 2, 3, 4]
        assert (await connection.fetchrow("SELECT sum(a) FROM t"))[0] == 10
        await connection.set_type_codec(
            "json", encoder=str, decoder=str, schema="pg_catalog"
        )
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.fetch("SELECT * FROM nowhere")
    assert not Look().pool(watch).switched_off


async def test_handed_over(instrument, make_pool):
    """A connection that another task uses is not orphaned by the end of its taker."""
    pool = await make_pool()
    watch = instrument(pool)

    async def takes():
        return await pool.acquire()

    connection = await asyncio.create_task(takes())
    await connection.execute("SELECT 1")
    (hold,) = Look().holds(watch)
    assert hold.verdict == "ok"
    await pool.release(connection)


class Mine(Pool):
    """A pool of the user's own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.released = []

    async def release(self, connection, **kwargs):
        self.released.append(connection)
        return await super().release(connection, **kwargs)


async def test_a_subclass(instrument, postgres):
    """A subclass keeps its methods and attributes."""
    pool = Mine(
        postgres.dsn,
        min_size=1,
        max_size=1,
        max_queries=50000,
        max_inactive_connection_lifetime=300.0,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
    )
    watch = instrument(pool)
    async with pool:
        connection = await pool.acquire()
        assert len(Look().holds(watch)) == 1
        await pool.release(connection)
        assert pool.released == [connection]
        assert isinstance(pool, Mine)
        poolwatch.uninstrument(pool)
        assert type(pool) is Mine
        assert await pool.fetchval("SELECT 1") == 1


class OwnConnection(asyncpg.Connection):
    """A connection of the user's own, with an attribute."""

    async def fetch(self, query, *args, **kwargs):
        self.asked = query
        return await super().fetch(query, *args, **kwargs)


async def test_a_connection_class(instrument, make_pool):
    """The user's connection class keeps its methods, and its statements are noted."""
    pool = await make_pool(connection_class=OwnConnection)
    watch = instrument(pool)
    async with pool.acquire() as connection:
        await connection.fetch("SELECT 1")
        assert connection.asked == "SELECT 1"
        assert Look().holds(watch)[0].statement == "SELECT ?"


async def test_uninstrument_leaves_nothing(instrument, make_pool):
    """Pool, holders and connections are asyncpg's own again."""
    pool = await make_pool()
    instrument(pool)
    async with pool.acquire():
        pass
    poolwatch.uninstrument(pool)
    assert untouched(pool)
    async with pool.acquire() as connection:
        assert type(connection) is PoolConnectionProxy


async def test_uninstrument_while_a_connection_is_lent(instrument, make_pool):
    """Nothing is left, and what was lent before can still be used and returned."""
    pool = await make_pool()
    instrument(pool)
    connection = await pool.acquire()
    poolwatch.uninstrument()
    assert untouched(pool)
    assert await connection.fetchval("SELECT 1") == 1
    await pool.release(connection)
    await pool.release(connection)  # again: as asyncpg allows
    assert untouched(pool)


async def test_uninstrument_while_somebody_waits(instrument, make_pool):
    """Who waits gets his connection, and nothing is put on the pool again."""
    pool = await make_pool(max_size=1)
    watch = instrument(pool)
    connection = await pool.acquire()
    waiter = asyncio.create_task(_take(pool))
    await until_async(lambda: Look().waits(watch))
    poolwatch.uninstrument(pool)
    await pool.release(connection)
    await pool.release(await waiter)
    assert untouched(pool)


async def test_instrumented_anew_while_a_connection_is_lent(instrument, make_pool):
    """What was lent under the first watch does not disturb the second one."""
    pool = await make_pool()
    instrument(pool)
    old = await pool.acquire()
    poolwatch.uninstrument(pool)
    watch = instrument(pool)
    new = await pool.acquire()
    assert len(Look().holds(watch)) == 1
    await pool.release(old)
    assert await new.fetchval("SELECT 1") == 1
    assert len(Look().holds(watch)) == 1
    await pool.release(new)
    assert Look().holds(watch) == []
    poolwatch.uninstrument(pool)
    assert untouched(pool)


async def test_every_pool(instrument, make_pool):
    """Without a target, pools that exist and pools to come are watched."""
    before = await make_pool()
    instrument()
    after = await make_pool()
    async with before.acquire(), after.acquire():
        assert len({hold.pool for hold in Look().process.holds}) == 2
    poolwatch.uninstrument()
    assert untouched(before)
    assert untouched(after)


async def test_a_pool_that_is_gone(instrument, make_pool):
    """A pool that was collected is forgotten, with what it has lent."""
    pool = asyncpg.create_pool("postgresql://nobody@localhost/x", min_size=0)
    watch = instrument(pool)
    assert watch._pool_id in agent.ledger.pools
    del pool
    gc.collect()
    assert watch._pool_id not in agent.ledger.pools


async def test_a_used_pool_that_is_gone(instrument, postgres):
    """Nothing of ours keeps a pool alive that was used, and lost a connection."""
    pool = await asyncpg.create_pool(
        postgres.dsn, min_size=1, max_size=2, max_inactive_connection_lifetime=0
    )
    watch = instrument(pool)

    async def drops(pool):
        connection = await pool.acquire()
        await connection.execute("SELECT 1")

    await drops(pool)
    await pool.execute("SELECT 1")
    pool.terminate()
    assert watch._pool_id in agent.ledger.pools
    del pool
    gc.collect()
    assert watch._pool_id not in agent.ledger.pools


async def test_a_hook_that_fails(instrument, make_pool, monkeypatch, caplog):
    """The pool goes on, and it is said once."""

    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(agent.sites, "capture", fail)
    pool = await make_pool()
    watch = instrument(pool)
    async with pool.acquire() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert await pool.fetchval("SELECT 1") == 1
    assert Look().pool(watch).switched_off
    assert caplog.text.count("poolwatch failed on pool 'postgres'") == 1


async def test_setup_that_fails(instrument, make_pool):
    """A checkout that the application's own callback prevents is no hold."""

    async def refuse(connection):
        raise LookupError

    pool = await make_pool(setup=refuse)
    watch = instrument(pool)
    with pytest.raises(LookupError):
        await pool.acquire()
    assert (Look().holds(watch), Look().waits(watch)) == ([], [])


async def test_the_server_view_connects_as_the_pool_does(instrument, postgres_tcp):
    """By a synchronous driver, from a DSN or from keywords."""
    pool = asyncpg.create_pool(postgres_tcp.dsn, min_size=0)
    words = asyncpg.create_pool(
        host=postgres_tcp.host,
        port=postgres_tcp.port,
        user="postgres",
        database="postgres",
        min_size=0,
    )
    for each in (pool, words):
        book = agent.ledger.pools[instrument(each)._pool_id]
        connection = book.server_connect()
        cursor = connection.cursor()
        cursor.execute("SELECT current_user")
        assert cursor.fetchone() == ("postgres",)
        connection.close()


@pytest.mark.parametrize(
    ("dsn", "words", "shown"),
    [
        (
            "postgres://me:s3cret@db:6432/orders?sslmode=require",
            {},
            "postgresql://me:***@db:6432/orders?sslmode=require",
        ),
        (
            None,
            {"user": "me", "password": "s3cret", "host": ["a", "b"], "port": [1, 2]},
            "postgresql://me:***@/?host=a,b&port=1,2",
        ),
        (
            "postgresql://me@/orders?host=/run/pg&password=s3cret",
            {"database": "other", "password": lambda: "s3cret"},
            "postgresql://me:***@/other?host=/run/pg",
        ),
        ("postgresql://[::1]:5432/orders", {}, "postgresql://[::1]:5432/orders"),
        (None, {}, "postgresql:///"),
    ],
)
async def test_urls(instrument, dsn, words, shown):
    """The URL says where, and never the password."""
    pool = asyncpg.create_pool(dsn, min_size=0, **words)
    watch = instrument(pool)
    found = Look().pool(watch)
    assert found.url == shown
    assert "s3cret" not in repr(Look().process)


async def test_many_tasks(instrument, make_pool):
    """Under load everything that was taken comes back, and none is mixed up."""
    pool = await make_pool(min_size=2, max_size=4)
    watch = instrument(pool)

    async def work(number):
        async with pool.acquire() as connection:
            return await connection.fetchval("SELECT $1::int", number)

    assert await asyncio.gather(*map(work, range(200))) == list(range(200))
    found = Look().pool(watch)
    assert (found.counters.checkouts, found.counters.checkins) == (200, 200)
    assert (found.checked_out, found.idle) == (0, 4)
    assert not found.switched_off
