"""Faults that only the pool's own count, or the server, shows: nobody has a hold."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg2
import psycopg_pool
from celery.exceptions import SoftTimeLimitExceeded
from psycopg2.pool import ThreadedConnectionPool
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.util import await_only
from zoo.app import PING, QUERY
from zoo.registry import ASYNCPG, POSTGRES, PSYCOPG, fault

import poolwatch

_kept: list[Any] = []


def _url(zoo: Any) -> str:
    return str(zoo.dsn.replace("postgresql:", "postgresql+psycopg2:", 1))


# -- a slot without a holder ----------------------------------------------------------


class SlowQueuePool(QueuePool):
    """Lets a signal in where only a machine under load lets one in."""

    signals = 0

    def _do_get(self) -> Any:
        record = super()._do_get()
        if self.signals:
            self.signals -= 1
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.01)
        return record


def expired(*_: object) -> None:
    raise SoftTimeLimitExceeded


def report(engine: Engine) -> None:
    with engine.connect() as connection:  # site: soft_limit
        connection.execute(PING)


@fault(
    "lost_slot", at="soft_limit", long_after=30, poolclass=SlowQueuePool, world=POSTGRES
)
def soft_limit_between_pool_and_holder(zoo: Any) -> None:
    """sqlalchemy #8965: a time limit's exception after the pool has counted the
    connection, before anybody has it. Here it is Celery's, from a signal.
    """
    signal.signal(signal.SIGUSR1, expired)
    report(zoo.engine)
    zoo.engine.pool.signals = 1
    with suppress(SoftTimeLimitExceeded):
        report(zoo.engine)
    zoo.go_on()


def nightly(engine: Engine) -> None:
    with engine.connect() as connection:  # site: all_lost
        connection.execute(PING)


def wait_for_ever(engine: Engine) -> None:
    with engine.connect() as connection:  # site: waits_for_lost
        connection.execute(PING)


@fault(
    "exhausted",
    at="",
    also="lost_slot",
    bystanders="all_lost waits_for_lost",
    long_after=30,
    world=POSTGRES,
    poolclass=SlowQueuePool,
    pool_size=2,
    max_overflow=0,
)
def every_slot_lost(zoo: Any) -> None:
    """sqlalchemy #8974: the pool says that all are out, and nobody holds one."""
    signal.signal(signal.SIGUSR1, expired)
    nightly(zoo.engine)
    zoo.engine.pool.signals = 2
    for _ in range(2):
        with suppress(SoftTimeLimitExceeded):
            nightly(zoo.engine)
    threading.Thread(target=wait_for_ever, args=(zoo.engine,), daemon=True).start()
    zoo.go_on()


class ThrottledPool(AsyncAdaptedQueuePool):
    """Waits a little after it has taken a connection from the queue."""

    def _do_get(self) -> Any:
        record = super()._do_get()
        await_only(asyncio.sleep(0.05))
        return record


