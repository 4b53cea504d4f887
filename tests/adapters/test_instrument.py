"""instrument() and uninstrument(): what they accept, and that nothing is left."""

from __future__ import annotations

import contextlib
import enum
import functools
import gc
import inspect
import json
import math
import sqlite3
import sys
import threading
import time
import weakref
from unittest import mock

import pytest
from fix_core import Look, book_of, null_pool_of
from helpers import until
from sqlalchemy import create_engine, event, text
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool

import poolwatch
from poolwatch.agent.instrument import agent
from poolwatch.ledger.pool import PoolLedger
from poolwatch.protocol import document as wire

plugins.register("poolwatch", "poolwatch.agent.engine_plugin", "PoolwatchPlugin")


def listeners_of(engine):
    """Every listener on an engine, its dialect and its pool, by event."""
    return {
        (where, name): list(getattr(dispatch, name))
        for where, dispatch in (
            ("engine", engine.dispatch),
            ("dialect", engine.dialect.dispatch),
            ("pool", engine.pool.dispatch),
        )
        for name in dispatch._event_names
    }


# -- what is accepted --------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["postgresql://", 7, object(), sqlite3.connect, QueuePool, [None]]
)
def test_an_unknown_target(instrument, target):
    """Something that is no pool is refused with the list of what is accepted."""
    for call in (instrument, poolwatch.uninstrument):
        with pytest.raises(TypeError, match="Engine, AsyncEngine or Pool, a psycopg2"):
            call(target)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"name": ""}, TypeError, "name must be a non-empty string"),
        ({"name": 3}, TypeError, "name must be a non-empty string"),
        ({"long_after": "30"}, TypeError, "long_after must be seconds"),
        ({"long_after": True}, TypeError, "long_after must be seconds"),
        ({"long_after": 0}, ValueError, "more than 0 seconds"),
        ({"long_after": -1.5}, ValueError, "more than 0 seconds"),
        ({"long_after": math.nan}, ValueError, "more than 0 seconds"),
        ({"server_view": 1}, TypeError, "server_view must be True or False"),
    ],
)
def test_a_wrong_setting(instrument, sqlite, settings, error, said):
    """A wrong setting is refused at the door, and nothing is instrumented."""
    engine = sqlite()
    with pytest.raises(error, match=said):
        instrument(engine, **settings)
    assert "connect" not in engine.pool.__dict__


@pytest.mark.parametrize("endless", [math.inf, 10**400])
def test_never_long(instrument, sqlite, endless):
    """long_after may be infinite, and the document is JSON all the same."""
    from poolwatch.protocol import document as wire

    engine = sqlite()
    instrument(engine, long_after=endless)
    with engine.connect():
        document = wire.to_json(poolwatch.snapshot(), viewers=True)
    assert wire.from_json(document).processes[0].pools[0].long_after_s >= 1e9


def test_a_name_that_is_no_plain_text(instrument, sqlite):
    """A name may be a member of an enum of texts."""
    from poolwatch.protocol import document as wire

    class Name(enum.StrEnum):
        ORDERS = "orders"

    engine = sqlite()
    instrument(engine, name=Name.ORDERS)
    document = json.loads(wire.to_json(poolwatch.snapshot()))
    assert document["processes"][0]["pools"][0]["name"] == "orders"


def test_settings_are_keyword_only(instrument, sqlite):
    """A setting by position is an error: its meaning could not be read."""
    with pytest.raises(TypeError):
        instrument(sqlite(), "orders")


def test_instrumenting_twice_is_once(instrument, sqlite):
    """A second call changes the settings and nothing else."""
    engine = sqlite()
    first = instrument(engine)
    listeners, attributes = listeners_of(engine), dict(engine.pool.__dict__)
    second = instrument(engine.pool, name="orders", long_after=3, server_view=False)
    assert first._pool_id == second._pool_id
    assert (listeners_of(engine), engine.pool.__dict__) == (listeners, attributes)
    (pool,) = Look().process.pools
    assert (pool.name, pool.long_after_s) == ("orders", 3)
    assert agent.ledger.pools[pool.id].server_view is False
    engine.connect().close()
    assert Look().counters(second).checkouts == 1


