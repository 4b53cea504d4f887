"""The application's log says once that a server is down, and once that it is back.

No viewer is there: it is seen from what the pools raise.
"""

from __future__ import annotations

import asyncio
import logging

import asyncpg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from poolwatch.agent.instrument import agent
from poolwatch.errors import ServerDownError
from poolwatch.postgres.errors import as_failure


@pytest.fixture
def said(caplog):
    """What poolwatch has logged so far, once the agent's thread has looked."""
    caplog.set_level(logging.INFO, "poolwatch")

    def messages():
        agent.outages.check(agent.ledger.pools.values())
        return [
            each.getMessage() for each in caplog.records if each.name == "poolwatch"
        ]

    return messages


def connect_of(kind, server):
    """A pool of this kind: what is instrumented, and a call that takes a connection."""
    if kind == "psycopg2.pool":
        from psycopg2.pool import SimpleConnectionPool

        pool = SimpleConnectionPool(0, 3, server.dsn)
        return pool, lambda: pool.putconn(pool.getconn(), close=True)
    if kind.startswith("async"):
        made = create_async_engine(server.url(kind.partition(" ")[2]), pool_size=1)

        async def once():
            try:
                async with made.connect():
                    pass
            finally:
                await made.dispose()

        return made, lambda: asyncio.run(once())
    engine = create_engine(server.url(kind), pool_size=1, pool_pre_ping=True)

    def once_more():
        with engine.connect():
            pass
        engine.dispose()

    return engine, once_more


KINDS = ["psycopg2", "psycopg", "pg8000", "async asyncpg", "async psycopg"]


@pytest.mark.parametrize("kind", [*KINDS, "psycopg2.pool"])
def test_once_down_and_once_back(instrument, said, start_postgres, kind):
    server = start_postgres().over_tcp()
    target, connect = connect_of(kind, server)
    instrument(target, name="orders")
    connect()
    server.stop("immediate")
    for _ in range(3):
        with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own
            connect()
    (down,) = said()
    where = f"127.0.0.1:{server.port}"
    assert down.startswith(f"PostgreSQL at {where} does not answer: ")
    assert down.endswith("(pool 'orders')")
    server.start()
    connect()
    said()
    assert [each for each in said() if each != down] == [
        each for each in said() if "answers again, after" in each
    ]
    assert len(said()) == 2


def test_a_pool_of_asyncpg(instrument, said, start_postgres):
    """asyncpg lets the errors of a socket pass as they are."""
    server = start_postgres().over_tcp()

    async def down():
        dsn = server.url("asyncpg").replace("+asyncpg", "")
        async with asyncpg.create_pool(dsn, min_size=0, max_size=1) as pool:
            instrument(pool, name="orders")
            server.stop("immediate")
            with pytest.raises(ConnectionRefusedError):
                await pool.acquire()

    asyncio.run(down())
    (line,) = said()
    assert line.startswith(f"PostgreSQL at 127.0.0.1:{server.port} does not answer: ")


def test_two_databases_of_one_server_are_one_line(instrument, said, start_postgres):
    server = start_postgres()
    server.execute("create database other")
    engines = [
        create_engine(server.url().replace(a, b))
        for a, b in (("", ""), ("/postgres?", "/other?"))
    ]
    for engine in engines:
        instrument(engine)
    server.stop("immediate")
    for engine in engines:
        with pytest.raises(Exception, match="No such file"):
            engine.connect()
    assert len(said()) == 1


def test_what_is_no_outage(instrument, said, postgres):
    """A wrong database, and whatever the application itself raises: its words are its
    own, and are not even asked for."""
    missing = create_engine(postgres.url().replace("/postgres?", "/missing?"))
    instrument(missing)
    with pytest.raises(Exception, match="does not exist"):
        missing.connect()
    asked = []

    class RefusedError(ConnectionRefusedError):
        def __str__(self):
            asked.append("str")
            return "connection refused"

        @property
        def sqlstate(self):
            asked.append("sqlstate")
            return "57P03"

    def creator():
        raise RefusedError

    broken = create_engine("postgresql+psycopg2://", creator=creator)
    instrument(broken)
    with pytest.raises(RefusedError):
        broken.connect()
    asked.clear()  # pytest may have looked
    with pytest.raises(RefusedError):
        broken.connect()
    assert said() == []
    assert asked == []


def test_an_exception_that_a_drivers_came_from_is_not_looked_at():
    import psycopg2

    class SpyError(Exception):
        def __str__(self):
            raise AssertionError("looked at")

    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect("host=127.0.0.1 port=1")
    caught.value.__context__ = SpyError()
    failure = as_failure(caught.value, alone=True)
    assert isinstance(failure, ServerDownError)
    assert failure.words == "connection refused"