async def handle(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:  # site: cancelled_in_the_pool
        await connection.execute(PING)


@fault(
    "lost_slot",
    at="cancelled_in_the_pool",
    long_after=30,
    poolclass=ThrottledPool,
    world=ASYNCPG,
)
async def cancelled_between_pool_and_holder(zoo: Any) -> None:
    """sqlalchemy #12099: the client goes away while its task is in the pool. The
    cancelled task is kept, as a gather() keeps it.
    """
    await handle(zoo.engine)
    tasks = [asyncio.create_task(handle(zoo.engine))]
    await asyncio.sleep(0.02)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(60)


class Pool327(psycopg_pool.AsyncConnectionPool[Any]):
    """Checks a connection as psycopg_pool did before 3.2.8."""

    async def _getconn_with_check_loop(self, deadline: float) -> Any:
        connection = await self._getconn_unchecked(deadline - time.monotonic())
        await self._check_connection(connection)
        return connection


async def slow_check(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(0.1)")


async def deferred(pool: Any) -> None:
    async with pool.connection() as connection:  # site: cancelled_in_the_check
        await connection.execute("SELECT 1")


@fault("lost_slot", at="cancelled_in_the_check", long_after=30, world=PSYCOPG)
async def psycopg_pool_cancelled_in_the_check(zoo: Any) -> None:
    """psycopg #1123, #1208: a request is cancelled while its connection is checked."""
    async with Pool327(zoo.dsn, min_size=1, max_size=3, check=slow_check) as pool:
        poolwatch.instrument(pool, name="app")
        await deferred(pool)
        task = asyncio.create_task(deferred(pool))
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        del task
        await asyncio.sleep(60)


def worker(pool: Any) -> None:
    connection = pool.getconn()  # site: interrupted
    pool.putconn(connection)


@fault(
    "lost_slot",
    at="interrupted",
    also="exhausted",
    bystanders="before_the_interrupt",
    long_after=30,
    world=PSYCOPG,
)
async def psycopg_pool_interrupted_in_the_queue(zoo: Any) -> None:
    """psycopg #509, in the pool for threads: a waiter is interrupted, and the next
    connection that comes back is handed to it all the same.
    """
    await asyncio.to_thread(_interrupted_in_the_queue, zoo.dsn)
    await asyncio.sleep(60)


def _interrupted_in_the_queue(dsn: str) -> None:
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=True)
    poolwatch.instrument(pool, name="app")
    _kept.append(pool)
    held = pool.getconn()  # site: before_the_interrupt
    waiter = threading.Thread(target=_ends_by_itself, args=(pool,))
    waiter.start()
    time.sleep(0.3)
    _raise_in(waiter)
    for position in list(pool._waiting):
        with position._cond:
            position._cond.notify_all()  # a signal would wake a main thread
    waiter.join()
    pool.putconn(held)


def _ends_by_itself(pool: Any) -> None:
    with suppress(KeyboardInterrupt):
        worker(pool)


def _raise_in(thread: threading.Thread) -> None:
    import ctypes

    ident = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ident, ctypes.py_object(KeyboardInterrupt)
    )


class AuditedPool(asyncpg.Pool):
    """Does something with every connection that it has acquired."""

    __slots__ = ()

    async def _acquire(self, timeout: float | None) -> Any:  # noqa: ASYNC109 - asyncpg's
        connection = await super()._acquire(timeout)
        await connection.execute("SELECT pg_sleep(0.1)")
        return connection


async def fetch(pool: Any) -> None:
    async with pool.acquire() as connection:  # site: acquire_cancelled
        await connection.execute("SELECT 1")


@fault("lost_slot", at="acquire_cancelled", long_after=30, world=ASYNCPG)
async def asyncpg_acquire_cancelled(zoo: Any) -> None:
    """asyncpg #467: a timeout around acquire() loses what it had acquired."""
    pool = asyncpg.create_pool(zoo.dsn, min_size=1, max_size=2)
    pool.__class__ = AuditedPool
    await pool
    poolwatch.instrument(pool, name="app")
    await fetch(pool)
    with suppress(TimeoutError):
        await asyncio.wait_for(fetch(pool), 0.05)
    await asyncio.sleep(60)


class TenantPool(ThreadedConnectionPool):
    """Sets the role of each connection that it lends."""

    def getconn(self, key: Any = None) -> Any:
        connection = super().getconn(key)
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE " + self.tenant)
        return connection

    tenant = "NONE"


def job(pool: TenantPool) -> None:
    connection = pool.getconn()  # site: role_refused
    pool.putconn(connection)


@fault("lost_slot", at="role_refused", long_after=30, world=POSTGRES)
def psycopg2_getconn_fails_after_the_pool(zoo: Any) -> None:
    """malthe/pq #41: a getconn() of one's own fails after the pool has counted."""
    pool = TenantPool(1, 3, zoo.dsn)
    poolwatch.instrument(pool, name="app")
    job(pool)
    pool.tenant = "nobody_of_that_name"
    with suppress(psycopg2.Error):
        job(pool)
    zoo.go_on()


