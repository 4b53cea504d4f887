"""Innocents that look like one connection used by two at the same moment."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import asyncpg
from psycopg_pool import ConnectionPool
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncSession
from zoo.app import PING, QUERY, ROWS
from zoo.models import Account
from zoo.registry import ASYNCPG, POSTGRES, PSYCOPG, innocent


def start(target: Any, *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


@innocent(world=ASYNCPG)
async def session_in_turns(zoo: Any) -> None:
    """Tasks share a session, and a lock lets them have it one after the other
    (sqlalchemy #5967 recommends it).
    """
    lock = asyncio.Lock()
    async with AsyncSession(zoo.engine) as session:

        async def work() -> None:
            while True:
                async with lock:
                    await session.execute(QUERY)

        await asyncio.gather(*(work() for _ in range(3)))


@innocent(world=ASYNCPG, seen=0)
async def session_for_each_task(zoo: Any) -> None:
    """A gather() whose tasks have a session each."""

    async def work() -> None:
        async with AsyncSession(zoo.engine) as session:
            await session.get(Account, 1)
            await session.execute(QUERY)

    while True:
        await asyncio.gather(*(work() for _ in range(3)))


@innocent(world=POSTGRES)
def handed_to_a_worker(zoo: Any) -> None:
    """Each statement runs in a worker thread, and the caller waits for it."""
    with zoo.engine.connect() as connection, ThreadPoolExecutor(2) as workers:
        while True:
            workers.submit(connection.execute, QUERY).result()
            connection.execute(PING)


@innocent(world=POSTGRES)
def passed_on_from_thread_to_thread(zoo: Any) -> None:
    """A connection goes through a pipeline: one stage uses it at a time."""
    first: queue.Queue[Connection] = queue.Queue()
    second: queue.Queue[Connection] = queue.Queue()

    def stage(source: Any, target: Any) -> None:
        while True:
            connection = source.get()
            connection.execute(QUERY)
            target.put(connection)

    first.put(zoo.engine.connect())
    start(stage, first, second)
    stage(second, first)


@innocent(world=POSTGRES, seen=0)
def cancelled_from_another_thread(zoo: Any) -> None:
    """A watchdog cancels a statement that takes too long: cancel() is made for that."""
    while True:
        with zoo.engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            timer = threading.Timer(0.1, raw.cancel)
            timer.start()
            with suppress(Exception):
                connection.execute(text("SELECT pg_sleep(5)"))
            timer.join()


@innocent(world=POSTGRES)
def statement_between_rows(zoo: Any) -> None:
    """A server-side cursor is read, and the same thread asks something in between."""
    with zoo.engine.connect() as connection:
        for _ in connection.execution_options(yield_per=2).execute(ROWS):
            connection.execute(PING)


@innocent(world=PSYCOPG, seen=0)
async def timeout_and_next(zoo: Any) -> None:
    """A statement is cancelled by its timeout; the next one begins afterwards."""
    async with zoo.engine.connect() as connection:
        while True:
            with suppress(Exception):
                async with asyncio.timeout(0.05):
                    await connection.execute(text("SELECT pg_sleep(5)"))
            with suppress(Exception):
                await connection.rollback()
            with suppress(Exception):
                await connection.execute(PING)


@innocent(world=ASYNCPG)
async def listener_with_a_heartbeat(zoo: Any) -> None:
    """asyncpg delivers notifications to a callback, while the one task that has the
    connection sends its heartbeat.
    """
    zoo.watch_everything()
    async with (
        asyncpg.create_pool(zoo.dsn, min_size=1, max_size=2) as pool,
        pool.acquire() as connection,
    ):
        await connection.add_listener("news", lambda *_: None)
        while True:
            await connection.execute("SELECT pg_notify('news', 'hello')")
            await asyncio.sleep(0.02)


@innocent(world=POSTGRES)
def notifies_and_a_statement(zoo: Any) -> None:
    """psycopg: a thread waits for notifications, another one sends a statement now and
    then. notifies() lets go of the connection between its looks.
    """
    zoo.watch_everything()
    pool = ConnectionPool(zoo.dsn, min_size=1, max_size=2, kwargs={"autocommit": True})
    with pool.connection() as connection:
        connection.execute("LISTEN news")

        def listen() -> None:
            while True:
                for _ in connection.notifies(timeout=0.05):
                    pass

        start(listen)
        while True:
            time.sleep(0.1)
            connection.execute("NOTIFY news")


@innocent(world=ASYNCPG)
async def helper_task_is_awaited(zoo: Any) -> None:
    """A helper runs in a task of its own, and is awaited before the next statement."""
    async with zoo.engine.connect() as connection:
        while True:
            await asyncio.create_task(connection.execute(QUERY))
            await connection.execute(PING)
