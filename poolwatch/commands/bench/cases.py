"""The cases: ways to get a connection, and workloads that use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.pool
from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool

import poolwatch

Connect = Callable[[], AbstractContextManager[Any]]
"""Checks out a DBAPI connection for one operation."""


# -- ways --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """A way to get a connection: a new one each time, or one from a pool."""

    name: str
    open: Callable[[URL], AbstractContextManager[Connect]]
    """Creates the pool, if there is one, and closes it at the end."""


def _libpq(url: URL) -> str:
    """Return the URL in libpq's format."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def _psycopg2_new(url: URL) -> Iterator[Connect]:
    yield lambda: closing(psycopg2.connect(_libpq(url)))


@contextmanager
def _psycopg2_pool(url: URL) -> Iterator[Connect]:
    pool = psycopg2.pool.ThreadedConnectionPool(1, 5, _libpq(url))

    @contextmanager
    def connect() -> Iterator[Any]:
        connection = pool.getconn()
        try:
            yield connection
        finally:
            pool.putconn(connection)

    try:
        yield connect
    finally:
        pool.closeall()


@contextmanager
def _psycopg_pool(url: URL) -> Iterator[Connect]:
    from psycopg_pool import ConnectionPool

    with ConnectionPool(_libpq(url), min_size=1, max_size=5, open=True) as pool:
        pool.wait()
        yield pool.connection


def _sqlalchemy(*, instrumented: bool = False, **settings: Any) -> Any:
    @contextmanager
    def open_engine(url: URL) -> Iterator[Connect]:
        engine = create_engine(url, **settings)
        if instrumented:
            poolwatch.instrument(engine, name="bench")

        try:
            yield lambda: closing(engine.raw_connection())
        finally:
            if instrumented:
                poolwatch.uninstrument(engine)
            engine.dispose()

    return open_engine


NEW = Way("a new connection each time (psycopg2)", _psycopg2_new)
POOLED = Way("SQLAlchemy's pool", _sqlalchemy(pool_size=5))
"""The baseline that the other ways are compared with."""
_WAYS = (
    NEW,
    Way("SQLAlchemy without a pool (NullPool)", _sqlalchemy(poolclass=NullPool)),
    Way("psycopg2.pool.ThreadedConnectionPool", _psycopg2_pool),
    POOLED,
    Way("SQLAlchemy's pool, pre-ping", _sqlalchemy(pool_size=5, pool_pre_ping=True)),
    Way(
        "SQLAlchemy's pool, with poolwatch", _sqlalchemy(pool_size=5, instrumented=True)
    ),
)


def ways() -> tuple[Way, ...]:
    """Return the ways whose libraries are installed."""
    try:
        import psycopg_pool  # noqa: F401 - whether it is installed
    except ImportError:
        return _WAYS
    return (*_WAYS[:3], Way("psycopg_pool.ConnectionPool", _psycopg_pool), *_WAYS[3:])


# -- workloads ---------------------------------------------------------------------

_TABLE = "poolwatch_bench"
CREATE = f"""
CREATE UNLOGGED TABLE IF NOT EXISTS {_TABLE} (
  id integer PRIMARY KEY, title text NOT NULL, body jsonb NOT NULL
)"""
DROP = f"DROP TABLE IF EXISTS {_TABLE}"
_UPSERT = (
    f"INSERT INTO {_TABLE} (id, title, body) VALUES (%s, %s, %s) "  # noqa: S608 - our own name
    "ON CONFLICT (id) DO UPDATE SET title = EXCLUDED.title, body = EXCLUDED.body"
)


@dataclass(frozen=True, slots=True)
class Workload:
    """An operation on a connection, and how often to run it."""

    name: str
    operations: int
    run: Callable[[Connect, int], None]
    """Runs the given number of operations."""


def _checkouts(connect: Connect, operations: int) -> None:
    for _ in range(operations):
        with connect() as connection:
            _execute(connection, "SELECT 1", ())
            connection.rollback()


def _documents(connect: Connect, operations: int) -> None:
    """Check out a connection for each document, a common mistake."""
    for number in range(operations):
        body = json.dumps({"number": number, "words": ["pool"] * 20})
        with connect() as connection:
            _execute(connection, _UPSERT, (number, f"document {number}", body))
            connection.commit()


def _execute(connection: Any, statement: str, values: tuple[Any, ...]) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(statement, values)
    finally:
        cursor.close()


def workloads(operations: int) -> tuple[Workload, ...]:
    """Return the workloads, with ``operations`` operations each."""
    return (
        Workload("check out, SELECT 1", operations, _checkouts),
        Workload(f"ETL of {operations:,} documents", operations, _documents),
    )
