"""What a connection brings back to its pool: locks, transactions, LISTEN.

The faults are rebuilt from public reports, which each case names; the innocents are the
repairs of the same reports, and what looks just like the fault.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from typing import Any

import psycopg2.pool
from psycopg_pool import ConnectionPool
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY
from zoo.registry import ASYNCPG, POSTGRES, fault, innocent

import poolwatch

LOCK = text("SELECT pg_advisory_lock(8675309)")
UNLOCK = text("SELECT pg_advisory_unlock(8675309)")
LONG = 2.5
"""A return counts after a second: innocents are looked at for longer than that."""
XACT_LOCK = text("SELECT pg_advisory_xact_lock(8675309)")


def started(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


# -- a session lock that came back ----------------------------------------------------


def reindex(engine: Engine, committed: threading.Barrier) -> None:
    with Session(engine) as session:
        session.execute(text("SELECT pg_try_advisory_lock(583)"))  # site: reindexed
        session.commit()  # gives the connection back
        committed.wait()  # another request gets it
        committed.wait()
        session.execute(text("SELECT pg_advisory_unlock(583)"))
        session.commit()


def meanwhile(engine: Engine, committed: threading.Barrier) -> None:
    committed.wait()
    with engine.connect() as connection:  # site: meanwhile
        connection.execute(PING)
        committed.wait()
        connection.execute(text("SELECT pg_sleep(0.2)"))


@fault("dirty_return", at="reindexed", long_after=30, world=POSTGRES)
def unlocked_elsewhere(zoo: Any) -> None:
    """commit() returns the connection; the unlock goes to another one.

    epam/statgpt-backend #583.
    """
    committed = threading.Barrier(2)
    started(meanwhile, zoo.engine, committed)
    reindex(zoo.engine, committed)
    zoo.go_on()


def migrate(engine: Engine) -> None:
    with engine.connect() as connection:  # site: migrated
        connection.execute(LOCK)
        connection.commit()


def wait_for_lock(engine: Engine, begun: threading.Event, go: threading.Event) -> None:
    with engine.connect() as connection:  # site: next_deploy
        begun.set()
        go.wait()
        connection.execute(LOCK)


def deploy_twice(zoo: Any, lock: Any) -> None:
    begun, go = threading.Event(), threading.Event()
    started(wait_for_lock, zoo.engine, begun, go)
    begun.wait()
    lock(zoo.engine)
    go.set()
    zoo.go_on()


@fault(
    "lock_wait",
    at="migrated next_deploy",
    also="dirty_return",
    long_after=30,
    world=POSTGRES,
)
def the_next_job_waits(zoo: Any) -> None:
    """A migration lock is left on a pooled connection, and the next start hangs on it.

    SaaSy-Solutions/mockforge #968.
    """
    deploy_twice(zoo, migrate)


def list_mocks(engine: Engine) -> None:
    with engine.connect() as connection:  # site: mocks
        connection.execute(QUERY)


def migrate_and_serve(engine: Engine) -> None:
    migrate(engine)
    for _ in range(5):
        list_mocks(engine)


@fault(
    "lock_wait",
    at="migrated next_deploy",
    also="dirty_return",
    long_after=30,
    world=POSTGRES,
)
def a_later_user_is_not_to_blame(zoo: Any) -> None:
    """Requests go over the connection that has the lock; it was not they who took it.

    SaaSy-Solutions/mockforge #968: the server showed "SELECT * FROM hosted_mocks".
    """
    deploy_twice(zoo, migrate_and_serve)


@fault("dirty_return", at="migrated", long_after=30, world=POSTGRES)
def served_after_the_migration(zoo: Any) -> None:
    """The same before anybody waits.

    Viren070/AIOStreams #975.
    """
    migrate_and_serve(zoo.engine)
    zoo.go_on()


def serve(engine: Engine) -> None:
    with engine.connect() as connection:  # site: served
        while True:
            connection.execute(QUERY)


def migrate_and_lend(engine: Engine) -> None:
    migrate(engine)
    started(serve, engine)
    time.sleep(0.3)


@fault("lock_wait", at="migrated next_deploy", long_after=30, world=POSTGRES)
def a_request_has_the_locked_connection(zoo: Any) -> None:
    """The connection is lent again with its lock: the request knows nothing of it.

    Viren070/AIOStreams #975: the locked connection goes on with normal traffic.
    """
    deploy_twice(zoo, migrate_and_lend)


def settle(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(LOCK)
        connection.execute(UNLOCK)
        connection.commit()
    locked = threading.Event()
    started(settle_slowly, engine, locked)
    locked.wait()


def settle_slowly(engine: Engine, locked: threading.Event) -> None:
    with engine.begin() as connection:  # site: settled
        connection.execute(XACT_LOCK)
        locked.set()
        while True:
            connection.execute(QUERY)


@fault("lock_wait", at="settled next_deploy", long_after=30, world=POSTGRES)
def an_earlier_lock_was_released(zoo: Any) -> None:
    """The lock of the transaction blocks, not the one that was released before.

    manavgup/wikimind #668, the repair, beside jobs that unlock in time.
    """
    deploy_twice(zoo, settle)


def wait_in_another_process(engine: Engine) -> None:
    with engine.connect() as connection:  # site: second_replica
        connection.execute(LOCK)


@fault(
    "lock_wait",
    at="migrated second_replica",
    also="dirty_return",
    long_after=30,
    world=POSTGRES,
)
def the_other_replica_waits(zoo: Any) -> None:
    """One process gave the connection back with its lock, another one waits.

    IBM/mcp-context-forge #4051, goauthentik/authentik #23876.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        migrate(zoo.engine)
        os.write(writing, b".")
        zoo.go_on()
    os.read(reading, 1)
    wait_in_another_process(zoo.engine)


