"""Innocents that look like pools that are set up wrong."""

from __future__ import annotations

import threading
import time
from typing import Any

from psycopg_pool import ConnectionPool
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from zoo.app import PING, QUERY
from zoo.registry import POSTGRES, PSYCOPG, innocent

import poolwatch


def use(*engines: Engine) -> None:
    """Take turns; a little longer than a service needs to be judged."""
    while True:
        for engine in engines:
            with engine.begin() as connection:
                connection.execute(QUERY)


@innocent(seen=0, world=POSTGRES)
def no_overflow(zoo: Any) -> None:
    """max_overflow=0 is a limit: the other zero is none (sqlalchemy #8523)."""
    zoo.watch_everything()
    use(create_engine(zoo.url, pool_size=20, max_overflow=0))


@innocent(seen=0)
def unlimited_on_a_file(zoo: Any) -> None:
    """SQLite has no server that could run out of connections."""
    zoo.watch_everything()
    engine = create_engine(zoo.url, pool_size=0)
    while True:
        with engine.connect() as connection:
            connection.execute(PING)
        time.sleep(0.05)


@innocent(seen=0, world=PSYCOPG)
async def sync_beside_async(zoo: Any) -> None:
    """One URL, an asynchronous engine for requests and a synchronous one for scripts:
    no engine can be both (procrastinate-org/procrastinate #445).
    """
    zoo.watch_everything()
    asynchronous = create_async_engine(zoo.url)
    synchronous = create_engine(zoo.url)
    while True:
        async with asynchronous.connect() as connection:
            await connection.execute(QUERY)
        with synchronous.connect() as connection:
            connection.execute(PING)


@innocent(seen=0, world=POSTGRES)
def reports_in_autocommit(zoo: Any) -> None:
    """An engine for transactions and one for maintenance statements outside of them."""
    zoo.watch_everything()
    transactions = create_engine(zoo.url)
    maintenance = create_engine(zoo.url, isolation_level="AUTOCOMMIT")
    use(transactions, maintenance)


@innocent(seen=0, world=POSTGRES)
def small_pool_for_jobs(zoo: Any) -> None:
    """Background jobs have a small pool of their own, so that they cannot take the
    connections of requests: each pool has its size on purpose.
    """
    zoo.watch_everything()
    requests = create_engine(zoo.url, pool_size=10)
    jobs = create_engine(zoo.url, pool_size=2, max_overflow=0)
    use(requests, jobs)


@innocent(seen=0, world=POSTGRES)
def named_pools(zoo: Any) -> None:
    """Two engines with equal options and names of their own are meant to be two."""
    zoo.watch_everything()
    use(
        create_engine(zoo.url, pool_logging_name="api"),
        create_engine(zoo.url, pool_logging_name="admin"),
    )


@innocent(seen=0, world=POSTGRES)
def engine_per_tenant(zoo: Any) -> None:
    """Each tenant's engine sees its own schema."""
    zoo.watch_everything()
    one = create_engine(zoo.url, connect_args={"options": "-c search_path=tenant_a"})
    two = create_engine(zoo.url, connect_args={"options": "-c search_path=tenant_b"})
    use(one, two)


@innocent(seen=0, world=POSTGRES)
def tenants_by_schema_translation(zoo: Any) -> None:
    """The same by SQLAlchemy's own means."""
    zoo.watch_everything()
    one = create_engine(
        zoo.url, execution_options={"schema_translate_map": {None: "public"}}
    )
    two = create_engine(
        zoo.url, execution_options={"schema_translate_map": {None: "other"}}
    )
    use(one, two)


@innocent(seen=0, world=POSTGRES)
def settings_were_reloaded(zoo: Any) -> None:
    """A new engine replaces the old one, which still has a connection and is used no
    more.
    """
    zoo.watch_everything()
    before = create_engine(zoo.url)
    with before.connect() as connection:
        connection.execute(PING)
    after = create_engine(zoo.url)
    use(after)
    before.dispose()


@innocent(seen=0, world=POSTGRES)
def options_share_the_pool(zoo: Any) -> None:
    """An engine with execution options is no second pool."""
    zoo.watch_everything()
    engine = create_engine(zoo.url)
    use(engine, engine.execution_options(isolation_level="AUTOCOMMIT"))


@innocent(seen=0, world=POSTGRES)
def null_pool_for_a_cron_job(zoo: Any) -> None:
    """NullPool where connections are rare: nothing is lost (apache/superset #4251)."""
    zoo.watch_everything()
    engine = create_engine(zoo.url, poolclass=NullPool)
    while True:
        with engine.begin() as connection:
            connection.execute(QUERY)
        time.sleep(0.3)


@innocent(seen=0, world=PSYCOPG)
def pool_over_a_pool(zoo: Any) -> None:
    """NullPool over psycopg_pool: its connections come from the pool below, and a wait
    there opens none.
    """
    pool = ConnectionPool(zoo.dsn, min_size=2, max_size=2, close_returns=True)
    engine = create_engine(
        "postgresql+psycopg://", creator=pool.getconn, poolclass=NullPool
    )
    poolwatch.instrument(engine, server_view=False)

    def work() -> None:
        while True:
            with engine.connect() as connection:
                connection.execute(text("SELECT pg_sleep(0.004)"))

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    zoo.go_on()