def test_every_engine(instrument, sqlite):
    """Without a target: engines that exist and engines to come; those instrumented by
    themselves keep their own settings."""
    before, own = sqlite(), sqlite()
    watch = instrument(own, name="own", long_after=5)
    every = instrument(long_after=9)
    after = sqlite()
    for engine in (before, own, after):
        with engine.connect():
            assert len(every.holds()) == 1
    pools = {pool.id: pool for pool in Look().process.pools}
    assert pools[watch._pool_id].name == "own"
    assert [p.long_after_s for p in pools.values() if p.name != "own"].count(9.0) >= 2
    assert Look().counters(watch).checkouts == 1
    poolwatch.uninstrument()
    for engine in (before, own, after, sqlite()):
        assert "connect" not in engine.pool.__dict__


def test_every_engine_is_watched_when_the_last_one_is_released(instrument, sqlite):
    """uninstrument(engine) of the only engine does not end instrument() for others."""
    instrument()
    first = sqlite()
    for engine in [e for e in gc.get_objects() if type(e) is type(first)]:
        poolwatch.uninstrument(engine)
    for library in agent.pools._loaded_adapters():  # what other tests have left alive
        for hooks in list(library._hooks.values()):
            library._remove_hooks(hooks.ledger.id)
    assert agent.ledger.pools == {}
    second = sqlite()
    with second.connect():
        assert len(Look().process.holds) == 1
        assert agent._server is not None


