"""More faults that PostgreSQL proves: across processes, tasks and unusual locks."""

from __future__ import annotations

import asyncio
import multiprocessing
import queue
import subprocess
import threading
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY
from zoo.models import Account
from zoo.registry import ASYNCPG, POSTGRES, PSYCOPG, fault


def start(target: Any, *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


UPDATE = text("UPDATE accounts SET balance = balance - 1 WHERE id = 1")


@fault(
    "idle_in_transaction",
    at="idle_queue",
    also="held_across_io long_hold",
    world=POSTGRES,
)
def idle_while_the_queue_is_empty(zoo: Any) -> None:
    """A worker begins its transaction and then waits for work."""
    work: queue.Queue[int] = queue.Queue()
    with zoo.engine.begin() as connection:  # site: idle_queue
        connection.execute(PING)
        work.get()


@fault(
    "idle_in_transaction",
    at="idle_process",
    also="held_across_io long_hold",
    world=POSTGRES,
)
def idle_during_a_subprocess(zoo: Any) -> None:
    """A command runs inside an ORM transaction."""
    with Session(zoo.engine) as session:
        session.get(Account, 1)  # site: idle_process
        subprocess.run(["sleep", "30"], check=True)


@fault(
    "idle_in_transaction",
    at="idle_psycopg",
    also="held_across_io long_hold",
    world=PSYCOPG,
)
async def idle_psycopg_task(zoo: Any) -> None:
    """psycopg: a transaction is open while its task waits for an event."""
    async with AsyncSession(zoo.engine) as session:
        await session.get(Account, 1)  # site: idle_psycopg
        await asyncio.Event().wait()


def own_row(engine: Engine, locked: Any) -> None:
    with engine.begin() as connection:  # site: other_process
        connection.execute(UPDATE)
        locked.set()
        while True:
            connection.execute(QUERY)


def forked(engine: Engine, locked: Any) -> None:
    engine.dispose(close=False)
    own_row(engine, locked)


@fault("lock_wait", at="other_process blocked_by_it", long_after=30, world=POSTGRES)
def lock_across_processes(zoo: Any) -> None:
    """The blocker is another process, which is watched as well."""
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    context = multiprocessing.get_context("fork")
    locked = context.Event()
    context.Process(target=forked, args=(zoo.engine, locked)).start()
    locked.wait()
    with zoo.engine.begin() as connection:  # site: blocked_by_it
        connection.execute(UPDATE)


def insert(engine: Engine, inserted: threading.Event) -> None:
    with engine.begin() as connection:  # site: first_insert
        connection.execute(text("INSERT INTO accounts VALUES (9, 'eve', 0)"))
        inserted.set()
        while True:
            connection.execute(QUERY)


@fault("lock_wait", at="first_insert second_insert", long_after=30, world=POSTGRES)
def same_key_twice(zoo: Any) -> None:
    """Two transactions insert the same key: the second one waits for the first."""
    inserted = threading.Event()
    start(insert, zoo.engine, inserted)
    inserted.wait()
    with zoo.engine.begin() as connection:  # site: second_insert
        connection.execute(text("INSERT INTO accounts VALUES (9, 'eve', 0)"))


def read(engine: Engine, reading: threading.Event) -> None:
    with engine.connect() as connection:  # site: old_snapshot
        connection.execution_options(isolation_level="REPEATABLE READ")
        connection.execute(text("SELECT count(*) FROM entries"))
        reading.set()
        while True:
            connection.execute(QUERY)


@fault("lock_wait", at="old_snapshot concurrently", long_after=30, world=POSTGRES)
def index_concurrently(zoo: Any) -> None:
    """CREATE INDEX CONCURRENTLY waits for a transaction that reads."""
    reading = threading.Event()
    start(read, zoo.engine, reading)
    reading.wait()
    with zoo.engine.connect() as connection:  # site: concurrently
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("CREATE INDEX CONCURRENTLY i ON entries (amount)"))