def run_migrations(engine: Engine) -> None:
    with engine.connect() as connection:  # site: broken_migration
        connection.execute(LOCK)
        connection.execute(text("ALTER TABLE nothing ADD COLUMN x integer"))
        connection.execute(UNLOCK)


@fault("dirty_return", at="broken_migration", long_after=30, world=POSTGRES)
def the_migration_failed(zoo: Any) -> None:
    """An error skips the unlock, and the rollback does not end the lock.

    manavgup/wikimind #668.
    """
    with suppress(Exception):
        run_migrations(zoo.engine)
    zoo.go_on()


async def sync_dataset(engine: Any) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(LOCK)  # site: asyncpg_lock
        await session.commit()


@fault("dirty_return", at="asyncpg_lock", long_after=30, world=ASYNCPG)
async def lock_left_by_a_task(zoo: Any) -> None:
    """SQLAlchemy's pool over asyncpg only rolls back: the lock stays.

    manavgup/wikimind #668.
    """
    await sync_dataset(zoo.engine)


def elect(pool: Any) -> None:
    with pool.connection() as connection:  # site: elected
        connection.execute("SELECT pg_try_advisory_lock(585)")


@fault("dirty_return", at="elected", long_after=30, world=POSTGRES)
def elected_and_returned(zoo: Any) -> None:
    """psycopg_pool: the end of the block gives the connection back, not the lock.

    nicolastakashi/prom-analytics-proxy #585.
    """
    pool = ConnectionPool(zoo.dsn, min_size=1, max_size=2, open=False)
    poolwatch.instrument(pool, name="leader", long_after=30)
    pool.open()
    elect(pool)
    zoo.go_on()


def nightly(pool: Any) -> None:
    connection = pool.getconn()  # site: nightly
    connection.autocommit = True
    connection.cursor().execute("SELECT pg_advisory_lock(239)")
    pool.putconn(connection)


@fault("dirty_return", at="nightly", long_after=30, world=POSTGRES)
def lock_in_a_psycopg2_pool(zoo: Any) -> None:
    """psycopg2's pool, whose statements are not seen: pg_locks shows the lock.

    jackc/tern #146.
    """
    pool = psycopg2.pool.ThreadedConnectionPool(1, 2, zoo.dsn)
    poolwatch.instrument(pool, name="jobs", long_after=30)
    nightly(pool)
    zoo.go_on()


# -- a transaction that came back -----------------------------------------------------


def read_metrics(engine: Engine) -> None:
    with closing(engine.raw_connection()) as connection:  # site: not_reset
        connection.cursor().execute("SELECT count(*) FROM accounts")


@fault(
    "dirty_return",
    at="not_reset",
    long_after=30,
    world=POSTGRES,
    pool_reset_on_return=None,
)
def returned_without_a_rollback(zoo: Any) -> None:
    """reset_on_return=None spares a rollback; a raw connection stays in a transaction.

    sqlalchemy/sqlalchemy #5519.
    """
    read_metrics(zoo.engine)
    zoo.go_on()


def alter(engine: Engine, begun: threading.Event, go: threading.Event) -> None:
    with engine.connect() as connection:  # site: altered
        begun.set()
        go.wait()
        connection.execute(text("ALTER TABLE accounts ADD COLUMN vip boolean"))


@fault(
    "lock_wait",
    at="not_reset altered",
    also="dirty_return",
    long_after=30,
    world=POSTGRES,
    pool_reset_on_return=None,
)
def alter_waits_for_an_idle_connection(zoo: Any) -> None:
    """ALTER TABLE waits for a reader whose connection is long back in the pool.

    un-fao/GeoID #1233.
    """
    begun, go = threading.Event(), threading.Event()
    started(alter, zoo.engine, begun, go)
    begun.wait()
    read_metrics(zoo.engine)
    go.set()
    zoo.go_on()


