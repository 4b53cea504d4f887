"""Faults that PostgreSQL proves."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY
from zoo.models import Account
from zoo.registry import ASYNCPG, POSTGRES, PSYCOPG, fault

_kept: list[Any] = []


def start(target: Any, engine: Engine) -> None:
    """Start a thread; go on when it has its locks."""
    locked = threading.Event()
    threading.Thread(target=target, args=(engine, locked), daemon=True).start()
    locked.wait()


def withdraw(connection: Any, number: int) -> None:
    statement = text("UPDATE accounts SET balance = balance - 1 WHERE id = :number")
    connection.execute(statement, {"number": number})


def compute() -> None:
    while True:
        sum(number * number for number in range(10_000))


# -- idle in transaction --------------------------------------------------------------


@fault(
    "idle_in_transaction",
    at="idle_sleeping",
    also="held_across_io long_hold",
    world=POSTGRES,
)
def idle_while_sleeping(zoo: Any) -> None:
    """A transaction is open while its code sleeps."""
    with zoo.engine.begin() as connection:  # site: idle_sleeping
        withdraw(connection, 1)
        time.sleep(30)


@fault("idle_in_transaction", at="idle_computing", also="long_hold", world=POSTGRES)
def idle_while_computing(zoo: Any) -> None:
    """A transaction is open while its code computes."""
    with Session(zoo.engine) as session:
        session.get(Account, 1)  # site: idle_computing
        compute()


@fault(
    "idle_in_transaction",
    at="idle_asyncpg",
    also="held_across_io long_hold",
    world=ASYNCPG,
)
async def idle_task(zoo: Any) -> None:
    """asyncpg: a transaction is open while its task sleeps."""
    async with zoo.engine.begin() as connection:  # site: idle_asyncpg
        await connection.execute(PING)
        await asyncio.sleep(30)


def remember(engine: Engine) -> None:
    session = Session(engine)
    session.get(Account, 1)  # site: forgotten_on_server
    _kept.append(session)


@fault(
    "leaked.abandoned",
    at="forgotten_on_server",
    also="idle_in_transaction",
    world=POSTGRES,
)
def forgotten_in_transaction(zoo: Any) -> None:
    """A forgotten session is idle in transaction, too; the leak is what matters."""
    remember(zoo.engine)
    zoo.go_on()


# -- locks ----------------------------------------------------------------------------


def first(engine: Engine, locked: threading.Event) -> None:
    with engine.begin() as connection:  # site: first
        withdraw(connection, 1)
        locked.set()
        compute()


def second(engine: Engine, locked: threading.Event) -> None:
    with engine.begin() as connection:  # site: second
        withdraw(connection, 2)
        locked.set()
        withdraw(connection, 1)


def third(engine: Engine) -> None:
    with engine.begin() as connection:  # site: third
        withdraw(connection, 2)


@fault("lock_wait", at="first second", long_after=30, world=POSTGRES)
def lock_of_two(zoo: Any) -> None:
    """One transaction waits for the row of another, which computes."""
    start(first, zoo.engine)
    start(second, zoo.engine)
    zoo.go_on()


@fault("lock_wait", at="first second third", long_after=30, world=POSTGRES)
def lock_chain_of_three(zoo: Any) -> None:
    """A chain of three across two pools: the last one is blocked by the second."""
    billing = zoo.new_engine("billing")
    start(first, billing)
    start(second, zoo.engine)
    third(billing)


def alter(engine: Engine) -> None:
    with engine.begin() as connection:  # site: altering
        connection.execute(text("ALTER TABLE accounts ADD COLUMN vip boolean"))


def read(engine: Engine, locked: threading.Event) -> None:
    with engine.connect() as connection:  # site: reading
        connection.execute(text("SELECT * FROM accounts")).all()
        locked.set()
        compute()


@fault("lock_wait", at="altering reading", long_after=30, world=POSTGRES)
def migration_blocked(zoo: Any) -> None:
    """An ALTER TABLE waits for a reader that never ended its transaction."""
    start(read, zoo.engine)
    alter(zoo.engine)


def lead(engine: Engine, locked: threading.Event) -> None:
    with engine.connect() as connection:  # site: advisory_owner
        connection.execute(text("SELECT pg_advisory_lock(42)"))
        locked.set()
        while True:
            connection.execute(QUERY)


def follow(engine: Engine) -> None:
    with engine.connect() as connection:  # site: advisory_waiter
        connection.execute(text("SELECT pg_advisory_lock(42)"))


@fault("lock_wait", at="advisory_owner advisory_waiter", long_after=30, world=POSTGRES)
def advisory_lock_wait(zoo: Any) -> None:
    """An advisory lock that another session has."""
    start(lead, zoo.engine)
    follow(zoo.engine)


@fault(
    "lock_wait",
    at="task_owns task_waits",
    also="held_across_io",
    long_after=30,
    world=ASYNCPG,
)
async def lock_of_tasks(zoo: Any) -> None:
    """asyncpg: one task waits for the row of another, which sleeps."""

    locked = asyncio.Event()

    async def own() -> None:
        async with zoo.engine.begin() as connection:  # site: task_owns
            await connection.execute(text("UPDATE accounts SET balance = 0"))
            locked.set()
            await asyncio.sleep(30)

    async def wait() -> None:
        await locked.wait()
        async with zoo.engine.begin() as connection:  # site: task_waits
            await connection.execute(text("UPDATE accounts SET balance = 0"))

    await asyncio.gather(own(), wait())


# -- slow statements ------------------------------------------------------------------


@fault("slow_query", at="slow_sleep", also="long_hold", world=POSTGRES)
def slow_function(zoo: Any) -> None:
    """One statement that the server works on all the time."""
    with zoo.engine.connect() as connection:  # site: slow_sleep
        connection.execute(text("SELECT pg_sleep(20)"))


@fault("slow_query", at="slow_join", also="long_hold", world=POSTGRES)
def forgotten_join_condition(zoo: Any) -> None:
    """A cross join: the server computes, in no wait event at all."""
    with Session(zoo.engine) as session:
        session.execute(  # site: slow_join
            text(
                "SELECT count(*) FROM generate_series(1, 1000000) a,"
                " generate_series(1, 1000) b"
            )
        )


@fault("slow_query", at="slow_task", also="long_hold", world=ASYNCPG)
async def slow_statement_of_a_task(zoo: Any) -> None:
    """asyncpg: the task awaits one slow statement."""
    async with zoo.engine.connect() as connection:  # site: slow_task
        await connection.execute(text("SELECT pg_sleep(20)"))


@fault("slow_query", at="slow_psycopg", also="long_hold", world=PSYCOPG)
async def slow_statement_with_psycopg(zoo: Any) -> None:
    """psycopg: the same."""
    async with zoo.engine.connect() as connection:  # site: slow_psycopg
        await connection.execute(text("SELECT pg_sleep(20)"))


# -- the server and the pool disagree -------------------------------------------------


@fault("ghost", at="terminated", long_after=30, world=POSTGRES)
def terminated_under_the_hold(zoo: Any) -> None:
    """pg_terminate_backend() while the connection is out and its code computes."""
    with zoo.engine.connect() as connection:  # site: terminated
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        connection.commit()
        zoo.dba(f"SELECT pg_terminate_backend({pid})")
        compute()


@fault("fork_shared", at="forked", long_after=30, world=POSTGRES)
def forked_with_its_pool(zoo: Any) -> None:
    """Opened before os.fork(), used in the child."""
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    if os.fork() == 0:
        with zoo.engine.connect() as connection:  # site: forked
            while True:
                connection.execute(QUERY)
    zoo.go_on()


STUBBORN = text(
    """
    DO $$ BEGIN LOOP
        BEGIN PERFORM pg_sleep(1); EXCEPTION WHEN query_canceled THEN NULL; END;
    END LOOP; END $$
    """
)
"""Survives a cancel request, like work in a C extension or on a foreign server."""


async def import_all(engine: Any, running: asyncio.Event) -> None:
    async with engine.begin() as connection:  # site: stubborn
        await connection.execute(text("UPDATE accounts SET balance = 0"))
        running.set()
        await connection.execute(STUBBORN)


async def give_up(zoo: Any) -> None:
    """The client goes away: its task is cancelled, at last without any patience."""
    running = asyncio.Event()
    task = asyncio.create_task(import_all(zoo.engine, running))
    await running.wait()
    for _ in range(3):
        await asyncio.sleep(0.2)
        task.cancel()
    await asyncio.wait([task])


@fault("stray_session", at="", bystanders="stubborn", long_after=30, world=ASYNCPG)
async def cancelled_in_asyncpg(zoo: Any) -> None:
    """asyncpg: the pool has closed it; its session goes on and keeps its locks."""
    await give_up(zoo)


@fault("stray_session", at="", bystanders="stubborn", long_after=30, world=PSYCOPG)
async def cancelled_in_psycopg(zoo: Any) -> None:
    """psycopg: the same."""
    await give_up(zoo)


async def count_all(engine: Any, taken: asyncio.Future[Any]) -> None:
    connection = await engine.connect()  # site: invalidated
    taken.set_result(connection)
    await connection.execute(text("SELECT pg_sleep(20)"))


@fault(
    "stray_session",
    at="",
    also="leaked.collected",
    bystanders="invalidated",
    long_after=30,
    world=ASYNCPG,
)
async def invalidated_in_a_statement(zoo: Any) -> None:
    """A watchdog invalidates a connection in the middle of a statement."""
    taken = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(count_all(zoo.engine, taken))
    connection = await taken
    await asyncio.sleep(0.4)
    raw = await connection.get_raw_connection()
    raw.invalidate()
    await asyncio.wait([task])


# -- pools ----------------------------------------------------------------------------


def request(engine: Engine) -> None:
    while True:
        with engine.connect() as connection:  # site: request
            connection.execute(QUERY)


@fault(
    "undersized",
    at="",
    also="exhausted",
    bystanders="request",
    long_after=30,
    world=POSTGRES,
    pool_size=2,
    max_overflow=0,
)
def undersized_on_the_server(zoo: Any) -> None:
    """Six threads with short statements and a pool of two."""
    for _ in range(6):
        threading.Thread(target=request, args=(zoo.engine,), daemon=True).start()
    zoo.go_on()


async def move(engine: Any, meet: asyncio.Barrier) -> None:
    async with engine.begin() as connection:  # site: move
        await connection.execute(PING)
        await meet.wait()
        async with engine.begin() as other:  # site: move_on
            await other.execute(PING)


@fault(
    "pool_deadlock",
    at="move move_on",
    also="nested exhausted held_across_io",
    long_after=30,
    world=ASYNCPG,
    pool_size=2,
    max_overflow=0,
)
async def deadlock_of_asyncpg_tasks(zoo: Any) -> None:
    """asyncpg: two tasks have all connections, and each wants one more."""
    meet = asyncio.Barrier(2)
    await asyncio.gather(move(zoo.engine, meet), move(zoo.engine, meet))