def keep_locked(engine: Engine, locked: threading.Event) -> None:
    with Session(engine) as session:
        session.get(Account, 1, with_for_update=True)  # site: for_update
        locked.set()
        while True:
            session.execute(QUERY)


@fault("lock_wait", at="for_update by_foreign_key", long_after=30, world=POSTGRES)
def lock_by_foreign_key(zoo: Any) -> None:
    """A new entry waits for the account that somebody has locked FOR UPDATE."""
    locked = threading.Event()
    start(keep_locked, zoo.engine, locked)
    locked.wait()
    with Session(zoo.engine) as session:
        session.execute(  # site: by_foreign_key
            text("INSERT INTO entries VALUES (99, 1, 5)")
        )


async def keep(engine: Any, locked: asyncio.Event) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(UPDATE)  # site: async_keeper
        locked.set()
        while True:
            await session.execute(QUERY)


@fault("lock_wait", at="async_keeper async_waiter", long_after=30, world=PSYCOPG)
async def lock_of_psycopg_tasks(zoo: Any) -> None:
    """psycopg: one task has the row, another one wants it."""
    locked = asyncio.Event()
    task = asyncio.create_task(keep(zoo.engine, locked))
    await locked.wait()
    async with zoo.engine.begin() as connection:  # site: async_waiter
        await connection.execute(UPDATE)
    await task


def slow(engine: Engine) -> None:
    with engine.connect() as connection:  # site: slow_in_a_thread
        connection.execute(text("SELECT pg_sleep(30)"))


@fault("slow_query", at="slow_in_a_thread", world=POSTGRES)
async def slow_statement_in_to_thread(zoo: Any) -> None:
    """A task waits for a thread, which waits for its statement."""
    await asyncio.to_thread(slow, zoo.engine)


@fault(
    "ghost",
    at="ghost_of_asyncpg",
    also="held_across_io long_hold",
    world=ASYNCPG,
    long_after=30,
)
async def terminated_under_a_task(zoo: Any) -> None:
    """asyncpg: the server ends the session of a hold."""
    async with zoo.engine.connect() as connection:  # site: ghost_of_asyncpg
        pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar()
        await asyncio.to_thread(zoo.dba, f"SELECT pg_terminate_backend({pid})")
        await asyncio.sleep(30)


@fault("ghost", at="ghost_of_psycopg", world=PSYCOPG, long_after=30)
async def terminated_under_psycopg(zoo: Any) -> None:
    """psycopg: the same."""
    async with AsyncSession(zoo.engine) as session:
        query = text("SELECT pg_backend_pid()")
        pid = (await session.execute(query)).scalar()  # site: ghost_of_psycopg
        await asyncio.to_thread(zoo.dba, f"SELECT pg_terminate_backend({pid})")
        await asyncio.sleep(30)


def work(engine: Engine) -> None:
    with engine.connect() as connection:  # site: process_pool
        while True:
            connection.execute(QUERY)


@fault("fork_shared", at="process_pool", long_after=30, world=POSTGRES)
def forked_by_multiprocessing(zoo: Any) -> None:
    """A worker process inherits the pool with an idle connection, and uses it."""
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    context = multiprocessing.get_context("fork")
    context.Process(target=work, args=(zoo.engine,)).start()
    zoo.go_on()


@fault("long_hold", "held_across_io", at="undeclared_listener", world=POSTGRES)
def undeclared_listener(zoo: Any) -> None:
    """LISTEN on an AUTOCOMMIT connection, but nobody has said so."""
    import select as waiting

    raw = zoo.engine.raw_connection()  # site: undeclared_listener
    driver = raw.driver_connection
    driver.autocommit = True
    driver.cursor().execute("LISTEN orders")
    while True:
        waiting.select([driver], [], [], 0.5)
        driver.poll()


@fault("long_hold", at="autocommit_computes", world=POSTGRES)
def autocommit_computes(zoo: Any) -> None:
    """AUTOCOMMIT: held long, but not idle in a transaction."""
    engine = zoo.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # site: autocommit_computes
        connection.execute(select(Account))
        while True:
            sum(number * number for number in range(10_000))
