"""Innocents with a server: queues in tables, leaders, streams, children."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import threading
import time
from typing import Any

from sqlalchemy import NullPool, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY, ROWS
from zoo.models import Account
from zoo.registry import ASYNCPG, POSTGRES, innocent

import poolwatch


def start(target: Any, *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


@innocent(world=POSTGRES, seen=2)
def skip_locked(zoo: Any) -> None:
    """Workers take their jobs with SKIP LOCKED: nobody waits."""
    query = select(Account).limit(1).with_for_update(skip_locked=True)

    def work() -> None:
        with Session(zoo.engine) as session:
            session.scalars(query).one()
            while True:
                session.execute(QUERY)

    for _ in range(3):
        start(work)
    zoo.go_on()


@innocent(world=POSTGRES, long_after=0.6, seen=0)
def follower(zoo: Any) -> None:
    """pg_try_advisory_lock(), again and again, while somebody else leads."""

    def lead() -> None:
        with poolwatch.long_hold("leader"), zoo.engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(1)"))
            connection.commit()
            time.sleep(30)

    start(lead)
    while True:
        with zoo.engine.begin() as connection:
            connection.execute(text("SELECT pg_try_advisory_xact_lock(1)"))
        time.sleep(0.05)


@innocent(world=POSTGRES, seen=0, long_after=0.5)
def children_with_pools_of_their_own(zoo: Any) -> None:
    """Forked workers make their own use of a disposed pool, and end."""

    def work() -> None:
        zoo.engine.dispose(close=False)
        for _ in range(4):
            with zoo.engine.connect() as connection:
                connection.execute(QUERY)

    context = multiprocessing.get_context("fork")
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(PING)
        process = context.Process(target=work)
        process.start()
        process.join()


@innocent(world=POSTGRES, seen=0, long_after=0.5)
def another_program(zoo: Any) -> None:
    """A child program on the same database, not watched, with a transaction idle."""
    script = (
        "import sys, psycopg2; c = psycopg2.connect(sys.argv[1]);"
        "c.cursor().execute('SELECT 1'); input()"
    )
    subprocess.Popen([sys.executable, "-c", script, zoo.dsn], stdin=subprocess.PIPE)
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)


@innocent(world=POSTGRES, seen=0, long_after=1.0)
def short_lock_waits(zoo: Any) -> None:
    """Counters in one row, by turns, under a lock of the program: no waits."""
    turn = threading.Lock()

    def count() -> None:
        while True:
            with turn, zoo.engine.begin() as connection:
                connection.execute(
                    text("UPDATE accounts SET balance = balance + 1 WHERE id = 1")
                )

    for _ in range(3):
        start(count)
    zoo.go_on()


@innocent(world=ASYNCPG)
async def asyncpg_streams(zoo: Any) -> None:
    """asyncpg: a server-side cursor is being read, slowly."""
    async with zoo.engine.connect() as connection:
        async for _ in await connection.stream(ROWS):
            await asyncio.sleep(0.01)


@innocent(also="unpooled", world=ASYNCPG, seen=0, long_after=2.0, lasts=4.0)
async def asyncpg_timeouts(zoo: Any) -> None:
    """asyncpg: statements run into asyncio.timeout(), inside a session."""
    while True:
        try:
            async with asyncio.timeout(0.1), AsyncSession(zoo.engine) as session:
                await session.execute(text("SELECT pg_sleep(1)"))
        except TimeoutError:
            await asyncio.sleep(0.02)


@innocent(world=POSTGRES, seen=0, long_after=0.5, pool_recycle=0)
def recycled_all_the_time(zoo: Any) -> None:
    """pool_recycle closes connections that are too old: their sessions end."""
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
        time.sleep(0.02)


@innocent(also="unpooled", world=POSTGRES, seen=0, long_after=0.5, poolclass=NullPool)
def savepoints_and_two_engines(zoo: Any) -> None:
    """Savepoints on one engine, short statements on another one in between."""
    other = zoo.new_engine("other", isolation_level="AUTOCOMMIT")
    other.connect().close()  # an engine asks a lot of its server the first time
    while True:
        with Session(zoo.engine) as session, session.begin():
            for _ in range(3):
                with session.begin_nested():
                    session.execute(QUERY)
            with other.connect() as connection:
                connection.execute(PING)