def book(pool: Any) -> None:
    connection = pool.getconn()  # site: literal_begin
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("BEGIN")
    cursor.execute("UPDATE accounts SET balance = 0 WHERE id = 1")
    pool.putconn(connection)


@fault("dirty_return", at="literal_begin", long_after=30, world=POSTGRES)
def begin_in_autocommit_mode(zoo: Any) -> None:
    """psycopg2 rolls nothing back in autocommit mode, where BEGIN was sent as text.

    psycopg/psycopg2 #941, #1022.
    """
    pool = psycopg2.pool.ThreadedConnectionPool(1, 2, zoo.dsn)
    poolwatch.instrument(pool, name="bookings", long_after=30)
    book(pool)
    zoo.go_on()


# -- LISTEN ---------------------------------------------------------------------------


def subscribe(engine: Engine) -> None:
    with engine.connect() as connection:  # site: subscribed
        connection.execute(text("LISTEN orders"))
        connection.commit()


@fault("dirty_return", at="subscribed", long_after=30, world=POSTGRES)
def listening_connection_returned(zoo: Any) -> None:
    """The next user of the connection gets the notifications, or nobody does.

    MagicStack/asyncpg #189, cheatfate/asyncpg #5.
    """
    subscribe(zoo.engine)
    zoo.go_on()


def listen_for_orders(pool: Any) -> None:
    connection = pool.getconn()  # site: listened
    connection.autocommit = True
    connection.cursor().execute("LISTEN orders")
    pool.putconn(connection)


@fault("dirty_return", at="listened", long_after=30, world=POSTGRES)
def listening_in_a_psycopg2_pool(zoo: Any) -> None:
    """The same with a pool whose statements are not seen.

    psycopg/psycopg2 #1679: a pool for LISTEN.
    """
    pool = psycopg2.pool.ThreadedConnectionPool(1, 2, zoo.dsn)
    poolwatch.instrument(pool, name="events", long_after=30)
    listen_for_orders(pool)
    zoo.go_on()


# -- blockers that are no hold --------------------------------------------------------

PSQL = """
import sys, psycopg2
connection = psycopg2.connect(sys.argv[1], application_name="psql")
connection.cursor().execute("SELECT * FROM accounts WHERE owner = 'ada' FOR UPDATE")
print("locked", flush=True)
input()
"""


