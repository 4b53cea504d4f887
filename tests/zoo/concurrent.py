"""One connection that two threads or tasks use at the same moment."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import asyncpg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from zoo.app import QUERY
from zoo.models import Account
from zoo.registry import ASYNCPG, NEVER, POSTGRES, PSYCOPG, fault

SLEEP = "SELECT pg_sleep(0.03)"


def start(target: Any, *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


async def totals(session: AsyncSession) -> None:
    await session.execute(QUERY)  # site: totals


async def balances(session: AsyncSession) -> None:
    await session.execute(QUERY)  # site: balances


@fault("concurrent_use", at="totals balances", long_after=NEVER, world=ASYNCPG)
async def one_session_gathered(zoo: Any) -> None:
    """Two coroutines of a gather() share the session of the request
    (sqlalchemy #5967, #10092, dstackai/dstack #2638).
    """
    while True:
        async with AsyncSession(zoo.engine) as session:
            await session.get(Account, 1)
            with suppress(Exception):
                await asyncio.gather(totals(session), balances(session))


@fault("concurrent_use", at="all_at_once", long_after=NEVER, world=PSYCOPG)
async def one_connection_gathered(zoo: Any) -> None:
    """psycopg lets one statement wait for the other: the gather() gains nothing, and
    a commit of one task ends the transaction of the other (encode/databases #81).
    """

    async def look(connection: Any) -> None:
        await connection.execute(QUERY)  # site: all_at_once

    async with zoo.engine.connect() as connection:
        while True:
            await asyncio.gather(*(look(connection) for _ in range(3)))


def refresh(session: Session) -> None:
    while True:
        with suppress(Exception):
            session.execute(QUERY)  # site: refresh


@fault(
    "concurrent_use",
    at="refresh request_thread",
    long_after=NEVER,
    also="idle_in_transaction",
    world=POSTGRES,
)
def module_session_in_threads(zoo: Any) -> None:
    """A session at module level serves a background thread, too (psycopg/psycopg2
    #1725, #1800).
    """
    session = Session(zoo.engine)
    start(refresh, session)
    while True:
        with suppress(Exception):
            session.execute(QUERY)  # site: request_thread


def delete(connection: Connection) -> None:
    while True:
        with suppress(Exception):
            connection.commit()  # site: committer
        time.sleep(0.01)


@fault(
    "concurrent_use",
    at="inserter committer",
    long_after=NEVER,
    world=POSTGRES,
)
def commit_from_another_thread(zoo: Any) -> None:
    """One thread commits while another one's statement runs (psycopg/psycopg2 #103)."""
    with zoo.engine.connect() as connection:
        start(delete, connection)
        while True:
            with suppress(Exception):
                connection.execute(QUERY)  # site: inserter


@fault("concurrent_use", at="worker_fetch", long_after=NEVER, world=ASYNCPG)
async def asyncpg_connection_of_the_application(zoo: Any) -> None:
    """asyncpg: all workers have the one connection, and some get "another operation is
    in progress" (MagicStack/asyncpg #56, #258, #576).
    """
    zoo.watch_everything()
    async with (
        asyncpg.create_pool(zoo.dsn, min_size=1, max_size=2) as pool,
        pool.acquire() as connection,
    ):

        async def work() -> None:
            while True:
                with suppress(asyncpg.InterfaceError):
                    await connection.fetchval(SLEEP)  # site: worker_fetch
                await asyncio.sleep(0.01)

        await asyncio.gather(*(work() for _ in range(3)))


@fault("concurrent_use", at="one_check other_check", long_after=NEVER, world=POSTGRES)
def psycopg_connection_in_threads(zoo: Any) -> None:
    """psycopg_pool: two checks of a monitor run on one connection
    (DataDog/integrations-core #15489).
    """
    zoo.watch_everything()
    pool = ConnectionPool(zoo.dsn, min_size=1, max_size=2)
    with pool.connection() as connection:

        def check() -> None:
            while True:
                connection.execute("SELECT pg_sleep(0.03)")  # site: one_check

        start(check)
        while True:
            connection.execute("SELECT pg_sleep(0.02)")  # site: other_check


@fault("concurrent_use", at="async_check", long_after=NEVER, world=PSYCOPG)
async def psycopg_connection_in_tasks(zoo: Any) -> None:
    """The same with tasks."""
    zoo.watch_everything()
    async with (
        AsyncConnectionPool(zoo.dsn, min_size=1, max_size=2, open=False) as pool,
        pool.connection() as connection,
    ):

        async def check() -> None:
            while True:
                await connection.execute("SELECT pg_sleep(0.03)")  # site: async_check

        await asyncio.gather(check(), check())