async def test_async_engine(instrument, tmp_path):
    """An AsyncEngine and its sync engine are one target."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    watch = instrument(engine)
    assert instrument(engine.sync_engine)._pool_id == watch._pool_id
    assert instrument(engine.execution_options(x=1))._pool_id == watch._pool_id
    poolwatch.uninstrument(engine)
    assert "connect" not in engine.pool.__dict__


@pytest.mark.parametrize("how", ["plugins", "url", "async"])
def test_the_plugin(instrument, tmp_path, how):
    """plugins=["poolwatch"] and ?plugin=poolwatch instrument the engine; its settings
    come from the URL and never reach the driver."""
    address = f"{tmp_path}/p.db?poolwatch_name=orders&poolwatch_long_after=7"
    if how == "plugins":
        engine = create_engine(f"sqlite:///{address}", plugins=["poolwatch"])
        engine.connect().close()
    elif how == "url":
        engine = create_engine(f"sqlite:///{address}&plugin=poolwatch")
        engine.connect().close()
    else:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{address}", plugins=["poolwatch"]
        )
    (pool,) = Look().process.pools
    assert (pool.name, pool.long_after_s) == ("orders", 7)
    assert "poolwatch" not in str(engine.url)
    if how != "async":
        assert pool.counters.checkouts == 0 or pool.counters.checkouts == 1
        engine.dispose()


def test_a_wrong_setting_in_the_url(instrument, tmp_path, caplog):
    """A wrong setting in the URL is a log line: the application gets its engine."""
    engine = create_engine(
        f"sqlite:///{tmp_path}/p.db?poolwatch_long_after=soon", plugins=["poolwatch"]
    )
    assert "soon" in caplog.text
    assert "connect" in engine.pool.__dict__


def test_disabled(instrument, sqlite, monkeypatch):
    """POOLWATCH_DISABLE=1 makes instrument() do nothing, but wrong targets are told."""
    monkeypatch.setenv("POOLWATCH_DISABLE", "1")
    engine = sqlite()
    watch = instrument(engine)
    instrument()
    assert "connect" not in engine.pool.__dict__
    assert "connect" not in sqlite().pool.__dict__
    assert watch.holds() == ()
    with pytest.raises(TypeError):
        instrument(3)


def test_a_password_is_hidden(instrument):
    """Neither the password nor a secret in the query is in what a snapshot says."""
    engine = create_engine(
        "postgresql+psycopg2://me:hunter2@h/d?sslpassword=hunter3"
        "&options=-c%20my.token%3Dhunter4"
    )
    watch = instrument(engine)
    assert "hunter" not in repr(Look().process)
    assert Look().pool(watch).name == "d"


# -- nothing is left -----------------------------------------------------------------


def test_nothing_is_left_behind(instrument, sqlite, socket_dir):
    """uninstrument() leaves no listener, wrapper, attribute, thread or socket, also
    after dispose() and on a pool that dispose() has replaced."""
    engine = sqlite()
    engine.connect().close()  # SQLAlchemy's own first-connect listeners have run
    old = engine.pool
    plain = dict(old.__dict__), listeners_of(engine), set(threading.enumerate())
    instrument(engine)
    held = engine.connect()
    held.execute(text("select 1"))
    assert len(list(socket_dir.iterdir())) == 1
    assert any(t.name == "poolwatch" for t in threading.enumerate())
    engine.dispose()
    held.close()
    poolwatch.uninstrument(engine)
    assert listeners_of(engine) == plain[1]
    assert set(old.__dict__) == set(plain[0])
    assert set(engine.pool.__dict__) == set(plain[0])
    assert set(threading.enumerate()) == plain[2]
    assert list(socket_dir.iterdir()) == []
    for where in (engine.pool.dispatch, engine.dispatch, engine.dialect.dispatch):
        for name in where._event_names:
            kept = getattr(getattr(where, name), "listeners", ())
            assert type(kept).__module__ in ("builtins", "collections"), name
    poolwatch.uninstrument(engine)  # again: nothing to do
    old.dispose()


def test_it_can_be_instrumented_again(instrument, sqlite, socket_dir):
    """After uninstrument() a new instrument() begins at zero, and listens again also
    for threads that were met before."""
    engine = sqlite()
    instrument(engine)
    engine.connect().close()
    for _ in range(3):
        poolwatch.uninstrument(engine)
        watch = instrument(engine)
        engine.connect().close()
        assert Look().counters(watch).checkouts == 1
        assert len(list(socket_dir.iterdir())) == 1


def test_a_hold_that_is_out_at_uninstrument(instrument, sqlite):
    """A connection taken before uninstrument() goes back unnoticed, also into a later
    watch."""
    engine = sqlite()
    instrument(engine)
    held = engine.connect()
    poolwatch.uninstrument(engine)
    watch = instrument(engine)
    held.close()
    assert Look().counters(watch).checkins == 0
    assert Look().holds(watch) == []


class Counting(QueuePool):
    """A pool that does something of its own at each return."""

    returns = 0

    def _return_conn(self, record):
        self.returns += 1
        super()._return_conn(record)


def test_a_return_of_its_own(instrument, sqlite):
    """What a pool does when a connection comes back, it does once, hooked or not."""
    engine = sqlite(poolclass=Counting)
    instrument(engine)
    pool, book = engine.pool, book_of(engine)
    for _ in range(3):
        with engine.connect():
            assert len(book.open_holds()) == 1
        assert book.open_holds() == []
    assert pool.returns == 3
    poolwatch.uninstrument(engine)
    assert not {"connect", "_return_conn", "recreate"} & vars(pool).keys()
    engine.connect().close()
    assert pool.returns == 4


def test_interrupted_at_a_return(instrument, sqlite, monkeypatch):
    """Ctrl-C while we note it: the connection is back in its pool all the same."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PoolLedger, "end", interrupted)
    engine = sqlite(pool_size=1, max_overflow=0, pool_timeout=0.01)
    instrument(engine)
    book, lent = book_of(engine), engine.raw_connection()
    with pytest.raises(KeyboardInterrupt):
        lent.close()
    assert engine.pool.checkedin() == 1
    assert not book.switched_off()


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
@pytest.mark.parametrize("wraps", [True, False])
def test_another_tools_wrapper(instrument, sqlite, order, wraps):
    """A wrapper of another tool around pool.connect stays, whoever came first, and is
    called once per checkout."""
    engine = sqlite()
    calls = []

    def wrap(pool):
        inner = pool.connect

        def connect():
            calls.append(1)
            return inner()

        if wraps:
            connect = functools.wraps(inner)(connect)
        pool.connect = connect
        return connect

    if order == "theirs first":
        theirs = wrap(engine.pool)
        watch = instrument(engine)
    else:
        instrument(engine)
        theirs = wrap(engine.pool)
        watch = instrument(engine)
    engine.connect().close()
    assert calls == [1]
    assert Look().counters(watch).checkouts == 1
    poolwatch.uninstrument(engine)
    assert engine.pool.__dict__["connect"] is theirs
    engine.connect().close()
    assert calls == [1, 1]


