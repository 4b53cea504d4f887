"""What is peculiar to psycopg2's pools; the rest is in the contract."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import threading
import weakref

import greenlet
import psycopg2.extras
import pytest
from fix_core import Look
from psycopg2.pool import (
    AbstractConnectionPool,
    PoolError,
    SimpleConnectionPool,
    ThreadedConnectionPool,
)
from sqlalchemy import create_engine, text

import poolwatch
from poolwatch.adapters.psycopg2_pool.hooks import Psycopg2Hooks
from poolwatch.agent.instrument import agent
from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource


@pytest.fixture
def make(postgres):
    """Makes pools: ``make(minconn=1, maxconn=2)``."""
    pools = []

    def make(kind=ThreadedConnectionPool, minconn=1, maxconn=2, **keywords):
        pools.append(kind(minconn, maxconn, postgres.dsn, **keywords))
        return pools[-1]

    make.pools = pools
    yield make
    for pool in pools:
        if not pool.closed:
            pool.closeall()


@pytest.fixture
def pool(make):
    return make()


def dropped(watch):
    """Look twice, as it takes; returns the verdicts of what is out."""
    Look()
    return [hold.verdict for hold in Look().holds(watch)]


def test_the_options_of_a_subclass_are_those_of_the_library(make):
    class TenantPool(ThreadedConnectionPool):
        pass

    poolwatch.instrument(make(TenantPool))
    (stats,) = poolwatch.snapshot().processes[0].pools
    assert (stats.kind, stats.extends) == ("TenantPool", "ThreadedConnectionPool")


# -- keys ----------------------------------------------------------------------------


def test_the_same_key_twice(pool, instrument):
    """That is the connection that is out already: one hold."""
    watch = instrument(pool)
    connection = pool.getconn("orders")
    assert pool.getconn(key="orders") is connection
    assert Look().kinds() == []  # not nested
    assert Look().counters(watch).checkouts == 1
    assert Look().waits(watch) == []
    pool.putconn(connection, "orders")
    assert Look().pool(watch).checked_out == 0
    assert pool.getconn("orders") is connection
    assert Look().counters(watch).checkouts == 2
    pool.putconn(connection, key="orders")


def test_an_interrupt_when_a_key_is_used_again(pool, instrument, monkeypatch):
    """What is out under the key stays out: its holder goes on with it."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Psycopg2Hooks, "_key_reused", interrupt)
    watch = instrument(pool)
    connection = pool.getconn("orders")
    with pytest.raises(KeyboardInterrupt):
        pool.getconn("orders")
    assert pool.getconn("others") is not connection
    assert len(Look().holds(watch)) == 2


def test_a_key_is_a_way_back(pool, instrument):
    """Who knows the key can return a connection that he has no reference to."""
    watch = instrument(pool)
    pool.getconn("orders").cursor().execute("select 1")
    assert dropped(watch) == ["ok"]
    pool.putconn(pool.getconn("orders"), "orders")
    assert Look().counters(watch).leaked == 0


def test_a_connection_of_somebody_else(pool, make, instrument, postgres):
    """It is refused as without us, and what is out stays out."""
    watch = instrument(pool)
    mine, stranger = pool.getconn(), postgres.connect()
    with pytest.raises(PoolError, match="unkeyed"):
        pool.putconn(stranger)
    with pytest.raises(KeyError):
        pool.putconn(mine, key="another")
    assert len(Look().holds(watch)) == 1
    stranger.close()
    pool.putconn(mine)
    assert Look().pool(watch).checked_out == 0


class PerThread(AbstractConnectionPool):
    """As in psycopg2 once: a connection for each thread, and its own way to return."""

    def getconn(self):
        return self._getconn(threading.get_ident())

    def putconn(self, conn=None, close=False):
        key = threading.get_ident()
        self._putconn(self._used[key] if conn is None else conn, key, close)

    closeall = AbstractConnectionPool._closeall


