"""Innocents whose count or sessions look wrong for a moment, or for good reasons."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg2
import psycopg_pool
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import NullPool, create_engine, event, exc
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool
from zoo.app import PING, QUERY
from zoo.registry import ASYNCPG, POSTGRES, PSYCOPG, innocent

import poolwatch

_kept: list[Any] = []


def _in_threads(number: int, work: Any, *arguments: Any) -> None:
    def repeat() -> None:
        while True:
            work(*arguments)

    for _ in range(number):
        threading.Thread(target=repeat, daemon=True).start()


def _query(engine: Any) -> None:
    with engine.connect() as connection:
        connection.execute(PING)


def _use(pool: Any) -> None:
    with pool.connection() as connection:
        connection.execute("SELECT 1")


# -- the pool recovers -----------------------------------------------------------------


@innocent(world=POSTGRES, long_after=0.5, seen=0)
def connects_fail_now_and_then(zoo: Any) -> None:
    """sqlalchemy #13548: a connect that fails gives its slot back."""

    def creator() -> Any:
        if next(tries) % 2:
            raise psycopg2.OperationalError("too many clients already")
        return psycopg2.connect(zoo.dsn)

    def try_it() -> None:
        for time_to_renew in (False, False, False, True):
            with suppress(exc.OperationalError), engine.connect() as connection:
                connection.execute(QUERY)
                if time_to_renew:
                    connection.invalidate()

    tries = itertools.count()
    engine = create_engine("postgresql+psycopg2://", creator=creator, pool_size=3)
    poolwatch.instrument(engine, name="app", long_after=0.5)
    _in_threads(3, try_it)
    zoo.go_on()


@innocent(world=POSTGRES, long_after=5, seen=0, pool_size=8)
def slow_connects(zoo: Any) -> None:
    """Connects that take a second: counted as out, not held, and none is lost."""

    def creator() -> Any:
        time.sleep(0.9)
        return psycopg2.connect(zoo.dsn)

    engine = create_engine("postgresql+psycopg2://", creator=creator, pool_size=8)
    poolwatch.instrument(engine, name="slow", long_after=5)
    _query(zoo.engine)
    _in_threads(6, lambda: (_query(engine), engine.dispose()))
    zoo.go_on()


@innocent(world=POSTGRES, long_after=5, seen=0)
def overflow_is_slow_to_close(zoo: Any) -> None:
    """sqlalchemy #6635: overflow connections are closed when they come back; here
    that takes a while, and the pool counts them until it is done.
    """

    def close(*_: object) -> None:
        time.sleep(0.4)

    engine = create_engine(_url(zoo), pool_size=1, max_overflow=5)
    poolwatch.instrument(engine, name="app", long_after=5)
    event.listen(engine, "close", close)
    _in_threads(5, _query, engine)
    zoo.go_on()


def _url(zoo: Any) -> str:
    return str(zoo.dsn.replace("postgresql:", "postgresql+psycopg2:", 1))


@innocent(world=POSTGRES, long_after=0.5, seen=0, pool_pre_ping=True)
def pre_ping_finds_dead_connections(zoo: Any) -> None:
    """The server ends sessions behind the pool's back: pre-ping replaces them."""

    def work() -> None:
        with suppress(exc.DBAPIError), zoo.engine.connect() as connection:
            connection.execute(QUERY)

    _in_threads(3, work)
    while True:
        time.sleep(0.3)
        zoo.dba(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state ="
            " 'idle' AND query = 'ROLLBACK' AND datname = current_database()"
        )


# -- the pool is made anew, or lets go -------------------------------------------------


@innocent(world=POSTGRES, long_after=5, seen=1, pool_size=2, max_overflow=0)
def dispose_during_use(zoo: Any) -> None:
    """dispose() while connections are out: the old pool's count starts over."""

    def work() -> None:
        with zoo.engine.connect() as connection:
            for _ in range(6):
                connection.execute(QUERY)

    _in_threads(1, work)
    while True:
        zoo.engine.dispose()
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
        for _ in range(5):
            _query(zoo.engine)


@innocent(world=POSTGRES, long_after=5, seen=0, pool_size=2, max_overflow=0)
def detached_and_invalidated(zoo: Any) -> None:
    """Connections leave the pool on purpose; it may open others for them."""

    def detach() -> None:
        connection = zoo.engine.connect()
        connection.detach()
        connection.execute(QUERY)
        connection.close()
        for _ in range(5):
            _query(zoo.engine)

    def invalidate() -> None:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
            connection.invalidate()
        for _ in range(5):
            _query(zoo.engine)

    _in_threads(1, detach)
    _in_threads(1, invalidate)
    zoo.go_on()


@innocent(world=POSTGRES, long_after=5, seen=0)
def out_before_and_back_later(zoo: Any) -> None:
    """Connections were out before instrument(), and come back one by one."""
    engine = create_engine(_url(zoo), pool_size=4, max_overflow=0)
    early = [engine.connect() for _ in range(3)]
    poolwatch.instrument(engine, name="app", long_after=5)
    for connection in early:
        _query(engine)
        time.sleep(0.3)
        connection.close()
    _in_threads(3, _query, engine)
    zoo.go_on()