@pytest.mark.parametrize("other_listener", [True, False])
def test_in_the_middle_of_traffic(instrument, sqlite, other_listener):  # noqa: C901
    """instrument() and uninstrument() while 16 threads hammer the pool: no exception
    reaches them, and afterwards the counters add up."""
    engine = sqlite(pool_size=16, connect_args={"check_same_thread": False})
    pool = engine.pool
    if other_listener:
        for name in ("checkin", "connect", "reset", "checkout", "invalidate"):
            event.listen(pool, name, lambda *_: time.sleep(0))
    errors = []
    stop = threading.Event()

    def hammer():
        try:
            while not stop.is_set():
                engine.raw_connection().close()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=hammer) for _ in range(16)]
    try:
        for thread in threads:
            thread.start()
        for round_ in range(60):
            instrument(engine if round_ % 2 else pool)
            time.sleep(0.002)
            poolwatch.uninstrument(pool)
        watch = instrument(engine)
        until(lambda: Look().counters(watch).checkouts)
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert errors == []
    assert [t.name for t in threading.enumerate()].count("poolwatch") == 1
    counters = Look().counters(watch)
    assert counters.checkouts == counters.checkins > 0
    assert Look().holds(watch) == []


@pytest.mark.parametrize("cycle", [False, True])
@pytest.mark.parametrize("disposed", [False, True])
def test_a_dropped_engine_is_forgotten(instrument, tmp_path, cycle, disposed):
    """Nothing of ours keeps an engine or its pool alive, and its books go with it."""
    engine = create_engine(f"sqlite:///{tmp_path}/d.db", poolclass=NullPool)
    instrument(engine)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    if cycle:
        engine.pool.itself = engine
    if disposed:
        engine.dispose()
    gone = [weakref.ref(engine), weakref.ref(engine.pool)]
    del engine, connection
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert agent.ledger.pools == {}
    assert agent.pools._adapters["sqlalchemy"]._hooks == {}


def test_a_dropped_pool_is_forgotten(instrument):
    """The same for a pool without an engine, and for its successors."""
    pool = null_pool_of()
    instrument(pool)
    pool = pool.recreate()
    pool.connect().close()
    pool = pool.recreate()
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert agent.ledger.pools == {}


def test_a_hold_that_outlives_its_engine(instrument, tmp_path):
    """A connection kept by an application that has dropped the engine is still shown."""  # noqa: E501
    engine = create_engine(f"sqlite:///{tmp_path}/o.db", poolclass=QueuePool)
    watch = instrument(engine)
    raw = engine.raw_connection()
    pool = engine.pool
    del engine
    gc.collect()
    assert len(Look().holds(watch)) == 1
    raw.close()
    assert Look().holds(watch) == []
    pool.dispose()


def test_many_rounds_leave_nothing_to_collect(instrument, sqlite):
    """Instrumenting again and again piles up neither finalizers nor listeners."""
    engine = sqlite()
    engine.connect().close()

    def weight():
        return len(weakref.finalize._registry), sum(
            map(len, listeners_of(engine).values())
        )

    gc.collect()  # what other tests have left
    before = weight()
    for _ in range(20):
        instrument(engine)
        engine.dispose()
        poolwatch.uninstrument(engine)
    gc.collect()
    assert weight() == before


# -- a hook that fails ---------------------------------------------------------------

HOOKS = ["capture", "Checkout", "end", "_remember", "Usage", "timed_out", "checked_out"]