def test_a_pool_of_the_users_own(make, instrument):
    """It may know by itself what is returned."""
    pool = make(PerThread)
    watch = instrument(pool)
    pool.getconn()
    assert len(Look().holds(watch)) == 1
    pool.putconn()
    stats = Look().pool(watch)
    assert (stats.kind, stats.checked_out, stats.counters.checkins) == (
        "PerThread",
        0,
        1,
    )


# -- dropped -------------------------------------------------------------------------


def test_what_is_said_of_a_dropped_one(pool, instrument, caplog, watchdog):
    """It is out, and nobody can return it: the slot is lost, and that is said once."""
    watch = instrument(pool, name="orders")

    def forgetful():
        pool.getconn().cursor().execute("select 1")

    forgetful()
    assert dropped(watch) == ["leaked"]
    (hold,) = Look().holds(watch)
    assert hold.evidence[-1].startswith("only the pool refers to it")
    (finding,) = Look().process.findings
    assert (finding.kind, finding.severity) == ("leaked.collected", "critical")
    assert (finding.holds, finding.sites) == ((hold.id,), (hold.site,))
    assert hold.site.function == "forgetful"
    assert "putconn" in finding.remedy
    with caplog.at_level(logging.WARNING, "poolwatch"):
        watchdog.tick()
        watchdog.tick()
    assert caplog.text.count("leak on pool 'orders'") == 1
    assert Look().counters(watch).leaked == 1
    pool.closeall()
    assert Look().holds(watch) == []


def test_the_watchdog_finds_it_by_itself(pool, instrument, caplog, watchdog):
    """Nobody has to look."""
    instrument(pool, name="orders", long_after=1000)
    pool.getconn()
    with caplog.at_level(logging.WARNING, "poolwatch"):
        watchdog.tick()
        assert "leak" not in caplog.text
        watchdog.tick()
    assert "leak on pool 'orders'" in caplog.text


def test_nothing_below(pool, instrument):
    """A greenlet may begin with it, as that of ``gevent.spawn(pool.getconn)``."""
    watch = instrument(pool)
    connection = greenlet.greenlet(pool.getconn).switch()
    [hold] = watch.holds()
    assert hold.stack == ()
    assert not Look().pool(watch).switched_off
    pool.putconn(connection)
    assert watch.holds() == ()


@pytest.mark.parametrize("by", ["variable", "cursor", "generator", "closure", "weakly"])
def test_what_somebody_has_is_not_dropped(pool, instrument, by):
    """However he has it."""
    watch = instrument(pool)

    def rows(connection):
        cursor = connection.cursor()
        cursor.execute("select generate_series(1, 3)")
        yield from cursor

    if by == "variable":
        kept = pool.getconn()
    elif by == "cursor":
        kept = pool.getconn().cursor()
    elif by == "generator":
        kept = rows(pool.getconn())
        next(kept)
    elif by == "closure":
        connection = pool.getconn()
        kept = [lambda: connection]
        connection = connection  # noqa: PLW0127
    else:
        kept = weakref.ref(pool.getconn())
    for _ in range(3):
        assert dropped(watch) == ["ok"]
    assert kept is not None


def test_taken_up_again_it_is_no_leak(pool, instrument):
    """Somebody who digs it out of the pool has it again: what was said is not said."""
    watch = instrument(pool)
    pool.getconn()
    assert dropped(watch) == ["leaked"]
    (connection,) = pool._used.values()
    assert [hold.verdict for hold in Look().holds(watch)] == ["ok"]
    pool.putconn(connection)
    assert Look().holds(watch) == []


def test_it_can_be_switched_off(pool, instrument):
    """instrument(pool, prove_dropped=False), also later."""
    watch = instrument(pool, prove_dropped=False)
    pool.getconn()
    assert dropped(watch) == ["ok"]
    instrument(pool, prove_dropped=True)
    assert dropped(watch) == ["leaked"]
    instrument(pool, prove_dropped=False)
    assert dropped(watch) == ["ok"]
    with pytest.raises(TypeError, match="prove_dropped must be True or False"):
        instrument(pool, prove_dropped="no")