@innocent(world=PSYCOPG, long_after=5, seen=0)
async def psycopg_pool_comes_and_goes(zoo: Any) -> None:
    """psycopg #395: the pool shrinks, checks, and replaces old connections."""

    def run() -> None:
        pool = psycopg_pool.ConnectionPool(
            zoo.dsn, min_size=1, max_size=6, max_idle=0.2, max_lifetime=0.3, open=True
        )
        poolwatch.instrument(pool, name="app", long_after=5)
        _in_threads(4, _use, pool)
        while True:
            time.sleep(0.2)
            pool.check()
            pool.drain()

    await asyncio.to_thread(run)


@innocent(world=ASYNCPG, long_after=5, seen=0)
async def asyncpg_pool_expires(zoo: Any) -> None:
    """expire_connections() replaces the connections as they come back."""
    pool = await asyncpg.create_pool(zoo.dsn, min_size=1, max_size=4)
    poolwatch.instrument(pool, name="app", long_after=5)

    async def work() -> None:
        while True:
            async with pool.acquire() as connection:
                await connection.execute("SELECT pg_sleep(0.02)")

    tasks = [asyncio.create_task(work()) for _ in range(3)]
    while tasks:
        await asyncio.sleep(0.6)
        await pool.expire_connections()


# -- a pool over a pool ----------------------------------------------------------------


@innocent(world=PSYCOPG, long_after=0.5, seen=1)
async def null_pool_over_psycopg_pool(zoo: Any) -> None:
    """psycopg #1046, #1067: SQLAlchemy's NullPool over psycopg's pool."""

    def run() -> None:
        inner = psycopg_pool.ConnectionPool(
            zoo.dsn, min_size=2, max_size=4, close_returns=True, open=True
        )
        engine = create_engine(
            "postgresql+psycopg://", creator=inner.getconn, poolclass=NullPool
        )
        poolwatch.instrument(inner, name="inner", long_after=0.5)
        poolwatch.instrument(engine, name="outer", long_after=0.5)
        _in_threads(2, _work, engine)
        zoo.go_on()

    await asyncio.to_thread(run)


def _work(engine: Any) -> None:
    with engine.connect() as connection:
        for _ in range(4):
            connection.execute(QUERY)
    time.sleep(0.01)


@innocent(world=POSTGRES, long_after=0.5, seen=1)
def queue_pool_over_psycopg2_pool(zoo: Any) -> None:
    """psycopg2 #563: an engine whose creator is the getconn of a psycopg2 pool. It
    keeps what it has taken there.
    """
    inner = ThreadedConnectionPool(1, 6, zoo.dsn)
    engine = create_engine(
        "postgresql+psycopg2://", creator=inner.getconn, pool_size=4, max_overflow=0
    )
    poolwatch.instrument(inner, name="inner", long_after=0.5)
    poolwatch.instrument(engine, name="outer", long_after=0.5)

    def two_queries() -> None:
        with engine.connect() as connection:
            connection.execute(QUERY)
        with engine.connect() as connection:
            connection.execute(QUERY)

    _in_threads(3, two_queries)
    zoo.go_on()


@innocent(world=ASYNCPG, long_after=0.5, seen=1)
async def null_pool_over_asyncpg_pool(zoo: Any) -> None:
    """sqlalchemy #8215: async_creator takes the connections of an asyncpg pool."""
    inner = await asyncpg.create_pool(zoo.dsn, min_size=1, max_size=4)
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=inner.acquire, poolclass=NullPool
    )
    poolwatch.instrument(inner, name="inner", long_after=0.5)
    poolwatch.instrument(engine, name="outer", long_after=0.5)

    async def work() -> None:
        while True:
            async with engine.connect() as connection:
                for _ in range(4):
                    await connection.execute(QUERY)

    await asyncio.gather(*(work() for _ in range(3)))


# -- sessions of others ----------------------------------------------------------------


@innocent(world=POSTGRES, long_after=5, seen=0)
def connections_of_its_own(zoo: Any) -> None:
    """Other code of this process has connections of its own, in a pool that is not
    instrumented, while connects of the instrumented one fail.
    """
    other = QueuePool(lambda: psycopg2.connect(zoo.dsn), pool_size=2)
    _kept.extend([other.connect(), psycopg2.connect(zoo.dsn)])

    def creator() -> Any:
        borrowed = other.connect()
        try:
            raise PermissionError("not yet")
        finally:
            _kept.append(borrowed)
            del _kept[2:-1]

    def try_it() -> None:
        with suppress(PermissionError):
            failing.connect()
        time.sleep(0.1)

    failing = create_engine("postgresql+psycopg2://", creator=creator)
    poolwatch.instrument(failing, name="failing", long_after=5)
    _in_threads(1, try_it)
    _in_threads(1, _query, zoo.engine)
    zoo.go_on()


@innocent(world=POSTGRES, long_after=5, seen=0)
def creator_cleans_up(zoo: Any) -> None:
    """The creator's set-up fails, and it closes what it has opened."""

    def creator() -> Any:
        connection = psycopg2.connect(zoo.dsn)
        try:
            raise PermissionError("no role for this tenant")
        finally:
            connection.close()

    def try_it() -> None:
        try:
            engine.connect()
        except PermissionError as error:
            _kept[:] = [error]
        time.sleep(0.2)

    engine = create_engine("postgresql+psycopg2://", creator=creator)
    poolwatch.instrument(engine, name="app", long_after=5)
    _in_threads(1, try_it)
    _in_threads(1, _query, zoo.engine)
    zoo.go_on()