def note(engine: Engine) -> None:
    connection = engine.connect()  # site: checkin_fails
    connection.execute(PING)
    connection.close()


@fault("lost_slot", at="checkin_fails", long_after=30, world=POSTGRES)
def checkin_listener_fails(zoo: Any) -> None:
    """sqlalchemy #4925: the pool gets nothing back whose checkin listener raises."""

    def checkin(*_: object) -> None:
        if broken:
            raise KeyError("tenant")

    broken = False
    event.listen(zoo.engine, "checkin", checkin)
    note(zoo.engine)
    broken = True
    with suppress(KeyError):
        note(zoo.engine)
    zoo.go_on()


def early(engine: Engine) -> list[Any]:
    return [engine.connect() for _ in range(2)]


@fault("exhausted", at="", bystanders="late", long_after=30, world=POSTGRES)
def exhausted_by_what_was_out_before(zoo: Any) -> None:
    """All connections were out before the pool was instrumented; a request waits."""
    engine = create_engine(_url(zoo), pool_size=2, max_overflow=0)
    _kept.extend(early(engine))
    poolwatch.instrument(engine, name="app", long_after=30)
    threading.Thread(target=late, args=(engine,), daemon=True).start()
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    zoo.go_on()


def late(engine: Engine) -> None:
    with engine.connect() as connection:  # site: late
        connection.execute(PING)


# -- true faults in which no slot is lost ----------------------------------------------


async def one(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:  # site: crowd
        await connection.execute(QUERY)


@fault(
    "exhausted",
    at="",
    also="undersized unpooled",
    bystanders="crowd",
    long_after=5,
    world=ASYNCPG,
    pool_size=3,
    max_overflow=0,
)
async def cancelled_in_the_queue(zoo: Any) -> None:
    """sqlalchemy #12077: requests are cancelled while they wait; no slot is lost."""
    while True:
        tasks = [asyncio.create_task(one(zoo.engine)) for _ in range(9)]
        await asyncio.sleep(0.06)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@fault("server_down", at="", long_after=5, world=PSYCOPG)
async def psycopg_pool_cannot_connect(zoo: Any) -> None:
    """psycopg #709: the pool goes on trying to connect for minutes: slots that it
    counts, and that are not lost.
    """
    await asyncio.to_thread(_cannot_connect, zoo.dsn)


def _cannot_connect(dsn: str) -> None:
    other = psycopg_pool.ConnectionPool(
        "host=/nowhere", min_size=2, max_size=4, timeout=0.3, open=True
    )
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=3, open=True)
    poolwatch.instrument(other, name="down", long_after=5)
    poolwatch.instrument(pool, name="app", long_after=5)
    while True:
        with pool.connection() as connection:
            connection.execute("SELECT 1")
        with suppress(psycopg_pool.PoolTimeout):
            other.getconn()


# -- a pool over a pool ----------------------------------------------------------------


def export(engine: Engine) -> None:
    with engine.connect() as connection:  # site: over_psycopg_pool
        connection.execute(PING)
        time.sleep(30)


@fault(
    "held_across_io",
    at="over_psycopg_pool",
    also="idle_in_transaction",
    world=PSYCOPG,
)
async def held_over_psycopg_pool(zoo: Any) -> None:
    """psycopg #1046: a long hold of NullPool over psycopg_pool, told of one pool."""

    def run() -> None:
        inner = psycopg_pool.ConnectionPool(
            zoo.dsn, min_size=1, max_size=4, close_returns=True, open=True
        )
        engine = create_engine(
            "postgresql+psycopg://", creator=inner.getconn, poolclass=NullPool
        )
        poolwatch.instrument(inner, name="inner", long_after=0.3)
        poolwatch.instrument(engine, name="outer", long_after=0.3)
        export(engine)

    await asyncio.to_thread(run)