def test_no_leaks_names_it(pool, instrument):
    """A block that loses a connection leaks it."""
    with pytest.raises(poolwatch.PoolLeakError) as caught, poolwatch.no_leaks(pool):
        pool.getconn()
    (leak,) = caught.value.leaks
    assert leak.site.function == "test_no_leaks_names_it"


# -- what the library does stays what it is --------------------------------------------


def test_the_connection_is_the_drivers_own(pool, instrument):
    """psycopg2's functions in C take no stand-in."""
    instrument(pool)
    connection = pool.getconn()
    assert type(connection) is psycopg2.extensions.connection
    psycopg2.extras.register_uuid(conn_or_curs=connection)
    psycopg2.extensions.register_type(psycopg2.extensions.UNICODE, connection)
    with connection.cursor() as cursor:
        cursor.execute("create temp table numbers (n int)")
        psycopg2.extras.execute_values(
            cursor, "insert into numbers values %s", [(1,), (2,)]
        )
        cursor.execute("select sum(n) from numbers")
        assert cursor.fetchone() == (3,)
    pool.putconn(connection)


def test_a_pool_is_freed_with_its_last_reference(make, instrument, postgres):
    """Without a garbage collection, as without us; and its connections with it."""
    pool = make()
    instrument(pool)
    pool.putconn(pool.getconn())
    gone = weakref.ref(pool)
    (idle,) = [connection.info.backend_pid for connection in pool._pool]
    make.pools.clear()
    del pool
    assert gone() is None
    assert agent.ledger.pools == {}
    alive = f"select count(*) from pg_stat_activity where pid = {idle}"
    for _ in range(1000):
        if postgres.execute(alive) == [(0,)]:
            break
    else:
        pytest.fail("its connection is still open")


def test_methods_taken_off_the_pool(make, instrument):
    """A bound method keeps its pool, as without us; other pools are left alone."""
    pool, other = make(), make()
    watch = instrument(pool)
    getconn = pool.getconn
    reference = weakref.ref(pool)
    make.pools.remove(pool)
    del pool
    connection = getconn()
    assert len(Look().holds(watch)) == 1
    reference().putconn(connection)
    assert Look().holds(watch) == []
    other.putconn(other.getconn())
    assert len(Look().process.pools) == 1
    reference().closeall()


def test_the_classes_are_shared(make, instrument):
    """As long as one pool of a class needs it, the other ones may come and go."""
    plain = dict(ThreadedConnectionPool.__dict__), dict(AbstractConnectionPool.__dict__)
    first, second = make(), make()
    one, two = instrument(first), instrument(second)
    poolwatch.uninstrument(first)
    assert set(agent.ledger.pools) == {two._pool_id}
    first.putconn(first.getconn())
    second.putconn(second.getconn())
    assert Look().counters(two).checkouts == 1
    assert one.holds() == ()
    poolwatch.uninstrument(second)
    now = dict(ThreadedConnectionPool.__dict__), dict(AbstractConnectionPool.__dict__)
    assert now == plain


def test_a_pool_looks_as_before(pool, instrument):
    """Its class, and the signatures of its methods."""
    signature = inspect.signature(pool.getconn)
    instrument(pool)
    assert type(pool) is ThreadedConnectionPool
    assert inspect.signature(pool.getconn) == signature