@pytest.mark.parametrize("where", HOOKS)
def test_a_hook_that_raises(instrument, sqlite, monkeypatch, caplog, where):
    """Whatever fails in a hook is logged once with its traceback and switched off; the
    application gets its connections all the same."""
    from poolwatch.adapters.sqlalchemy import facts, statements
    from poolwatch.adapters.sqlalchemy import hooks as adapter

    def broken(*_, **__):
        raise ZeroDivisionError("injected")

    if where == "Checkout":
        monkeypatch.setattr(adapter, where, broken)
    elif where == "checked_out":
        monkeypatch.setattr(agent.ledger.observers, where, broken)
    elif where == "Usage":
        monkeypatch.setattr(statements, where, broken)
    elif where == "capture":
        monkeypatch.setattr(agent.sites.__class__, "capture", broken)
    elif where == "_remember":
        monkeypatch.setattr(facts.Connections, where, broken)
    else:
        monkeypatch.setattr(PoolLedger, where, broken)
    engine = sqlite(pool_size=1, max_overflow=0, pool_timeout=0.01)
    watch = instrument(engine)
    for _ in range(3):
        with engine.connect() as connection:
            assert connection.scalar(text("select 41 + 1")) == 42
            with pytest.raises(Exception, match="QueuePool limit"):
                engine.connect()
    hooks = agent.pools._adapters["sqlalchemy"]._hooks[watch._pool_id]
    assert hooks.guard.tripped
    records = [r for r in caplog.records if r.name == "poolwatch"]
    # before that, the watchdog may have seen that the pool was full
    records = [r for r in records if "is full" not in r.getMessage()]
    assert len(records) == 1
    assert records[0].exc_info[0] is ZeroDivisionError
    assert Look().waits(watch) == []
    assert Look().holds(watch) == []  # nobody is accused once we are blind


def test_an_error_that_is_the_applications_own(instrument):
    """RecursionError near the limit passes through without switching anything off."""
    pool = null_pool_of(NullPool)
    watch = instrument(pool)
    pool.connect().close()

    def dive(depth):
        try:
            connection = pool.connect()
        except RecursionError:
            return
        connection.close()
        dive(depth + 1)

    def deeper(left):
        return deeper(left - 1) if left else dive(0)

    here = len(inspect.stack(0))
    for room in range(40):
        with contextlib.suppress(RecursionError):
            deeper(sys.getrecursionlimit() - here - room)
    gc.collect()
    assert not agent.pools._adapters["sqlalchemy"]._hooks[watch._pool_id].guard.tripped
    pool.connect().close()
    assert Look().waits(watch) == []


def test_from_a_finalizer(instrument):
    """A checkout from __del__, in the middle of anything, is a checkout like others."""
    pool = null_pool_of()
    watch = instrument(pool)

    class Closing:
        def __del__(self):
            pool.connect().close()

    for _ in range(200):
        cycle = Closing()
        cycle.itself = cycle
        pool.connect().close()
    del cycle
    gc.collect()
    counters = Look().counters(watch)
    assert counters.checkouts == counters.checkins == 400


def test_a_logging_name_that_is_no_text(instrument, tmp_path):
    """SQLAlchemy takes anything: the pool's name is a text all the same."""
    url = f"sqlite:///{tmp_path}/x.db"
    engine = create_engine(url, poolclass=QueuePool, pool_logging_name=7)
    watch = instrument(engine)
    engine.connect().close()
    assert Look().pool(watch).name == "7"


@pytest.mark.parametrize("kind", [mock.Mock, mock.MagicMock])
def test_a_mock_for_a_driver(instrument, kind):
    """As in many a suite: nothing is told of its connections, and none is called."""
    connections = []

    def connect():
        connections.append(kind())
        return connections[-1]

    pool = QueuePool(connect, pool_size=1)
    watch = instrument(pool)
    held = pool.connect()
    (hold,) = Look().process.holds
    assert hold.backend_pid is None
    assert hold.connection.address is None
    json.loads(wire.to_json(watch.snapshot()))
    assert connections[0].mock_calls == []
    held.close()
    assert connections[0].mock_calls == [mock.call.rollback()]


def test_an_engine_without_a_pool_of_its_own(instrument, caplog):
    """Somebody's stand-in for a pool is not watched, and not complained of."""
    instrument()
    Engine(mock.Mock(), create_engine("sqlite://").dialect, mock.Mock())
    assert caplog.records == []
