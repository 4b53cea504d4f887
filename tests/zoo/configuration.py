"""Pools that are set up wrong before anything happens, at the line that makes them."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from psycopg_pool import NullConnectionPool
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import sessionmaker
from zoo.app import PING, QUERY
from zoo.registry import ASYNCPG, NEVER, POSTGRES, fault

import poolwatch


def serve(engine: Engine) -> None:
    while True:
        with engine.connect() as connection:
            connection.execute(QUERY)
        time.sleep(0.01)


def start(target: Any, *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()


@fault("over_capacity", at="size_zero", long_after=NEVER, world=POSTGRES)
def pool_size_zero(zoo: Any) -> None:
    """pool_size=0 is meant to keep nothing and lends without a limit: the max_overflow
    beside it is discarded (sqlalchemy #8523, GSA/catalog.data.gov #490).
    """
    zoo.watch_everything()
    engine = create_engine(zoo.url, pool_size=0, max_overflow=5)  # site: size_zero
    serve(engine)


@fault("over_capacity", at="overflow_without_end", long_after=NEVER, world=POSTGRES)
def overflow_without_end(zoo: Any) -> None:
    """After an outage max_overflow becomes -1 (alan-turing-institute/CROP #369,
    apache/superset #30286).
    """
    zoo.watch_everything()
    engine = create_engine(  # site: overflow_without_end
        zoo.url, pool_size=20, max_overflow=-1
    )
    serve(engine)


@fault("over_capacity", at="async_overflow", long_after=NEVER, world=ASYNCPG)
async def async_overflow_without_end(zoo: Any) -> None:
    """The same on an asynchronous engine (CTFd/CTFd #1380)."""
    zoo.watch_everything()
    engine = create_async_engine(zoo.url, max_overflow=-1)  # site: async_overflow
    while True:
        async with engine.connect() as connection:
            await connection.execute(QUERY)


@fault("over_capacity", at="made_before", long_after=NEVER, world=POSTGRES)
def instrumented_afterwards(zoo: Any) -> None:
    """The usual way to instrument: one line below the engine, which has no limit
    (CTFd/CTFd #1380).
    """
    engine = create_engine(zoo.url, pool_size=0)  # site: made_before
    poolwatch.instrument(engine)
    serve(engine)


@fault("over_capacity", at="hundreds", long_after=NEVER, world=POSTGRES)
def larger_than_the_server(zoo: Any) -> None:
    """One pool may open more than max_connections, which is 200 here
    (TracecatHQ/tracecat #1034).
    """
    zoo.watch_everything()
    engine = create_engine(zoo.url, pool_size=100, max_overflow=150)  # site: hundreds
    serve(engine)


def database_module(url: str) -> AsyncEngine:
    return create_async_engine(url)  # site: db_session


def user_model_module(url: str) -> AsyncEngine:
    return create_async_engine(url)  # site: user_model


@fault("duplicate_pool", at="db_session user_model", long_after=NEVER, world=ASYNCPG)
async def two_modules_two_engines(zoo: Any) -> None:
    """Two modules make an engine of their own for one database
    (transformerlab/transformerlab-app #1452).
    """
    zoo.watch_everything()
    engines = database_module(zoo.url), user_model_module(zoo.url)

    async def handle(engine: AsyncEngine) -> None:
        while True:
            async with AsyncSession(engine) as session:
                await session.execute(QUERY)

    await asyncio.gather(*(handle(engine) for engine in engines))


class SessionStore:
    """Of a web framework's extension: it takes a URL, and makes an engine of it."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)  # site: session_store

    def save(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(PING)


@fault(
    "duplicate_pool", at="application session_store", long_after=NEVER, world=POSTGRES
)
def store_with_an_engine_of_its_own(zoo: Any) -> None:
    """The session store doubles the connections of the application
    (bbangert/beaker #96, gnosis/prediction-market-agent-tooling #551).
    """
    zoo.watch_everything()
    engine = create_engine(zoo.url)  # site: application
    make_session = sessionmaker(engine)
    store = SessionStore(zoo.url)
    while True:
        with make_session() as session:
            session.execute(QUERY)
        store.save()


@fault("unpooled", at="null_pool", long_after=NEVER, world=POSTGRES)
def null_pool_for_every_request(zoo: Any) -> None:
    """NullPool in a web service: each request pays for a connection
    (supabase/supavisor #287, censusreporter/censusreporter #27).
    """
    zoo.watch_everything()
    engine = create_engine(zoo.url, poolclass=NullPool)  # site: null_pool
    for _ in range(3):
        start(serve, engine)
    zoo.go_on()


@fault("unpooled", at="null_connection_pool", long_after=NEVER, world=POSTGRES)
def null_connection_pool(zoo: Any) -> None:
    """The same with psycopg_pool (psycopg/psycopg #651)."""
    zoo.watch_everything()
    pool = NullConnectionPool(zoo.dsn, max_size=5)  # site: null_connection_pool

    def work() -> None:
        while True:
            with pool.connection() as connection:
                connection.execute("SELECT pg_sleep(0.02)")

    for _ in range(3):
        start(work)
    zoo.go_on()