def test_below_another_wrapper(make, instrument, monkeypatch):
    """Somebody has wrapped the method after us: ours sleeps below, and wakes again."""
    pool = make()
    instrument(pool)
    ours = ThreadedConnectionPool.getconn
    calls = []

    def theirs(pool, *args):
        calls.append(args)
        return ours(pool, *args)

    theirs.__wrapped__ = ours
    monkeypatch.setattr(ThreadedConnectionPool, "getconn", theirs)
    poolwatch.uninstrument(pool)
    assert ThreadedConnectionPool.getconn is theirs
    pool.putconn(pool.getconn())
    watch = instrument(pool)
    pool.putconn(pool.getconn())
    assert Look().counters(watch).checkouts == 1
    assert len(calls) == 2
    poolwatch.uninstrument(pool)
    monkeypatch.undo()
    ThreadedConnectionPool.getconn = ours.__wrapped__


# -- connections ---------------------------------------------------------------------


def test_what_is_opened_and_closed(make, instrument):
    """A pool keeps minconn connections: one more is closed when it comes back."""
    pool = make(minconn=1, maxconn=3)
    watch = instrument(pool)
    two = pool.getconn(), pool.getconn()
    counters = Look().counters(watch)
    assert (counters.connects, counters.closes) == (1, 0)
    for connection in two:
        pool.putconn(connection)
    stats = Look().pool(watch)
    assert (stats.counters.connects, stats.counters.closes) == (1, 1)
    assert (stats.counters.invalidated, stats.idle, stats.size) == (0, 1, 3)
    assert stats.create_s.count == 1
    assert len(agent.ledger.pools[watch._pool_id].connections) == 1


def test_the_first_connections(make, instrument):
    """Those that the pool makes as it is made are counted, if every pool is watched."""
    instrument()
    pool = make(minconn=2)
    pool_id = agent.pools.id_of(pool)
    (stats,) = [each for each in Look().process.pools if each.id == pool_id]
    assert (stats.counters.connects, stats.create_s.count) == (2, 2)
    connection = pool.getconn()
    (hold,) = Look().process.holds
    assert hold.connection.connect_s is not None
    pool.putconn(connection)


def test_a_pool_that_cannot_be_made(make, instrument):
    """Its error is the library's, and nothing is left of it."""
    instrument()
    with pytest.raises(psycopg2.OperationalError):
        ThreadedConnectionPool(1, 2, "host=/nonexistent dbname=x")
    assert all(book.name != "x" for book in agent.ledger.pools.values())


def test_closed_with_some_out(pool, instrument):
    """closeall() closes what is out, too: its hold ends, and returning it is refused
    as without us."""
    watch = instrument(pool)
    connection = pool.getconn()
    pool.closeall()
    counters = Look().counters(watch)
    assert (counters.checkins, counters.closes) == (1, 1)
    with pytest.raises(PoolError, match="closed"):
        pool.putconn(connection)
    with pytest.raises(PoolError, match="closed") as caught:
        pool.getconn()
    assert not getattr(caught.value, "__notes__", [])
    assert Look().counters(watch) == counters


def test_the_server_does_not_answer(make, instrument):
    """No connection can be made: that is no timeout of the pool."""
    pool = make(minconn=0)
    pool._args = ("host=/nonexistent dbname=x",)
    watch = instrument(pool)
    with pytest.raises(psycopg2.OperationalError):
        pool.getconn()
    stats = Look().pool(watch)
    assert (stats.counters.timeouts, stats.waiting, stats.checked_out) == (0, 0, 0)


# -- where it connects to --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "keywords", "name", "url"),
    [
        (
            ["postgresql://me:hunter2@db:6432/shop?sslmode=require"],
            {},
            "shop",
            "postgresql://me:***@db:6432/shop?sslmode=require",
        ),
        (
            ["host=db user=me password=hunter2 dbname=shop"],
            {"port": 6432, "sslpassword": "hunter2"},
            "shop",
            "postgresql://me:***@db:6432/shop?sslpassword=***",
        ),
        (
            [],
            {"host": "/run/keys", "database": "shop", "password": "hunter2"},
            "shop",
            "postgresql://:***@/shop?host=/run/keys",
        ),
        (
            [],
            {"dsn": "user=me options='-c my.token=hunter2'"},
            "me",
            "postgresql://me@/?options=***",
        ),
        ([], {"dsn": "this is=no dsn"}, "SimpleConnectionPool", "postgresql:///"),
    ],
)
def test_the_url(instrument, monkeypatch, given, keywords, name, url):
    """What the pool was made with, in one form, without its secrets."""
    monkeypatch.delenv("PGDATABASE", raising=False)
    pool = SimpleConnectionPool(0, 1, *given, **keywords)
    watch = instrument(pool)
    stats = Look().pool(watch)
    assert (stats.name, stats.url) == (name, url)