@fault("lock_wait", at="update_waits", long_after=30, world=POSTGRES)
def a_foreign_session_blocks(zoo: Any) -> None:
    """Somebody's psql has a transaction open.

    apache/superset #6606.
    """
    psql = subprocess.Popen(
        [sys.executable, "-c", PSQL, zoo.dsn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert psql.stdout is not None
    psql.stdout.readline()
    with zoo.engine.begin() as connection:  # site: update_waits
        connection.execute(text("UPDATE accounts SET balance = 0"))


def read_behind(engine: Engine) -> None:
    with engine.connect() as connection:  # site: reads_behind
        time.sleep(0.5)  # until the ALTER has queued
        connection.execute(text("SELECT * FROM accounts"))


@fault(
    "lock_wait",
    at="not_reset altered reads_behind",
    also="dirty_return",
    long_after=30,
    world=POSTGRES,
    pool_reset_on_return=None,
)
def a_convoy_behind_an_idle_connection(zoo: Any) -> None:
    """Readers queue behind an ALTER TABLE, which waits for an idle connection.

    strelov1/freehire #1284, un-fao/GeoID #1233.
    """
    begun, go = threading.Event(), threading.Event()
    started(alter, zoo.engine, begun, go)
    begun.wait()
    read_metrics(zoo.engine)
    go.set()
    other = zoo.new_engine("readers", pool_reset_on_return="rollback")
    read_behind(other)


# -- innocents ------------------------------------------------------------------------


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def locks_of_transactions(zoo: Any) -> None:
    """Transaction-level advisory locks end with their transaction.

    manavgup/wikimind #668, the repair.
    """

    def job() -> None:
        while True:
            with zoo.engine.begin() as connection:
                connection.execute(XACT_LOCK)
                connection.execute(QUERY)
            time.sleep(0.02)

    job()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def unlocked_in_finally(zoo: Any) -> None:
    """A session lock is released before its connection goes back.

    epam/statgpt-backend #583, the repair.
    """
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(LOCK)
            try:
                connection.execute(QUERY)
            finally:
                connection.execute(UNLOCK)
                connection.commit()
        time.sleep(0.3)


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def unlocked_and_idle(zoo: Any) -> None:
    """The same once; then the connection lies in the pool for long.

    adonisjs/lucid #1153, the repair.
    """
    with zoo.engine.connect() as connection:
        connection.execute(LOCK)
        connection.execute(UNLOCK)
        connection.commit()
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def migration_on_its_own_connection(zoo: Any) -> None:
    """A dedicated connection has the lock, and the server ends it with the session.

    rhesis-ai/rhesis #2574.
    """
    engine = zoo.new_engine("migration", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(LOCK)
        connection.commit()
        connection.execute(QUERY)
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    zoo.go_on()


@innocent(world=POSTGRES, seen=1, lasts=LONG)
def leader_with_an_open_hold(zoo: Any) -> None:
    """A leader holds its connection as long as its lock, in autocommit mode.

    skypilot-org/skypilot #10251, the repair.
    """
    connection = zoo.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.execute(LOCK)
    while True:
        time.sleep(0.3)
        connection.execute(PING)


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def unlocked_by_a_reset_hook(zoo: Any) -> None:
    """The pool itself releases all locks when a connection comes back.

    multigres/multigres #1121.
    """

    def reset(dbapi_connection: Any, record: Any, state: Any) -> None:
        dbapi_connection.rollback()
        dbapi_connection.cursor().execute("SELECT pg_advisory_unlock_all()")
        dbapi_connection.commit()

    event.listen(zoo.engine, "reset", reset)
    migrate(zoo.engine)
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
async def asyncpg_resets_its_connections(zoo: Any) -> None:
    """asyncpg's own pool ends locks, transactions and LISTEN at each return.

    MagicStack/asyncpg #189.
    """
    import asyncpg

    pool = await asyncpg.create_pool(zoo.dsn, min_size=1, max_size=2)
    poolwatch.instrument(pool, name="asyncpg", long_after=30)
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute("LISTEN orders")
        await connection.execute("BEGIN")
    await asyncio.sleep(30)


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def psycopg_pool_rolls_back(zoo: Any) -> None:
    """psycopg_pool ends the transaction of a connection that comes back.

    psycopg/psycopg #144.
    """
    pool = ConnectionPool(zoo.dsn, min_size=1, max_size=2, open=False)
    poolwatch.instrument(pool, name="reports", long_after=30)
    pool.open()
    connection = pool.getconn()
    connection.execute("UPDATE accounts SET balance = 0")
    pool.putconn(connection)
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def psycopg2_pool_rolls_back(zoo: Any) -> None:
    """psycopg2's pool does so, too, outside autocommit mode.

    psycopg/psycopg2 #1022.
    """
    pool = psycopg2.pool.ThreadedConnectionPool(1, 2, zoo.dsn)
    poolwatch.instrument(pool, name="reports", long_after=30)
    connection = pool.getconn()
    connection.cursor().execute("UPDATE accounts SET balance = 0")
    pool.putconn(connection)
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def listen_that_was_rolled_back(zoo: Any) -> None:
    """LISTEN begins with the commit: the rollback of the return undoes it.

    psycopg/psycopg #1038.
    """
    with zoo.engine.connect() as connection:
        connection.execute(text("LISTEN orders"))
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def unlistened(zoo: Any) -> None:
    """The listener leaves its channels before its connection goes back."""
    with zoo.engine.connect() as connection:
        connection.execute(text("LISTEN orders"))
        connection.commit()
        connection.execute(text("UNLISTEN *"))
        connection.commit()
    zoo.go_on()


@innocent(world=POSTGRES, seen=1, lasts=LONG)
def listener_of_its_own(zoo: Any) -> None:
    """A listener keeps its connection, declared as such.

    psycopg/psycopg #1310.
    """
    with poolwatch.long_hold("LISTEN orders"):
        connection = zoo.engine.connect()
    connection.execute(text("LISTEN orders"))
    connection.commit()
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def a_declared_lock_comes_back(zoo: Any) -> None:
    """A lock that is meant to stay with the pool's only connection, declared.

    neochaotic/leoflow #1199.
    """
    with (
        poolwatch.long_hold("the scheduler's lock"),
        zoo.engine.connect() as connection,
    ):
        connection.execute(LOCK)
        connection.commit()
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def autocommit_without_a_reset(zoo: Any) -> None:
    """reset_on_return=None is right in autocommit mode: no transaction is ever open.

    sqlalchemy/sqlalchemy #5519.
    """
    engine = zoo.new_engine(
        "reader", pool_reset_on_return=None, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM accounts"))
    zoo.go_on()


@innocent(world=POSTGRES, seen=0, lasts=LONG)
def foreign_locks(zoo: Any) -> None:
    """Another program on the same database has locks of its own, and nobody waits."""
    engine = create_engine(zoo.dsn)
    other = engine.connect()
    other.execute(text("SELECT pg_advisory_lock(1)"))
    with closing(zoo.engine.connect()) as connection:
        connection.execute(PING)
    zoo.go_on()
