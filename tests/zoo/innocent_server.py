"""Innocents that only PostgreSQL can make look guilty."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import AsyncSession
from zoo.app import PING, QUERY, ROWS
from zoo.registry import ASYNCPG, POSTGRES, PSYCOPG, innocent

import poolwatch


@innocent(world=POSTGRES, long_after=0.3, says="declared long: LISTEN loop")
def listen_loop(zoo: Any) -> None:
    """A pinned LISTEN loop, declared: it waits on its socket most of the time."""
    with poolwatch.long_hold("LISTEN loop"):
        raw = zoo.engine.raw_connection()
    driver = raw.driver_connection
    driver.autocommit = True
    driver.cursor().execute("LISTEN orders")
    while True:
        select.select([driver], [], [], 0.5)
        driver.poll()


@innocent(world=POSTGRES, long_after=0.3, says="declared long: leader")
def advisory_leader(zoo: Any) -> None:
    """The leader keeps an advisory lock as long as it lives, declared."""
    with poolwatch.long_hold("leader"):
        connection = zoo.engine.connect()
    connection.execute(text("SELECT pg_advisory_lock(4711)"))
    connection.commit()
    while True:
        time.sleep(0.2)


@innocent(world=POSTGRES)
def slow_report(zoo: Any) -> None:
    """A slow statement, below the threshold."""
    with zoo.engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))


@innocent(world=POSTGRES)
def stream_from_the_server(zoo: Any) -> None:
    """A server-side cursor is being read."""
    with zoo.engine.connect().execution_options(yield_per=5) as connection:
        for _ in connection.execute(ROWS):
            pass


@innocent(world=POSTGRES, long_after=1.0)
def short_idle_transactions(zoo: Any) -> None:
    """Transactions that are idle for moments between their statements."""
    while True:
        with zoo.engine.begin() as connection:
            for _ in range(3):
                connection.execute(QUERY)
                sum(range(20_000))


@innocent(world=POSTGRES, long_after=0.5, seen=0, pool_pre_ping=True)
def terminated_while_idle(zoo: Any) -> None:
    """The server ends a session that lies idle in the pool; pre_ping replaces it."""
    with zoo.engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    zoo.dba(f"SELECT pg_terminate_backend({pid})")
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)


@innocent(world=POSTGRES, long_after=0.5, seen=0)
def forked_and_disposed(zoo: Any) -> None:
    """A forked worker that disposes of its parent's connections first."""
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    if os.fork() == 0:
        zoo.engine.dispose(close=False)
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)


@innocent(world=POSTGRES, long_after=0.5, seen=0, pool_size=5)
def idle_in_the_pool(zoo: Any) -> None:
    """After a burst the connections lie idle in the pool, outside a transaction."""

    def job() -> None:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)

    threads = [threading.Thread(target=job) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    zoo.go_on()


@innocent(also="unpooled", world=POSTGRES, long_after=0.5, seen=0, poolclass=NullPool)
def sessions_come_and_go(zoo: Any) -> None:
    """NullPool: a session may end between the look at the app and at the server."""

    def serve() -> None:
        while True:
            with zoo.engine.connect() as connection:
                connection.execute(PING)
            time.sleep(0.005)

    threading.Thread(target=serve, daemon=True).start()
    serve()


@innocent(also="unpooled", world=ASYNCPG, long_after=0.5, seen=0, poolclass=NullPool)
async def asyncpg_sessions_come_and_go(zoo: Any) -> None:
    """The same with asyncpg."""

    async def serve() -> None:
        while True:
            async with zoo.engine.connect() as connection:
                await connection.execute(QUERY)

    await asyncio.gather(*(serve() for _ in range(3)))


@innocent(world=POSTGRES)
def neighbours(zoo: Any) -> None:
    """Another process of the same user has a session on the same database."""
    other = "import sys, psycopg2; c = psycopg2.connect(sys.argv[1]); input()"
    subprocess.Popen([sys.executable, "-c", other, zoo.dsn], stdin=subprocess.PIPE)
    with zoo.engine.connect() as connection:
        while True:
            connection.execute(QUERY)


@innocent(world=POSTGRES, seen=2)
def writers_of_different_rows(zoo: Any) -> None:
    """Two transactions write, each its own row: nobody waits."""

    def write(number: int) -> None:
        with zoo.engine.begin() as connection:
            while True:
                connection.execute(
                    text("UPDATE accounts SET balance = balance + 1 WHERE id = :n"),
                    {"n": number},
                )
                connection.execute(QUERY)

    threading.Thread(target=write, args=(1,), daemon=True).start()
    write(2)


@innocent(world=POSTGRES, long_after=0.5, seen=0)
def invalidated_on_the_server(zoo: Any) -> None:
    """Invalidated connections are closed, on both sides."""
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
            connection.invalidate()


@innocent(world=ASYNCPG, long_after=0.5, seen=0)
async def asyncpg_cancelled_properly(zoo: Any) -> None:
    """asyncpg: tasks are cancelled in the middle of a statement and clean up."""

    async def serve() -> None:
        async with AsyncSession(zoo.engine) as session:
            while True:
                await session.execute(QUERY)

    while True:
        task = asyncio.create_task(serve())
        await asyncio.sleep(0.1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@innocent(world=PSYCOPG, long_after=0.5, seen=0)
async def psycopg_cancelled_properly(zoo: Any) -> None:
    """psycopg: the same."""
    await asyncpg_cancelled_properly(zoo)


@innocent(world=ASYNCPG, seen=3)
async def asyncpg_tasks(zoo: Any) -> None:
    """asyncpg: a few tasks in SQL, a connection each."""

    async def serve() -> None:
        async with zoo.engine.connect() as connection:
            while True:
                await connection.execute(QUERY)

    await asyncio.gather(*(serve() for _ in range(3)))


@innocent(world=PSYCOPG, seen=3)
async def psycopg_tasks(zoo: Any) -> None:
    """psycopg: the same."""
    await asyncpg_tasks(zoo)