def page(engine: Engine) -> None:
    with engine.connect() as connection:  # site: pages
        connection.execute(PING)
        time.sleep(30)


@fault("exhausted", at="pages", long_after=30, world=PSYCOPG)
async def inner_pool_exhausted(zoo: Any) -> None:
    """psycopg #1046: the pool below is exhausted, by holders of the pool above."""

    def run() -> None:
        inner = psycopg_pool.ConnectionPool(
            zoo.dsn, min_size=1, max_size=2, close_returns=True, open=True
        )
        engine = create_engine(
            "postgresql+psycopg://", creator=inner.getconn, poolclass=NullPool
        )
        poolwatch.instrument(inner, name="inner", long_after=30)
        poolwatch.instrument(engine, name="outer", long_after=30)
        for _ in range(4):
            threading.Thread(target=page, args=(engine,), daemon=True).start()
        time.sleep(60)

    await asyncio.to_thread(run)


# -- a session that no pool knows ------------------------------------------------------


def start_job(engine: Engine) -> None:
    with engine.connect() as connection:  # site: creator_fails
        connection.execute(PING)


@fault("stray_session", at="creator_fails", long_after=30, world=POSTGRES)
def creator_fails_after_the_connect(zoo: Any) -> None:
    """sqlalchemy #13548, in a creator: it has connected, and its set-up fails. The
    connection is in the list of an audit.
    """

    def creator() -> Any:
        connection = psycopg2.connect(zoo.dsn)
        _kept.append(connection)
        if broken:
            raise PermissionError("no role for this tenant")
        return connection

    broken = False
    engine = create_engine(_url(zoo), creator=creator, poolclass=NullPool)
    poolwatch.instrument(engine, name="tenants", long_after=30)
    start_job(engine)
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    broken = True
    with suppress(PermissionError):
        start_job(engine)
    zoo.go_on()


async def serve_one(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:  # site: creator_times_out
        await connection.execute(PING)


@fault("stray_session", at="creator_times_out", long_after=30, world=ASYNCPG)
async def creator_times_out(zoo: Any) -> None:
    """asyncpg #464, sqlalchemy #12099: cancelled after the server has accepted."""

    async def creator() -> Any:
        connection = await asyncpg.connect(zoo.dsn)
        _kept.append(connection)  # as a task's kept exception does
        async with asyncio.timeout(0.2):
            await connection.execute(f"SELECT pg_sleep({seconds})")
        return connection

    seconds = 0.01
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=creator, poolclass=NullPool
    )
    poolwatch.instrument(engine, name="tenants", long_after=30)
    await serve_one(engine)
    async with zoo.engine.connect() as connection:
        await connection.execute(PING)
    seconds = 0.5
    with suppress(TimeoutError):
        await serve_one(engine)
    await asyncio.sleep(60)


async def first_request(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:  # site: connect_cancelled
        await connection.execute(PING)


@fault("stray_session", at="connect_cancelled", long_after=30, world=PSYCOPG)
async def connect_cancelled_in_the_set_up(zoo: Any) -> None:
    """sqlalchemy #13548: the task is cancelled in the set-up of a new connection; the
    error reporter keeps the exception, and with it the connection.
    """
    import psycopg

    async def creator() -> Any:
        connection = await psycopg.AsyncConnection.connect(zoo.dsn)
        await asyncio.sleep(pause)
        return connection

    pause = 0.0
    engine = create_async_engine(
        "postgresql+psycopg://", async_creator=creator, poolclass=NullPool
    )
    poolwatch.instrument(engine, name="tenants", long_after=30)
    await first_request(engine)
    async with zoo.engine.connect() as connection:
        await connection.execute(PING)
    pause = 10
    task = asyncio.create_task(first_request(engine))
    await asyncio.sleep(0.5)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as error:
        _kept.append(error)
    await asyncio.sleep(60)