def test_the_server_view(make, instrument, postgres):
    """The agent reads the server over a plain connection of its own."""
    pool = make(connection_factory=psycopg2.extras.LoggingConnection, minconn=0)
    watch = instrument(pool)
    connect = agent.ledger.pools[watch._pool_id].server_connect
    connection = connect()
    assert type(connection) is psycopg2.extensions.connection
    assert connection.info.dsn_parameters["connect_timeout"] == "3"
    connection.close()
    assert Look().counters(watch).connects == 0


def test_the_servers_side_of_a_hold(make, instrument, postgres, socket_dir):
    """Also over a Unix socket, of a connection that was there before us: nobody knows
    its age, but the server of that very address does know its pid."""
    pool = make(minconn=1)
    instrument(pool)
    early = pool.getconn()
    late = pool.getconn()
    early.cursor().execute("select 1")
    source = LiveSource(Client(socket_dir), environ={})
    try:
        (process,) = source.snapshot().processes
    finally:
        source.close()
    assert [hold.connection.met for hold in process.holds] == [True, False]
    assert [hold.server.state for hold in process.holds] == [
        "idle in transaction",
        "idle",
    ]
    for connection in (early, late):
        pool.putconn(connection)


# -- with SQLAlchemy on top ------------------------------------------------------------


def test_below_an_engine(pool, instrument, postgres):
    """create_engine(creator=pool.getconn): one hold, and both counts are right."""
    below = instrument(pool)
    engine = create_engine("postgresql+psycopg2://", creator=pool.getconn, pool_size=1)
    above = instrument(engine)
    with engine.connect() as connection:
        assert connection.execute(text("select 1")).scalar() == 1
        look = Look()
        assert (len(look.holds(below)), len(look.holds(above))) == (0, 1)
        assert look.pool(below).checked_out == look.pool(above).checked_out == 1
    look = Look()
    assert look.process.holds == ()
    assert look.pool(below).checked_out == 1  # the engine's pool has it
    engine.dispose()
    poolwatch.uninstrument(engine)


def test_it_is_not_loaded_by_us():
    """Neither the library nor its adapter, until the application loads the library."""
    code = """
import sys, poolwatch
from importlib.util import find_spec
poolwatch.instrument()
assert not {"psycopg2", "sqlalchemy", "psycopg_pool", "asyncpg"} & set(sys.modules)
assert "poolwatch.adapters.psycopg2_pool.pools" not in sys.modules
assert find_spec("psycopg2.pool")  # as one looks whether it is there: not loaded yet
import psycopg2.pool
pool = psycopg2.pool.SimpleConnectionPool(0, 1, "dbname=x")
assert [p.name for p in poolwatch.snapshot().processes[0].pools] == ["x"]
assert "sqlalchemy" not in sys.modules
finders = len(sys.meta_path)
poolwatch.uninstrument()
assert len(sys.meta_path) < finders
assert not [f for f in sys.meta_path if type(f).__module__.startswith("poolwatch")]
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "POOLWATCH_DIR": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("password", ["a@s3cret", "a/s3cret"])
def test_a_password_that_is_not_escaped(instrument, password):
    pool = ThreadedConnectionPool(0, 1, f"postgresql://bob:{password}@127.0.0.1:1/shop")
    instrument(pool)
    (seen,) = poolwatch.snapshot().processes[0].pools
    assert "s3cret" not in f"{seen.name} {seen.url}"
